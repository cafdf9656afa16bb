"""A request that the Python agent answers: its frames until the gateway has them, and how many it may send."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any

from agents.link import Link

LONGEST_S = 3600.0


class Failed(Exception):
    """The request is answered with an `error` frame of these members."""

    def __init__(self, cause: str, message: str, **members: Any) -> None:
        super().__init__(message)
        self.frame = {"type": "error", "cause": cause, "message": message, **members}


class GivenUp(Exception):
    """Nobody waits for the request any more."""


class Work:
    """Two threads meet here: the request's own emits the answer, the one that reads the websocket calls the rest. Raises ValueError for a bad frame.

    `body` is what the upstream is asked.
    """

    def __init__(self, frame: Mapping[str, Any], link: Link) -> None:
        if not isinstance(frame.get("id"), str) or not isinstance(frame.get("body"), dict):
            raise ValueError("a request needs an id and a body")
        self.id: str = frame["id"]
        self.body: dict[str, Any] = frame["body"]
        self.begun_at = time.monotonic()
        deadline_s = frame.get("deadline_s")
        self._deadline = self.begun_at + (deadline_s if isinstance(deadline_s, int | float) else LONGEST_S)
        self._link: Link | None = link
        self._kept: deque[tuple[int, bytes]] = deque()
        self.made, self._sent, self._allowed = 0, 0, whole(frame, "credit")
        self._changed = threading.Condition()
        self._upstream: socket.socket | None = None
        self._grace: threading.Timer | None = None
        self.ended_at: float | None = None
        self.given_up = False

    @property
    def left_s(self) -> float:
        return min(LONGEST_S, max(0.001, self._deadline - time.monotonic()))

    @property
    def running(self) -> bool:
        return self.ended_at is None and not self.given_up

    @property
    def sent(self) -> bool:
        """Whether nothing is left to be made or sent."""
        return self.given_up or (self.ended_at is not None and self._sent == self.made)

    @property
    def arrived(self) -> bool:
        """Whether the gateway has all of it."""
        return self.given_up or (self.ended_at is not None and not self._kept)

    def emit(self, members: Mapping[str, Any]) -> None:
        """A frame of the answer, once there is credit for it. Raises GivenUp, and Failed when the time is up."""
        with self._changed:
            due = self._changed.wait_for(lambda: self.given_up or self.made < self._allowed, self.left_s)
            if self.given_up:
                raise GivenUp
            if not due:
                raise Failed("timeout", "the deadline passed while nobody read the answer")
            self._make(members)

    def end(self, members: Mapping[str, Any]) -> None:
        """The last frame: it leaves when there is credit, and nobody waits for that."""
        with self._changed:
            if not self.given_up:
                self._make(members)
            self.ended_at, self._upstream = time.monotonic(), None

    def hold(self, upstream: socket.socket) -> None:
        """What to break when nobody waits any more. Raises GivenUp where that is so already."""
        with self._changed:
            self._upstream = upstream
            if self.given_up:
                raise GivenUp

    def credited(self, n: int, received: int) -> None:
        with self._changed:
            self._allowed += n
            self._arrived(received)

    def lost(self, link: Link, grace_s: float) -> None:
        """Work on, but send nothing until it is resumed, and give up after the grace period; at once what nothing was sent of, which is another agent's now."""
        with self._changed:
            if self._link is not link or not self.running:
                return
            self._link = None
            if not self._sent:
                self.give_up()
                return
            self._grace = threading.Timer(grace_s, self._unresumed)
            self._grace.daemon = True
            self._grace.start()

    def resumed(self, link: Link, received: int, credit: int) -> bool:
        """Go on over this link behind the frame `received`; False where that cannot be."""
        with self._changed:
            first = self._kept[0][0] if self._kept else self.made + 1
            if self.given_up or not first - 1 <= received <= self.made:
                return False
            if self._grace is not None:
                self._grace.cancel()
            self._link, self._grace, self._sent, self._allowed = link, None, received, received + credit
            self._arrived(received)
            return True

    def give_up(self) -> None:
        """Break the upstream's connection, at once."""
        with self._changed:
            self.given_up = True
            self._kept.clear()
            self._changed.notify_all()
            if self._upstream is not None:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._upstream, socket.SHUT_RDWR)  # TLS's own shutdown would make the reader's next call a programming error

    def _unresumed(self) -> None:
        with self._changed:
            if self._link is None:
                self.give_up()

    def _make(self, members: Mapping[str, Any]) -> None:
        frame = json.dumps({**members, "id": self.id, "seq": self.made + 1}, allow_nan=False).encode()
        self.made += 1
        self._kept.append((self.made, frame))
        self._send()

    def _arrived(self, received: int) -> None:
        while self._kept and self._kept[0][0] <= min(received, self._sent):
            self._kept.popleft()
        self._send()
        self._changed.notify_all()

    def _send(self) -> None:
        if self._link is None or not self._kept:
            return
        first = self._kept[0][0]
        for seq, frame in islice(self._kept, self._sent + 1 - first, max(0, self._allowed + 1 - first)):
            self._link.post(frame)
            self._sent = seq


def whole(frame: Mapping[str, Any], name: str) -> int:
    """A member that is a number of frames. Raises ValueError."""
    value = frame.get(name, 0)
    if type(value) is not int or value < 0:
        raise ValueError(f"{name!r} is no number of frames")
    return value
