"""Row 43: giant frames, endless fragments, deflate, and floods at a websocket. Figure: the worker grows by no more than the inbox, which here is the kernel's.

In the gateway's own worker, with a WSGI application of a few lines: what is tried out is the socket, not what a family does with its messages.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.fakes.processes import forget_peak, peak_bytes
from tests.fakes.socket_app import RunningSockets
from tests.fakes.websocket import CONTINUATION, PING, TEXT, Closed, WebSocketClient, frame_bytes
from tests.faults.conftest import Measured

MB = 1 << 20
LIMIT = 16_000_000
"""Of a message, where nobody says another."""
FIGURE, WITHIN = 4 * MB, 10
STALL_S = 0.1


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSockets]:
    with RunningSockets(tmp_path_factory.mktemp("sockets")) as served:
        for _ in range(2):  # what the first large message leaves behind is not counted
            with WebSocketClient(served.port, "/echo") as client:
                client.send("x" * MB)
                client.receive()
        yield served


@dataclass(slots=True)
class Beside:
    """What was seen while something was done to the worker: its memory's growth at the most, and the longest time for which its hub was held up."""

    grown: int = 0
    lag_s: float = 0.0


@contextlib.contextmanager
def beside(served: RunningSockets) -> Iterator[Beside]:
    seen = Beside()
    served.lag_s()
    before = forget_peak(served.worker)
    yield seen
    seen.grown, seen.lag_s = max(peak_bytes(served.worker) - before, 0), served.lag_s()


def end_of(client: WebSocketClient) -> int:
    try:
        return client.end().code
    except TimeoutError:
        return 0


def test_43_giant_frame_is_refused_by_its_header(served: RunningSockets, measured: Measured) -> None:
    longest = 0.0
    with beside(served) as seen:
        for length in (LIMIT + 1, 1 << 32, 1 << 62):
            with WebSocketClient(served.port, "/echo") as client:
                began = time.monotonic()
                client.send_raw(frame_bytes(TEXT, b"x" * 1000, length=length))
                assert end_of(client) == 1009
                longest = max(longest, time.monotonic() - began)
    measured(43, f"frames that announce up to 2^62 bytes: 1009 after {longest * 1000:.1f} ms, {seen.grown / MB:.1f} MB more (4 MB)")
    assert seen.grown < FIGURE * WITHIN


def test_43_endless_fragments_end_at_the_limit(served: RunningSockets, measured: Measured) -> None:
    piece, sent = b"x" * 65_536, 0
    with beside(served) as seen, WebSocketClient(served.port, "/echo") as client:
        with contextlib.suppress(OSError):
            while sent < 10 * LIMIT:
                client.send_frame(CONTINUATION if sent else TEXT, piece, fin=False)
                sent += len(piece)
        assert end_of(client) in (1009, 1006)  # 1006: so much was on its way that the end was a reset
    measured(
        43, f"endless fragments: cut off, {seen.grown / MB:.0f} MB more (16 MB, the limit of a message), the hub was held up for {seen.lag_s * 1000:.0f} ms"
    )
    assert seen.grown < 3 * LIMIT
    assert seen.lag_s < STALL_S * WITHIN


def test_43_deflate_is_not_agreed_to(served: RunningSockets) -> None:
    offer = {"sec-websocket-extensions": "permessage-deflate; client_max_window_bits; server_no_context_takeover"}
    with WebSocketClient(served.port, "/echo", headers=offer) as client:
        assert "sec-websocket-extensions" not in client.headers
        client.send_frame(TEXT, b"\x00" * 1000, rsv=4)
        assert client.end().code == 1002


