"""The gunicorn worker: gevent's, with answers of our own. gunicorn parses the requests; what is written here is what follows.

It sends an answer's head together with its first block, gives slow readers a deadline, tells requests that cannot be parsed
so in JSON, refuses a request without Host, closes idle connections when it drains, and hands a websocket's connection to its view.
gunicorn.conf.py names it.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import struct
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

from gunicorn.http import errors, get_parser  # type: ignore[import-untyped]
from gunicorn.http.wsgi import base_environ  # type: ignore[import-untyped]
from gunicorn.util import hop_headers  # type: ignore[import-untyped]

from gateway.api.body import linger
from gateway.api.replies import of_error
from gateway.concurrency import every
from gateway.drain import DrainingWorker
from gateway.errors import GatewayError
from gateway.request import Asked, parsed, plain

SEND_S = 60.0
"""How long a client may take nothing of what it is sent, unless gunicorn.conf.py says otherwise."""
STEP_BYTES = RECEIVE_BYTES = 65_536
SWEEP_S = 0.25
IN_A_ROW, PAUSE_S = 32, 0.0005
"""After so many requests a connection lets others have their turn: while its next one waits to be read, no read waits."""
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")
_STATUS = re.compile(r"[1-5][0-9]{2} [ \x21-\x7e]*")
_REFUSALS = MappingProxyType(
    {
        errors.LimitRequestLine: (414, "URI Too Long", "The request line is too long."),
        errors.LimitRequestHeaders: (431, "Request Header Fields Too Large", "The request's headers are too large, or too many."),
        errors.ExpectationFailed: (417, "Expectation Failed", "Only 'Expect: 100-continue' is understood."),
        errors.UnsupportedTransferCoding: (501, "Not Implemented", "The only transfer coding taken is chunked."),
    }
)
"""What is not simply a bad request among what the parser raises."""
_BAD_REQUEST = (400, "Bad Request", "The request is not HTTP as it should be.")


class Response:
    """One answer on its way out. `start_response` is the application's; raises ValueError for a header that cannot be sent."""

    __slots__ = ("_body_allowed", "_chunked", "_head", "_left", "_method", "_send_s", "_sock", "_version", "must_close", "sent", "taken")

    def __init__(self, asked: Asked, sock: socket.socket, send_s: float = SEND_S) -> None:
        # Not the request itself: its environ holds `force_close`, and a cycle would keep every body until the collector comes by.
        self._method, self._version, self._sock, self._send_s = asked.method, asked.version, sock, send_s
        self._head: bytes | None = None
        self._chunked, self._body_allowed = False, True
        self._left: int | None = None
        self.must_close = asked.closes
        self.sent = self.taken = False

    def take_over(self, unread: Callable[[], bytes]) -> bytes:
        """The connection is the application's now: nothing is written here, and it ends when the application returns. What was read past the request."""
        self.taken = self.sent = self.must_close = True
        return unread()

    def force_close(self) -> None:
        self.must_close = True

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        """WSGI's. A second one, with `exc_info`, takes the place of the first while nothing was sent."""
        if self._head is not None and (exc_info is None or self.sent):
            raise RuntimeError("the answer has begun")
        if not _STATUS.fullmatch(status):
            raise ValueError("the status is none")
        code, self._left = int(status[:3]), None
        lines = [f"HTTP/1.1 {status}\r\n"]
        for name, value in headers:
            if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
                raise ValueError(f"the header {name!r} cannot be sent")
            lowered = name.lower()
            if lowered == "content-length":
                self._left = int(value)
            if lowered not in hop_headers:
                lines.append(f"{name}: {value}\r\n")
        self._body_allowed = self._method != "HEAD" and code not in (204, 304)
        self._chunked = self._body_allowed and self._left is None and self._version >= (1, 1)
        if self._body_allowed and self._left is None and not self._chunked:
            self.must_close = True  # the end of the connection is the end of the body
        self._head = "".join(lines).encode("latin-1")
        return self.write

    def write(self, block: bytes) -> None:
        """Send a block of the body, the head before the first one."""
        if not self._body_allowed or not block:
            return
        if self._chunked:
            block = b"%x\r\n%b\r\n" % (len(block), block)
        elif self._left is not None:
            block = block[: self._left]
            self._left -= len(block)
        self._send(block if self.sent else self._begin() + block)

    def end(self) -> None:
        """Send what is still due. Raises ConnectionAbortedError for a body that is shorter than its Content-Length."""
        last = b"0\r\n\r\n" if self._chunked else b""
        if last or not self.sent:
            self._send(last if self.sent else self._begin() + last)
        if self._body_allowed and self._left:
            raise ConnectionAbortedError("the body is shorter than its Content-Length")

    def break_off(self) -> None:
        """Where the end of the connection is the end of the body, only a reset tells that it is not whole."""
        if self.sent and self._body_allowed and self._left is None and not self._chunked:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _send(self, data: bytes) -> None:
        """Not by `sendall`, whose timeout is for all of it: who takes a little in time is slow, not gone."""
        sent = self._sock.send(data)
        if sent < len(data):
            view = memoryview(data)
            while sent < len(data):
                sent += self._sock.send(view[sent : sent + STEP_BYTES])

    def _begin(self) -> bytes:
        if self._head is None:
            raise RuntimeError("the application sent no head")
        self.sent = True
        self._sock.settimeout(self._send_s)
        framing = "transfer-encoding: chunked\r\n" if self._chunked else ""
        connection = "close" if self.must_close else "keep-alive"
        return self._head + f"date: {_date(int(time.time()))}\r\n{framing}connection: {connection}\r\n\r\n".encode()


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


