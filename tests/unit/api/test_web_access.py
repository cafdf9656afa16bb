from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.api.web import policy
from gateway.backend import Secret
from gateway.store import accounts
from tests.unit.api.served import Served, Server, post_environ, serving


class Unread(io.BytesIO):
    def read(self, *_: object) -> bytes:
        raise AssertionError("read")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


@pytest.mark.parametrize("shown", [None, "sk-wrong", "gw_user_wrong"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m", "/v1/requests/x", "/v1/files"])
def test_route_of_a_key_is_refused_without_one(served: Served, path: str, shown: str | None) -> None:
    answer = served.ask("GET", path, key=shown)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"  # RFC 9110, section 15.5.2: a 401 must say how to authenticate


def test_key_is_judged_before_a_byte_of_the_body_is_read(served: Served) -> None:
    server = Server(served.app)
    told = server.call(post_environ(served, b"x" * 10, HTTP_AUTHORIZATION="Bearer wrong") | {"wsgi.input": Unread(b"x" * 10)})
    assert server.status.startswith("401")
    assert b"invalid_api_key" in told
    assert server.closes


def test_connection_is_kept_where_the_body_was_read(served: Served) -> None:
    server = Server(served.app)
    server.call(post_environ(served, b'{"model":"none"}'))
    assert server.status.startswith("404")
    assert not server.closes


def test_route_that_declares_no_policy_is_refused(served: Served) -> None:
    served.app.add_url_rule("/forgotten", "forgotten", lambda: "shown to all")
    assert served.ask("GET", "/forgotten").status_code == 403


def test_policy_is_the_views_own() -> None:
    assert getattr(policy("open")(lambda: None), "policy") == "open"  # noqa: B009


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("127.0.0.1", {"X-Forwarded-For": "1.2.3.4"}, 403),
        ("127.0.0.1", {"Forwarded": "for=1.2.3.4"}, 403),
        ("127.0.0.1", {"X-Real-Ip": "1.2.3.4"}, 403),
        ("10.0.0.1", {}, 403),
        ("127.0.0.1.evil", {}, 403),
        ("", {}, 403),
    ],
)
def test_metrics_answer_the_local_host_only(served: Served, address: str, headers: dict[str, str], status: int) -> None:
    answer = served.ask("GET", "/metrics", key=None, headers=headers, environ_base={"REMOTE_ADDR": address})
    assert answer.status_code == status


@pytest.mark.parametrize(("shown", "status"), [("metrics-token-0123", 200), ("metrics-token-012", 403), ("", 403), ("metr\xefcs-token-0123", 403)])
def test_metrics_token_is_asked_for_from_everywhere(tmp_path: Path, shown: str, status: int) -> None:
    with serving(tmp_path, metrics_token=Secret("metrics-token-0123")) as served:
        for address in ("127.0.0.1", "10.0.0.1"):
            answer = served.ask("GET", "/metrics", key=None, headers={"Authorization": f"Bearer {shown}"}, environ_base={"REMOTE_ADDR": address})
            assert answer.status_code == status


RESTRICTED = [
    ("POST", "/v1/chat/completions", {"inference"}),
    ("GET", "/v1/models", {"inference", "usage:read"}),
    ("GET", "/v1/models/m", {"inference", "usage:read"}),
    ("GET", "/v1/requests/x", {"usage:read"}),
    ("GET", "/v1/files", {"inference"}),
    ("GET", "/forgotten", set()),
]


@pytest.mark.parametrize(("method", "path", "taken"), RESTRICTED)
def test_restricted_key_may_do_what_its_scopes_say_and_nothing_else(served: Served, method: str, path: str, taken: set[str]) -> None:
    served.app.add_url_rule("/forgotten", "forgotten", policy("key")(lambda: "shown to all"))
    for scope in ("inference", "usage:read", "of a later version"):
        key = served.new_key(served.ann, scopes=(scope,))
        answer = served.ask(method, path, key=key, json={"model": "m", "messages": []} if method == "POST" else None)
        assert (answer.status_code == 403) == (scope not in taken), (scope, answer.data)
        if answer.status_code == 403:
            assert answer.get_json()["error"]["code"] == "scope_missing"
            assert all(word in answer.get_json()["error"]["message"] for word in taken)
    assert served.ask(method, path, json={"model": "m"} if method == "POST" else None).status_code != 403


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
def test_key_is_used_from_its_networks_only(served: Served, path: str) -> None:
    key = served.new_key(served.ann, networks=("10.0.0.0/8", "2001:db8::/32"))
    body = {"model": "m", "messages": []} if path.endswith("completions") else None
    for address, status in {"10.1.2.3": 200, "2001:db8::1": 200, "::ffff:10.1.2.3": 200, "192.0.2.1": 403, "127.0.0.1": 403, "": 403}.items():
        answer = served.ask("POST" if body else "GET", path, key=key, json=body, environ_base={"REMOTE_ADDR": address})
        assert answer.status_code == status, address
        if status == 403:
            assert answer.get_json()["error"]["code"] == "address_not_allowed"
            assert (address or "cannot be told") in answer.get_json()["error"]["message"]


def test_changed_restriction_holds_at_once(served: Served) -> None:
    key = served.new_key(served.ann)
    assert served.ask("GET", "/v1/models", key=key).status_code == 200
    (row,) = [row for row in served.database.read(accounts.list_keys) if key.endswith(row.suffix)]
    served.database.write(lambda: accounts.set_key(row.id, networks=("10.0.0.0/8",)))
    served.gateway.catalog.refresh()
    assert served.ask("GET", "/v1/models", key=key).status_code == 403


@pytest.mark.parametrize("fields", [{"scopes": ("usage:read",)}, {"networks": ("10.0.0.0/8",)}])
def test_restriction_is_judged_before_a_byte_of_the_body_is_read(served: Served, fields: dict[str, Any]) -> None:
    server, body = Server(served.app), Unread(b"x" * 10)
    told = server.call(post_environ(served, b"x" * 10, HTTP_AUTHORIZATION=f"Bearer {served.new_key(served.ann, **fields)}") | {"wsgi.input": body})
    assert server.status.startswith("403")
    assert b"permission_error" in told
    assert server.closes


def test_key_that_may_not_use_the_model_is_refused_before_anything_is_sent(served: Served) -> None:
    key = served.new_key(served.ann, models=("other-*",))
    answer = served.post("/v1/chat/completions", {"model": "m"}, key=key)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (403, "model_not_allowed")
    assert answer.get_json()["error"]["type"] == "permission_error"
    assert served.backend.calls == []
