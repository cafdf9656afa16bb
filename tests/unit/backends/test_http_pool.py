"""Which connections are used again, and which are not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from backends.http import Transport
from backends.http_pool import IDLE_S, MAX_IDLE, Origin
from gateway.backend import Body, Cancellation, Deadlines
from gateway.errors import UpstreamInterrupted, UpstreamTimeout, UpstreamUnreachable
from tests.fakes.answers import Answer, CloseAt, CloseDelimited, Default, Delay, End, RawBytes, ResetAt, Silent, StallAt
from tests.fakes.provider import Provider
from tests.unit.backends.conftest import Client

PATH = "/v1/chat/completions"
HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


@pytest.mark.parametrize(
    ("base", "parts"),
    [
        ("http://h", (False, "h", 80, "h")),
        ("https://H.example:443", (True, "h.example", 443, "h.example")),
        ("https://h:80", (True, "h", 80, "h:80")),
        ("http://[::1]:8080", (False, "::1", 8080, "[::1]:8080")),
    ],
)
def test_origin_knows_where_to_connect_and_what_host_to_name(base: str, parts: tuple[bool, str, int, str]) -> None:
    origin = Origin(base, time.monotonic)
    upstream = origin.route.upstream
    assert (origin.tls, upstream.host, upstream.port, origin.fixed.split("\r\n")[0]) == (*parts[:3], f"host: {parts[3]}")
    assert bool(upstream.literal) == (":" in upstream.host)


class Clock:
    """Monotonic time, with jumps."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def test_connection_is_used_again(provider: Provider, client: Client) -> None:
    for _ in range(5):
        client.whole(PATH)
    client.whole(PATH, b'{"stream": true}')
    client.whole(PATH)
    assert provider.connections_seen == 1


def test_connection_is_free_once_a_whole_answer_is_in_hand(provider: Provider, client: Client) -> None:
    provider.script(PATH, RawBytes(HELLO, end=None))
    unread = client.send(PATH)
    client.whole(PATH)
    assert provider.connections_seen == 1
    assert b"".join(unread.chunks) == b"hello"


def test_last_used_connection_is_taken_first(provider: Provider, client: Client) -> None:
    provider.script(PATH, *[Delay(0.1)] * 3)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: client.whole(PATH), range(3)))
    client.whole(PATH)
    last = provider.requests[-1].connection
    client.whole(PATH)
    assert provider.requests[-1].connection == last
    assert provider.connections_seen == 3


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello",
        HELLO + b"!",
        HELLO + HELLO,
        HELLO + b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nhel",
        b"HTTP/1.1 204 None\r\n\r\nx",
    ],
)
def test_connection_that_may_not_go_on_is_closed_and_its_answer_kept(provider: Provider, client: Client, raw: bytes) -> None:
    provider.script(PATH, RawBytes(raw, end=End.HOLD))
    assert client.whole(PATH) in (b"hello", b"")
    provider.wait_open(0)
    client.whole(PATH)
    assert provider.connections_seen == 2


def test_surplus_that_comes_later_is_never_read_as_an_answer(provider: Provider, client: Client) -> None:
    provider.script(PATH, RawBytes(HELLO, 0.05, HELLO.replace(b"hello", b"wrong"), end=None))
    assert client.whole(PATH) == b"hello"
    time.sleep(0.15)
    assert b"chatcmpl" in client.whole(PATH)
    assert provider.connections_seen == 2


def test_connection_that_was_idle_too_long_is_not_used_again(provider: Provider) -> None:
    clock = Clock()
    transport = Transport(clock=clock)
    client = Client(transport, provider.root)
    client.whole(PATH)
    clock.ahead = IDLE_S + 1
    client.send(PATH, total_s=IDLE_S + 10).close()
    assert provider.connections_seen == 2
    transport.close()


def test_idle_connections_are_bounded(provider: Provider, client: Client) -> None:
    count = MAX_IDLE + 6
    provider.script(PATH, *[Delay(1.0, Answer(blocks=(b"x",)))] * count)
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda _: client.whole(PATH), range(count)))
    provider.wait_open(MAX_IDLE)


def test_close_closes_what_is_idle(provider: Provider, client: Client) -> None:
    client.whole(PATH)
    client.transport.close()
    provider.wait_open(0)


def test_connection_in_use_at_close_is_not_kept(provider: Provider, client: Client) -> None:
    provider.script(PATH, RawBytes(HELLO[:-1], 0.1, b"o", end=None))
    response = client.send(PATH)
    client.transport.close()
    assert b"".join(response.chunks) == b"hello"
    provider.wait_open(0)


