"""deploy/nginx.conf before the gateway: streams pass as they come, no call is made twice, its own answers read like the gateway's."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from gateway.api import PREFIXES
from gateway.api.openai import ENDPOINTS
from gateway.settings import Settings
from tests.fakes.answers import CloseAt, Events
from tests.fakes.gateway import ROOT, Answer, free_port
from tests.fakes.nginx import CONFIGURATION, NAME, RunningNginx
from tests.fakes.provider import Provider
from tests.fakes.websocket import TEXT, frame_bytes, upgrade_bytes
from tests.faults.front import CHAT, MODEL, THROUGH_NGINX, Front, running_front

SPEECH = "/v1/audio/speech"
HOST = b"host: " + NAME.encode() + b"\r\n"
EVENTS = tuple({"choices": [{"index": 0, "delta": {"content": str(number)}}]} for number in range(6))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with running_front(tmp_path_factory.mktemp("front")) as front:
        yield front


def told(answer: Answer, status: int) -> dict[str, object]:
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    document = answer.json()
    assert set(document) == {"error"}
    error: dict[str, object] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# streams


@pytest.mark.parametrize(("path", "asked"), [(CHAT, {"stream": True}), (SPEECH, {"input": "x", "stream_format": "sse"})])
def test_events_pass_one_by_one(front: Front, path: str, asked: dict[str, object]) -> None:
    front.provider.script(path, Events(*EVENTS, pause_s=0.2))
    with front.client(THROUGH_NGINX) as client:
        client.ask(path, {"model": MODEL, **asked})
        assert client.head().status == 200
        client.until(b'"0"')
        first = time.monotonic()
        client.until(b'"4"')
        assert time.monotonic() - first > 0.5
        assert client.rest().endswith(b"data: [DONE]\n\n")


def test_client_that_leaves_frees_the_upstream_through_nginx_too(front: Front) -> None:
    front.provider.closed.clear()
    front.provider.script(CHAT, Events(*EVENTS, pause_s=2))
    with front.client(THROUGH_NGINX) as client:
        client.ask(CHAT, {"model": MODEL, "stream": True})
        client.until(b'"0"') if client.head().status == 200 else None
    left = time.monotonic()
    assert front.provider.wait_closed()[0] - left < 1


# calls are made once


def test_call_that_the_gateway_drops_is_not_made_again(front: Front) -> None:
    """On a connection that is new, and on one that was kept and turns out to be dead."""
    with Provider() as behind, RunningNginx(front.nginx.directory / "once", behind.port) as nginx:
        for steps in ((CloseAt(0),), (Events(*EVENTS), CloseAt(0))):
            behind.requests.clear()
            behind.script(CHAT, *steps)
            with nginx.client() as client:
                for _ in steps:
                    client.ask(CHAT, {"model": MODEL})
                    answer = client.answer()
            assert told(answer, 502)["type"] == "server_error"
            assert len(behind.requests) == len(steps)


# nginx's own answers


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (400, b"GARBAGE\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n" + HOST + b"content-length: x\r\n\r\n"),
        (404, b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"),
        (413, b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 100000001\r\n\r\n"),
        (414, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
        (421, b"GET / HTTP/1.1\r\nhost: other.example\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\n" + HOST + b"x: " + b"a" * 9000 + b"\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: gzip\r\n\r\n"),
        (505, b"GET / HTTP/3.0\r\n" + HOST + b"\r\n"),
    ],
)
def test_refusal_of_nginx_has_the_shape_of_every_other(front: Front, status: int, raw: bytes) -> None:
    with front.client(THROUGH_NGINX) as client:
        client.send(raw)
        told(client.answer(), status)


def test_gateway_that_is_down_is_told_in_the_same_shape(front: Front) -> None:
    with RunningNginx(front.nginx.directory / "alone", free_port()) as nginx, nginx.client() as client:
        client.ask(CHAT, {"model": MODEL})
        assert told(client.answer(), 502)["type"] == "server_error"


def test_plain_http_sends_browsers_on_and_refuses_calls(front: Front) -> None:
    with front.nginx.plain_client() as client:
        client.ask("/admin?x=1", method="GET", headers={"host": "evil.example"})
        answer = client.answer()
        assert (answer.status, answer.headers["location"]) == (308, f"https://{NAME}/admin?x=1")
        client.ask(CHAT, {"model": MODEL})
        assert "HTTPS" in str(told(client.answer(), 403)["message"])
    with front.nginx.plain_client("gw_a_key") as client:
        client.ask("/v1/models", method="GET")
        told(client.answer(), 403)


def test_log_holds_the_gateways_id_and_no_query(front: Front) -> None:
    with front.client(THROUGH_NGINX) as client:
        client.ask("/healthz?key=gw_in_the_query", method="GET")
        exchange = client.answer().headers["x-request-id"]
    deadline = time.monotonic() + 5
    while exchange not in (text := front.nginx.access_log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "gw_" not in text
    assert '"path":"/healthz"' in text


# agents


def test_agents_connect_in_and_their_tokens_are_not_logged(front: Front) -> None:
    path = "/gw_agent_in_the_path/client/register"
    with front.nginx.client() as client:
        client.send(upgrade_bytes(path, {"host": NAME, "sec-websocket-protocol": "chat-gateway.agent.v2"}, "MDEyMzQ1Njc4OWFiY2RlZg=="))
        assert client.head().status == 101
        client.send(frame_bytes(TEXT, b'{"type": "hello"}'))
        said = b""
        while not said.endswith(b"revoked"):
            some = client.sock.recv(1000)
            assert some
            said += some
        assert b"\x11\x31the token is missing" in said  # closed with 4401
    deadline = time.monotonic() + 5
    while "/client/register" not in (text := front.nginx.access_log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "gw_agent" not in text
    assert '"path":"/[token]/client/register"' in text


def test_nothing_else_is_upgraded(front: Front) -> None:
    with front.nginx.client() as client:
        client.send(upgrade_bytes("/healthz", {"host": NAME}, "MDEyMzQ1Njc4OWFiY2RlZg=="))
        assert client.answer().status == 200


# its numbers, beside the gateway's


def setting(name: str) -> list[str]:
    """The values that the shipped file gives a directive."""
    found = re.findall(rf"^\s*{name} ([^;]+);", CONFIGURATION.read_text(), re.MULTILINE)
    assert found, name
    return found


def seconds(name: str) -> list[int]:
    return [int(value.removesuffix("s")) for value in setting(name)]


def test_numbers_agree_with_the_gateways_own() -> None:
    ours = Settings()
    server = (ROOT / "gunicorn.conf.py").read_text()
    (header_s,) = map(int, re.findall(r"^keepalive = (\d+)", server, re.MULTILINE))
    (line,) = map(int, re.findall(r"^limit_request_line = (\d+)", server, re.MULTILINE))
    assert int(setting("client_max_body_size")[0]) == ours.upload_limit
    assert seconds("proxy_read_timeout")[0] > ours.total_s
    assert seconds("worker_shutdown_timeout")[0] > ours.total_s
    assert seconds("client_header_timeout")[0] == header_s
    assert seconds("keepalive_timeout")[1] < header_s
    assert setting("large_client_header_buffers") == ["4 8k"]
    assert line <= 8192
    assert setting("server 127.0.0.1:8080") == ["max_fails=0"]
    assert (ours.host, ours.port) == ("127.0.0.1", 8080)


def test_forms_and_nothing_else_are_taken_in_whole() -> None:
    (pattern,) = re.findall(r"location ~ (\S+) \{\n\s+proxy_request_buffering on;", CONFIGURATION.read_text())
    forms = {PREFIXES["openai"] + endpoint.path for endpoint in ENDPOINTS if endpoint.body != "json"}
    assert {path for path in (PREFIXES["openai"] + endpoint.path for endpoint in ENDPOINTS) if re.search(pattern, path)} == forms
