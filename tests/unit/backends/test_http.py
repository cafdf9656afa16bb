"""The transport over real sockets: requests, answers, the pool, deadlines and being aborted."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.http import Chunks
from gateway.backend import Body
from gateway.errors import (
    BadRequest,
    UpstreamError,
    UpstreamInterrupted,
    UpstreamProtocolError,
    UpstreamUnreachable,
)
from tests.fakes.answers import (
    Answer,
    BadChunk,
    BeforeBody,
    CloseAt,
    CloseDelimited,
    Default,
    End,
    Events,
    GarbageStatusLine,
    HeaderBomb,
    RawBytes,
    Redirect,
    ResetAt,
    ShortContentLength,
    Status,
)
from tests.fakes.provider import Provider
from tests.unit.backends.conftest import Client

PATH = "/v1/chat/completions"
OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"


def outcome(response_chunks: Iterator[bytes]) -> tuple[bytes, Exception | None]:
    """All that comes, and how it breaks off."""
    got = b""
    try:
        for chunk in response_chunks:
            got += chunk
    except UpstreamError as error:
        return got, error
    return got, None


# Requests


def test_request_arrives_as_it_was_given(provider: Provider, client: Client) -> None:
    client.whole("/v1/x?a=b%20c", b'{"model": "m"}', headers=(("authorization", "Bearer sk"), ("content-type", "application/json")))
    received = provider.requests[0]
    assert (received.method, received.path, received.query, received.body) == ("POST", "/v1/x", "a=b%20c", b'{"model": "m"}')
    assert received.headers == {
        "host": f"127.0.0.1:{provider.port}",
        "accept-encoding": "identity",
        "authorization": "Bearer sk",
        "content-type": "application/json",
        "content-length": "14",
    }


def test_hop_by_hop_headers_are_not_taken_from_the_caller(provider: Provider, client: Client) -> None:
    names = ("connection", "Transfer-Encoding", "content-length", "te", "upgrade", "host", "accept-encoding", "expect", "keep-alive", "trailer")
    client.whole(headers=tuple((name, "chunked") for name in names))
    assert sorted(name for name, _ in provider.requests[0].fields) == ["accept-encoding", "content-length", "host"]
    assert "chunked" not in provider.requests[0].headers.values()


@pytest.mark.parametrize(
    "headers",
    [
        (("x-a", "b\r\nx-c: d"),),
        (("x-a", "b\nc"),),
        (("x-a", "b\0"),),
        (("x-a\r\nx-b", "c"),),
        (("x a", "c"),),
        (("x:a", "c"),),
        (("", "c"),),
        (("x-é", "c"),),
        (("x-a", "↯"),),
    ],
)
def test_header_that_would_break_the_head_is_refused(provider: Provider, client: Client, headers: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(BadRequest):
        client.send(headers=headers)
    assert provider.connections_seen == 0


def test_refused_header_is_named_without_its_value(client: Client) -> None:
    with pytest.raises(BadRequest) as caught:
        client.send(headers=(("authorization", "Bearer sk-secret\n"),))
    assert "authorization" in str(caught.value)
    assert "sk-secret" not in repr(caught.value)


def test_header_value_may_hold_latin_1_and_tabs(provider: Provider, client: Client) -> None:
    client.whole(headers=(("x-a", "é\tü"),))
    assert provider.requests[0].headers["x-a"] == "é\tü"


@pytest.mark.parametrize("path", ["/a b", "/a\r\nx: y", "/é", "/a#b", "/a\x7f"])
def test_target_that_would_break_the_request_line_is_refused(client: Client, path: str) -> None:
    with pytest.raises(BadRequest):
        client.send(path)


@pytest.mark.parametrize("url", ["ftp://h/x", "http:///x", "http://u:p@h/x", "http://h:99999/x", "x", "http://h?q/x", "http://a b/x"])
def test_url_that_names_no_http_host_is_refused(client: Client, url: str) -> None:
    with pytest.raises(BadRequest):
        client.send("", root=url)


def test_get_without_a_body_has_no_content_length(provider: Provider, client: Client) -> None:
    assert json.loads(client.whole("/v1/models", b"", method="GET"))["object"] == "list"
    assert "content-length" not in provider.requests[0].headers


def test_body_of_unknown_size_is_sent_chunked(provider: Provider, client: Client) -> None:
    client.whole(PATH, Body(lambda: iter((b"one", b"", b"two")), True, None))
    assert provider.requests[0].headers["transfer-encoding"] == "chunked"
    assert provider.requests[0].body == b"onetwo"


def test_large_body_arrives_whole(provider: Provider, client: Client) -> None:
    body = bytes(range(256)) * 40_000
    client.whole(PATH, body)
    assert provider.requests[0].body == body


@pytest.mark.parametrize("size", [3, 5, 100_003, 100_005])
def test_body_that_is_not_as_long_as_its_size_is_never_sent_as_if_whole(provider: Provider, client: Client, size: int) -> None:
    real = b"a" * (4 if size < 10 else 100_004)
    with pytest.raises(ValueError, match="as long as"):
        client.send(PATH, Body(lambda: iter((real,)), True, size))
    provider.wait_open(0)
    assert provider.requests == []


def test_answer_that_comes_before_the_body_was_sent_is_read(provider: Provider, client: Client) -> None:
    provider.always(PATH, BeforeBody(Status(413)))
    assert client.send(PATH, b"x" * 30_000_000).status == 413
    assert client.send(PATH, Body(lambda: iter([b"x" * 65_536] * 400), False, None)).status == 413


# Answers


def test_answer_is_relayed_as_it_came(provider: Provider, client: Client) -> None:
    provider.script(PATH, RawBytes(b"HTTP/1.1 418 Teapot\r\nX-A: \xe9\r\nx-a: two\r\nContent-Length: 2\r\n\r\nno"))
    response = client.send(PATH)
    assert response.status == 418
    assert response.headers == (("x-a", "é"), ("x-a", "two"), ("content-length", "2"))
    assert list(response.chunks) == [b"no"]


def test_each_chunk_is_handed_on_when_it_comes(provider: Provider, client: Client) -> None:
    events = [b"data: %d\n\n" % number for number in range(4)]
    provider.script(PATH, Events(*events, done=False, pause_s=0.1))
    assert list(client.send(PATH).chunks) == events


def test_blocks_hold_all_that_one_receive_brought(provider: Provider, client: Client) -> None:
    chunks = b"".join(b"3\r\nabc\r\n" for _ in range(1000))
    provider.script(PATH, RawBytes(OK + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"))
    blocks = list(client.send(PATH).chunks)
    assert b"".join(blocks) == b"abc" * 1000
    assert len(blocks) < 10


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 300), max_size=8), framing=st.sampled_from(["length", "chunked", "close"]))
def test_answer_is_the_same_wherever_it_is_cut(provider: Provider, client: Client, cuts: list[int], framing: str) -> None:
    raw = b"".join(
        action
        for action in Answer(200, (("x-a", "b"),), (b"data: {}\n\n", "Grüße".encode(), b"\r\n0\r\n\r\n", b"x" * 99), framing).script()
        if isinstance(action, bytes)
    )
    edges = [0, *sorted({cut for cut in cuts if cut < len(raw)}), len(raw)]
    actions: list[bytes | float | End] = []
    for start, end in pairwise(edges):
        actions += [raw[start:end], 0.002]
    provider.script(PATH, RawBytes(*actions))
    response = client.send(PATH)
    assert ("x-a", "b") in response.headers
    assert b"".join(response.chunks) == b"data: {}\n\n" + "Grüße".encode() + b"\r\n0\r\n\r\n" + b"x" * 99


def test_interim_answers_are_skipped(provider: Provider, client: Client) -> None:
    interim = b"HTTP/1.1 100 Continue\r\nx-b: c\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    provider.script(PATH, RawBytes(interim, 0.02, HELLO, end=None))
    response = client.send(PATH)
    assert (response.status, response.headers) == (200, (("content-length", "5"),))
    assert b"".join(response.chunks) == b"hello"


@pytest.mark.parametrize("status", [204, 304])
def test_answer_without_a_body_ends_at_once(provider: Provider, client: Client, status: int) -> None:
    provider.script(PATH, Answer(status, (("etag", "x"),)))
    assert list(client.send(PATH).chunks) == []
    client.whole(PATH)
    assert provider.connections_seen == 1


def test_head_has_no_body_whatever_its_length_says(provider: Provider, client: Client) -> None:
    provider.script("/v1/models", RawBytes(OK + b"content-length: 5\r\n\r\n", end=None))
    assert list(client.send(method="HEAD", body=b"").chunks) == []
    provider.wait_open(0)


def test_redirect_is_not_followed(provider: Provider, client: Client) -> None:
    provider.script(PATH, Redirect(provider.root + "/elsewhere"))
    assert client.send(PATH).status == 302
    assert [received.path for received in provider.requests] == [PATH]


def test_close_delimited_answer_ends_cleanly(provider: Provider, client: Client) -> None:
    provider.script(PATH, CloseDelimited(Answer(blocks=(b"hello", b"world"))))
    assert client.whole(PATH) == b"helloworld"
    provider.wait_open(0)


# Answers that break off, or are no HTTP


@pytest.mark.parametrize(
    ("step", "before"),
    [
        (ShortContentLength(Answer(blocks=(b"hello",))), b"hello"),
        (BadChunk(), b"hello"),
        (RawBytes(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"), b"hello"),
        (RawBytes(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"), b"hello"),
        (RawBytes(OK + b"transfer-encoding: chunked\r\n\r\n9\r\nhello"), b"hello"),
        (RawBytes(OK + b"transfer-encoding: chunked\r\n\r\n5\nhello\n0\n\n"), b""),
        (RawBytes(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nfffffffffffffffff\r\n"), b"hello"),
        (RawBytes(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: " + b"a" * 200_000), b"hello"),
        (RawBytes(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5;" + b"a" * 200_000), b"hello"),
        (ResetAt(60, Answer(blocks=(b"hello" * 100,), framing="close")), None),
        (ResetAt(120, Default()), None),
        (CloseAt(120, Default()), None),
    ],
)
def test_broken_body_is_an_interruption_and_stays_one(provider: Provider, client: Client, step: Callable[..., object], before: bytes | None) -> None:
    provider.script(PATH, step)  # type: ignore[arg-type]
    response = client.send(PATH)
    got, error = outcome(response.chunks)
    assert isinstance(error, UpstreamInterrupted)
    if before is not None:
        assert got == before
    for _ in range(2):
        with pytest.raises(UpstreamInterrupted):
            next(response.chunks)
    provider.wait_open(0)


@pytest.mark.parametrize(
    "raw",
    [
        b"I AM NOT HTTP\r\n\r\n",
        b"\r\n" + HELLO,
        b"RTSP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"HTTP/1.1 000 No\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 999 No\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 20 No\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nbytes",
        OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"content-length: -5\r\n\r\nhello",
        OK + b"content-length: 5x\r\n\r\nhello",
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"transfer-encoding: identity\r\n\r\nhello",
        OK + b"x-a: b\n c: d\r\ncontent-length: 0\r\n\r\n",
        OK + b"x-a: b\r\n c\r\ncontent-length: 0\r\n\r\n",
        OK + b"x-a: b\0\r\ncontent-length: 0\r\n\r\n",
        OK + b"x a: b\r\ncontent-length: 0\r\n\r\n",
        OK + b"x: y\r\n" * 201 + b"content-length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + HELLO,
        OK + b"content-encoding: br\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"content-encoding: gzip, gzip\r\ncontent-length: 5\r\n\r\nhello",
    ],
)
def test_head_that_is_not_as_it_should_be_is_a_protocol_error(provider: Provider, client: Client, raw: bytes) -> None:
    provider.script(PATH, RawBytes(raw, End.HOLD))
    with pytest.raises(UpstreamProtocolError) as caught:
        client.send(PATH)
    assert "127.0.0.1" not in str(caught.value)
    provider.wait_open(0)


@pytest.mark.parametrize("bomb", [HeaderBomb(), HeaderBomb(fields=1000), HeaderBomb(100_000, fields=100), HeaderBomb(size=70_000)])
def test_header_bomb_is_cut_off(provider: Provider, client: Client, bomb: Callable[..., object]) -> None:
    provider.script(PATH, bomb)  # type: ignore[arg-type]
    with pytest.raises(UpstreamProtocolError):
        client.send(PATH)
    provider.wait_open(0)


def test_endless_interim_answers_are_cut_off(provider: Provider, client: Client) -> None:
    interim: list[bytes | float] = [b"HTTP/1.1 102 Processing\r\n\r\n", 0.01]
    provider.script(PATH, RawBytes(*interim * 30, End.HOLD))
    with pytest.raises(UpstreamProtocolError):
        client.send(PATH)


def test_garbage_is_a_protocol_error(provider: Provider, client: Client) -> None:
    provider.script(PATH, GarbageStatusLine())
    with pytest.raises(UpstreamProtocolError):
        client.send(PATH)


@pytest.mark.parametrize("cut", [CloseAt(20), ResetAt(20)])
def test_end_within_the_head_is_a_protocol_error(provider: Provider, client: Client, cut: Callable[..., object]) -> None:
    provider.script(PATH, cut)  # type: ignore[arg-type]
    with pytest.raises(UpstreamProtocolError):
        client.send(PATH)


@pytest.mark.parametrize("cut", [CloseAt(0), ResetAt(0)])
def test_end_before_the_first_byte_of_a_fresh_connection_means_unreachable(provider: Provider, client: Client, cut: Callable[..., object]) -> None:
    provider.script(PATH, cut)  # type: ignore[arg-type]
    with pytest.raises(UpstreamUnreachable):
        client.send(PATH)
    assert len(provider.requests) == 1


def test_broken_answer_that_was_closed_waits_for_no_garbage_collector(provider: Provider, client: Client) -> None:
    provider.always("/v1/models", ResetAt(120, Default()))
    gc.collect()
    gc.disable()
    try:
        response = client.send()
        with pytest.raises(UpstreamInterrupted):
            for _ in response.chunks:
                pass
        response.close()
        del response
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert [one for one in gc.garbage if isinstance(one, Chunks)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
