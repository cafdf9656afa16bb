"""HTTP/1.1 messages as bytes, no I/O: the head of a request, and the reader of a response. Used by backends/http.py alone."""

from __future__ import annotations

import re
from types import MappingProxyType

import httptools

from gateway.backend import Headers
from gateway.errors import BadRequest

MAX_HEAD_BYTES = 65_536
"""Of one response: its head with every interim (1xx) one, and what stands between two blocks of body (trailers, chunk extensions)."""
MAX_FIELDS = 200
MAX_INTERIM = 16

_NAME_CHARACTERS = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FORBIDDEN_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

OWN_FIELDS = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "accept-encoding",
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
    }
)
"""Fields that the transport writes itself, or that end at each hop: never taken from a caller."""

_KNOWN = (
    "Content-Type Content-Length Transfer-Encoding Content-Encoding Connection Date Server Cache-Control Vary X-Request-ID Retry-After Via CF-RAY "
    "CF-Cache-Status Strict-Transport-Security X-Content-Type-Options Set-Cookie Alt-Svc OpenAI-Version OpenAI-Organization OpenAI-Project OpenAI-Processing-Ms"
)
_LOWER = MappingProxyType({spelling.encode(): name.lower() for name in _KNOWN.split() for spelling in (name, name.lower())})


def request_head(method: str, target: str, fixed: str, headers: Headers, size: int | None) -> bytes:
    """The bytes up to and including the blank line. `fixed` are the lines that an origin always gets, each with its CRLF.

    `size` is the body's length in bytes, None for a chunked one. Raises BadRequest for what cannot be a header field or a target.
    """
    if not method or method.strip(_NAME_CHARACTERS):
        raise BadRequest("the method cannot be sent")
    if not target.isascii() or not target.isprintable() or " " in target or "#" in target:
        raise BadRequest("the path cannot be sent")
    lines = [f"{method} {target} HTTP/1.1\r\n", fixed]
    for name, value in headers:
        lower = name.lower()
        if lower in OWN_FIELDS:
            continue
        # strip() leaves something wherever in the name a character stands that is none of these
        if not lower or lower.strip(_NAME_CHARACTERS):
            raise BadRequest("a header name cannot be sent")
        if not value.isprintable() and _FORBIDDEN_IN_VALUE.search(value):
            raise BadRequest(f"the value of header {lower} cannot be sent")
        lines.append(f"{lower}: {value}\r\n")
    if size is None:
        lines.append("transfer-encoding: chunked\r\n")
    elif size or method not in ("GET", "HEAD"):
        lines.append(f"content-length: {size}\r\n")
    lines.append("\r\n")
    try:
        return "".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        # without a cause: its text would show the values
        raise BadRequest("a header value holds characters that a header cannot carry") from None


class Malformed(Exception):
    """What came is not HTTP, breaks its own framing, or passes a cap. The text is ours or the parser's: it shows no byte that came."""


class Reader:
    """Reads the responses of one connection, one after another. It is httptools' protocol object: `on_*` are the parser's calls.

    `begin` before each response; then `feed` what came until `complete`, or, where `until_close`, until the peer closes.
    """

    __slots__ = (
        "_barren_bytes",
        "_block_bytes",
        "_end",
        "_feed",
        "_head_only",
        "_interim",
        "_parser",
        "_persistent",
        "_pieces",
        "complete",
        "fields",
        "framed",
        "head_done",
        "on_body",
        "reusable",
        "started",
        "status",
    )

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        # The list's own method: not a line of Python is run per chunk.
        self.on_body = self._pieces.append
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data
        self.begin("GET")

    def begin(self, method: str) -> None:
        self._head_only = method == "HEAD"
        self._barren_bytes = self._block_bytes = self._interim = self._end = 0
        self.fields: list[tuple[str, str]] = []
        self.status = 0
        self.started = self.head_done = self.complete = self.framed = self._persistent = False
        self.reusable = False
        """Whether another request may follow on this connection; known when `complete`."""

    @property
    def until_close(self) -> bool:
        """Whether the end of the connection ends the body cleanly."""
        return self.head_done and not self.framed

    def feed(self, data: bytes) -> bytes:
        """The body bytes among `data`. Raises Malformed; bytes of the body that came before the fault are then kept for `rest`."""
        if not self.started:
            if data[0] != 72:  # "H": the parser would take RTSP, and blank lines, too
                raise Malformed("the answer does not begin as HTTP does")
            self.started = True
        pieces = self._pieces
        self._block_bytes = len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            if not self.complete:
                raise Malformed(str(error.__context__ if isinstance(error.__context__, Malformed) else error)) from error
            self.reusable = False  # a surplus after the end of a good message
        except httptools.HttpParserUpgrade as error:
            raise Malformed("the upstream switched protocols unasked") from error
        if pieces:
            return self.rest()
        if not self.complete:
            self._barren_bytes += len(data)
            if self._barren_bytes > MAX_HEAD_BYTES:
                raise Malformed("the head is too large")
        return b""

    def rest(self) -> bytes:
        """Body bytes that came and were not handed out."""
        pieces = self._pieces
        if self.complete and len(pieces) > self._end:
            self.reusable = False  # what follows the end belongs to no request of ours
            del pieces[self._end :]
        block = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._barren_bytes = 0
        return block

    def close(self) -> None:
        """Break the cycle between the parser and this object. Nothing may be fed afterwards."""
        del self._parser, self._feed

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_done:  # a trailer, or a surplus
            return
        if len(self.fields) >= MAX_FIELDS:
            raise Malformed("the head has too many fields")
        self.fields.append((_LOWER.get(name) or name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if self.head_done:
            self.reusable = False
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._interim += 1
            if status < 100 or self._interim > MAX_INTERIM:
                raise Malformed("the upstream sent too many interim answers" if status >= 100 else "the status is none")
            self.fields.clear()
            return
        if status > 599:
            raise Malformed("the status is none")
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Malformed("the version is not HTTP/1")
        self._persistent = version == "1.1"
        self._framing()
        self.status = status
        self.head_done = True
        if self._head_only:
            self.complete = True

    def _framing(self) -> None:
        fields = self.fields
        known = dict(fields)
        if "transfer-encoding" in known:
            if [value.strip().lower() for name, value in fields if name == "transfer-encoding"] != ["chunked"]:
                raise Malformed("the transfer encoding is unknown")
            self.framed = True
        else:
            self.framed = "content-length" in known
        if self._barren_bytes + self._block_bytes > MAX_HEAD_BYTES and sum(len(name) + len(value) + 4 for name, value in fields) > MAX_HEAD_BYTES:
            raise Malformed("the head is too large")

    def on_message_begin(self) -> None:
        if self.complete:
            self.reusable = False

    def on_message_complete(self) -> None:
        if not self.head_done or self.complete:
            return
        self.complete = True
        self._end = len(self._pieces)
        self.reusable = self._persistent and self._parser.should_keep_alive()
