"""One connection to an upstream: names, connecting, TLS, deadlines, and being shut down from outside. Used by backends/http.py alone.

Plain `socket` and `threading`: greenlets' own where the process is patched. TLS runs over memory BIOs, so that there
is always a plain socket below, which another thread or greenlet may shut down at any moment.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from backends.http_message import Reader
from gateway import concurrency
from gateway.errors import UpstreamTimeout, UpstreamUnreachable

BLOCK_BYTES = 65_536
SEND_BYTES = 262_144
RECEIVE_BUFFER_BYTES = 262_144
"""A stalled client's stream would otherwise grow to megabytes of kernel memory."""
NAMES_LIVE_S = 5.0

_MESSAGES = MappingProxyType(
    {
        "first_byte": "The upstream did not begin to answer in time.",
        "idle": "The upstream fell silent.",
        "total": "The call took longer than it may.",
    }
)

Clock = Callable[[], float]
Address = tuple[int, Any]
"""A socket family, and what `connect` takes."""


def timeout(phase: str) -> UpstreamTimeout:
    return UpstreamTimeout(_MESSAGES[phase], phase=phase)


class Connection:
    """A connected socket and the reader of its responses. One call at a time uses it; `abort` may come from anywhere."""

    __slots__ = ("_clock", "_closed", "_guard", "_socket", "_timeout_s", "idle_since", "reader")

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._socket = sock
        self._clock = clock
        self._timeout_s = -1.0
        self._guard = threading.Lock()
        self._closed = False
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

    def send(self, data: bytes, wait_s: float, deadline: float) -> None:
        """Send all; `wait_s` is for each step of at most 256 KB. Raises UpstreamTimeout("idle" or "total"), OSError for a break."""
        if len(data) <= SEND_BYTES:
            sent = self._send_step(data, wait_s, deadline)
            if sent == len(data):
                return
        else:
            sent = 0
        view = memoryview(data)[sent:]
        while view:
            view = view[self._send_step(view[:SEND_BYTES], wait_s, deadline) :]

    def _send_step(self, data: bytes | memoryview, wait_s: float, deadline: float) -> int:
        phase = "idle"
        left_s = deadline - self._clock()
        if left_s < wait_s:
            wait_s, phase = left_s, "total"
        if wait_s <= 0:
            raise timeout(phase)
        self._wait_at_most(wait_s)
        try:
            return self._socket.send(data)
        except TimeoutError as error:
            raise timeout(phase) from error

    def _wait_at_most(self, wait_s: float) -> None:
        if wait_s != self._timeout_s:  # on a plain socket a system call
            self._socket.settimeout(wait_s)
            self._timeout_s = wait_s

    def readable(self) -> bool:
        """Whether something waits to be read: bytes, the end, or a break. Does not wait, reads nothing."""
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
            self._socket.close()
        self.reader.close()


class TlsConnection(Connection):
    """The same over TLS. What is read and timed above is application bytes."""

    __slots__ = ("_inbox", "_outbox", "_tls", "_torn")

    def __init__(self, sock: socket.socket, clock: Clock, context: ssl.SSLContext, host: str) -> None:
        super().__init__(sock, clock)
        self._inbox, self._outbox = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._torn = False
        self._tls = context.wrap_bio(self._inbox, self._outbox, server_hostname=host)

    def handshake(self, until: float) -> None:
        """Raises UpstreamTimeout, or OSError (ssl.SSLError among them)."""
        while True:
            try:
                self._tls.do_handshake()
                return self._flush(until - self._clock(), until)
            except ssl.SSLWantReadError:
                self._refill(until - self._clock(), until, "idle")

    def receive(self, wait_s: float, deadline: float, phase: str) -> bytes:
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

    def send(self, data: bytes, wait_s: float, deadline: float) -> None:
        for start in range(0, len(data), SEND_BYTES):
            self._tls.write(data[start : start + SEND_BYTES])
            self._flush(wait_s, deadline)

    def readable(self) -> bool:
        return bool(self._inbox.pending or self._tls.pending()) or super().readable()

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

    def _flush(self, wait_s: float, deadline: float) -> None:
        if self._outbox.pending:
            super().send(self._outbox.read(), wait_s, deadline)

    def _refill(self, wait_s: float, deadline: float, phase: str) -> None:
        self._flush(wait_s, deadline)
        data = super().receive(wait_s, deadline, phase)
        if data:
            self._inbox.write(data)
        else:
            self._torn = True  # an end without TLS's own is a break
            self._inbox.write_eof()


def shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not connected any more
        sock.shutdown(socket.SHUT_RDWR)


