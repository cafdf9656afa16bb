from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from gateway.backend import Secret
from gateway.errors import BadRequest
from gateway.operations import token_files
from gateway.operations.token_files import AccessToken, ApiKeysFile


def test_proxies_are_urls_or_the_older_forms() -> None:
    raw = b"\xef\xbb\xbfhttp://a:1\r\nsocks5h://u:p@b:2\n\nno colon\n# c:1\nc:3\nd:4:user:p@ss:word\n"
    assert [each.url for each in token_files.read_proxies(raw)] == ["http://a:1", "socks5h://u:p@b:2", "socks5://c:3", "socks5://user:p%40ss%3Aword@d:4"]


@pytest.mark.parametrize("line", ["ftp://canary:1", "host:nonumber", "host:1:canary", "http://u:canary@host"])
def test_wrong_proxy_is_told_by_its_line_and_not_repeated(line: str) -> None:
    with pytest.raises(BadRequest, match=r"proxies\.txt, line 2: ") as refused:
        token_files.read_proxies(f"a:1\n{line}\n".encode())
    assert "canary" not in str(refused.value)


def test_tokens_are_written_whole_and_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "access_tokens.json"
    path.write_text("[]")
    path.chmod(0o644)
    token_files.write_tokens(tmp_path, [AccessToken(Secret("t"), Secret("p")), AccessToken(Secret("u"))])
    assert json.loads(path.read_text()) == [{"token": "t", "puid": "p"}, {"token": "u", "puid": ""}]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["access_tokens.json"]


def test_old_tokens_stay_where_new_ones_cannot_be_put_in_their_place(tmp_path: Path) -> None:
    (tmp_path / "access_tokens.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        token_files.write_tokens(tmp_path, [AccessToken(Secret("t"))])
    assert [each.name for each in tmp_path.iterdir()] == ["access_tokens.json"]


def test_missing_file_is_none_and_a_large_or_unreadable_one_is_an_error(tmp_path: Path) -> None:
    assert token_files.read_if_there(tmp_path / "none") is None
    (tmp_path / "large").write_bytes(b"a" * (token_files.MAX_BYTES + 1))
    with pytest.raises(BadRequest, match="large has more than 5 MB"):
        token_files.read_if_there(tmp_path / "large")
    with pytest.raises(BadRequest, match="cannot be read"):
        token_files.read_if_there(tmp_path)


def test_keys_follow_their_file(tmp_path: Path) -> None:
    keys = ApiKeysFile(tmp_path)
    assert (keys.in_use, keys.holds("")) == (False, False)
    path = tmp_path / "api_keys.txt"
    path.write_text(" a \n\nbb\n")
    assert (keys.in_use, keys.holds("a"), keys.holds("bb"), keys.holds("")) == (True, True, True, False)
    path.write_text("ccc\n")
    assert (keys.holds("a"), keys.holds("ccc")) == (False, True)
    path.unlink()
    assert (keys.in_use, keys.holds("ccc")) == (False, False)


def test_keys_that_cannot_be_read_let_nobody_in_and_leave_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "api_keys.txt").write_bytes(b"\xff\xfe\n")
    keys = ApiKeysFile(tmp_path)
    assert (keys.in_use, keys.holds("")) == (True, False)