def test_43_what_is_pushed_at_a_busy_handler_waits_in_the_kernel(served: RunningSockets, measured: Measured) -> None:
    """200 MB: nobody reads them for 3 s, and then they are read a message at a time."""
    count, size = 200, MB
    message = frame_bytes(TEXT, b"x" * size)
    with beside(served) as seen, WebSocketClient(served.port, "/busy?s=3", timeout_s=30) as client:
        began, before = time.monotonic(), 0
        for number in range(count):
            client.send_raw(message)
            before = number if time.monotonic() - began < 2.5 else before
        client.send("end")
        assert client.receive() == str(count * size)
    measured(
        43,
        f"200 MB at a busy handler: {seen.grown / MB:.1f} MB more (4 MB), the hub was held up for {seen.lag_s * 1000:.0f} ms",
    )
    assert before < 40
    assert seen.grown < FIGURE * WITHIN
    assert seen.lag_s < STALL_S * WITHIN


def test_43_thirty_megabytes_go_both_ways(served: RunningSockets, measured: Measured) -> None:
    text = "0123456789" * 3_000_000
    with beside(served) as seen, WebSocketClient(served.port, f"/echo?max_bytes={len(text)}", timeout_s=30) as client:
        began = time.monotonic()
        client.send(text)
        assert client.receive() == text
        took = time.monotonic() - began
    measured(43, f"30 MB there and back in {took:.2f} s, {seen.grown / MB:.0f} MB more (90 MB), the hub was held up for {seen.lag_s * 1000:.0f} ms (100 ms)")
    assert took < 20
    assert seen.grown < 4 * len(text)
    assert seen.lag_s < STALL_S * WITHIN


FLOODS: dict[str, bytes] = {
    "messages of one byte": frame_bytes(TEXT, b"x") * 5000,
    "pings": frame_bytes(PING, b"x" * 125) * 2000,
    "empty fragments": frame_bytes(CONTINUATION, b"", fin=False) * 5000,
}


@pytest.mark.parametrize("kind", FLOODS)
def test_43_flood_of_small_frames_holds_nobody_up(served: RunningSockets, kind: str, measured: Measured) -> None:
    """The flooding client reads what comes back, so that only the worker's own fairness protects the others."""
    with beside(served) as seen, WebSocketClient(served.port, "/sink") as client:
        reader = threading.Thread(target=_read_all, args=(client,))
        reader.start()
        client.send_frame(TEXT, b"", fin=kind != "empty fragments")
        end = time.monotonic() + 1.5
        sent = 0
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                client.send_raw(FLOODS[kind])
                sent += len(FLOODS[kind])
        client.reset()
        reader.join()
    measured(43, f"a flood of {kind}, {sent / MB:.0f} MB: the hub was held up for {seen.lag_s * 1000:.0f} ms (100 ms), {seen.grown / MB:.1f} MB more (4 MB)")
    assert seen.lag_s < STALL_S * WITHIN
    assert seen.grown < FIGURE * WITHIN


def _read_all(client: WebSocketClient) -> None:
    with contextlib.suppress(Closed, OSError, ValueError):
        while True:
            client.frame()


def test_43_client_that_does_not_read_is_given_up(served: RunningSockets, measured: Measured) -> None:
    count, send_s = 10, 1.0
    with contextlib.ExitStack() as stack, beside(served) as seen:
        began = time.monotonic()
        clients = [
            stack.enter_context(WebSocketClient(served.port, f"/source?bytes={LIMIT}&send_s={send_s}", receive_buffer=65_536, timeout_s=5))
            for _ in range(count)
        ]
        for client in clients:
            _wait_reset(client)
        took = time.monotonic() - began
    measured(
        43, f"{count} clients that do not read were given up after {took:.1f} s where each has {send_s:g} s, the hub was held up for {seen.lag_s * 1000:.0f} ms"
    )
    assert send_s * 0.9 < took < send_s + 5


def _wait_reset(client: WebSocketClient) -> None:
    """Until the server has ended the connection, without reading from it."""
    established, fin_wait = 1, time.monotonic() + 10
    while client.sock.getsockopt(6, 11, 1)[0] == established:  # TCP_INFO
        assert time.monotonic() < fin_wait
        time.sleep(0.02)
