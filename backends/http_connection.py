"""One connection to an upstream: TLS, deadlines, and being shut down from outside. Used by backends/http.py and its neighbours alone.

Plain `socket` and `threading`: greenlets' own where the process is patched. TLS runs over memory BIOs, so that there
is always a plain socket below, which another thread or greenlet may shut down at any moment.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from types import MappingProxyType

from backends.http_message import Reader
from gateway.errors import UpstreamTimeout

BLOCK_BYTES = 65_536
SEND_BYTES = 262_144
LOOK_S = 0.1
"""How long a send that cannot go on waits before it looks whether an answer came meanwhile."""
RECEIVE_BUFFER_BYTES = 262_144
"""A stalled client's stream would otherwise grow to megabytes of kernel memory."""

_MESSAGES = MappingProxyType(
    {
        "first_byte": "The upstream did not begin to answer in time.",
        "idle": "The upstream fell silent.",
        "total": "The call took longer than it may.",
    }
)

_RESET = struct.pack("ii", 1, 0)

Clock = Callable[[], float]


def timeout(phase: str) -> UpstreamTimeout:
    return UpstreamTimeout(_MESSAGES[phase], phase=phase)


class Connection:
    """A connected socket and the reader of its responses. One call at a time uses it; `abort` may come from anywhere."""

    __slots__ = ("_clock", "_closed", "_guard", "_socket", "_stuck", "_timeout_s", "idle_since", "reader")

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._socket = sock
        self._clock = clock
        self._timeout_s = -1.0
        self._guard = threading.Lock()
        self._closed = self._stuck = False
        self.idle_since = 0.0
        self.reader = Reader()

    def receive(self, wait_s: float, deadline: float, phase: str) -> bytes:
        """The next bytes, at most 64 KB; empty at the clean end. Raises UpstreamTimeout(phase or "total"), OSError for a break."""
        left_s = deadline - self._clock()
        if left_s < wait_s:
            wait_s, phase = left_s, "total"
        if wait_s <= 0:
            raise timeout(phase)
        self._wait_at_most(wait_s)
        try:
            return self._socket.recv(BLOCK_BYTES)
        except TimeoutError as error:
            raise timeout(phase) from error

    def send(self, data: bytes, wait_s: float, deadline: float, answered: Callable[[], bool]) -> bool:
        """Send all; `wait_s` is for each step of at most 256 KB. Raises UpstreamTimeout("idle" or "total"), OSError for a break.

        `answered()` is asked when nothing can be sent and something can be received: whether to leave the rest unsent. Then this
        returns False. What it raises is raised.
        """
        view = data if len(data) <= SEND_BYTES else memoryview(data)
        while view:
            sent = self._send_step(view[:SEND_BYTES], wait_s, deadline, answered)
            if not sent:
                return False
            if sent == len(view):
                return True
            view = memoryview(view)[sent:]
        return True

    def _send_step(self, data: bytes | memoryview, wait_s: float, deadline: float, answered: Callable[[], bool]) -> int:
        """How many bytes went out; 0 where it was answered."""
        phase = "idle"
        left_s = deadline - self._clock()
        if left_s < wait_s:
            wait_s, phase = left_s, "total"
        while wait_s > 0:
            step_s = min(wait_s, LOOK_S)
            self._wait_at_most(step_s)
            try:
                sent = self._socket.send(data)
                self._stuck = False
                return sent
            except TimeoutError:
                wait_s -= step_s
            self._stuck = True
            if self.readable() and answered():
                return 0
        raise timeout(phase)

    def _wait_at_most(self, wait_s: float) -> None:
        if wait_s != self._timeout_s:  # on a plain socket a system call
            self._socket.settimeout(wait_s)
            self._timeout_s = wait_s

    def readable(self) -> bool:
        """Whether `receive` would return or raise at once: for bytes, the end, or a break. Does not wait."""
        self._wait_at_most(0.0)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def abort(self) -> None:
        """Break the connection under whoever waits on it. From any thread or greenlet; never blocks for long, never raises."""
        with self._guard:  # or the descriptor could be another connection's by now
            if not self._closed:
                shut(self._socket)

    def close(self) -> None:
        """Idempotent. Called by the connection's user, or when it is idle."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            if self._stuck:  # or the kernel would keep megabytes for a peer that does not take them
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._socket.close()
        self.reader.close()


class TlsConnection(Connection):
    """The same over TLS. What is read and timed above is application bytes."""

    __slots__ = ("_early", "_inbox", "_outbox", "_tls", "_torn")

    def __init__(self, sock: socket.socket, clock: Clock, context: ssl.SSLContext, host: str) -> None:
        super().__init__(sock, clock)
        self._inbox, self._outbox = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._torn = False
        self._early = b""
        self._tls = context.wrap_bio(self._inbox, self._outbox, server_hostname=host)

    def handshake(self, until: float) -> None:
        """Raises UpstreamTimeout, or OSError (ssl.SSLError among them)."""
        while True:
            try:
                self._tls.do_handshake()
                self._flush(until - self._clock(), until)
                return
            except ssl.SSLWantReadError:
                self._refill(until - self._clock(), until, "idle")

    def receive(self, wait_s: float, deadline: float, phase: str) -> bytes:
        if self._early:
            early, self._early = self._early, b""
            return early
        until = self._clock() + wait_s
        while True:
            data = b""
            try:
                data = self._read()
            except ssl.SSLWantReadError:
                self._refill(until - self._clock(), deadline, phase)
                continue
            except ssl.SSLZeroReturnError:
                pass  # the end, as an empty read is
            if not data and self._torn:  # some builds of OpenSSL pass this off as a clean end
                raise ConnectionAbortedError
            return data

    def send(self, data: bytes, wait_s: float, deadline: float, answered: Callable[[], bool]) -> bool:
        for start in range(0, len(data), SEND_BYTES):
            self._tls.write(data[start : start + SEND_BYTES])
            if not self._flush(wait_s, deadline, answered):
                return False
        return True

    def readable(self) -> bool:
        """The same of application bytes: a session ticket, which many servers send unasked, is taken in and is not one."""
        while not self._early:
            try:
                self._early = self._read()
                return True
            except ssl.SSLWantReadError:
                if not super().readable():
                    return False
                try:
                    self._take_in(self._socket.recv(BLOCK_BYTES))  # does not wait: so has `readable` left the socket
                except OSError:
                    return True
            except ssl.SSLError:
                return True  # the end, or a break, and the same again for `receive`
        return True

    def _read(self) -> bytes:
        """Every record that is here, one read gives but one."""
        first = self._tls.read(BLOCK_BYTES)
        if not self._inbox.pending and not self._tls.pending():
            return first
        blocks = [first]
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while blocks[-1] and len(blocks) < 8:
                blocks.append(self._tls.read(BLOCK_BYTES))
        return b"".join(blocks)

    def _flush(self, wait_s: float, deadline: float, answered: Callable[[], bool] = lambda: False) -> bool:
        return not self._outbox.pending or super().send(self._outbox.read(), wait_s, deadline, answered)

    def _refill(self, wait_s: float, deadline: float, phase: str) -> None:
        self._flush(wait_s, deadline)
        self._take_in(super().receive(wait_s, deadline, phase))

    def _take_in(self, data: bytes) -> None:
        if data:
            self._inbox.write(data)
        else:
            self._torn = True  # an end without TLS's own is a break
            self._inbox.write_eof()


def shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not connected any more
        sock.shutdown(socket.SHUT_RDWR)
