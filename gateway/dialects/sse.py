"""Server-sent events as bytes: where one ends, what its data is. Sources: the WHATWG HTML standard, section 9.2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
_BOUNDARY = re.compile(_LINE_END + _LINE_END)
_LONGEST_BOUNDARY = 4
_LINES = re.compile(rb"\r\n|\n|\r")
HEARTBEAT = b": waiting\n\n"
"""A comment with a blank line, as EventSource and OpenAI's SDKs pass over it; who cuts at blank lines does not take it for a part of the next event."""


@dataclass(frozen=True, slots=True)
class Event:
    """One parsed event. `name` is "" where the stream gives none; `data` is None for comments and bare fields."""

    name: str
    data: bytes | None


def last_boundary(buffer: bytes) -> int:
    """The offset just behind the last blank line of `buffer`, or 0: whole events stand before it.

    A carriage return at the very end may be half of a line end and counts as none yet.
    """
    if buffer.endswith(b"\n\n"):
        return len(buffer)
    newline = buffer.rfind(b"\n\n") + 2
    if b"\r" not in buffer:
        return newline if newline > 1 else 0
    end = 0
    for match in _BOUNDARY.finditer(buffer):
        if match.end() < len(buffer) or not buffer.endswith(b"\r"):
            end = match.end()
    return end


class Splitter:
    """Cuts a stream into whole events as it comes. Takes time in proportion to the bytes, however they are cut."""

    __slots__ = ("_pieces", "_tail", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._tail = b""
        self.size = 0
        """Bytes of the event that is not complete yet."""

    def feed(self, block: bytes) -> bytes:
        """The events that are complete with this block; b"" where there is none."""
        window = self._tail + block if self._tail else block
        boundary = last_boundary(window)
        if not boundary:
            self._keep(block)
            return b""
        cut = boundary - len(self._tail)  # never negative: only the line end at the end of the tail was undecided
        events = b"".join([*self._pieces, block[:cut]]) if self._pieces else block[:cut]
        self._pieces.clear()
        self.size = 0
        self._keep(block[cut:])
        return events

    def _keep(self, block: bytes) -> None:
        if block:
            self._pieces.append(block)
            self.size += len(block)
        self._tail = (self._tail + block)[-_LONGEST_BOUNDARY + 1 :] if self.size > len(block) else block[-_LONGEST_BOUNDARY + 1 :]

    def head(self, size: int) -> bytes:
        """The first bytes of what is kept."""
        head = b""
        for piece in self._pieces:
            head += piece[: size - len(head)]
            if len(head) == size:
                break
        return head

    def drain(self) -> bytes:
        """What is kept, complete or not; keeps it no longer."""
        return b"".join(self.release())

    def release(self) -> list[bytes]:
        """The same in the pieces that came."""
        pieces, self._pieces = self._pieces, []
        self._tail, self.size = b"", 0
        return pieces


def split(buffer: bytes) -> Iterator[bytes]:
    """The raw events of a buffer that ends at a boundary, blank lines included: joined they are the buffer again."""
    at = 0
    for match in _BOUNDARY.finditer(buffer):
        yield buffer[at : match.end()]
        at = match.end()
    if at < len(buffer):
        yield buffer[at:]


def parse(raw: bytes) -> Event:
    """Parse one raw event. A byte order mark before the first line is passed over."""
    name, data = "", []
    for line in _LINES.split(raw.removeprefix(b"\xef\xbb\xbf")):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return Event(name, b"\n".join(data) if data else None)


def encode(data: bytes, name: str = "") -> bytes:
    """One event with one line of data."""
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + data + b"\n\n"
