"""Ticks of a silent body, an answer that comes while the request is still being sent, and the time an error's body may take."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import pytest

from backends.http import REFUSAL_S, Transport
from gateway.backend import Body, Deadlines
from gateway.errors import UpstreamProtocolError, UpstreamTimeout
from tests.fakes.answers import Answer, BeforeBody, Drip, End, RawBytes, Silent, Status
from tests.fakes.provider import Provider
from tests.unit.backends.conftest import Authority, Client, failure

PATH = "/v1/chat/completions"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
LARGE = b"x" * 30_000_000
"""More than the buffers between two sockets hold."""
TICK_S = 0.1


@pytest.fixture
def ticking(provider: Provider) -> Iterator[Client]:
    transport = Transport(tick_s=TICK_S)
    yield Client(transport, provider.root)
    transport.close()


# ticks


def test_silent_body_ticks_until_it_goes_on(provider: Provider, ticking: Client) -> None:
    provider.script(PATH, RawBytes(OK + b"he", 0.35, b"llo", end=None))
    blocks = list(ticking.send(PATH).chunks)
    assert blocks == [b"he", b"", b"", b"", b"llo"]
    ticking.whole(PATH)
    assert provider.connections_seen == 1


def test_idle_deadline_holds_while_ticks_go_out_and_begins_anew_with_each_block(provider: Provider, ticking: Client) -> None:
    provider.script(PATH, RawBytes(OK + b"he", 0.35, b"l", End.HOLD))
    blocks: list[bytes] = []

    def read() -> None:
        for block in ticking.send(PATH, deadlines=Deadlines(idle_s=0.45)).chunks:
            blocks.append(block)

    error, seconds = failure(read, UpstreamTimeout)
    assert getattr(error, "phase", None) == "idle"
    assert 0.75 < seconds < 3
    assert [block for block in blocks if block] == [b"he", b"l"]
    assert blocks.count(b"") == 7
    provider.wait_closed()


def test_total_deadline_holds_while_ticks_go_out(provider: Provider, ticking: Client) -> None:
    provider.script(PATH, RawBytes(OK + b"he", End.HOLD))
    error, seconds = failure(lambda: list(ticking.send(PATH, total_s=0.35).chunks), UpstreamTimeout)
    assert getattr(error, "phase", None) == "total"
    assert 0.3 < seconds < 3


def test_body_that_drips_is_not_silent(provider: Provider, ticking: Client) -> None:
    provider.script(PATH, Drip(1, TICK_S / 4, RawBytes(OK + b"hello", end=None)))
    assert list(ticking.send(PATH).chunks) == [b"h", b"e", b"l", b"l", b"o"]


def test_head_does_not_tick(provider: Provider, ticking: Client) -> None:
    provider.script(PATH, RawBytes(0.3, OK[:9], 0.3, OK[9:] + b"hello", end=None))
    assert list(ticking.send(PATH).chunks) == [b"hello"]


@pytest.mark.parametrize(("encoding", "packed"), [("gzip", gzip.compress(b"hello")), ("deflate", zlib.compress(b"hello"))], ids=["gzip", "deflate"])
@pytest.mark.parametrize("cut", [1, 4])
def test_compressed_body_ticks_as_well(provider: Provider, ticking: Client, encoding: str, packed: bytes, cut: int) -> None:
    provider.script(PATH, Answer(headers=(("content-encoding", encoding),), blocks=(packed[:cut], packed[cut:]), pause_s=0.25))
    blocks = list(ticking.send(PATH).chunks)
    assert blocks.count(b"") == 2
    assert b"".join(blocks) == b"hello"


def test_there_are_no_ticks_unless_they_are_asked_for(provider: Provider, client: Client) -> None:
    provider.script(PATH, RawBytes(OK + b"he", 0.3, b"llo"))
    assert list(client.send(PATH).chunks) == [b"he", b"llo"]


def test_secure_body_ticks(authority: Authority) -> None:
    with Provider(tls=authority.server) as provider:
        provider.script(PATH, RawBytes(OK + b"he", 0.25, b"llo"))
        transport = Transport(ssl_context=authority.trusting, tick_s=TICK_S)
        assert list(Client(transport, provider.root).send(PATH).chunks) == [b"he", b"", b"", b"llo"]
        transport.close()


# answers to what was not sent yet


@pytest.mark.parametrize("status", [413, 429, 400, 503, 307])
def test_refusal_is_noticed_while_the_upstream_does_not_read(provider: Provider, client: Client, status: int) -> None:
    answer = f"HTTP/1.1 {status} No\r\ncontent-length: 2\r\n\r\nno".encode()
    provider.script(PATH, BeforeBody(RawBytes(answer, End.HOLD)))
    begun = time.monotonic()
    response = client.send(PATH, LARGE, deadlines=Deadlines(idle_s=30))
    assert response.status == status
    assert b"".join(response.chunks) == b"no"
    assert time.monotonic() - begun < 5
    provider.wait_open(0)


def test_refusal_is_noticed_over_tls(secure: tuple[Provider, Client]) -> None:
    provider, client = secure
    provider.script(PATH, BeforeBody(RawBytes(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno", End.HOLD)))
    begun = time.monotonic()
    assert client.whole(PATH, LARGE, deadlines=Deadlines(idle_s=30)) == b"no"
    assert time.monotonic() - begun < 5


def test_refusal_that_comes_in_pieces_is_noticed(provider: Provider, client: Client) -> None:
    provider.script(PATH, BeforeBody(Drip(5, 0.05, RawBytes(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno", End.HOLD))))
    assert client.send(PATH, LARGE, deadlines=Deadlines(idle_s=30)).status == 413


def test_upstream_that_neither_reads_nor_answers_is_reset_at_the_idle_deadline(provider: Provider, client: Client) -> None:
    provider.script(PATH, BeforeBody(Silent()))
    error, seconds = failure(lambda: client.send(PATH, LARGE, deadlines=Deadlines(idle_s=0.5)), UpstreamTimeout)
    assert getattr(error, "phase", None) == "idle"
    assert 0.4 < seconds < 3
    provider.wait_closed()


def test_answer_that_is_no_http_ends_the_sending(provider: Provider, client: Client) -> None:
    provider.script(PATH, BeforeBody(RawBytes(b"NO\r\n\r\n", End.HOLD)))
    _, seconds = failure(lambda: client.send(PATH, LARGE, deadlines=Deadlines(idle_s=30)), UpstreamProtocolError)
    assert seconds < 5
    provider.wait_open(0)


def serving(run: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> str:
    """A server of one connection, which `run` reads and answers at its own pace. Its root."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            sock, _ = listener.accept()
        with sock if context is None else context.wrap_socket(sock, server_side=True) as connection:
            run(connection)

    threading.Thread(target=serve, daemon=True).start()
    return f"http{'s' if context else ''}://127.0.0.1:{listener.getsockname()[1]}"


