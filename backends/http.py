"""The upstream transport: pooled keep-alive sockets, a C parser, four deadlines, abort from outside.

The only module that opens upstream connections (with its neighbours http_*.py); a backend builds one Transport and
sends its calls through it. No redirects, no environment proxies, no .netrc.
"""

from __future__ import annotations

import contextlib
import math
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from backends.http_address import Peers
from backends.http_connection import Clock, Connection, timeout
from backends.http_dial import Dial, Names
from backends.http_encoding import Decoded, window_bits, without_encoding
from backends.http_message import Malformed, request_head
from backends.http_pool import Origin
from backends.http_proxy import NOT_SIGNED_IN
from backends.http_request import Request, Stale
from gateway.backend import Body, Cancellation, Deadlines, Headers, Network, Proxy
from gateway.errors import Cancelled, UpstreamError, UpstreamInterrupted, UpstreamTimeout, UpstreamUnreachable

REFUSAL_S = 2.0
"""How long the body of an answer with an error status may take: the status says enough, and another upstream may be waiting to be tried."""
SHORTEST_WAIT_S = 0.001
"""What rounding leaves of an idle deadline is not waited for."""


@dataclass(slots=True)
class Response:
    """An answer's head, and its body to be pulled by one consumer.

    `headers` are in order, names in lower case, hop-by-hop fields still among them. `chunks` yields what each receive
    brought, and b"" as a tick after each `tick_s` of silence. It ends with StopIteration only at the message's clean end
    (for a body that the end of the connection ends: at that); it raises UpstreamInterrupted, UpstreamTimeout("idle", or
    "total", to which REFUSAL_S counts where the status is an error) or Cancelled, and raises again when pulled again.
    `close` aborts what is not read to its end; idempotent; the caller's duty.
    """

    status: int
    headers: Headers
    chunks: Iterator[bytes]
    close: Callable[[], None]


class Transport:
    """Sends requests over connections that it keeps. One per backend and worker; safe for threads and greenlets.

    `ssl_context`: for https; by default one that verifies against the system's authorities, made at the first use.
    `tick_s`: how long a body may be silent before `chunks` yields a tick.
    `allow_networks`: what upstreams' and proxies' public names may lead to besides public addresses. `names`: resolves them.
    """

    def __init__(
        self,
        *,
        clock: Clock = time.monotonic,
        ssl_context: ssl.SSLContext | None = None,
        tick_s: float = math.inf,
        allow_networks: Sequence[Network] = (),
        names: Names | None = None,
    ) -> None:
        self._clock = clock
        self._tick_s = tick_s
        self._ssl_context = ssl_context
        self._names = names or Names(clock)
        self._peers = Peers(allow_networks)
        self._origins: dict[tuple[str, Proxy | None], Origin] = {}

    def send(
        self,
        method: str,
        url: str,
        headers: Headers,
        body: Body,
        *,
        deadlines: Deadlines,
        deadline: float,
        cancel: Cancellation,
        proxy: Proxy | None = None,
    ) -> Response:
        """Send one request; returns when the answer's head is complete, whatever its status.

        `deadline` is the total one, monotonic; `deadlines` gives the other three. Raises UpstreamUnreachable,
        UpstreamTimeout, UpstreamProtocolError, Cancelled once `cancel` has fired, BadRequest for a url or a header that
        cannot be sent, ValueError for a body that is not as long as its size. Nothing is left open when it raises.
        A kept connection that fails before the first byte of an answer is replaced once by a fresh one, unnoticed.
        """
        origin, target = self._origin(url, proxy)
        head = request_head(method, origin.prefix + target, origin.fixed, headers, body.size)
        request = Request(method, head, body, deadlines, deadline, cancel, self._tick_s)
        try:
            if cancel.reason is None:
                return self._send(origin, request)
        except UpstreamError as error:
            if cancel.reason is None:
                raise
            raise Cancelled(cancel.reason) from error
        raise Cancelled(cancel.reason)

    def close(self) -> None:
        """Close what is idle; what is in use closes when its answer ends."""
        for origin in list(self._origins.values()):
            origin.close()

    def _send(self, origin: Origin, request: Request) -> Response:
        # A body that cannot be sent twice does not risk a kept connection.
        kept = origin.take() if request.body.replayable else None
        if kept is not None:
            with contextlib.suppress(Stale):
                return self._over(kept, origin, request)
        try:
            return self._over(self._dial(origin, request), origin, request)
        except Stale as error:
            raise UpstreamUnreachable("The upstream closed the connection without an answer.") from error.__cause__

    def _over(self, connection: Connection, origin: Origin, request: Request) -> Response:
        """One request and the head of its answer over this connection. Raises Stale if not a byte came back."""
        forget = request.cancel.on_cancel(connection.abort)
        try:
            connection.reader.begin(request.method)
            sent = request.write(connection)
            block, fault = request.read_head(connection)
            reader = connection.reader
            status, headers = reader.status, tuple(reader.fields)
            if status == 407 and origin.prefix:  # the proxy's own word, not the upstream's
                raise UpstreamUnreachable(NOT_SIGNED_IN)
            if status >= 400:
                request.deadline = min(request.deadline, self._clock() + REFUSAL_S)
            bits = None if reader.complete and not block else window_bits(headers)
        except BaseException:
            forget()
            connection.close()
            raise
        # From here on the connection may be another call's: an answer that is complete gives it back.
        chunks = Chunks(connection, origin, request, forget, block, fault, sent)
        if bits is None:
            return Response(status, headers, chunks, chunks.close)
        decoded = Decoded(chunks, bits)
        return Response(status, without_encoding(headers), decoded, decoded.close)

    def _dial(self, origin: Origin, request: Request) -> Connection:
        now = self._clock()
        until = now + request.deadlines.connect_s
        late = request.deadline < until
        dial = Dial(origin.route, self._names, self._peers, self._clock, request.deadline if late else until)
        forget = request.cancel.on_cancel(dial.abort)
        try:
            return dial.connect(self._tls() if origin.tls else None)
        except UpstreamUnreachable as error:
            if late and self._clock() >= request.deadline:
                raise timeout("total") from error
            raise
        finally:
            forget()

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
            self._ssl_context.set_alpn_protocols(["http/1.1"])
        return self._ssl_context

    def _origin(self, url: str, proxy: Proxy | None) -> tuple[Origin, str]:
        start = url.find("://") + 3
        end = url.find("/", start)
        base, target = (url, "/") if end < 0 else (url[:end], url[end:])
        origin = self._origins.get((base, proxy))
        if origin is None:
            origin = self._origins.setdefault((base, proxy), Origin(base, self._clock, proxy))
        return origin, target


