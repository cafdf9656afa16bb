"""One request on its way: its bytes, its deadlines, and the head of its answer, which may come before all was sent. Used by backends/http.py alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from backends.http_connection import Connection
from backends.http_message import Malformed
from gateway.backend import Body, Cancellation, Deadlines
from gateway.errors import UpstreamProtocolError, UpstreamTimeout

SMALL_BODY_BYTES = 65_536
"""Sent in one step with its head."""
Head = tuple[bytes, Malformed | None]
"""The body bytes that came with a complete head, and what was wrong behind it, if anything."""


class Stale(Exception):
    """The connection broke before a byte of an answer came."""


class Request:
    """One request, as often as it is sent: its bytes and its deadlines."""

    __slots__ = ("_early", "body", "cancel", "deadline", "deadlines", "head", "method", "tick_s")

    def __init__(self, method: str, head: bytes, body: Body, deadlines: Deadlines, deadline: float, cancel: Cancellation, tick_s: float) -> None:
        self.method, self.head, self.body = method, head, body
        self.deadlines, self.deadline, self.cancel, self.tick_s = deadlines, deadline, cancel, tick_s
        self._early: Head | None = None

    def write(self, connection: Connection) -> bool:
        """Whether all was sent. False where the upstream stopped reading, with or without an answer."""
        self._early = None
        wait_s, deadline, size = self.deadlines.idle_s, self.deadline, self.body.size
        if size is not None and size <= SMALL_BODY_BYTES:
            blocks: Iterator[bytes] = iter((self.head + _whole(self.body, size),))
        else:
            blocks = self._blocks()
        answered = partial(self._answered, connection)
        for block in blocks:
            try:
                if not connection.send(block, wait_s, deadline, answered):
                    return False
            except UpstreamTimeout as error:
                if error.phase == "total" or self._early is None:
                    raise
                return False
            except OSError:
                return False
        return True

    def _answered(self, connection: Connection) -> bool:
        """Takes what came while the upstream does not read: whether it is a refusal. An interim answer, or a success, may be followed by more reading."""
        if self._early is None:
            self._early = self._receive_head(connection, self.deadlines.idle_s, "idle")
        return self._early is not None and connection.reader.status >= 300

    def _blocks(self) -> Iterator[bytes]:
        yield self.head
        size, sent = self.body.size, 0
        for block in self.body.open():
            sent += len(block)
            if size is None:
                if block:
                    yield b"%x\r\n%b\r\n" % (len(block), block)
                continue
            if sent > size:
                break
            yield block
        if size is None:
            yield b"0\r\n\r\n"
        elif sent != size:
            raise ValueError("the body is not as long as its size")

    def read_head(self, connection: Connection) -> Head:
        """Read until the head is complete."""
        head = self._early
        wait_s, phase = self.deadlines.first_byte_s, "first_byte"
        while head is None:
            head = self._receive_head(connection, wait_s, phase)
            wait_s, phase = self.deadlines.idle_s, "idle"
        return head

    def _receive_head(self, connection: Connection, wait_s: float, phase: str) -> Head | None:
        """Receive once. None where the head is not complete yet."""
        reader = connection.reader
        try:
            data = connection.receive(wait_s, self.deadline, phase)
        except OSError as error:
            if reader.started:
                raise UpstreamProtocolError("The upstream broke off within the head of its answer.") from error
            raise Stale from error
        if not data:
            if reader.started:
                raise UpstreamProtocolError("The upstream broke off within the head of its answer.")
            raise Stale
        try:
            block = reader.feed(data)
        except Malformed as error:
            if not reader.head_done:
                raise UpstreamProtocolError("The upstream's answer is not HTTP as it should be.") from error
            return reader.rest(), error
        return (block, None) if reader.head_done else None


def _whole(body: Body, size: int) -> bytes:
    whole = b"".join(body.open())
    if len(whole) != size:
        raise ValueError("the body is not as long as its size")
    return whole
