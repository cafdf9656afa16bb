"""A request as the worker serves it: from gunicorn's parser, or, where it is of the plainest form and wholly in hand, in one step.

`plain` takes what almost every client sends and nothing else: one POST or GET, a path of ordinary characters, ordinary fields, no
transfer coding, the whole body. What differs in the least, or is not there yet, is gunicorn's, byte for byte.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

from gunicorn.http import errors  # type: ignore[import-untyped]
from gunicorn.util import unquote_to_wsgi_str  # type: ignore[import-untyped]

from gateway.api.body import READ

MAX_HEAD_BYTES, MAX_FIELDS = 8190, 100
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+;=-]*)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(r"https?://", re.IGNORECASE)
_PLAIN_HEAD = re.compile(r"(POST|GET) ((?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+: ?[!-~](?:[ -~]*[!-~])?\r\n)+)\r\n")
_PLAIN_FIELD = re.compile(r"([A-Za-z0-9-]+): ?([!-~](?:[ -~]*[!-~])?)\r\n")
_NOT_PLAIN = frozenset(
    {"HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_UPGRADE", "HTTP_TE", "HTTP_TRAILER", "HTTP_X_FORWARDED_PROTOCOL", "HTTP_X_FORWARDED_SSL"}
)
_LENGTH = re.compile(r"0|[1-9][0-9]{0,5}")


@dataclass(frozen=True, slots=True)
class Asked:
    """`environ` is WSGI's; `closes`: the connection ends with the answer; `expects`: an interim answer before the body."""

    environ: dict[str, Any]
    method: str
    version: tuple[int, int]
    closes: bool
    expects: bool = False


def key_of(name: str) -> str:
    """A field's name in the environ."""
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


def plain(data: bytes, fixed: dict[str, Any], https_from_peer: bool) -> Asked | None:
    """The one request that `data` is; None where it is not of the plain form, or not all of it, or more.

    `fixed` is what the environs of its connection have in common; `https_from_peer`: the peer may say that the client came by TLS.
    """
    end = data.find(b"\r\n\r\n") + 4
    if not 4 < end <= MAX_HEAD_BYTES or (data[:1] == b"G" and len(data) != end):  # a GET has no body
        return None
    head = _PLAIN_HEAD.fullmatch(data[:end].decode("latin-1"))
    if head is None:
        return None
    method, path, part = head.groups()
    fields = _PLAIN_FIELD.findall(part)
    environ = fixed.copy()
    before = len(environ)
    for name, value in fields:
        environ[key_of(name)] = value
    if len(environ) - before != len(fields) or len(fields) > MAX_FIELDS or not _NOT_PLAIN.isdisjoint(environ):
        return None  # the first: a field stands twice
    length, connection = environ.get("CONTENT_LENGTH", "0"), environ.get("HTTP_CONNECTION", "").lower()
    if not _LENGTH.fullmatch(length) or len(data) != end + int(length) or connection not in ("", "keep-alive", "close"):
        return None
    if (host := environ.get("HTTP_HOST")) is None or not _HOST.fullmatch(host):
        return None
    environ["REQUEST_METHOD"], environ["RAW_URI"], environ["QUERY_STRING"], environ["PATH_INFO"] = method, path, "", path
    environ["SERVER_PROTOCOL"], environ["wsgi.input"], environ[READ] = "HTTP/1.1", io.BytesIO(data[end:]), True
    environ["wsgi.url_scheme"] = "https" if https_from_peer and environ.get("HTTP_X_FORWARDED_PROTO") == "https" else "http"
    return Asked(environ, method, (1, 1), connection == "close")


def parsed(request: Any, fixed: dict[str, Any]) -> Asked:
    """What gunicorn's parser read; repeated headers are joined by commas. Raises what the parser raises, for what it lets through."""
    environ = fixed.copy()
    environ["REQUEST_METHOD"], environ["RAW_URI"], environ["QUERY_STRING"] = request.method, request.uri, request.query
    environ["PATH_INFO"] = unquote_to_wsgi_str(request.path) if "%" in request.path else request.path
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if request.version >= (1, 1) else "HTTP/1.0"
    environ["wsgi.url_scheme"], environ["wsgi.input"] = request.scheme, request.body
    for name, value in request.headers:
        key = key_of(name)
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    host = environ.get("HTTP_HOST")
    if (host is None and request.version >= (1, 1)) or (host is not None and not _HOST.fullmatch(host)):
        raise errors.InvalidHeader("HOST", req=request)
    if request.uri[:1] not in ("/", "*") and not _ABSOLUTE.match(request.uri) and request.method != "CONNECT":
        raise errors.InvalidRequestLine(request.uri)
    return Asked(environ, request.method, request.version, request.should_close(), request._expected_100_continue)
