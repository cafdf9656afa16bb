from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gateway.backend import Secret
from gateway.errors import BadRequest
from gateway.operations import accounts_file
from gateway.operations.accounts_file import ACCOUNTS, AUTHENTICATED, REMEMBERED, Account, Remembered, key_of, listed, mark_of, move, told_of_accounts
from gateway.secrets import KeyHasher

HASHER = KeyHasher(b"p" * 32)


def pairs(directory: Path) -> list[tuple[str, str, bool]]:
    return [(each.email, each.password.reveal(), each.waits) for each in listed(directory).accounts]


def test_passwords_are_what_stands_behind_the_first_colon(tmp_path: Path) -> None:
    (tmp_path / ACCOUNTS).write_bytes("\ufeffa@b.c:p:w:x\r\n\n  \n# c@d.e:off\nd@e.f: q \n g@h.i :ä\u2028&+\x85\n".encode())
    assert pairs(tmp_path) == [("a@b.c", "p:w:x", True), ("d@e.f", " q ", True), ("g@h.i", "ä\u2028&+\x85", True)]
    assert listed(tmp_path).problems == ()
    assert "p:w" not in repr(listed(tmp_path))
    assert "a@b.c" not in repr(listed(tmp_path))


@pytest.mark.parametrize("line", [b"canary", b":canary", b"canary@b.c:", b"canary\xff@b.c:x", b"canary:\xff", b"can\x07ary@b.c:x", b"a@b.c:canary\0"])
def test_line_that_is_no_account_is_told_by_its_number_and_hides_no_other(tmp_path: Path, line: bytes) -> None:
    (tmp_path / ACCOUNTS).write_bytes(b"first@b.c:x\n" + line + b"\nlast@b.c:y\n")
    assert pairs(tmp_path) == [("first@b.c", "x", True), ("last@b.c", "y", True)]
    assert listed(tmp_path).problems == ("accounts.txt, line 2: it must be email:password, in UTF-8; the other lines count",)


def test_many_wrong_lines_are_one_line(tmp_path: Path) -> None:
    (tmp_path / ACCOUNTS).write_text("x\n" * 9)
    assert listed(tmp_path).problems == ("accounts.txt, line 1, 2, 3, 4, 5 and 4 more: it must be email:password, in UTF-8; the other lines count",)


def test_files_of_another_encoding_hold_nobody(tmp_path: Path) -> None:
    (tmp_path / ACCOUNTS).write_bytes("a@b.c:canary\nd@e.f:canary\n".encode("utf-16"))
    assert pairs(tmp_path) == []
    assert "canary" not in "".join(listed(tmp_path).problems)


def test_directory_of_that_name_is_told_and_the_other_file_counts(tmp_path: Path) -> None:
    (tmp_path / ACCOUNTS).mkdir()
    (tmp_path / AUTHENTICATED).write_text("a@b.c:x\n")
    found = listed(tmp_path)
    assert (found.problems, found.whole, pairs(tmp_path)) == (("accounts.txt cannot be read: Is a directory",), False, [("a@b.c", "x", False)])


def test_account_of_both_files_waits_with_its_newer_password(tmp_path: Path) -> None:
    (tmp_path / AUTHENTICATED).write_text("A@b.c:old\nd@e.f:x\n")
    (tmp_path / ACCOUNTS).write_text("a@b.c:new\n")
    assert pairs(tmp_path) == [("a@b.c", "new", True), ("d@e.f", "x", False)]


def test_nothing_is_listed_where_nothing_is(tmp_path: Path) -> None:
    found = listed(tmp_path)
    assert (found.accounts, found.moves, found.problems, found.whole) == ((), False, (), True)


def test_moved_line_takes_the_older_ones_place_and_leaves_every_other_byte(tmp_path: Path) -> None:
    (tmp_path / ACCOUNTS).write_bytes(b"\xef\xbb\xbfnonsense\xff\r\na@b.c:n:ew\r\n\n#x\nd@e.f:y")
    (tmp_path / AUTHENTICATED).write_bytes(b"\xfe\nA@B.C:old\ng@h.i:z")
    move(tmp_path, Account("a@b.c", Secret("n:ew")))
    assert (tmp_path / ACCOUNTS).read_bytes() == b"\xef\xbb\xbfnonsense\xff\r\n\n#x\nd@e.f:y"
    assert (tmp_path / AUTHENTICATED).read_bytes() == b"\xfe\ng@h.i:z\na@b.c:n:ew\n"
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (ACCOUNTS, AUTHENTICATED)} == {0o600}
    assert sorted(each.name for each in tmp_path.iterdir()) == [ACCOUNTS, AUTHENTICATED]


def test_line_that_changed_meanwhile_is_not_moved(tmp_path: Path) -> None:
    (tmp_path / ACCOUNTS).write_text("a@b.c:new\n")
    (tmp_path / AUTHENTICATED).touch()
    move(tmp_path, Account("a@b.c", Secret("old")))
    assert ((tmp_path / ACCOUNTS).read_text(), (tmp_path / AUTHENTICATED).read_text()) == ("a@b.c:new\n", "")


def test_line_is_in_one_of_the_files_whatever_breaks(tmp_path: Path) -> None:
    (tmp_path / ACCOUNTS).write_text("a@b.c:x\n")
    (tmp_path / AUTHENTICATED).mkdir()
    with pytest.raises(BadRequest, match=r"authenticated_accounts\.txt cannot be read"):
        move(tmp_path, Account("a@b.c", Secret("x")))
    assert (tmp_path / ACCOUNTS).read_text() == "a@b.c:x\n"


def test_what_is_remembered_is_neither_address_nor_password(tmp_path: Path) -> None:
    account = Account("canary@b.c", Secret("pass-canary"))
    known = {key_of(HASHER, account): Remembered(mark_of(HASHER, account), 5, 3, "credential:1-2", 0)}
    accounts_file.remember(tmp_path, known)
    assert accounts_file.remembered(tmp_path) == known
    path = tmp_path / REMEMBERED
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "canary" not in path.read_text()
    assert mark_of(HASHER, account) != mark_of(KeyHasher(b"q" * 32), account)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"a":{"mark":1}}', b'{"a":{}}', b"\xff", b"[" * 100_000])
def test_memory_that_is_broken_is_none(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / REMEMBERED).write_bytes(raw)
    assert accounts_file.remembered(tmp_path) == {}


def test_operator_is_told_who_waits_and_who_failed(tmp_path: Path) -> None:
    (tmp_path / ACCOUNTS).write_text("a@b.c:x\nd@e.f:y\ng@h.i:new\n")
    assert list(told_of_accounts(tmp_path, HASHER)) == ["accounts.txt: 3 accounts wait to be signed in"]
    done, failed, older = Account("a@b.c", Secret("x")), Account("d@e.f", Secret("y")), Account("g@h.i", Secret("old"))
    known = {key_of(HASHER, done): Remembered(mark_of(HASHER, done), 9, 1), key_of(HASHER, failed): Remembered(mark_of(HASHER, failed), 9, None, "", 2)}
    known |= {key_of(HASHER, older): Remembered(mark_of(HASHER, older), 9, 1)}
    accounts_file.remember(tmp_path, known)
    assert list(told_of_accounts(tmp_path, HASHER)) == ["accounts.txt: 2 accounts wait to be signed in; the last try of 1 accounts failed"]
