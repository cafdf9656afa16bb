"""Row 42: an agent hangs, and its connection stays open. Two pings without a pong end it within 45 s.

The times are the session's own, by a clock that the test turns, and once, on real connections with a process that is frozen, in a twentieth of them.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time

import pytest

from gateway.api.websocket import WebSocket
from gateway.core.agent_frames import Refused
from gateway.core.agent_session import TIMED_OUT, SessionV2, SocketClosed, Welcome
from tests.fakes.agents import SUBPROTOCOL
from tests.fakes.gateway import ROOT
from tests.fakes.socket_server import SocketServer
from tests.faults.conftest import Measured

FIGURE_S = 45.0
FASTER = 20
AGENT = """
import sys
from tests.fakes.agents import Agent

with Agent(int(sys.argv[1]), name="frozen") as agent:
    print("connected", flush=True)
    agent.wait_closed(60)
"""


class Turned:
    """A socket and its clock: nothing comes, and waiting for it turns the clock; `pongs`: how many pings are answered, and from then on it takes
    nothing where it is `full`. `sent`: what the agent would get."""

    def __init__(self, pongs: int, *, full: bool = False) -> None:
        self.full, self.emptied, self._changed = full, threading.Event(), threading.Condition()
        self.now = self.heard = 1000.0
        self.sent, self._pongs = list[str](), pongs
        self._answered, self._due = 0, 1

    def clock(self) -> float:
        return self.now

    def send(self, text: str | bytes) -> None:
        with self._changed:
            self.sent.append(text if isinstance(text, str) else text.decode())
            self._changed.notify()
        if self.full and self._pings() > self._pongs:
            self.emptied.wait(60)

    def _pings(self) -> int:
        return sum('"ping"' in frame for frame in self.sent)

    def receive(self, timeout_s: float | None) -> str | None:
        assert timeout_s is not None
        with self._changed:  # each ping leaves in a thread of its own
            assert self._changed.wait_for(lambda: self._pings() >= self._due, 10)
        if self._answered < min(self._pongs, self._pings()):
            self._answered += 1
            self.now += 0.05
            self.heard = self.now
            return '{"type":"pong"}'
        self.now += timeout_s
        self._due += 1
        return None

    def allow(self, max_bytes: int) -> None:
        """Nothing comes."""

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Nobody is there to be told."""


@pytest.mark.parametrize("full", [False, True], ids=["taking", "full"])
@pytest.mark.parametrize("pongs", [0, 1, 3])
def test_42_silence_is_found_out_in_time(measured: Measured, pongs: int, full: bool) -> None:
    """Also where not even the ping can be sent, because the agent's kernel takes nothing more."""
    socket = Turned(pongs, full=full)
    session = SessionV2(socket, socket.clock)
    session.welcome(Welcome("a", "s", ("m",)))
    with pytest.raises(Refused) as refused:
        session.run()
    socket.emptied.set()
    measured(
        42,
        f"agent that answers {pongs} pings and then hangs{' and takes nothing' * full}: found out {socket.now - socket.heard:.1f} s after it was heard (45 s)",
    )
    assert refused.value.code == TIMED_OUT
    assert sum('"ping"' in frame for frame in socket.sent) == pongs + 2
    assert socket.now - socket.heard <= FIGURE_S


class Hastened:
    """A real websocket, on which the session's seconds are a twentieth."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self.send, self.close, self.allow = websocket.send, websocket.close, websocket.allow

    def receive(self, timeout_s: float | None) -> str | None:
        return self._websocket.receive(None if timeout_s is None else timeout_s / FASTER)


def test_42_frozen_process_is_found_out(measured: Measured) -> None:
    """Its kernel still takes in what it is sent, so nothing but the silence shows it."""
    ends: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()

    def serve(websocket: WebSocket) -> None:
        session = SessionV2(Hastened(websocket), lambda: time.monotonic() * FASTER)
        session.hello()
        session.welcome(Welcome("a", "s", ("m",)))
        try:
            session.run()
        except Refused as refused:
            ends.put((refused.code, time.monotonic()))
            session.end(refused.code, refused.reason)
        except SocketClosed as closed:
            ends.put((closed.code, time.monotonic()))

    with SocketServer(serve, (SUBPROTOCOL,)) as server:
        command = [sys.executable, "-c", AGENT, str(server.port)]
        with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"connected\n"
                frozen = time.monotonic()
                process.send_signal(signal.SIGSTOP)
                code, at = ends.get(timeout=10)
            finally:
                process.kill()
    seconds = (at - frozen) * FASTER
    measured(42, f"frozen process: found out after {seconds:.1f} s, measured at {FASTER} times the speed (45 s)")
    assert code == TIMED_OUT
    assert seconds <= 1.5 * FIGURE_S