class Chunks:
    """The body of an answer as it is received; owns the connection until the body's end."""

    __slots__ = (
        "_cancel",
        "_connection",
        "_deadline",
        "_ending",
        "_fault",
        "_forget",
        "_idle_s",
        "_origin",
        "_ready",
        "_sent",
        "_silent_s",
        "_tick_s",
        "_wait_s",
    )

    def __init__(
        self, connection: Connection, origin: Origin, request: Request, forget: Callable[[], None], ready: bytes, fault: Malformed | None, sent: bool
    ) -> None:
        self._connection: Connection | None = connection
        self._origin, self._cancel, self._forget = origin, request.cancel, forget
        self._idle_s, self._deadline, self._tick_s = request.deadlines.idle_s, request.deadline, request.tick_s
        self._silent_s, self._wait_s = 0.0, min(self._idle_s, self._tick_s)
        self._ready, self._fault, self._sent = ready, fault, sent
        self._ending: BaseException | None = None
        if connection.reader.complete:
            self._finish()

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> bytes:
        ready = self._ready
        if ready:
            self._ready = b""
            return ready
        connection = self._connection
        if connection is None:
            raise self._ending or StopIteration
        try:
            return self._pull(connection)
        except StopIteration:
            raise
        except BaseException as error:
            reason = self._cancel.reason
            self._ending = error if reason is None else Cancelled(reason)
            self._drop()
            if reason is None:
                raise
            raise self._ending from error

    def close(self) -> None:
        """Give up what is not read to its end."""
        if self._connection is not None or self._ready or self._ending is not None:
            # A new one in every case: the old one's traceback holds this object, and all of the call with it.
            self._ending = UpstreamInterrupted("The answer was given up.")
            self._ready = b""
            self._drop()

    def _pull(self, connection: Connection) -> bytes:
        reader = connection.reader
        while True:
            if self._fault is not None:
                raise UpstreamInterrupted("The upstream's answer broke its own framing.") from self._fault
            if self._cancel.reason is not None:
                raise Cancelled(self._cancel.reason)
            try:
                data = connection.receive(self._wait_s, self._deadline, "idle")
            except UpstreamTimeout as error:
                if error.phase == "idle" and self._tick():
                    return b""
                raise
            except OSError as error:
                raise UpstreamInterrupted("The upstream broke off its answer.") from error
            if self._silent_s:
                self._silent_s, self._wait_s = 0.0, min(self._idle_s, self._tick_s)
            if not data:
                if not reader.until_close or self._cancel.reason is not None:
                    raise UpstreamInterrupted("The upstream broke off its answer.")
                self._drop()
                raise StopIteration
            try:
                block = reader.feed(data)
            except Malformed as error:
                block, self._fault = reader.rest(), error
            if reader.complete:
                self._finish()
                if not block:
                    raise StopIteration
            if block:
                return block

    def _tick(self) -> bool:
        """After `_wait_s` of silence: whether there is time left until the idle deadline."""
        self._silent_s += self._wait_s
        left_s = self._idle_s - self._silent_s
        self._wait_s = min(left_s, self._tick_s)
        return left_s > SHORTEST_WAIT_S

    def _finish(self) -> None:
        """The message is complete: its connection serves others, if it may."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._forget()
        # Whoever fired before that may be about to abort this connection: then nobody else gets it.
        if connection.reader.reusable and self._sent and self._cancel.reason is None:
            self._origin.give(connection)
        else:
            connection.close()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._forget()
            connection.close()
