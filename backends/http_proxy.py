"""What is said to a proxy before it is a tunnel: CONNECT (RFC 9110, section 9.3.6) and SOCKS 5 (RFC 1928, RFC 1929). Bytes, no I/O.

Used by backends/http_dial.py; requests for plain http go to an HTTP proxy in absolute form instead, which backends/http_pool.py writes.
"""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Generator
from types import MappingProxyType

from backends.http_address import Place
from gateway.backend import Proxy

MAX_ANSWER_BYTES = 16_384
"""Of an HTTP proxy's answer to CONNECT. One of a SOCKS proxy is never above 262."""
NOT_SIGNED_IN = "The proxy asks for a user name and a password, or refuses those it was given (407)."

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})[ \r]")
_ADDRESS_BYTES = MappingProxyType({1: 4, 4: 16})
_REPLIES = MappingProxyType(
    {
        1: "The proxy failed to reach the upstream.",
        2: "The proxy refused to connect to the upstream: its rules forbid it.",
        3: "The proxy finds no way to the upstream's network.",
        4: "The proxy finds no way to the upstream's host.",
        5: "The upstream refused the proxy's connection.",
        6: "The proxy's connection to the upstream timed out.",
        7: "The proxy does not connect to upstreams.",
        8: "The proxy does not speak this kind of address.",
    }
)

Handshake = Generator[bytes, bytes, None]
"""`next` gives the first bytes to send; `send(received)` takes what came and gives what is to be sent, b"" for nothing yet. It ends
(StopIteration) when the tunnel is open, and raises ProxyRefused; the caller closes the connection then."""


class ProxyRefused(Exception):
    """The proxy makes no tunnel. One line for clients: neither its address nor its password is in it."""


def authorization(proxy: Proxy) -> str:
    """The header line, with its CRLF; empty without a user."""
    if not proxy.user:
        return ""
    return f"proxy-authorization: Basic {base64.b64encode(f'{proxy.user}:{proxy.password}'.encode()).decode()}\r\n"


def handshake(proxy: Proxy, upstream: Place, host: str) -> Handshake:
    """Asks for a tunnel to `host`, the upstream's name or one of its addresses."""
    return _connect(proxy, upstream.authority) if proxy.scheme == "http" else _socks(proxy, host, upstream.port)


def _connect(proxy: Proxy, authority: str) -> Handshake:
    received = yield f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n{authorization(proxy)}\r\n".encode()
    while b"\r\n\r\n" not in received:
        if not received.startswith(b"HTTP/1."[: len(received)]) or len(received) > MAX_ANSWER_BYTES:
            raise _not_one(proxy)
        received += yield b""
    head, _, surplus = received.partition(b"\r\n\r\n")
    found = _STATUS.match(head + b"\r")
    if found is None:
        raise _not_one(proxy)
    status = int(found[1])
    if status == 407:
        raise ProxyRefused(NOT_SIGNED_IN)
    if not 200 <= status < 300:
        raise ProxyRefused(f"The proxy refused to connect to the upstream (status {status}).")
    if surplus:  # an upstream that is spoken to with TLS does not speak first
        raise _not_one(proxy)


def _socks(proxy: Proxy, host: str, port: int) -> Handshake:
    method = yield from _exchanged(proxy, b"\x05\x02\x00\x02" if proxy.user else b"\x05\x01\x00", 2)
    if method == b"\x05\xff" or (method == b"\x05\x02" and not proxy.user):
        raise ProxyRefused("The proxy asks for a way to sign in that it was not offered; does it need a user name and a password?")
    if method == b"\x05\x02":
        user, password = proxy.user.encode(), proxy.password.encode()
        verdict = yield from _exchanged(proxy, b"\x01" + _counted(user) + _counted(password), 2)
        if verdict[1]:
            raise ProxyRefused("The proxy refused its user name and password.")
    elif method != b"\x05\x00":
        raise _not_one(proxy)
    yield from _asked(proxy, b"\x05\x01\x00" + _destination(host) + port.to_bytes(2, "big"))


def _asked(proxy: Proxy, request: bytes) -> Handshake:
    reply = yield request
    while len(reply) < 5 and reply[:2] in (b"\x05", b"\x05\x00"):  # a refusal may be cut short
        reply += yield b""
    if reply[0] != 5 or reply[1] > 8:
        raise _not_one(proxy)
    if reply[1]:
        raise ProxyRefused(_REPLIES[reply[1]])
    size = 6 + (_ADDRESS_BYTES.get(reply[3]) or (1 + reply[4] if reply[3] == 3 else 0))
    while len(reply) < size:
        reply += yield b""
    if size == 6 or len(reply) > size:
        raise _not_one(proxy)


def _exchanged(proxy: Proxy, message: bytes, size: int) -> Generator[bytes, bytes, bytes]:
    """Sends, and receives an answer of exactly that many bytes."""
    received = yield message
    while len(received) < size:
        received += yield b""
    if len(received) > size:  # the proxy's next word is an answer to ours
        raise _not_one(proxy)
    return received


def _destination(host: str) -> bytes:
    for kind, family in ((b"\x01", socket.AF_INET), (b"\x04", socket.AF_INET6)):
        try:
            return kind + socket.inet_pton(family, host)
        except OSError:
            continue
    return b"\x03" + _counted(host.encode("ascii"))


def _counted(text: bytes) -> bytes:
    if len(text) > 255:
        raise ProxyRefused("The upstream's name is too long for a proxy.")
    return bytes([len(text)]) + text


def _not_one(proxy: Proxy) -> ProxyRefused:
    return ProxyRefused(f"The proxy does not answer as {'an HTTP' if proxy.scheme == 'http' else 'a SOCKS'} proxy does.")
