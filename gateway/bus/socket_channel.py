"""A channel on a connected socket: between processes of a host, or within one.

Every frame has its length before it (4 bytes, big-endian). End of file: the other side closed, or died.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from gateway.bus.base import MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES
from gateway.concurrency import spawn
from gateway.frames import ChannelLost

MOST_BYTES = 17_000_000
"""The largest frame that passes; above what a websocket lets in, since a frame may grow on its way."""
FLUSH_S = 1.0
"""How long what was sent before `close` may take to arrive."""
_LENGTH = struct.Struct(">I")
_READ_BYTES = 65_536
_WRITE_PARTS = 64
_WRITE_LOOK_MS = 100


class SocketChannel:
    """A channel on a connected socket. `send` writes at once what the kernel takes; a greenlet writes the rest, as long as there is one.

    The descriptor is closed by whoever uses it last: a number that is reused while a greenlet still waits for it would wake the wrong one.
    `most`: the largest frame that it lets in.
    """

    def __init__(self, sock: socket.socket, most: int, ended: Callable[[SocketChannel], None]) -> None:
        sock.settimeout(0)
        self._sock, self._file, self._ended = sock, sock.fileno(), ended
        self.most = most
        self._lock = threading.Lock()
        self._unread, self._read = bytearray(), 0
        self._queue: deque[bytes | memoryview] = deque()
        self._queued_bytes = 0
        self._users = 0
        self._writing = self._left = self._over = self._released = False
        self._cause = ""
        self._flush_until = 0.0

    def send(self, frame: bytes) -> None:
        with self._lock:
            if self._cause:
                raise ChannelLost(self._cause)
            if self._left:
                raise ChannelLost("gone")
            if len(frame) > MOST_BYTES:
                self._end("full")
                raise ChannelLost("full")
            if self._queue:
                self._enqueue(_LENGTH.pack(len(frame)) + frame)
            else:
                self._send_now(_LENGTH.pack(len(frame)), frame)

    def receive(self, timeout_s: float) -> bytes | None:
        frame = self._take()
        if frame is not None and not self._cause:
            return frame
        with self._lock:
            if self._cause:
                raise ChannelLost(self._cause)
            self._users += 1
        try:
            return self._receive(timeout_s)
        finally:
            with self._lock:
                self._leave()

    def close(self) -> None:
        with self._lock:
            if self._cause:
                return
            if not self._queue:
                self._end("closed")
                return
            self._cause, self._flush_until = "closed", time.monotonic() + FLUSH_S
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)  # wakes who receives here; the writer ends the rest

    def _receive(self, timeout_s: float) -> bytes | None:
        deadline = time.monotonic() + timeout_s
        while True:
            # gevent and plain sockets alike wait as long as the timeout says, which is used for nothing else.
            self._sock.settimeout(max(deadline - time.monotonic(), 0.0))
            try:
                block = self._sock.recv(_READ_BYTES)
            except (BlockingIOError, TimeoutError):
                block = None
            except OSError:
                block = b""
            if self._cause:
                raise ChannelLost(self._cause)
            if block is None:
                return None
            if not block:
                raise ChannelLost("gone")
            self._unread += block
            frame = self._take()
            if frame is not None:
                return frame

    def _take(self) -> bytes | None:
        """The next whole frame of what was read. Raises ChannelLost."""
        begin = self._read + _LENGTH.size
        if len(self._unread) < begin:
            return None
        (size,) = _LENGTH.unpack_from(self._unread, self._read)
        if size > self.most:
            self.close()
            raise ChannelLost("gone")
        end = begin + size
        if len(self._unread) < end:
            return None
        with memoryview(self._unread) as view:
            frame = bytes(view[begin:end])
        if end == len(self._unread):
            self._unread.clear()
            self._read = 0
        elif end > _READ_BYTES:
            del self._unread[:end]
            self._read = 0
        else:
            self._read = end
        return frame

    # What follows is called with the lock held.

    def _send_now(self, length: bytes, frame: bytes) -> None:
        try:
            sent = os.writev(self._file, (length, frame))
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._left = True  # what it sent before it left can still be received
            raise ChannelLost("gone") from error
        if sent < len(length):
            self._enqueue((length + frame)[sent:])
        elif sent < len(length) + len(frame):
            self._enqueue(memoryview(frame)[sent - len(length) :])

    def _enqueue(self, part: bytes | memoryview) -> None:
        if self._queued_bytes + len(part) > MAX_QUEUED_BYTES or len(self._queue) >= MAX_QUEUED_FRAMES:
            self._end("full")
            raise ChannelLost("full")
        self._queue.append(part)
        self._queued_bytes += len(part)
        if not self._writing:
            self._writing = True
            self._users += 1
            spawn(self._write, "bus-write")

    def _end(self, cause: str) -> None:
        """Nothing more goes either way."""
        self._cause = self._cause or cause
        self._queue.clear()
        self._queued_bytes = 0
        if not self._over:
            self._over = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._release()

    def _leave(self) -> None:
        self._users -= 1
        self._release()

    def _release(self) -> None:
        if self._over and not self._users and not self._released:
            self._released = True
            self._sock.close()
            self._ended(self)

    # The writer's greenlet.

    def _write(self) -> None:
        poll = select.poll()
        poll.register(self._file, select.POLLOUT)
        while True:
            poll.poll(_WRITE_LOOK_MS)
            with self._lock:
                if not self._write_some():
                    self._writing = False
                    if self._cause and not self._over:
                        self._end(self._cause)
                    self._leave()
                    return

    def _write_some(self) -> bool:
        """Whether more is to be written."""
        with contextlib.suppress(BlockingIOError):
            while self._queue and not self._over:
                try:
                    self._wrote(os.writev(self._file, list(islice(self._queue, _WRITE_PARTS))))
                except BlockingIOError:
                    raise
                except OSError:
                    self._left = True
                    self._queue.clear()
                    self._queued_bytes = 0
        late = bool(self._cause) and time.monotonic() > self._flush_until
        return bool(self._queue) and not self._over and not late

    def _wrote(self, count: int) -> None:
        self._queued_bytes -= count
        while count:
            part = self._queue.popleft()
            if len(part) > count:
                self._queue.appendleft(memoryview(part)[count:])
                return
            count -= len(part)