# A kept connection that turns out to be dead


@pytest.mark.parametrize("cut", [CloseAt(0), ResetAt(0)])
def test_kept_connection_that_dies_without_a_byte_is_replaced_once(provider: Provider, client: Client, cut: Callable[..., object]) -> None:
    client.whole(PATH)
    provider.script(PATH, cut)  # type: ignore[arg-type]
    assert b"chatcmpl" in client.whole(PATH)
    assert [received.connection for received in provider.requests] == [1, 1, 2]


def test_second_death_is_not_retried(provider: Provider, client: Client) -> None:
    client.whole(PATH)
    provider.script(PATH, CloseAt(0), CloseAt(0))
    with pytest.raises(UpstreamUnreachable):
        client.send(PATH)
    assert len(provider.requests) == 3


def test_kept_connection_that_dies_after_a_byte_is_not_retried(provider: Provider, client: Client) -> None:
    client.whole(PATH)
    provider.script(PATH, CloseAt(100))
    with pytest.raises(UpstreamInterrupted):
        list(client.send(PATH).chunks)
    assert len(provider.requests) == 2


def test_silence_on_a_kept_connection_is_not_retried(provider: Provider, client: Client) -> None:
    client.whole(PATH)
    provider.script(PATH, Silent())
    with pytest.raises(UpstreamTimeout):
        client.send(PATH, deadlines=Deadlines(first_byte_s=0.1))
    assert len(provider.requests) == 2


def test_body_that_cannot_be_sent_twice_gets_a_fresh_connection(provider: Provider, client: Client) -> None:
    client.whole(PATH)
    client.whole(PATH, Body(lambda: iter((b"{}",)), False, 2))
    assert provider.connections_seen == 2


def test_server_that_closed_while_idle_costs_nothing() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    served = threading.Semaphore(0)

    def serve() -> None:
        for _ in range(2):
            sock, _ = listener.accept()
            sock.recv(65_536)
            sock.sendall(HELLO)
            sock.close()
            served.release()

    thread = threading.Thread(target=serve)
    thread.start()
    transport = Transport()
    client = Client(transport, f"http://127.0.0.1:{listener.getsockname()[1]}")
    for _ in range(2):
        assert client.whole() == b"hello"
        served.acquire()
    thread.join()
    listener.close()
    transport.close()


# What the end of a response does to its connection


def test_close_before_the_first_pull_closes_the_connection(provider: Provider, client: Client) -> None:
    provider.script(PATH, StallAt(150))
    response = client.send(PATH)
    response.close()
    response.close()
    provider.wait_closed()
    with pytest.raises(UpstreamInterrupted):
        next(response.chunks)


def test_close_in_the_middle_closes_the_connection(provider: Provider, client: Client) -> None:
    provider.script(PATH, RawBytes(HELLO[:-1], End.HOLD))
    response = client.send(PATH)
    assert next(response.chunks) == b"hell"
    response.close()
    provider.wait_closed()


def test_close_after_the_end_keeps_the_connection(provider: Provider, client: Client) -> None:
    response = client.send(PATH)
    assert b"".join(response.chunks)
    response.close()
    assert list(response.chunks) == []
    client.whole(PATH)
    assert provider.connections_seen == 1


def test_whole_answer_closed_unread_does_not_look_read(provider: Provider, client: Client) -> None:
    provider.script(PATH, RawBytes(HELLO, end=None))
    response = client.send(PATH)
    response.close()
    with pytest.raises(UpstreamInterrupted):
        next(response.chunks)


def test_close_delimited_connection_is_not_kept(provider: Provider, client: Client) -> None:
    provider.script(PATH, CloseDelimited())
    client.whole(PATH)
    client.whole(PATH)
    assert provider.connections_seen == 2


def test_late_cancel_does_not_touch_the_next_call(provider: Provider, client: Client) -> None:
    cancel = Cancellation()
    client.whole(PATH, cancel=cancel)
    provider.script(PATH, Delay(0.2, Default()))
    results: list[bytes] = []
    other = threading.Thread(target=lambda: results.append(client.whole(PATH)))
    other.start()
    provider.wait_requests(2)
    cancel.fire("client_gone")
    other.join()
    assert b"chatcmpl" in results[0]
    assert provider.connections_seen == 1


def test_many_threads_get_their_own_answers(provider: Provider, client: Client) -> None:
    def call(number: int) -> bool:
        body = b'{"model": "m%d", "stream": %s}' % (number, b"true" if number % 2 else b"false")
        return b'"m%d"' % number in client.whole(PATH, body)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(call, range(300)))
    assert provider.connections_seen <= 8