class _Lookup:
    """One name being resolved, for everyone who waits for it."""

    __slots__ = ("addresses", "error", "expires", "waiting")

    def __init__(self) -> None:
        self.waiting: list[threading.Event] = []
        self.addresses: list[Address] = []
        self.error: OSError | UnicodeError | None = None
        self.expires: float | None = None
        """None until it is done."""


class Names:
    """Resolves names: one look-up per name at a time, since a hung name server would otherwise fill every resolver thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lookups: dict[tuple[str, int], _Lookup] = {}
        self._guard = threading.Lock()

    def look_up(self, host: str, port: int, woken: threading.Event) -> _Lookup:
        """The look-up of that name, begun now or earlier, or done less than 5 s ago. Does not wait: `woken` is set when it is done."""
        with self._guard:
            lookup = self._lookups.get((host, port))
            if lookup is not None and lookup.expires is None:
                lookup.waiting.append(woken)
                return lookup
            if lookup is not None and lookup.expires is not None and lookup.expires > self._clock():
                woken.set()
                return lookup
            lookup = self._lookups[host, port] = _Lookup()
            lookup.waiting.append(woken)
        concurrency.spawn(lambda: self._resolve(host, port, lookup), "resolve")
        return lookup

    def _resolve(self, host: str, port: int, lookup: _Lookup) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            lookup.addresses = [(int(family), address) for family, _, _, _, address in found]
        except (OSError, UnicodeError) as error:
            lookup.error = error
        with self._guard:
            lookup.expires = self._clock() + (0.0 if lookup.error else NAMES_LIVE_S)
            for woken in lookup.waiting:
                woken.set()


def literal(host: str, port: int) -> list[Address]:
    """The address that `host` spells out, if it does."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return [(family, (host, port))]
    return []


class Dial:
    """One try to connect to a host, within a deadline, over all its addresses. `abort` ends it from outside."""

    __slots__ = ("_aborted", "_addresses", "_clock", "_guard", "_host", "_names", "_port", "_socket", "_until", "_woken")

    def __init__(self, host: str, port: int, addresses: list[Address], names: Names, clock: Clock, until: float) -> None:
        self._host, self._port, self._addresses = host, port, addresses
        self._names, self._clock, self._until = names, clock, until
        self._guard = threading.Lock()
        self._woken = threading.Event()
        self._socket: socket.socket | None = None
        self._aborted = False

    def abort(self) -> None:
        with self._guard:
            self._aborted = True
            self._woken.set()
            if self._socket is not None:
                shut(self._socket)

    def connect(self, context: ssl.SSLContext | None) -> Connection:
        """Connected, with TLS where there is a context. Raises UpstreamUnreachable."""
        addresses = self._addresses or self._resolved()
        for position, (family, address) in enumerate(addresses):
            left_s = self._until - self._clock()
            # a share for each address, or one black hole would use up the time of the others
            share_s = left_s / (len(addresses) - position)
            try:
                return self._connected(family, address, share_s, context)
            except (OSError, UpstreamTimeout) as error:
                self._drop()
                if position == len(addresses) - 1 or self._aborted or self._clock() >= self._until:
                    raise UpstreamUnreachable(_reason(error)) from error
            except BaseException:
                self._drop()
                raise
        raise UpstreamUnreachable("The upstream's name has no address.")

    def _connected(self, family: int, address: Any, share_s: float, context: ssl.SSLContext | None) -> Connection:
        if share_s <= 0:
            raise TimeoutError
        sock = socket.socket(family, socket.SOCK_STREAM)
        with self._guard:
            self._socket = sock
            if self._aborted:
                raise ConnectionAbortedError
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(share_s)
        sock.connect(address)
        if context is None:
            return Connection(sock, self._clock)
        connection = TlsConnection(sock, self._clock, context, self._host)
        connection.handshake(self._until)
        return connection

    def _drop(self) -> None:
        with self._guard:
            sock, self._socket = self._socket, None
            if sock is not None:
                sock.close()

    def _resolved(self) -> list[Address]:
        lookup = self._names.look_up(self._host, self._port, self._woken)
        if not self._woken.wait(self._until - self._clock()):
            raise UpstreamUnreachable("The upstream's name was not resolved in time.")
        if lookup.error is not None:
            raise UpstreamUnreachable("The upstream's name could not be resolved.") from lookup.error
        return lookup.addresses  # none if aborted


def _reason(error: BaseException) -> str:
    if isinstance(error, (TimeoutError, UpstreamTimeout)):
        return "Connecting to the upstream timed out."
    if isinstance(error, ConnectionRefusedError):
        return "The upstream refused the connection."
    if isinstance(error, ssl.SSLError):
        return "No secure connection to the upstream could be made."
    return "The upstream could not be reached."
