"""The corpus of row 21: bytes that two parsers could read in two ways. tests/faults/smuggling.py sends them.

Every case authorises at most one body to reach the upstream, and most hide a second request, complete and with a valid key, that must never be run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from gateway.secrets import mint_key
from tests.fakes.nginx import NAME
from tests.faults.front import MODEL as FRONT_MODEL

HOST, MODEL = NAME.encode(), FRONT_MODEL.encode()
KEY = mint_key().encode()
"""Stands for a key that is known when a case is sent, and has its length."""
CHAT = b"/v1/chat/completions"
SMUGGLED = b"smuggled"


@dataclass(frozen=True)
class Case:
    """`raw` has KEY in the place of a valid key. `body` may reach the upstream, `count` times. `answers`: more would be a second response."""

    name: str
    raw: bytes
    body: bytes
    count: int = 1
    answers: int = 1


def authorised(name: str) -> bytes:
    return json.dumps({"model": MODEL.decode(), "user": name}).encode()


def message(line: bytes, *fields: bytes, body: bytes = b"", host: bytes | None = b"Host: " + HOST) -> bytes:
    first = (host,) if host is not None else ()
    lines = [line, *first, b"Authorization: Bearer " + KEY, b"Content-Type: application/json", *fields, b"", b""]
    return b"\r\n".join(lines).replace(LENGTH, b"Content-Length: %d" % len(body)) + body


def hidden() -> bytes:
    body = b'{"model": "' + MODEL + b'", "user": "' + SMUGGLED + b'"}'
    return message(b"POST " + CHAT + b" HTTP/1.1", LENGTH, body=body)


LENGTH = b"<LENGTH>"
"""Becomes the honest Content-Length."""
POST = b"POST " + CHAT + b" HTTP/1.1"
WEBSOCKET = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
TE = b"Transfer-Encoding: chunked"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _by_length(name: str, *fields: bytes, host: bytes | None = b"Host: " + HOST, line: bytes = POST) -> Case:
    """One message with the fields and an honest Content-Length."""
    body = authorised(name)
    return Case(name, message(line, *fields, LENGTH, body=body, host=host), body)


def _length(name: str, value: str, *more: str, rest: bytes = b"") -> Case:
    """One message whose Content-Length is `value`, where N is the true one; `more` are further such fields."""
    body = authorised(name)
    size = len(body + rest)
    fields = (f"Content-Length:{text}".replace("M", str(size + 2**64)).replace("N", str(len(body))).encode("latin-1") for text in (value, *more))
    return Case(name, message(POST, *fields, body=body + rest), body)


def _coding(name: str, *fields: bytes, line: bytes = POST) -> Case:
    """A chunked message after which a request hides, where the fields may or may not say so: who reads no coding reads the length of it all."""
    body = authorised(name)
    return Case(name, message(line, LENGTH, *fields, body=chunk(body) + END + hidden()), body)


def _alone(name: str, *fields: bytes, line: bytes = POST) -> Case:
    """As `_coding`, without a length."""
    body = authorised(name)
    return Case(name, message(line, *fields, body=chunk(body) + END), body)


def _chunks(name: str, framed: bytes) -> Case:
    """A chunked message of this body, in which BODY stands for what is authorised and HEX for its length."""
    body = authorised(name)
    framed = framed.replace(b"HEX16", b"%016x" % len(body)).replace(b"HEX", b"%x" % len(body))
    return Case(name, message(POST, TE, body=framed.replace(b"BODY", body)), body)


def _line(name: str, line: bytes, *fields: bytes, host: bytes | None = b"Host: " + HOST, answers: int = 1) -> Case:
    """A message without a body."""
    return Case(name, message(line, *fields, host=host), b"", 0, answers)


def _unread(name: str, line: bytes, *fields: bytes, key: bytes = KEY) -> Case:
    """A request hides in a body that the answer does not wait for."""
    raw = message(line, *fields, LENGTH, body=hidden())
    return Case(name, raw.replace(KEY, key, 1), b"", 0)


def _pipelined(name: str, first: bytes, second: bytes, answers: int, count: int) -> Case:
    return Case(name, first + second, authorised(name), count, answers)


def lengths() -> list[Case]:
    plain = authorised("two requests, one after the other")
    two = message(POST, LENGTH, body=plain)
    closing = authorised("two requests, the first says Connection: close")
    return [
        _by_length("one request"),
        _pipelined("two requests, one after the other", two, two, 2, 2),
        _pipelined(
            "two requests, the first says Connection: close",
            message(POST, b"Connection: close", LENGTH, body=closing),
            hidden(),
            1,
            1,
        ),
        Case("a request within the body", message(POST, LENGTH, body=authorised("x") + b"\r\n" + hidden()), b"", 0),
        _length("Content-Length twice, the same", " N", " N"),
        _length("Content-Length twice, the second longer", " N", " 400", rest=hidden()),
        _length("Content-Length twice, the second 0", " N", " 0"),
        _length("Content-Length as a list", " N, N"),
        _length("Content-Length with a plus", " +N"),
        _length("Content-Length with a minus", " -N"),
        _length("Content-Length in hexadecimal", " 0xN"),
        _length("Content-Length with leading zeros", " 000N"),
        _length("Content-Length of 20 digits", " 99999999999999999999"),
        _length("Content-Length of 2^64 more", " M"),
        _length("Content-Length of 5000 digits", " " + "9" * 5000),
        _length("Content-Length of two numbers", " N N"),
        _length("Content-Length with a fraction", " N.0"),
        _length("Content-Length with an underscore", " 1_0N"),
        _length("Content-Length, empty", ""),
        _length("Content-Length of a superscript digit", " \xb2"),
        _length("Content-Length after a tab", "\tN"),
        _length("Content-Length before a vertical tab", " N\x0b"),
        Case("Content-Length, space before the colon", message(POST, b"Content-Length : %d" % len(authorised("sp")), body=authorised("sp")), authorised("sp")),
        # Without a length these are two messages, the second malformed.
        Case("Content_Length", message(POST, b"Content_Length: %d" % len(authorised("us")), body=authorised("us") + b"\r\n"), authorised("us"), 0, 2),
    ]


def codings() -> list[Case]:
    return [
        _alone("chunked, announced", TE),
        _alone("chunked, in capitals", b"TRANSFER-ENCODING: CHUNKED"),
        _alone("chunked, after a tab", b"Transfer-Encoding:\tchunked"),
        _coding("CL.TE: a length and a coding", TE),
        Case(
            "TE.CL: the length ends within the first chunk",
            message(POST, b"Content-Length: 4", TE, body=chunk(hidden()) + END),
            b"",
            0,
        ),
        _coding("TE.TE: xchunked", b"Transfer-Encoding: xchunked"),
        _coding("TE.TE: space before the colon", b"Transfer-Encoding : chunked"),
        _coding("TE.TE: vertical tab", b"Transfer-Encoding:\x0bchunked"),
        _coding("TE.TE: form feed", b"Transfer-Encoding: \x0cchunked"),
        _coding("TE.TE: NUL", b"Transfer-Encoding: \x00chunked"),
        _coding("TE.TE: leading space", b" Transfer-Encoding: chunked"),
        _coding("TE.TE: after a bare LF", b"X: x\nTransfer-Encoding: chunked"),
        _coding("TE.TE: after a bare CR", b"X: x\rTransfer-Encoding: chunked"),
        _coding("TE.TE: folded", b"Transfer-Encoding:\r\n chunked"),
        _coding("TE.TE: folded name", b"Transfer-Encoding\r\n : chunked"),
        _coding("TE.TE: twice", TE, TE),
        _coding("TE.TE: twice, the second unknown", TE, b"Transfer-Encoding: x"),
        _coding("TE.TE: chunked, identity", b"Transfer-Encoding: chunked, identity"),
        _coding("TE.TE: in quotes", b'Transfer-Encoding: "chunked"'),
        _coding("TE.TE: with a parameter", b"Transfer-Encoding: chunked;q=1"),
        # A name with an underscore is no such field: one message, whose body is what it is, and no JSON.
        Case("TE.TE: Transfer_Encoding", message(POST, LENGTH, b"Transfer_Encoding: chunked", body=chunk(b"{}") + END + hidden()), b"", 0),
        _coding("TE.TE: in HTTP/1.0", TE, line=b"POST " + CHAT + b" HTTP/1.0"),
        _alone("chunked twice", TE, TE),
        _alone("chunked, chunked", b"Transfer-Encoding: chunked, chunked"),
        _alone("chunked, identity", b"Transfer-Encoding: chunked, identity"),
        _alone("identity, chunked", b"Transfer-Encoding: identity, chunked"),
        _alone("identity", b"Transfer-Encoding: identity"),
        _alone("gzip, chunked", b"Transfer-Encoding: gzip, chunked"),
        _alone("an unknown coding", b"Transfer-Encoding: cow"),
        _alone("an empty coding", b"Transfer-Encoding:"),
        _alone("a list with an empty member", b"Transfer-Encoding: ,chunked"),
        _alone("chunked in HTTP/1.0", TE, line=b"POST " + CHAT + b" HTTP/1.0"),
        Case("chunked on GET", message(b"GET /v1/models HTTP/1.1", TE, body=chunk(hidden()) + END), b"", 0),
    ]


def chunked_bodies() -> list[Case]:
    one = b"HEX\r\nBODY\r\n"
    return [
        _chunks("chunk size with a plus", b"+HEX\r\nBODY\r\n" + END),
        _chunks("chunk size with a minus", b"-HEX\r\nBODY\r\n" + END),
        _chunks("chunk size with 0x", b"0xHEX\r\nBODY\r\n" + END),
        _chunks("chunk size after a space", b" HEX\r\nBODY\r\n" + END),
        _chunks("chunk size before a space", b"HEX \r\nBODY\r\n" + END),
        _chunks("chunk size with an underscore", b"0_HEX\r\nBODY\r\n" + END),
        _chunks("chunk size with leading zeros", b"0000HEX\r\nBODY\r\n" + END),
        _chunks("chunk size, empty", b"\r\nBODY\r\n" + END),
        _chunks("chunk size of 2^64 more", b"1HEX16\r\nBODY\r\n" + END),
        _chunks("chunk size, huge", b"fffffffffffffff0\r\nBODY\r\n" + END),
        _chunks("chunk size before a bare LF", b"HEX\nBODY\r\n" + END),
        _chunks("chunk size before a bare CR", b"HEX\rBODY\r\n" + END),
        _chunks("chunk extension", b'HEX;a=b;c="d"\r\nBODY\r\n' + END),
        _chunks("chunk extension with a bare CR", b"HEX;a=\rb\r\nBODY\r\n" + END),
        _chunks("chunk extension with a bare LF", b"HEX;\nxx\r\nBODY\r\n" + END),
        _chunks("chunk extension with CRLF in quotes", b'HEX;a="\r\n"\r\nBODY\r\n' + END),
        _chunks("chunk extension with NUL", b"HEX;a=\x00\r\nBODY\r\n" + END),
        _chunks("chunk without its CRLF", b"HEX\r\nBODY" + END),
        _chunks("chunk before a bare LF", b"HEX\r\nBODY\n" + END),
        _chunks("chunk longer than its size", b"HEX\r\nBODYBODY\r\n" + END),
        _chunks("last chunk with zeros", one + b"000\r\n\r\n"),
        _chunks("last chunk ends with bare LF", one + b"0\n\n"),
        _chunks("last chunk, then LF", one + b"0\r\n\n"),
        _chunks("trailer", one + b"0\r\nX-Trailer: x\r\n\r\n"),
        _chunks("trailer Content-Length", one + b"0\r\nContent-Length: 5\r\n\r\n"),
        _chunks("trailer Transfer-Encoding", one + b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        _chunks("trailer Host", one + b"0\r\nHost: other.example\r\n\r\n"),
        _chunks("trailer Authorization", one + b"0\r\nAuthorization: Bearer other\r\n\r\n"),
        _chunks("trailer with a bare LF", one + b"0\r\nX: x\nY: y\r\n\r\n"),
        _chunks("trailer, folded", one + b"0\r\nX: x\r\n y\r\n\r\n"),
        _chunks("trailer that is a request", one + b"0\r\n" + message(b"GET /v1/models HTTP/1.1")),
    ]


def fields() -> list[Case]:
    return [
        _by_length("folded field", b"X: a\r\n b"),
        _by_length("folded field, tab", b"X: a\r\n\tb"),
        _by_length("folded first field", b" X: a", host=None),
        _by_length("NUL in a value", b"X: a\x00b"),
        _by_length("NUL in a name", b"X\x00: a"),
        _by_length("DEL in a value", b"X: a\x7fb"),
        _by_length("a byte above 127 in a value", b"X: a\xffb"),
        _by_length("a byte above 127 in a name", b"X\xe9: a"),
        _by_length("space in a name", b"X Y: a"),
        _by_length("a name with a separator", b"X(Y): a"),
        _by_length("a field without a name", b": a"),
        _by_length("a field without a colon", b"nothing"),
        _by_length("bare CR in a value", b"X: a\rY: b"),
        _by_length("bare LF between fields", b"X: a\nY: b"),
        _by_length("CR CR LF", b"X: a\r"),
        _by_length("a name with an underscore", b"X_Y: a"),
        Case("bare LF everywhere", message(POST, LENGTH, body=authorised("lf")).replace(b"\r\n", b"\n"), authorised("lf")),
        Case("bare LF ends the head", message(POST, LENGTH, body=authorised("lf2")).replace(b"\r\n\r\n", b"\r\n\n"), authorised("lf2")),
        _by_length("Connection: Content-Length", b"Connection: Content-Length"),
        _by_length("Connection: Authorization", b"Connection: Authorization"),
        _by_length("Connection: Host", b"Connection: close, Host"),
        _alone("Connection: Transfer-Encoding", TE, b"Connection: Transfer-Encoding"),
        _by_length("Content-Type twice", b"Content-Type: text/plain"),
        _by_length("Authorization twice", b"Authorization: Bearer other"),
        _by_length("Expect: 100-continue", b"Expect: 100-continue"),
        _by_length("Expect: 100-Continue", b"Expect: 100-Continue"),
        _by_length("Expect: something else", b"Expect: 200-ok"),
        _by_length("Expect: y 100-continue", b"Expect: y 100-continue"),
        _coding("Expect with a length and a coding", b"Expect: 100-continue", TE),
        _by_length("Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
        _by_length("Upgrade: websocket", *WEBSOCKET),
    ]


def hosts() -> list[Case]:
    host = b"Host: " + HOST
    return [
        _by_length("no Host", host=None),
        _by_length("no Host in HTTP/1.0", host=None, line=b"POST " + CHAT + b" HTTP/1.0"),
        _by_length("Host twice, the same", host),
        _by_length("Host twice", b"Host: other.example"),
        _by_length("Host, empty", host=b"Host:"),
        _by_length("Host with a port", host=host + b":443"),
        _by_length("Host with a port that is none", host=host + b":x"),
        _by_length("Host with a path", host=host + b"/v1"),
        _by_length("Host with a user", host=b"Host: user@" + HOST),
        _by_length("Host as a list", host=host + b", other.example"),
        _by_length("Host with a space", host=b"Host: gateway example.org"),
        _by_length("Host with a byte above 127", host=b"Host: gateway\xff.example.org"),
        _by_length("Host, folded", host=b"Host: gateway\r\n .example.org"),
    ]


def targets() -> list[Case]:
    return [
        _by_length("absolute-form", line=b"POST http://" + HOST + CHAT + b" HTTP/1.1"),
        _by_length("absolute-form of another host", line=b"POST http://other.example" + CHAT + b" HTTP/1.1"),
        _by_length("absolute-form with a user", line=b"POST http://user:pass@" + HOST + CHAT + b" HTTP/1.1"),
        _by_length("absolute-form of another scheme", line=b"POST file://" + HOST + CHAT + b" HTTP/1.1"),
        _by_length("absolute-form without Host", line=b"POST http://" + HOST + CHAT + b" HTTP/1.1", host=None),
        _line("authority-form", b"GET gateway.example.org:443 HTTP/1.1"),
        _line("CONNECT", b"CONNECT other.example:443 HTTP/1.1"),
        _line("asterisk-form", b"GET * HTTP/1.1"),
        _line("OPTIONS *", b"OPTIONS * HTTP/1.1"),
        _line("no target", b"GET  HTTP/1.1"),
        _line("a target without its slash", b"GET v1/models HTTP/1.1"),
        _by_length("two slashes before the path", line=b"POST /" + CHAT + b" HTTP/1.1"),
        _by_length("a fragment", line=b"POST " + CHAT + b"#x HTTP/1.1"),
        _by_length("two spaces after the method", line=b"POST  " + CHAT + b" HTTP/1.1"),
        _by_length("tabs in the request line", line=b"POST\t" + CHAT + b"\tHTTP/1.1"),
        _by_length("a space in the target", line=b"POST " + CHAT + b" x HTTP/1.1"),
        _by_length("a control character in the target", line=b"POST " + CHAT + b"\x01 HTTP/1.1"),
        _by_length("a byte above 127 in the target", line=b"POST " + CHAT + b"?\xe9 HTTP/1.1"),
        _by_length("a bare CR in the request line", line=b"POST " + CHAT + b"\r HTTP/1.1"),
        _by_length("a space after the version", line=POST + b" "),
        _by_length("a method in lower case", line=b"post " + CHAT + b" HTTP/1.1"),
        _by_length("a method that is no token", line=b'PO"ST ' + CHAT + b" HTTP/1.1"),
        _by_length("an unknown method", line=b"PROPFROB " + CHAT + b" HTTP/1.1"),
        _by_length("TRACE", line=b"TRACE " + CHAT + b" HTTP/1.1"),
        Case("HTTP/0.9", b"GET /healthz\r\n", b"", 0),
        Case("HTTP/0.9 with a hidden request", b"GET /healthz\r\n" + hidden(), b"", 0),
        _by_length("HTTP/1.2", line=b"POST " + CHAT + b" HTTP/1.2"),
        _by_length("HTTP/1.10", line=b"POST " + CHAT + b" HTTP/1.10"),
        _by_length("HTTP/2.0", line=b"POST " + CHAT + b" HTTP/2.0"),
        _by_length("http/1.1", line=b"POST " + CHAT + b" http/1.1"),
        Case("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00" + hidden(), b"", 0),
        Case("one empty line first", b"\r\n" + message(POST, LENGTH, body=authorised("el")), authorised("el")),
        Case("three empty lines first", b"\r\n" * 3 + message(POST, LENGTH, body=authorised("el3")), authorised("el3")),
        Case("a bare LF first", b"\n" + message(POST, LENGTH, body=authorised("lf1")), authorised("lf1")),
        Case("the PROXY protocol", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + message(POST, LENGTH, body=authorised("pp")), b"", 0),
    ]


def unread() -> list[Case]:
    """Answers that are given before the body was read."""
    return [
        _unread("a request in the body of GET", b"GET /v1/models HTTP/1.1"),
        _unread("a request in the body of an unknown path", b"POST /nowhere HTTP/1.1"),
        _unread("a request in the body of a method not taken", b"OPTIONS " + CHAT + b" HTTP/1.1"),
        _unread("a request in the body of a wrong key's call", POST, key=b"wrong"),
        _unread("a request in the body of HEAD", b"HEAD /healthz HTTP/1.1"),
        _unread("a request in a body that is awaited", b"GET /v1/models HTTP/1.1", b"Expect: 100-continue"),
        _unread("a request in the body of an open route", b"POST /healthz HTTP/1.1"),
    ]


def cases() -> list[Case]:
    found = [*lengths(), *codings(), *chunked_bodies(), *fields(), *hosts(), *targets(), *unread()]
    assert len({case.name for case in found}) == len(found)
    return found
