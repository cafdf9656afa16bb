"""What agents of both protocols have in common: a websocket, a thread that reads it, and waiting for what happens."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from tests.fakes.websocket import CLOSE, Closed, WebSocketClient

WAIT_S = 10.0


class Connecting:
    """A base class. Subclasses make `socket` in their `connect`, then `_begin`."""

    socket: WebSocketClient

    def __init__(self, port: int) -> None:
        self.port, self.pings = port, 0
        self.closed: list[Closed] = []
        """How each connection ended."""
        self.changed = threading.Condition(threading.RLock())
        self.is_connected = self._is_leaving = False

    def wait(self, condition: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
        """Until it holds. Raises AssertionError."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), f"it never happened to {self!r}"

    def wait_closed(self, timeout_s: float = WAIT_S) -> Closed:
        """The end of the connection."""
        self.wait(lambda: not self.is_connected, timeout_s)
        return self.closed[-1]

    def say(self, frame: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the reading thread sees the end
            self.socket.send_json(frame)

    def drop(self) -> None:
        """Lose the connection, as a box whose power fails."""
        self.socket.reset()

    def close(self, code: int = 1000) -> None:
        """End for good."""
        with self.changed:
            self._is_leaving = True
        with contextlib.suppress(OSError):
            self.socket.send_frame(CLOSE, code.to_bytes(2, "big"))
        with self.changed:
            self.changed.wait_for(lambda: not self.is_connected, 2)
        self.socket.sock.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'connected' if self.is_connected else 'away'}, closed {[closed.code for closed in self.closed]}>"

    def _begin(self, name: str) -> None:
        self.socket.sock.settimeout(None)
        with self.changed:
            if self._is_leaving:  # it connected again while it was told to leave
                self.socket.sock.close()
                return
            self.is_connected = True
            self.changed.notify_all()
        threading.Thread(target=self._read, args=(self.socket,), name=name, daemon=True).start()

    def _read(self, socket: WebSocketClient) -> None:
        try:
            while True:
                self._take(socket.receive_json())
        except (Closed, OSError, ValueError) as error:  # ValueError: the socket was closed under the read
            closed = error if isinstance(error, Closed) else Closed(1006, type(error).__name__)
        socket.sock.close()
        with self.changed:
            self._detach()
            self.is_connected = False
            self.closed.append(closed)
            self.changed.notify_all()
        self._ended(closed)

    def _take(self, frame: dict[str, Any]) -> None:
        raise NotImplementedError

    def _detach(self) -> None:
        """What changes in the moment in which the connection is lost."""

    def _ended(self, closed: Closed) -> None:
        """Called in the reading thread, at its end."""
