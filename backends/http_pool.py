"""What is kept per origin (scheme, host and port) and proxy: the fixed lines of its requests, and its idle connections.

Used by backends/http.py alone.
"""

from __future__ import annotations

import collections
from types import MappingProxyType
from urllib.parse import urlsplit

from backends.http_address import Place
from backends.http_connection import Clock, Connection
from backends.http_dial import Route
from backends.http_proxy import authorization
from gateway.backend import Proxy
from gateway.errors import BadRequest

IDLE_S = 30.0
"""An idle connection older than this is not used again: the peer may be about to close it."""
MAX_IDLE = 256
"""Idle connections kept per origin."""

_HOST_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz.-_:"
_PORTS = MappingProxyType({"http": 80, "https": 443})


class Origin:
    """How an upstream is reached, and its idle connections, the last used taken first. Safe for threads: each deque operation is one step.

    `fixed` are the lines that its requests always get; `prefix` stands before their path. An HTTP proxy is asked for a tunnel where TLS
    goes through it; a request for plain http is given to it whole, its url in absolute form, as proxies expect: many make tunnels to port 443 only.
    """

    __slots__ = ("_clock", "_closed", "_idle", "fixed", "prefix", "route", "tls")

    def __init__(self, base: str, clock: Clock, proxy: Proxy | None = None) -> None:
        """`base` is a url up to its path. Raises BadRequest."""
        scheme, host, port = _parts(base)
        self.tls = scheme == "https"
        tunnels = proxy is not None and (self.tls or proxy.scheme != "http")
        self.route = Route(Place("upstream", host, port), proxy, tunnels)
        authority = self.route.upstream.authority.removesuffix(f":{_PORTS[scheme]}")
        self.fixed = f"host: {authority}\r\naccept-encoding: identity\r\n"
        self.prefix = ""
        if proxy is not None and not tunnels:
            self.fixed += authorization(proxy)
            self.prefix = f"http://{authority}"
        self._clock = clock
        self._idle: collections.deque[Connection] = collections.deque()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Origin {self.route.upstream.authority} {len(self._idle)} idle>"

    def take(self) -> Connection | None:
        """A connection that can be used at once, if there is one."""
        oldest = self._clock() - IDLE_S
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took it
                return None
            if connection.idle_since > oldest and not connection.readable():
                return connection
            connection.close()
        return None

    def give(self, connection: Connection) -> None:
        """Keep a connection whose last answer ended cleanly."""
        connection.idle_since = self._clock()
        self._idle.append(connection)
        self._trim(connection.idle_since - IDLE_S)
        if self._closed:
            self.close()

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._trim(float("inf"))

    def _trim(self, oldest: float) -> None:
        """Close from the long unused end what is too old or too much."""
        idle = self._idle
        while idle and (idle[0].idle_since < oldest or len(idle) > MAX_IDLE):
            try:
                connection = idle.popleft()
            except IndexError:  # another thread took it
                return
            connection.close()


def _parts(base: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadRequest("The upstream's URL is malformed.") from None
    if parts.scheme not in _PORTS or not host or host.strip(_HOST_CHARACTERS) or "@" in parts.netloc or parts.query or parts.fragment:
        raise BadRequest("The upstream's URL is malformed.")
    return parts.scheme, host, port or _PORTS[parts.scheme]
