"""A proxy on a real socket: CONNECT and absolute form, or SOCKS 5, as its client begins; with a password, and scripted to fail."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

_SIGN_IN = b"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic realm=x\r\ncontent-length: 0\r\n\r\n"


class _PeerGone(Exception):
    """The other side closed or broke the connection."""


@dataclass
class Asked:
    """One wish of a client's: `way` is "connect", "absolute" or "socks"; `host` a name or an address, as it was sent."""

    way: str
    host: str
    port: int
    head: bytes = b""


@dataclass
class Proxy:
    """Use as a context manager. `identity` is (user, password) where it asks for one; `names` are the names that it can resolve.

    `say`: what it says in place of its first answer, then it closes; b"" closes at once. `hang`: it takes what comes and says nothing.
    `refuse`: its answer to every wish: a status of HTTP, a reply code of SOCKS. `piecemeal`: it sends its answers byte by byte.
    """

    identity: tuple[str, str] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    say: bytes | None = None
    hang: bool = False
    refuse: int = 0
    piecemeal: bool = False
    asked: list[Asked] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    connections_seen: int = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def url(self, scheme: str, user: str = "") -> str:
        return f"{scheme}://{user + '@' if user else ''}127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections_seen += 1
            self._start(self._serve, sock)

    def _start(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _serve(self, sock: socket.socket) -> None:
        self._open.add(sock)
        try:
            self._converse(sock)
        except (_PeerGone, OSError):
            pass
        finally:
            self._open.discard(sock)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _converse(self, sock: socket.socket) -> None:
        first = sock.recv(1, socket.MSG_PEEK)
        if self.say is not None or self.hang:
            while self.hang:
                self._exactly(sock, 1)
            self.received += sock.recv(65_536)
            sock.sendall(self.say or b"")
        elif first == b"\x05":
            self._socks(sock)
        else:
            self._http(sock)

    # HTTP

    def _http(self, sock: socket.socket) -> None:
        while True:
            head = self._head(sock)
            method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
            if not self._signed_in(head):
                self._answer(sock, _SIGN_IN)
                continue
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                self.asked.append(Asked("connect", host.strip("[]"), int(port), head))
                if self.refuse:
                    return self._answer(sock, b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % self.refuse)
                with self._reached(self.asked[-1]) as far:
                    self._answer(sock, b"HTTP/1.1 200 Connection established\r\nproxy-agent: fake\r\n\r\n")
                    return self._relay(sock, far)
            self._forward(sock, method, target, head)

    def _forward(self, sock: socket.socket, method: str, target: str, head: bytes) -> None:
        """A request in absolute form; its answer is sent on as a whole."""
        parts = urlsplit(target)
        self.asked.append(Asked("absolute", parts.hostname or "", parts.port or 80, head))
        size = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        body = self._exactly(sock, size)
        if self.refuse:
            self._answer(sock, b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % self.refuse)
            return
        fields = (line.decode("latin-1").partition(": ") for line in head.split(b"\r\n")[1:-2])
        far = http.client.HTTPConnection(self.names.get(parts.hostname or "", parts.hostname or ""), parts.port or 80, timeout=5)
        far.request(method, parts.path, body, {name: value for name, _, value in fields if not name.lower().startswith("proxy-")})
        response = far.getresponse()
        answer = response.read()
        far.close()
        head_lines = [f"HTTP/1.1 {response.status} {response.reason}", f"content-type: {response.getheader('content-type')}", f"content-length: {len(answer)}"]
        self._answer(sock, "\r\n".join([*head_lines, "", ""]).encode() + answer)

    def _signed_in(self, head: bytes) -> bool:
        if self.identity is None:
            return True
        return b"proxy-authorization: Basic " + base64.b64encode(":".join(self.identity).encode()) + b"\r\n" in head

    def _head(self, sock: socket.socket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._exactly(sock, 1)
        return head

    # SOCKS 5

    def _socks(self, sock: socket.socket) -> None:
        _, count = self._exactly(sock, 2)
        offered = self._exactly(sock, count)
        wanted = 2 if self.identity else 0
        if wanted not in offered:
            self._answer(sock, b"\x05\xff")
            return
        self._answer(sock, bytes([5, wanted]))
        if self.identity:
            user = self._exactly(sock, self._exactly(sock, 2)[1]).decode()
            password = self._exactly(sock, self._exactly(sock, 1)[0]).decode()
            self._answer(sock, b"\x01\x00" if (user, password) == self.identity else b"\x01\x01")
            if (user, password) != self.identity:
                return
        self._tunnel(sock, self._exactly(sock, 4)[3])

    def _tunnel(self, sock: socket.socket, kind: int) -> None:
        if kind == 3:
            host = self._exactly(sock, self._exactly(sock, 1)[0]).decode()
        else:
            host = socket.inet_ntop(socket.AF_INET6 if kind == 4 else socket.AF_INET, self._exactly(sock, 16 if kind == 4 else 4))
        self.asked.append(Asked("socks", host, int.from_bytes(self._exactly(sock, 2), "big")))
        if self.refuse:
            self._answer(sock, bytes([5, self.refuse, 0, 1]) + bytes(6))
            return
        try:
            far = self._reached(self.asked[-1])
        except OSError:
            self._answer(sock, b"\x05\x05\x00\x01" + bytes(6))
            return
        with far:
            self._answer(sock, b"\x05\x00\x00\x03\x04fake\x00\x50")
            self._relay(sock, far)

    # both

    def _reached(self, asked: Asked) -> socket.socket:
        return socket.create_connection((self.names.get(asked.host, asked.host), asked.port), 5)

    def _relay(self, near: socket.socket, far: socket.socket) -> None:
        self._open.add(far)
        self._start(self._pump, far, near)
        self._pump(near, far)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _answer(self, sock: socket.socket, data: bytes) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (bytes([byte]) for byte in data) if self.piecemeal else (data,):
            sock.sendall(piece)

    def _exactly(self, sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = sock.recv(size - len(data))
            if not more:
                raise _PeerGone
            data += more
        self.received += data
        return data
