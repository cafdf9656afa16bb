"""Connecting to an upstream: names, the check of where they lead, proxies, TLS; within a deadline, and ended from outside. Used by backends/http.py alone.

Not a byte is sent to an address that backends/http_address.py objects to. Environment proxies are not looked at.
"""

from __future__ import annotations

import _socket
import logging
import socket
import ssl
import threading
from dataclasses import dataclass

from backends.http_address import Address, Peers, Place
from backends.http_connection import RECEIVE_BUFFER_BYTES, Clock, Connection, TlsConnection, shut
from backends.http_proxy import Handshake, ProxyRefused, handshake
from gateway import concurrency
from gateway.backend import Proxy
from gateway.errors import UpstreamTimeout, UpstreamUnreachable

log = logging.getLogger(__name__)
NAMES_LIVE_S = 5.0
MAX_TRIES = 8
"""Addresses of one name that are tried, or of the proxy's and the upstream's together."""


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
    """Resolves names: one look-up per name at a time, in a thread of its own, so that one that hangs holds up no other and no other work:
    gevent's own resolver has ten threads for all of it."""

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
        concurrency.spawn(lambda: self._finish(host, port, lookup), "resolve")
        return lookup

    def _finish(self, host: str, port: int, lookup: _Lookup) -> None:
        thread = concurrency.NativeWorker(self._run, "resolve")
        try:
            lookup.addresses = thread.submit((host, port))
        except (OSError, UnicodeError) as error:
            lookup.error = error
        except Exception as error:  # no thread, no memory: whoever asks next tries again
            lookup.error = OSError(str(error))
        thread.close()
        with self._guard:
            lookup.expires = self._clock() + (0.0 if lookup.error else NAMES_LIVE_S)
            for woken in lookup.waiting:
                woken.set()

    def _run(self, jobs: list[concurrency.Job]) -> None:
        for job in jobs:
            job.result = self.resolve(*job.item)

    def resolve(self, host: str, port: int) -> list[Address]:
        """Its addresses, in the order in which they are tried. Called in a native thread: nothing here is gevent's. Raises OSError, UnicodeError."""
        found = _socket.getaddrinfo(host, port, type=_socket.SOCK_STREAM)
        return [(int(family), address) for family, _, _, _, address in found]


@dataclass(frozen=True, slots=True)
class Route:
    """How an origin is reached. `tunnels`: whether the proxy is asked for a tunnel; for plain http an HTTP proxy is not."""

    upstream: Place
    proxy: Proxy | None = None
    tunnels: bool = False

    @property
    def near(self) -> Place:
        """What is connected to."""
        return self.upstream if self.proxy is None else Place("proxy", self.proxy.host, self.proxy.port)


class _Forbidden(Exception):
    """An address that must not be connected to, of the upstream's or the proxy's. The text is for the operator."""

    def __init__(self, role: str, objection: str) -> None:
        super().__init__(objection)
        self.role = role