def reading(first: bytes, pause_s: float, last: bytes) -> Callable[[socket.socket], None]:
    """Sends `first` at once, reads the whole request only after a pause, then sends `last`."""

    def run(sock: socket.socket) -> None:
        sock.sendall(first)
        time.sleep(pause_s)
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            tail = (tail + sock.recv(1 << 20))[-5:]
        sock.sendall(last)

    return run


CHUNKED = Body(lambda: iter([LARGE[:100_000]] * 300), True, None)


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe", b"llo"),
        (b"HTTP/1.1 2", b"00 OK\r\ncontent-length: 5\r\n\r\nhello"),
    ],
    ids=["interim", "success", "half a head"],
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_body_is_sent_on_where_what_came_is_no_refusal(authority: Authority, first: bytes, last: bytes, tls: bool) -> None:
    """Over TLS a session ticket waits to be read besides."""
    root = serving(reading(first, 0.3, last), authority.server if tls else None)
    transport = Transport(ssl_context=authority.trusting)
    response = Client(transport, root).send(PATH, CHUNKED, deadlines=Deadlines(idle_s=5))
    assert b"".join(response.chunks) == b"hello"
    transport.close()


def test_session_ticket_is_no_answer(authority: Authority) -> None:
    """An upstream that is slow to read has sent nothing but TLS's own records."""
    root = serving(reading(b"", 0.3, OK + b"hello"), authority.server)
    transport = Transport(ssl_context=authority.trusting)
    assert Client(transport, root).whole(PATH, CHUNKED, deadlines=Deadlines(idle_s=5)) == b"hello"
    transport.close()


def test_late_session_ticket_leaves_a_kept_connection_fit(secure: tuple[Provider, Client]) -> None:
    provider, client = secure
    for _ in range(5):
        client.whole(PATH)
        time.sleep(0.02)
    assert provider.connections_seen == 1


# errors whose body does not come


def test_body_of_an_error_has_little_time(provider: Provider, client: Client) -> None:
    provider.script(PATH, Drip(40, 0.1, Status(503, b"x" * 10_000)))
    response = client.send(PATH, deadlines=Deadlines(idle_s=30))
    assert response.status == 503
    _, seconds = failure(lambda: list(response.chunks), UpstreamTimeout)
    assert REFUSAL_S - 0.5 < seconds < REFUSAL_S + 3
    provider.wait_closed()