class Worker(DrainingWorker):
    """One process: a greenlet for each connection."""

    send_s = SEND_S

    def run(self) -> None:
        self._template = base_environ(self.cfg) | {"wsgi.multithread": True, "SCRIPT_NAME": ""}
        self._awaited: dict[socket.socket, float] = {}
        """Connections on which a request is awaited, the longest waiting first, and since when (monotonic)."""
        stop = every(SWEEP_S, self._sweep, "connection-sweep")
        try:
            super().run()
        finally:
            stop()

    def _sweep(self) -> None:
        """End the waiting of those that waited too long. One pass for all costs less than a timer for each."""
        oldest = time.monotonic() - self.idle_s
        while self._awaited:
            sock, since = next(iter(self._awaited.items()))
            if since > oldest:
                return
            del self._awaited[sock]
            with contextlib.suppress(OSError):
                sock._sock.shutdown(socket.SHUT_RD)  # type: ignore[attr-defined]  # what has arrived is read still: gevent's own would drop it

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve one connection to its end."""
        try:
            parser = get_parser(self.cfg, client, addr)
            fixed = self._template | self._addresses(listener, addr) | {"gunicorn.socket": client}
            for number in itertools.count(1):
                if not self._serve_next(parser, client, fixed):
                    break
                if number % IN_A_ROW == 0:
                    time.sleep(PAUSE_S)
        except (errors.NoMoreData, StopIteration):
            pass  # the client sends nothing more, or the parser takes nothing more
        except OSError as error:  # TimeoutError: it took nothing for `send_s`
            self.log.debug("the connection broke: %s", type(error).__name__)
        except Exception as error:  # the outermost edge of a connection
            self._refuse(client, error)
        finally:
            with contextlib.suppress(OSError):
                client.close()

    def _serve_next(self, parser: Any, client: socket.socket, fixed: dict[str, Any]) -> bool:
        """Whether the connection may serve another request."""
        asked = self._next(parser, client, fixed)
        if asked is None:
            return False
        response = Response(asked, client, self.send_s)
        if not self.alive:
            response.must_close = True
        if asked.expects:
            client.settimeout(self.send_s)
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            client.settimeout(None)
        if "HTTP_UPGRADE" in asked.environ:
            asked.environ["gateway.take_over"] = partial(response.take_over, parser.unreader.take_buffered)
        try:
            self._answer(asked.environ, response)
        except OSError:
            response.break_off()
            raise
        except Exception as error:
            response.break_off()
            if not response.sent:
                raise
            if not isinstance(error, GatewayError):  # those have their line already
                self.log.exception("the answer broke off")
            return False
        return not response.must_close

    def _next(self, parser: Any, client: socket.socket, fixed: dict[str, Any]) -> Asked | None:
        """The next request; None where there is none. Raises what the parser raises."""
        client.settimeout(None)  # reading has deadlines of its own; one here would cost a timer for each receive
        self._awaited[client] = time.monotonic()
        try:
            if not parser.finish_body():  # of the request before this one
                return None
            data = parser.unreader.take_buffered() or client.recv(RECEIVE_BYTES)
            asked = plain(data, fixed, fixed["gateway.peer_is_trusted"])
            if asked is not None or not data:
                return asked
            parser.unreader.unread(data)
            request = next(parser)
        finally:
            self._awaited.pop(client, None)
        return parsed(request, fixed)

    def _answer(self, environ: dict[str, Any], response: Response) -> None:
        blocks: Iterable[bytes] = self.wsgi(environ, response.start_response)
        try:
            if not response.taken:
                for block in blocks:
                    response.write(block)
                response.end()
        finally:
            close = getattr(blocks, "close", None)
            if close is not None:
                close()

    def _refuse(self, client: socket.socket, error: Exception) -> None:
        """Tell a client whose request cannot be read, or whose answer cannot begin, and why the connection ends."""
        if isinstance(error, errors.ParseException):
            status, reason, message = next((told for kind, told in _REFUSALS.items() if isinstance(error, kind)), _BAD_REQUEST)
            refusal = GatewayError(message, code="malformed_request")
            refusal.status = status
        else:
            self.log.exception("a request failed")
            reason, refusal = "Internal Server Error", GatewayError("The gateway failed; the operator finds the reason in its log.")
        answered = of_error(refusal, None, "")
        head = [f"HTTP/1.1 {answered.status} {reason}", *(f"{name}: {value}" for name, value in answered.headers), "connection: close", "", ""]
        with contextlib.suppress(OSError):
            client.settimeout(self.send_s)
            client.sendall("\r\n".join(head).encode("latin-1") + b"".join(answered.blocks))
            linger({"gunicorn.socket": client})

    def _addresses(self, listener: Any, addr: Any) -> dict[str, Any]:
        own = listener.getsockname()
        host, port = (own[0], str(own[1])) if isinstance(own, tuple) else ("localhost", "")
        peer = {"REMOTE_ADDR": addr[0], "REMOTE_PORT": str(addr[1])} if isinstance(addr, tuple) else {"REMOTE_ADDR": ""}
        trusted = not isinstance(addr, tuple) or "*" in self.cfg.forwarded_allow_ips or addr[0] in self.cfg.forwarded_allow_ips
        return {"SERVER_NAME": host, "SERVER_PORT": port, "gateway.peer_is_trusted": trusted, **peer}
