"""Connections that a view takes over from the worker: what the worker still does with them, and what it no longer does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.gateway import RawClient
from tests.fakes.processes import descriptors
from tests.fakes.socket_app import RunningSockets
from tests.fakes.websocket import GONE, TEXT, WebSocketClient, frame_bytes, upgrade_bytes

KEEPALIVE_S = 1.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSockets]:
    with RunningSockets(tmp_path_factory.mktemp("sockets")) as served:
        yield served


def test_worker_writes_nothing_after_the_view_and_ends_the_connection(served: RunningSockets) -> None:
    with WebSocketClient(served.port, "/close?code=4409") as client:
        assert client.end().code == 4409
        assert client.is_ended()


def test_view_that_fails_ends_the_connection_and_nothing_else(served: RunningSockets) -> None:
    with WebSocketClient(served.port, "/echo") as other:
        with WebSocketClient(served.port, "/fail") as client:
            assert client.end().code == GONE
        other.send("still here")
        assert other.receive() == "still here"
    assert "HTTP/1.1 500" not in served.log
    assert "the answer broke off" in served.log


def test_idle_websocket_outlives_the_time_for_idle_connections(served: RunningSockets) -> None:
    with WebSocketClient(served.port, "/echo") as client, RawClient(served.port) as kept:
        kept.ask("/", method="GET")
        assert kept.answer().status == 200
        assert kept.ended(KEEPALIVE_S + 2)
        time.sleep(0.5)
        client.send("hello")
        assert client.receive() == "hello"


def test_upgrade_may_follow_other_requests_in_one_segment(served: RunningSockets) -> None:
    plain = b"GET / HTTP/1.1\r\nhost: gateway\r\n\r\n"
    with RawClient(served.port) as client:
        client.send(plain + plain + upgrade_bytes("/echo", {}, "AAAAAAAAAAAAAAAAAAAAAA==") + frame_bytes(TEXT, b"early") * 3)
        received = b""
        while received.count(b"early") < 3:
            received += client.sock.recv(65_536)
    assert [line.split(b" ")[1] for line in received.split(b"\r\n") if line.startswith(b"HTTP/")] == [b"200", b"200", b"101"]
    assert received.endswith(b"\r\n\r\n" + b"\x81\x05early" * 3)


@pytest.mark.parametrize("sends", [False, True])
@pytest.mark.parametrize("answers", [False, True])
def test_close_by_another_greenlet_wakes_the_view(served: RunningSockets, sends: bool, answers: bool) -> None:
    """Whether it receives, or sends more than the peer takes; whether the peer closes too, or never does."""
    mark = f"ended {sends} {answers}"
    with WebSocketClient(served.port, f"/closed_by_another?s=0.3&sends={int(sends)}", headers={"x-mark": mark}, receive_buffer=65_536) as client:
        if answers and not sends:
            assert client.end().code == 4409
        began = time.monotonic()
        while f"{mark}: 4409" not in served.log:
            assert time.monotonic() - began < 5, served.log
            time.sleep(0.05)


def test_request_that_is_no_websocket_is_answered_and_the_connection_goes_on(served: RunningSockets) -> None:
    with RawClient(served.port) as client:
        for _ in range(2):
            client.ask("/echo", method="GET", headers={"upgrade": "websocket", "connection": "Upgrade"})
            assert client.answer().status == 200


def test_closed_websockets_leave_no_descriptors(served: RunningSockets) -> None:
    before = descriptors(served.worker)
    for number in range(30):
        with WebSocketClient(served.port, "/echo") as client:
            client.send("x")
            client.receive()
            if number % 3 == 0:
                client.close()
            elif number % 3 == 1:
                client.reset()
    deadline = time.monotonic() + 5
    while descriptors(served.worker) > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_websocket_counts_as_open_while_the_worker_drains(tmp_path: Path) -> None:
    with RunningSockets(tmp_path) as served, WebSocketClient(served.port, "/echo") as client:
        assert served.process is not None
        os.kill(served.process.pid, signal.SIGTERM)
        time.sleep(0.5)
        client.send("still served")
        assert client.receive() == "still served"
        assert served.process.poll() is None
        began = time.monotonic()
        client.close()
        served.process.wait(5)
        assert time.monotonic() - began < 2.5  # gunicorn's arbiter looks once a second


def test_websocket_that_stays_is_cut_when_the_time_to_drain_is_over(tmp_path: Path) -> None:
    with RunningSockets(tmp_path) as served, WebSocketClient(served.port, "/echo") as client:
        assert served.process is not None
        began = time.monotonic()
        os.kill(served.process.pid, signal.SIGTERM)
        assert client.end().code == GONE
        assert 3 < time.monotonic() - began < 7
        served.process.wait(5)
