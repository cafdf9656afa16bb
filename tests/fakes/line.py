"""An agent's connection without the websocket: messages on a pair of sockets, the gateway's end as sessions use it, the agent's as tests do."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from gateway.bus.socket_channel import MOST_BYTES, SocketChannel
from gateway.core.agent_frames import Refused
from gateway.core.agent_session import SMALL_BYTES, Session, SocketClosed
from gateway.frames import Channel, ChannelLost

WAIT_S = 5.0
_CLOSE = b"\0close"
GONE = 1006


def channels() -> tuple[SocketChannel, SocketChannel]:
    """Both ends of a channel."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return SocketChannel(near, MOST_BYTES, lambda _: None), SocketChannel(far, MOST_BYTES, lambda _: None)


class Near:
    """The gateway's end. `speed`: how much faster time passes than it does, in what is waited for."""

    def __init__(self, channel: SocketChannel, speed: float) -> None:
        self._channel, self._speed, self._code = channel, speed, GONE
        self._reason = ""
        self.max_bytes = SMALL_BYTES
        self.closed: list[tuple[int, str]] = []

    def allow(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes

    def send(self, text: str | bytes) -> None:
        try:
            self._channel.send(text.encode() if isinstance(text, str) else text)
        except ChannelLost as error:
            raise SocketClosed(self._code, self._reason) from error

    def receive(self, timeout_s: float | None) -> str | None:
        try:
            raw = self._channel.receive(3600.0 if timeout_s is None else timeout_s / self._speed)
        except ChannelLost as error:
            raise SocketClosed(self._code, self._reason) from error
        return None if raw is None else raw.decode()

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed.append((code, reason))
        if self._code == GONE:
            self._code, self._reason = code, reason
            with contextlib.suppress(ChannelLost):
                self._channel.send(_CLOSE + json.dumps([code, reason]).encode())
            self._channel.close()


class Line:
    """A context manager. `near` is for a session; the rest is the agent's. `clock` is for the session where time passes faster."""

    def __init__(self, speed: float = 1.0) -> None:
        here, self._there = channels()
        self.near, self._here, self._speed = Near(here, speed), here, speed

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()
        self._there.close()

    def clock(self) -> float:
        return time.monotonic() * self._speed

    def say(self, frame: dict[str, Any] | str | bytes) -> None:
        raw = json.dumps(frame) if isinstance(frame, dict) else frame
        self._there.send(raw if isinstance(raw, bytes) else raw.encode())

    def hear_raw(self, timeout_s: float = WAIT_S) -> bytes:
        """The next message. Raises SocketClosed with what the gateway's end was closed with; TimeoutError."""
        try:
            raw = self._there.receive(timeout_s)
        except ChannelLost as error:
            raise SocketClosed(GONE) from error
        if raw is None:
            raise TimeoutError
        if raw.startswith(_CLOSE):
            code, reason = json.loads(raw.removeprefix(_CLOSE))
            raise SocketClosed(code, reason)
        return raw

    def hear(self, timeout_s: float = WAIT_S) -> dict[str, Any]:
        frame = json.loads(self.hear_raw(timeout_s))
        assert isinstance(frame, dict)
        return frame

    def is_silent(self) -> bool:
        """Whether nothing comes for a moment."""
        try:
            self.hear_raw(0.05)
        except TimeoutError:
            return True
        return False

    def drop(self) -> None:
        """Lose the connection."""
        self._there.close()


class Running:
    """A session that runs, and the channels that it attends to. A context manager. `ended`: with what `run` was over, once it is."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.ended: list[BaseException] = []
        self.attended: list[threading.Thread] = []
        self._clients: list[SocketChannel] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.session.end(1000, "the test is over")
        for client in self._clients:
            client.close()
        for thread in (self._thread, *self.attended):
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def _run(self) -> None:
        try:
            self.session.run()
        except BaseException as error:  # what the test looks at
            self.ended.append(error)
            self.session.end(error.code if isinstance(error, SocketClosed | Refused) else 1011, "")

    def open(self) -> SocketChannel:
        """A client's end of a channel that the session attends to, as the bus has it."""
        near, far = channels()
        thread = threading.Thread(target=self._attend, args=(far,), daemon=True)
        self.attended.append(thread)
        self._clients.append(near)
        thread.start()
        return near

    def _attend(self, channel: Channel) -> None:
        try:
            self.session.attend(channel)
        finally:
            channel.close()

    def ending(self) -> BaseException:
        """With what `run` is over."""
        wait(lambda: self.ended)
        return self.ended[0]

    def refusal(self) -> int:
        error = self.ending()
        assert isinstance(error, Refused), repr(error)
        return error.code


def wait(condition: Callable[[], Any]) -> None:
    """Until it holds. Raises AssertionError."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def said(channel: Channel) -> dict[str, Any]:
    """The next frame that a client gets. Raises ChannelLost."""
    raw = channel.receive(WAIT_S)
    assert raw is not None, "nothing came"
    frame = json.loads(raw)
    assert isinstance(frame, dict)
    return frame
