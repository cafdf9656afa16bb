from __future__ import annotations

from email.utils import formatdate

import pytest

from backends.http import Response
from backends.refusal import parsed, read, refused_body, reset_seconds
from gateway.errors import UpstreamInterrupted, UpstreamProtocolError
from tests.factories import Chunks

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "9" * 30}, 86_400.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": formatdate(NOW + 90, usegmt=True)}, 90.0),
        ({"retry-after": formatdate(NOW - 90, usegmt=True)}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86_400.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "."}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Mon, 99 Foo 2026 99:99:99 GMT"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}, 90.0),
        ({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "1m30s"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "20ms",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "6h0m1.5s",
            },
            21_601.5,
        ),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2d"}, 86_400.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "soon"}, 0.0),
        ({"x-ratelimit-remaining-tokens": "0"}, 0.0),
    ],
)
def test_wish_to_wait_is_read_from_the_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert reset_seconds(headers, NOW) == seconds


def response(chunks: Chunks, status: int = 200) -> Response:
    return Response(status, (), chunks, chunks.close)


def test_body_is_read_up_to_its_limit_and_closed() -> None:
    chunks = Chunks([b"abc", b"def", b"ghi"])
    assert read(response(chunks), 4) == b"abcd"
    assert chunks.closed


def test_body_that_breaks_off_is_closed_and_raises() -> None:
    chunks = Chunks([b"abc", UpstreamInterrupted("broke")])
    with pytest.raises(UpstreamInterrupted):
        read(response(chunks), 10)
    assert chunks.closed


def test_refusal_whose_body_breaks_off_has_none() -> None:
    assert refused_body(response(Chunks([b"abc", UpstreamInterrupted("broke")]), 503)) == b""


def test_redirect_is_an_error_of_the_upstreams() -> None:
    chunks = Chunks([b"moved"])
    with pytest.raises(UpstreamProtocolError, match="redirect"):
        refused_body(response(chunks, 302))
    assert chunks.closed


@pytest.mark.parametrize(("body", "value"), [(b'{"a":1}', {"a": 1}), (b"no", None), (b"", None), (b"\xff", None), (b"[" * 100_000, None)])
def test_body_that_is_no_json_is_none(body: bytes, value: object) -> None:
    assert parsed(body) == value
