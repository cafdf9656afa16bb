"""Deadlines, names, TLS, and being given up from outside, over real sockets."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from gateway.backend import Cancellation, Deadlines
from gateway.errors import Cancelled, UpstreamTimeout, UpstreamUnreachable
from tests.fakes.answers import Default, Drip, End, RawBytes, ResetAt, Silent, StallAt, Step
from tests.fakes.provider import Provider
from tests.unit.backends.conftest import Client, cancel_while, failure

PATH = "/v1/chat/completions"
HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
ROOT = Path(__file__).parents[3]


# Connecting


def test_refused_connection_means_unreachable(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error, _ = failure(lambda: client.send(root=f"http://127.0.0.1:{port}"), UpstreamUnreachable)
    assert str(port) not in str(error)
    assert isinstance(error.__cause__, ConnectionRefusedError)


def test_connecting_ends_at_its_deadline(client: Client, black_hole: str) -> None:
    _, seconds = failure(lambda: client.send(root=black_hole, deadlines=Deadlines(connect_s=0.3)), UpstreamUnreachable)
    assert 0.25 < seconds < 2


def test_total_deadline_holds_while_connecting(client: Client, black_hole: str) -> None:
    error, seconds = failure(lambda: client.send(root=black_hole, total_s=0.3), UpstreamTimeout)
    assert getattr(error, "phase", None) == "total"
    assert 0.25 < seconds < 2


def test_unknown_name_means_unreachable(client: Client) -> None:
    error, _ = failure(lambda: client.send(root="http://no-such-host.invalid"), UpstreamUnreachable)
    assert "no-such-host" not in str(error)


def test_name_is_resolved_and_every_address_is_tried(client: Client, provider: Provider) -> None:
    for _ in range(2):
        assert client.whole(root=f"http://localhost:{provider.port}", path=PATH)
    assert provider.requests[0].headers["host"] == f"localhost:{provider.port}"


# Waiting for the answer


def test_silence_ends_at_the_first_byte_deadline(provider: Provider, client: Client) -> None:
    provider.script(PATH, Silent())
    error, seconds = failure(lambda: client.send(PATH, deadlines=Deadlines(first_byte_s=0.3)), UpstreamTimeout)
    assert getattr(error, "phase", None) == "first_byte"
    assert 0.25 < seconds < 2
    provider.wait_closed()


def test_silence_within_the_head_ends_at_the_idle_deadline(provider: Provider, client: Client) -> None:
    provider.script(PATH, StallAt(10))
    error, seconds = failure(lambda: client.send(PATH, deadlines=Deadlines(first_byte_s=5, idle_s=0.3)), UpstreamTimeout)
    assert getattr(error, "phase", None) == "idle"
    assert 0.25 < seconds < 2


def test_silence_within_the_body_ends_at_the_idle_deadline(provider: Provider, client: Client) -> None:
    provider.script(PATH, RawBytes(HELLO[:-1], End.HOLD))
    response = client.send(PATH, deadlines=Deadlines(idle_s=0.3))
    assert next(response.chunks) == b"hell"
    error, seconds = failure(lambda: next(response.chunks), UpstreamTimeout)
    assert getattr(error, "phase", None) == "idle"
    assert 0.25 < seconds < 2
    provider.wait_closed()
    failure(lambda: next(response.chunks), UpstreamTimeout)


@pytest.mark.parametrize("size", [1, 40])
def test_drip_feed_ends_at_the_total_deadline(provider: Provider, client: Client, size: int) -> None:
    provider.script(PATH, Drip(size, 0.05))
    error, seconds = failure(lambda: list(client.send(PATH, total_s=0.5).chunks), UpstreamTimeout)
    assert getattr(error, "phase", None) == "total"
    assert 0.45 < seconds < 2


def test_passed_deadline_sends_nothing(provider: Provider, client: Client) -> None:
    client.whole(PATH)
    for _ in range(2):
        error, _ = failure(lambda: client.send(PATH, total_s=-1), UpstreamTimeout)
        assert getattr(error, "phase", None) == "total"
    assert len(provider.requests) == 1


@pytest.mark.parametrize(("deadlines", "total_s", "phase"), [(Deadlines(idle_s=0.3), 10.0, "idle"), (Deadlines(idle_s=5), 0.3, "total")])
def test_upstream_that_does_not_read_the_body_runs_into_a_deadline(client: Client, deadlines: Deadlines, total_s: float, phase: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        root = f"http://127.0.0.1:{listener.getsockname()[1]}"
        error, seconds = failure(lambda: client.send(PATH, b"x" * 50_000_000, root=root, deadlines=deadlines, total_s=total_s), UpstreamTimeout)
    assert getattr(error, "phase", None) == phase
    assert 0.25 < seconds < 3


# Being given up


def test_cancelled_call_is_not_sent(provider: Provider, client: Client) -> None:
    cancel = Cancellation()
    cancel.fire("draining")
    with pytest.raises(Cancelled, match="draining"):
        client.send(PATH, cancel=cancel)
    assert provider.connections_seen == 0


def test_cancel_ends_the_wait_for_an_answer(provider: Provider, client: Client) -> None:
    provider.script(PATH, Silent())
    cancel = Cancellation()
    assert cancel_while(provider, cancel, lambda: client.send(PATH, cancel=cancel), lambda: provider.wait_requests(1)) < 0.5
    provider.wait_closed()
    assert len(provider.requests) == 1


def test_cancel_on_a_kept_connection_is_no_reason_to_send_again(provider: Provider, client: Client) -> None:
    client.whole(PATH)
    provider.script(PATH, Silent())
    cancel = Cancellation()
    cancel_while(provider, cancel, lambda: client.send(PATH, cancel=cancel), lambda: provider.wait_requests(2))
    provider.wait_closed()
    assert len(provider.requests) == 2


@pytest.mark.parametrize("step", [RawBytes(HELLO[:-1], End.HOLD), RawBytes(b"HTTP/1.1 200 OK\r\n\r\nhell", End.HOLD)])
def test_cancel_ends_the_wait_for_a_block(provider: Provider, client: Client, step: Step) -> None:
    provider.script(PATH, step)
    cancel = Cancellation()
    response = client.send(PATH, cancel=cancel)
    assert next(response.chunks) == b"hell"
    assert cancel_while(provider, cancel, lambda: next(response.chunks), lambda: None) < 0.5
    provider.wait_closed()
    with pytest.raises(Cancelled):
        next(response.chunks)


def test_cancel_ends_the_sending_of_a_body(client: Client, provider: Provider) -> None:
    cancel = Cancellation()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        root = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert cancel_while(provider, cancel, lambda: client.send(PATH, b"x" * 50_000_000, root=root, cancel=cancel), lambda: time.sleep(0.2)) < 0.5


def test_cancel_ends_connecting(client: Client, provider: Provider, black_hole: str) -> None:
    cancel = Cancellation()
    deadlines = Deadlines(connect_s=5)
    assert cancel_while(provider, cancel, lambda: client.send(root=black_hole, cancel=cancel, deadlines=deadlines), lambda: time.sleep(0.1)) < 0.5


def test_cancelled_stream_is_not_read_to_its_end(provider: Provider, client: Client) -> None:
    provider.script(PATH, RawBytes(HELLO[:-2], 0.1, HELLO[-2:], end=None))
    cancel = Cancellation()
    response = client.send(PATH, cancel=cancel)
    assert next(response.chunks) == b"hel"
    cancel.fire("client_gone")
    with pytest.raises(Cancelled):
        next(response.chunks)


def test_answer_already_whole_outlives_a_cancel(provider: Provider, client: Client) -> None:
    provider.script(PATH, RawBytes(HELLO, end=None))
    cancel = Cancellation()
    response = client.send(PATH, cancel=cancel)
    cancel.fire("client_gone")
    assert b"".join(response.chunks) == b"hello"


def test_reset_after_a_cancel_is_the_cancel(provider: Provider, client: Client) -> None:
    provider.script(PATH, ResetAt(200, Default()))
    cancel = Cancellation()
    response = client.send(PATH, cancel=cancel)
    next(response.chunks)
    cancel.fire("client_gone")
    time.sleep(0.1)
    with pytest.raises(Cancelled):
        next(response.chunks)