class Dial:
    """One try to connect along a route, within a deadline, over all its addresses. `abort` ends it from outside."""

    __slots__ = ("_aborted", "_clock", "_guard", "_names", "_near", "_peers", "_role", "_route", "_socket", "_until", "_woken")

    def __init__(self, route: Route, names: Names, peers: Peers, clock: Clock, until: float) -> None:
        self._route, self._near = route, route.near
        self._role = self._near.role
        self._names, self._peers, self._clock, self._until = names, peers, clock, until
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
        try:
            tries = self._tries()[:MAX_TRIES]
            for position, (address, host) in enumerate(tries):
                # a share for each address, or one black hole would use up the time of the others
                share_s = (self._until - self._clock()) / (len(tries) - position)
                try:
                    return self._connected(address, host, share_s, context)
                except (OSError, UpstreamTimeout, ProxyRefused) as error:
                    self._drop()
                    if position == len(tries) - 1 or self._aborted or self._clock() >= self._until:
                        raise UpstreamUnreachable(_reason(error, self._role)) from error
                except BaseException:
                    self._drop()
                    raise
        except _Forbidden as error:
            log.warning("not connected: %s", error)
            raise UpstreamUnreachable(f"The {error.role}'s address is one that the gateway does not connect to; its log says why.") from error
        raise UpstreamUnreachable("The upstream's name has no address.")

    def _tries(self) -> list[tuple[Address, str]]:
        """What to connect to, and the host that a proxy is asked for then. Raises _Forbidden, UpstreamUnreachable."""
        upstream, proxy = self._route.upstream, self._route.proxy
        if proxy is None:
            return [(address, "") for address in self._permitted(upstream)]
        # Where the proxy resolves the upstream's name, only an address that was written can be judged here.
        spelt = bool(upstream.literal) or proxy.scheme == "socks5"
        hosts = [str(sockaddr[0]) for _, sockaddr in self._permitted(upstream)] if spelt else [upstream.host]
        addresses = self._permitted(self._near)
        return [(address, host) for host in hosts for address in addresses]

    def _permitted(self, place: Place) -> list[Address]:
        """Its addresses but for those that are objected to. Raises _Forbidden where none is left."""
        found = place.literal or self._resolved(place)
        objections = [self._peers.objection(place, address[0]) for _, address in found]
        permitted = [address for address, objection in zip(found, objections, strict=True) if not objection]
        if found and not permitted:
            raise _Forbidden(place.role, objections[0])
        return permitted

    def _resolved(self, place: Place) -> list[Address]:
        with self._guard:
            if self._aborted:
                return []
            woken = self._woken = threading.Event()
        lookup = self._names.look_up(place.host, place.port, woken)
        if not woken.wait(self._until - self._clock()):
            raise UpstreamUnreachable(f"The {place.role}'s name was not resolved in time.")
        if lookup.error is not None:
            raise UpstreamUnreachable(f"The {place.role}'s name could not be resolved.") from lookup.error
        return lookup.addresses  # none if aborted

    def _connected(self, to: Address, host: str, share_s: float, context: ssl.SSLContext | None) -> Connection:
        if share_s <= 0:
            raise TimeoutError
        until = self._clock() + share_s
        self._role = self._near.role
        sock = self._opened(to[0])
        sock.settimeout(share_s)
        sock.connect(to[1])
        if objection := self._peers.objection(self._near, sock.getpeername()[0]):  # 0.0.0.0 leads to 127.0.0.1
            raise _Forbidden(self._near.role, objection)
        if self._route.proxy is not None and self._route.tunnels:
            self._tunnelled(sock, handshake(self._route.proxy, self._route.upstream, host), until)
        self._role = "upstream"
        if context is None:
            return Connection(sock, self._clock)
        connection = TlsConnection(sock, self._clock, context, self._route.upstream.host)
        connection.handshake(self._until)
        return connection

    def _opened(self, family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        with self._guard:
            self._socket = sock
            if self._aborted:
                raise ConnectionAbortedError
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _tunnelled(self, sock: socket.socket, steps: Handshake, until: float) -> None:
        """Returns when the proxy made the tunnel. Raises ProxyRefused, OSError."""
        message = next(steps)
        while True:
            left_s = until - self._clock()
            if left_s <= 0:
                raise TimeoutError
            sock.settimeout(left_s)
            if message:
                sock.sendall(message)
            received = sock.recv(4096)
            if not received:
                raise ProxyRefused("The proxy closed the connection without an answer.")
            try:
                message = steps.send(received)
            except StopIteration:
                return

    def _drop(self) -> None:
        with self._guard:
            sock, self._socket = self._socket, None
            if sock is not None:
                sock.close()


def _reason(error: BaseException, role: str) -> str:
    if isinstance(error, ProxyRefused):
        return str(error)
    if isinstance(error, (TimeoutError, UpstreamTimeout)):
        return f"Connecting to the {role} timed out."
    if isinstance(error, ConnectionRefusedError):
        return f"The {role} refused the connection."
    if isinstance(error, ssl.SSLError):
        return "No secure connection to the upstream could be made."
    return f"The {role} could not be reached."
