from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gateway.api.file_keys import OWN_TOKEN, FileKeys
from gateway.errors import SwitchedOff, Unauthenticated
from gateway.settings import Settings

TOKEN = OWN_TOKEN.removeprefix("Bearer ") + "sInR5cCI6IkpXVCJ9.e30.s"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def request(method: str = "POST", path: str = "/v1/chat/completions", shown: str = "", **more: str) -> dict[str, Any]:
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "REMOTE_ADDR": "127.0.0.1", **more}
    return environ | ({"HTTP_AUTHORIZATION": shown} if shown else {})


def placed(keys: FileKeys, environ: dict[str, Any]) -> bool:
    before = environ["PATH_INFO"]
    keys.place(environ)
    assert environ["PATH_INFO"] in (before, "/chatgpt-to-api" + before)
    return bool(environ["PATH_INFO"] != before)


def test_the_familys_own_routes_are_its_own_by_method_and_path(settings: Settings) -> None:
    keys = FileKeys(settings)
    assert all(placed(keys, request(*route)) for route in (("GET", "/ping"), ("PATCH", "/admin/tokens"), ("OPTIONS", "/v1/chat/completions")))
    others = (("POST", "/ping"), ("GET", "/admin/tokens"), ("POST", "/admin/users/add"), ("PATCH", "/admin/tokens/"), ("OPTIONS", "/v1/models"))
    assert not any(placed(keys, request(*route)) for route in others)


def test_shared_routes_are_the_familys_where_the_file_has_a_key_and_no_key_of_the_gateway_is_shown(settings: Settings) -> None:
    keys = FileKeys(settings)
    assert not placed(keys, request())
    (settings.data_dir / "api_keys.txt").write_text("\n\n")
    assert not placed(keys, request())
    (settings.data_dir / "api_keys.txt").write_text("a\n")
    assert placed(keys, request())
    assert placed(keys, request("GET", "/v1/models", "Bearer nonsense"))
    assert not placed(keys, request(shown="Bearer gw_user_nonsense"))
    assert not placed(keys, request(path="/v1/embeddings"))


@pytest.mark.parametrize(
    ("host", "peer", "header", "admitted"),
    [
        ("127.0.0.1", "127.0.0.1", "", True),
        ("::1", "::1", "", True),
        ("localhost", "127.0.0.1", "", True),
        ("0.0.0.0", "127.0.0.1", "", False),
        ("127.0.0.1", "203.0.113.7", "", False),
        ("127.0.0.1", "127.0.0.1", "HTTP_X_FORWARDED_FOR", False),
        ("127.0.0.1", "127.0.0.1", "HTTP_FORWARDED", False),
        ("127.0.0.1", "", "", False),
    ],
)
def test_open_rule_is_for_this_host_alone(settings: Settings, host: str, peer: str, header: str, admitted: bool) -> None:
    keys = FileKeys(dataclasses.replace(settings, chatgpt_to_api_open=True, host=host))
    environ = request(REMOTE_ADDR=peer, **({header: "203.0.113.7"} if header else {}))
    assert placed(keys, dict(environ)) is admitted
    if admitted:
        assert keys.admit(environ) is None
    else:
        with pytest.raises(SwitchedOff):
            keys.admit(environ)


def test_own_tokens_are_let_through_whatever_the_file_says(settings: Settings) -> None:
    keys = FileKeys(settings)
    for text in ("", "a\n"):
        (settings.data_dir / "api_keys.txt").write_text(text)
        token = keys.admit(request(shown=f"Bearer {TOKEN}"))
        assert token is not None
        assert token.reveal() == TOKEN


@pytest.mark.parametrize("shown", [TOKEN, f"Bearer {TOKEN} x", f"Bearer {TOKEN}é", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.s"])
def test_what_only_looks_like_an_own_token_is_none(settings: Settings, shown: str) -> None:
    (settings.data_dir / "api_keys.txt").write_text("a\n")
    with pytest.raises(Unauthenticated, match="Invalid"):
        FileKeys(settings).admit(request(shown=shown))


def test_keys_that_begin_as_official_ones_count_where_the_file_has_them(settings: Settings) -> None:
    (settings.data_dir / "api_keys.txt").write_text("sk-mine\n")
    assert FileKeys(settings).admit(request(shown="Bearer sk-mine")) is None
