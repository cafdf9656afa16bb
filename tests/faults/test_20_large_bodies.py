"""Row 20: a body that is too large, by its length or in chunks. Figure: exact at the byte; never truncated; the connection is closed."""

from __future__ import annotations

import contextlib
import itertools
import time

import pytest

from tests.fakes.gateway import Broken, RawClient
from tests.faults.conftest import Measured
from tests.faults.front import CHAT, DIRECTLY, JSON_LIMIT, MODEL, ROADS, SPEECH_TO_TEXT, THROUGH_NGINX, UPLOAD_LIMIT, Front

FRAMINGS = ("content-length", "chunked")
KINDS = (("json", CHAT, JSON_LIMIT), ("form", SPEECH_TO_TEXT, UPLOAD_LIMIT))
FORM = "multipart/form-data; boundary=edge"
CHUNKED = {"content-length": "", "transfer-encoding": "chunked"}
NGINX_LIMIT = 100_000_000
"""client_max_body_size in deploy/nginx.conf, and GATEWAY_UPLOAD_LIMIT where nobody sets it."""


def sized(kind: str, size: int) -> bytes:
    """A valid body of so many bytes."""
    begin, end = b'{"model": "' + MODEL.encode() + b'", "x": "', b'"}'
    if kind == "form":
        begin = b'--edge\r\ncontent-disposition: form-data; name="model"\r\n\r\n' + MODEL.encode()
        begin += b'\r\n--edge\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'
        end = b"\r\n--edge--\r\n"
    return begin + b"a" * (size - len(begin) - len(end)) + end


def send(client: RawClient, kind: str, path: str, size: int, framing: str) -> None:
    body, headers = sized(kind, size), {"content-type": FORM if kind == "form" else "application/json"}
    if framing == "content-length":
        return client.ask(path, body, headers=headers)
    pieces = [body[at : at + 1500] for at in range(0, size, 1500)]
    return client.ask(path, b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""]), headers=headers | CHUNKED)


@pytest.mark.parametrize("road", ROADS)
def test_20_the_limit_is_exact_to_the_byte(front: Front, road: str, measured: Measured) -> None:
    served = refused = 0
    for (kind, path, limit), framing in itertools.product(KINDS, FRAMINGS):
        for size in (limit - 1, limit, limit + 1, 2 * limit):
            front.provider.requests.clear()
            with front.client(road) as client:
                send(client, kind, path, size, framing)
                answer = client.answer()
                if size <= limit:
                    assert answer.status == 200
                    assert front.provider.requests[0].body == sized(kind, size)
                    served += 1
                    continue
                assert answer.status == 413, (kind, framing, size)
                assert str(limit) in answer.json()["error"]["message"]
                assert road == THROUGH_NGINX or (answer.headers["connection"] == "close" and client.ended(2))
                assert not front.provider.requests
                refused += 1
    measured(20, f"{road}: exact at the byte for JSON and forms, by length and in chunks: {served} served whole, {refused} refused with 413")


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_20_after_a_refusal_the_rest_is_no_request(front: Front, road: str, framing: str) -> None:
    """Whether the connection is closed or goes on: what follows is not read out of the middle of the refused body."""
    inside = b"GET /healthz HTTP/1.1\r\nhost: gateway.example.org\r\n\r\n" * 200
    with front.client(road) as client, contextlib.suppress(Broken, ConnectionError):
        if framing == "chunked":
            client.ask(CHAT, b"%x\r\n%b\r\n0\r\n\r\n" % (len(inside), inside), headers=CHUNKED)
        else:
            client.ask(CHAT, inside)
        assert client.answer().status == 413
        assert client.silent(0.2) or client.ended(1)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_20_a_body_far_over_the_limit_is_cut_off(front: Front, framing: str) -> None:
    """More is taken in after the refusal than a slip would send, but not all: such a client may see a reset in place of the answer."""
    front.provider.requests.clear()
    with front.client(DIRECTLY) as client, contextlib.suppress(Broken, ConnectionError):
        send(client, "json", CHAT, 20_000_000, framing)
        assert client.answer().status == 413
    assert not front.provider.requests


@pytest.mark.parametrize("road", ROADS)
def test_20_a_declared_length_over_the_limit_is_refused_before_the_body(front: Front, road: str) -> None:
    with front.client(road) as client:
        client.ask(CHAT, b"", headers={"content-length": str(10**12)})
        started = time.monotonic()
        assert client.answer().status == 413
        assert time.monotonic() - started < 5
        assert road == THROUGH_NGINX or client.ended(2)


def test_20_nginx_has_the_gateways_own_limit(front: Front) -> None:
    for length, refused in ((NGINX_LIMIT + 1, True), (NGINX_LIMIT, False)):
        with front.client(THROUGH_NGINX) as client:
            client.ask("/nowhere", b"", headers={"content-length": str(length)})
            answer = client.answer()
            assert answer.status == (413 if refused else 404)
            assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("road", ROADS)
def test_20_a_body_of_tiny_chunks_does_not_hold_up_others(front: Front, road: str, measured: Measured) -> None:
    """6,000 chunks of one byte arrive faster than they are parsed: without a pause the hub would do nothing else."""
    body = sized("json", JSON_LIMIT)
    framed = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    longest = 0.0
    with front.client(road) as hostile, front.client(road) as other:
        for _ in range(20):
            hostile.ask(CHAT, framed, headers=CHUNKED)
            started = time.monotonic()
            other.ask("/healthz", method="GET")
            assert other.answer().status == 200
            longest = max(longest, time.monotonic() - started)
            assert hostile.answer().status == 200
    measured(20, f"{road}: another client waited at most {longest * 1000:.0f} ms beside bodies of {JSON_LIMIT} chunks of one byte (100 ms)")
    assert longest < 1
