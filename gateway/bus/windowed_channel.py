"""A channel over messages that get lost without a word: numbered, with a heartbeat, and with a window, since nothing else holds back who sends.

Every message says how many pieces of frames were sent so far, itself included, and how much of what came was taken: a gap shows at once.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gateway.bus.base import MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES
from gateway.bus.socket_channel import FLUSH_S, MOST_BYTES
from gateway.frames import ChannelLost

OPEN, PIECE, END, TAKEN, BEAT, CLOSE = b"O", b"P", b"E", b"T", b"B", b"C"
"""`PIECE`: a part of a frame; `END`: its last one, or all of it. `TAKEN`: only says so."""
OPENER, ACCEPTER = 0, 1
PIECE_BYTES = 32_000
WINDOW_BYTES = 128_000
"""What may be on its way. Of all channels of a worker together it must stay below what Redis keeps for a subscriber (32 MB)."""
MESSAGE_BYTES = 100
"""What each message counts beside its content, so that a window of tiny frames is bounded as well."""
SILENCE_S = 2.5
"""A side that was not heard of for so long is dead."""
_HEADER = struct.Struct(">cB16sQQ")


@dataclass(frozen=True, slots=True)
class Message:
    """What goes from one side of a channel to the other; `side` is which of the two it is for."""

    kind: bytes
    side: int
    channel: bytes
    sent: int
    taken: int
    content: bytes

    def packed(self) -> bytes:
        return _HEADER.pack(self.kind, self.side, self.channel, self.sent, self.taken) + self.content

    @staticmethod
    def unpacked(data: bytes) -> Message | None:
        """None where it is none."""
        if len(data) < _HEADER.size:
            return None
        kind, side, channel, sent, taken = _HEADER.unpack_from(data)
        return Message(kind, side, channel, sent, taken, data[_HEADER.size :])


class WindowedChannel:
    """`post` sends a message to the other side, in order, without waiting; `ended` is called when the channel needs none of its messages any more.

    Neither may call back into the channel.
    """

    def __init__(self, channel: bytes, side: int, post: Callable[[WindowedChannel, bytes], None], ended: Callable[[WindowedChannel], None]) -> None:
        self.key = (channel, side)
        self._post_packed, self._ended = post, ended
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[tuple[bytes, bytes | memoryview]] = deque()
        self._queued_bytes = self._queued_frames = 0
        self._sent = self._sent_bytes = self._acknowledged = 0
        self._inbox: deque[tuple[bytes, int]] = deque()
        self._parts = list[bytes]()
        self._parts_bytes = self._parts_cost = 0
        self._came = self._taken = self._reported = 0
        self._cause = ""
        self._left = self._over = False
        self._heard_at, self._flush_until = time.monotonic(), 0.0

    def send(self, frame: bytes) -> None:
        with self._changed:
            if self._cause or self._left:
                raise ChannelLost(self._cause or "gone")
            if len(frame) > MOST_BYTES or self._queued_bytes + len(frame) > MAX_QUEUED_BYTES or self._queued_frames >= MAX_QUEUED_FRAMES:
                self._end("full")
                raise ChannelLost("full")
            self._queued_frames += 1
            self._queued_bytes += len(frame)
            view = memoryview(frame) if len(frame) > PIECE_BYTES else frame
            for begin in range(0, max(len(frame), 1), PIECE_BYTES):
                self._queue.append((PIECE if begin + PIECE_BYTES < len(frame) else END, view[begin : begin + PIECE_BYTES]))
            self._pump()

    def receive(self, timeout_s: float) -> bytes | None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self._cause:
                    raise ChannelLost(self._cause)
                if self._inbox:
                    return self._take()
                if self._left:
                    raise ChannelLost("gone")
                rest_s = deadline - time.monotonic()
                if rest_s <= 0:
                    return None
                self._changed.wait(rest_s)

    def close(self) -> None:
        with self._changed:
            if self._cause:
                return
            if not self._queue or self._left:
                self._end("closed")
                return
            self._cause, self._flush_until = "closed", time.monotonic() + FLUSH_S
            self._changed.notify_all()

    def lose(self) -> None:
        """The other side cannot be reached any more, or has closed. What came from it can still be received. Idempotent."""
        with self._changed:
            self._lose()

    def came(self, message: Message) -> None:
        """A message from the other side."""
        with self._changed:
            self._heard_at = time.monotonic()
            is_piece = message.kind in (PIECE, END)
            if self._over or self._left:
                return
            if message.sent != self._came + is_piece or message.taken > self._sent_bytes or not self._let_in(message):
                self._post(CLOSE)
                self._lose()
                return
            if message.taken > self._acknowledged:
                self._acknowledged = message.taken
                self._pump()
            if message.kind == CLOSE:
                self._lose()

    def beat(self) -> None:
        """Say that this side is there."""
        with self._changed:
            if not (self._over or self._left):
                self._post(BEAT)

    def look(self, now: float) -> None:
        """Give up a side that is silent, or that takes too long over what was sent before `close`."""
        with self._changed:
            if now - self._heard_at > SILENCE_S:
                self._lose()
            elif self._cause and not self._over and now > self._flush_until:
                self._end(self._cause)

    def excuse(self, now: float) -> None:
        """This worker did not run for a while: what it did not hear is nobody's silence."""
        with self._changed:
            self._heard_at = now

    # What follows is called with the lock held.

    def _pump(self) -> None:
        """Send what the window has room for."""
        while self._queue:
            kind, piece = self._queue[0]
            cost, under_way = len(piece) + MESSAGE_BYTES, self._sent_bytes - self._acknowledged
            if under_way and under_way + cost > WINDOW_BYTES:
                return
            self._queue.popleft()
            self._sent += 1
            self._sent_bytes += cost
            self._queued_bytes -= len(piece)
            self._queued_frames -= kind == END
            self._post(kind, bytes(piece))
        if self._cause and not self._over:
            self._end(self._cause)

    def _let_in(self, message: Message) -> bool:
        """Take in a piece; False where it makes too large a frame."""
        if message.kind not in (PIECE, END):
            return True
        self._came += 1
        self._parts.append(message.content)
        self._parts_bytes += len(message.content)
        self._parts_cost += len(message.content) + MESSAGE_BYTES
        if self._parts_bytes > MOST_BYTES:
            return False
        if self._cause:  # closed here, and only flushing: nobody takes it
            self._parts, self._parts_bytes = [], 0
        elif message.kind == END:
            frame = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._inbox.append((frame, self._parts_cost))
            self._parts, self._parts_bytes, self._parts_cost = [], 0, 0
            self._changed.notify_all()
        elif not self._inbox:
            self._take_parts()
        return True

    def _take(self) -> bytes:
        frame, cost = self._inbox.popleft()
        self._taken += cost
        if not self._inbox:
            self._take_parts()
        self._report()
        return frame

    def _take_parts(self) -> None:
        """Of the frame that is next, pieces count as taken when they come, or one larger than the window would never come whole."""
        self._taken += self._parts_cost
        self._parts_cost = 0
        self._report()

    def _report(self) -> None:
        if self._taken - self._reported >= WINDOW_BYTES // 4 and not (self._over or self._left):
            self._post(TAKEN)

    def _end(self, cause: str) -> None:
        """Nothing more goes either way."""
        self._cause = self._cause or cause
        if not self._left and not self._over:
            self._post(CLOSE)
        self._drop()

    def _lose(self) -> None:
        self._left = True
        self._drop()

    def _drop(self) -> None:
        self._queue.clear()
        self._queued_bytes = self._queued_frames = 0
        if not self._over:
            self._over = True
            self._ended(self)
        self._changed.notify_all()

    def _post(self, kind: bytes, content: bytes = b"") -> None:
        channel, side = self.key
        self._reported = self._taken
        self._post_packed(self, Message(kind, 1 - side, channel, self._sent, self._taken, content).packed())
