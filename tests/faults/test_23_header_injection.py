"""Row 23: header injection through model names, ids and an upstream's headers; what belongs to one hop is stripped both ways.
Figure: 0 CR or LF passed."""

from __future__ import annotations

import json

from tests.fakes.answers import Json, RawBytes
from tests.fakes.gateway import RawClient
from tests.faults.calls import CHAT, Calls
from tests.faults.conftest import Measured

BREAKS = ("\r\n", "\n", "\r", "\r\n\r\n", "\x00", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", "%0d%0a", "\\r\\n", "\r\n ", "\n\t")
EVIL = "X-Evil: 1"

HOP_BY_HOP = {
    "keep-alive": "timeout=5",
    "te": "trailers",
    "trailer": "x-sum",
    "upgrade": "h2c",
    "proxy-authorization": "Basic Zm9vOmJhcg==",
    "proxy-authenticate": "Basic",
    "proxy-connection": "keep-alive",
    "x-named-by-connection": "1",
}
PRIVATE = {
    "cookie": "session=1",
    "set-cookie": "session=1",
    "x-forwarded-for": "203.0.113.9",
    "x-forwarded-host": "evil.example",
    "forwarded": "for=203.0.113.9",
    "x-real-ip": "203.0.113.9",
    "openai-organization": "org-other",
    "openai-project": "proj-other",
    "x-api-key": "other",
    "origin": "https://evil.example",
    "x-ratelimit-remaining-requests": "1",
    "accept-encoding": "gzip, br",
}


def test_23_model_names_and_ids_break_no_header(calls: Calls, measured: Measured) -> None:
    passed = 0
    for line_break in BREAKS:
        for member in ("model", "user"):
            body = calls.body(**{member: f"{calls.model}{line_break}{EVIL}"})
            for stream in (False, True):
                passed += _evil_answers(calls, json.dumps({**body, "stream": stream}).encode())
    for path in ("/v1/models/m%0d%0aX-Evil:%201", "/v1/requests/m%0d%0aX-Evil:%201", "/v1/x%0aX-Evil:%201", "/%0d%0aX-Evil:%201"):
        with calls.gateway.client() as client:
            client.ask(path, method="GET")
            passed += "x-evil" in client.answer().headers
    measured(23, f"{passed} line breaks passed through bodies and paths (0)")
    assert not passed
    assert all("x-evil" not in received.headers for received in calls.provider.requests)


def _evil_answers(calls: Calls, body: bytes) -> int:
    with calls.gateway.client() as client:
        client.ask(CHAT, body)
        answer = client.answer()
    assert answer.status in (200, 400, 404)
    return "x-evil" in answer.headers


def test_23_a_request_id_breaks_no_header(calls: Calls) -> None:
    """Sent raw: what a client library would refuse to send."""
    body = json.dumps(calls.body()).encode()
    for line_break in (b"\r", b"\n", b"\x00", b"\r\n ", b"\n\t", b"\x0b", b"\xe2\x80\xa8", b"\xff", b"%0d%0a", b'"; x="'):
        with calls.gateway.client() as client:
            head = b"POST %s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n" % (CHAT.encode(), calls.gateway.key.encode(), len(body))
            client.send(head + b"x-request-id: id" + line_break + b"X-Evil: 1\r\n\r\n" + body)
            answer = client.answer()
        # A bare line feed begins a field of its own, of the client's: it must go nowhere.
        assert answer.status in (200, 400)
        assert "x-evil" not in answer.headers
        assert "X-Evil" not in answer.headers.get("x-request-id", "")
    assert all("x-evil" not in received.headers and "x-request-id" not in received.headers for received in calls.provider.requests)


def test_23_a_clients_request_id_is_only_stored(calls: Calls) -> None:
    with calls.gateway.client() as client:
        client.ask(CHAT, calls.body(), headers={"x-request-id": 'mine"; <b>, {"x": 1}' + "y" * 300})
        answer = client.answer()
        exchange = answer.headers["x-request-id"]
        client.ask(f"/v1/requests/{exchange}", method="GET")
        receipt = client.answer().json()
    assert receipt["id"] == exchange
    assert receipt["client_request_id"] == ('mine"; <b>, {"x": 1}' + "y" * 300)[:128]


def test_23_an_upstreams_headers_break_none_of_ours(calls: Calls, measured: Measured) -> None:
    names = (b"x-request-id", b"content-type", b"openai-model", b"retry-after", b"content-disposition", b"x-other")
    passed = 0
    for name in names:
        for line_break in (b"\r", b"\n ", b"\r\n ", b"\x00", b"\x0b", b"\x0c", b"\x01", b"\x1b", b"\x7f", b"\x85", b"\xe2\x80\xa8"):
            head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n" + name + b": a" + line_break + b"X-Evil: 1\r\n\r\n{}"
            calls.provider.script("/v1/chat/completions", RawBytes(head))
            seen = calls.ask()
            assert seen.status in (200, 502)
            passed += "x-evil" in seen.headers or any("\r" in value or "\n" in value or "\x00" in value for value in seen.headers.values())
    measured(23, f"{passed} line breaks passed from an upstream's headers (0)")
    assert not passed


def test_23_hop_by_hop_and_private_fields_do_not_reach_the_upstream(calls: Calls) -> None:
    sent = {"connection": "keep-alive, x-named-by-connection", **HOP_BY_HOP, **PRIVATE}
    with calls.gateway.client() as client:
        client.ask(CHAT, calls.body(), headers=sent)
        assert client.answer().status == 200
    (received,) = calls.provider.requests
    own = {"host", "connection", "accept-encoding", "content-length", "content-type", "authorization", "user-agent"}
    assert set(received.headers) <= own
    assert received.headers["authorization"] == "Bearer sk-upstream-secret"
    assert received.headers["accept-encoding"] == "identity"
    assert not set(received.headers.values()) & set(sent.values())


def test_23_hop_by_hop_and_private_fields_do_not_reach_the_client(calls: Calls) -> None:
    fields = {"connection": "keep-alive, x-named-by-connection", **HOP_BY_HOP, **PRIVATE, "server": "upstream", "alt-svc": "h3", "via": "1.1 x"}
    del fields["upgrade"]  # with it the answer would be another protocol's
    calls.provider.always("/v1/chat/completions", Json({"choices": []}, headers=tuple(fields.items())))
    with calls.gateway.client() as client:
        client.ask(CHAT, calls.body())
        answer = client.answer()
        assert answer.status == 200
        assert not set(answer.headers) & (set(fields) - {"connection"})
        assert answer.headers["connection"] == "keep-alive"
        assert _still_answers(client)


def _still_answers(client: RawClient) -> bool:
    client.ask("/healthz", method="GET")
    return client.answer().status == 200
