"""A websocket client whose every frame a test may shape, on a plain socket: it writes its frames by hand, and reads what the server sends strictly."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NO_CODE, GONE = 1005, 1006
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_RECEIVE_BYTES = 1 << 18


class Refused(Exception):
    """The server answered with something else than a websocket."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"refused with {status}")
        self.status, self.headers, self.body = status, headers, body


class Closed(Exception):
    """The connection is at its end. `code` is of the server's close frame: 1005 where it had none, 1006 where the connection ended without one."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"closed with {code} {reason}")
        self.code, self.reason = code, reason


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the server's."""

    opcode: int
    payload: bytes
    fin: bool = True


def masked(payload: bytes, key: bytes) -> bytes:
    """In one number: a byte at a time would take seconds for 30 MB."""
    size = len(payload)
    whole = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(whole, "little")).to_bytes(size, "little")


def frame_bytes(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"\x11\x22\x33\x44", length: int | None = None
) -> bytes:
    """A frame as a client sends it. `rsv`: the reserved bits, 0 to 7. `length`: what the header says, whatever the payload's length; `mask`: None for none."""
    size = len(payload) if length is None else length
    bit = 0x80 if mask is not None else 0
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    return head + (payload if mask is None else mask + masked(payload, mask))


def upgrade_bytes(path: str, headers: Mapping[str, str], key: str) -> bytes:
    """The request for a websocket. A header named here takes the place of one that would be sent; an empty one is left out."""
    fields = {"host": "127.0.0.1", "upgrade": "websocket", "connection": "Upgrade", "sec-websocket-version": "13", "sec-websocket-key": key, **headers}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value), "", ""]
    return "\r\n".join(lines).encode("latin-1")


class WebSocketClient:
    """A context manager. One thread receives, any may send. Raises Refused.

    Who wants not to read simply does not call; `receive_buffer` bounds what the kernel takes in meanwhile.
    """

    def __init__(
        self,
        port: int,
        path: str = "/client/register",
        *,
        headers: Mapping[str, str] | None = None,
        subprotocols: Sequence[str] = (),
        origin: str | None = None,
        timeout_s: float = 10.0,
        receive_buffer: int | None = None,
        first: bytes = b"",
    ) -> None:
        """`first`: bytes that leave in one segment with the request."""
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout_s)
        self.inbox, self._sending, self._said_close = bytearray(), threading.Lock(), False
        key = base64.b64encode(os.urandom(16)).decode()
        fields = {"origin": origin or "", "sec-websocket-protocol": ", ".join(subprotocols), **(headers or {})}
        try:
            self.sock.connect(("127.0.0.1", port))
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock.sendall(upgrade_bytes(path, fields, key) + first)
            self._handshake(fields.get("sec-websocket-key", key))
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> WebSocketClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def _handshake(self, key: str) -> None:
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        self.status = int(head[0].split(" ")[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        self.subprotocol = self.headers.get("sec-websocket-protocol")
        if self.status != 101:
            raise Refused(self.status, self.headers, self._body())
        accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()
        assert self.headers["sec-websocket-accept"] == accept
        assert (self.headers["upgrade"].lower(), self.headers["connection"].lower()) == ("websocket", "upgrade")

    def send(self, text: str | bytes) -> None:
        """A text message in one frame."""
        self.send_frame(TEXT, text.encode() if isinstance(text, str) else text)

    def send_json(self, value: Any) -> None:
        self.send(json.dumps(value))

    def send_frame(self, opcode: int, payload: bytes = b"", **shape: Any) -> None:
        """One frame, shaped as `frame_bytes` says."""
        self.send_raw(frame_bytes(opcode, payload, **({"mask": os.urandom(4)} | shape)))

    def send_raw(self, data: bytes) -> None:
        with self._sending:
            self.sock.sendall(data)

    def ping(self, payload: bytes = b"") -> None:
        self.send_frame(PING, payload)

    def frame(self) -> Frame:
        """The next frame, whatever it is. Raises Closed(1006) at the end of the connection, TimeoutError where nothing comes."""
        first, second = self._exactly(2)
        assert not first & 0x70, "a reserved bit"
        assert not second & 0x80, "a mask, from a server"
        size = second & 0x7F
        if size > 125:
            size = int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
        return Frame(first & 0x0F, self._exactly(size), bool(first & 0x80))

    def receive(self) -> str:
        """The next text message, pings answered meanwhile. Raises Closed; a close frame is answered."""
        message = b""
        while True:
            frame = self.frame()
            if frame.opcode == CLOSE:
                self._answer_close(frame.payload)
                raise Closed(int.from_bytes(frame.payload[:2], "big") or NO_CODE, frame.payload[2:].decode())
            if frame.opcode == PING:
                self.send_frame(PONG, frame.payload)
            elif frame.opcode in (TEXT, CONTINUATION):
                message += frame.payload
                if frame.fin:
                    return message.decode()

    def receive_json(self) -> Any:
        return json.loads(self.receive())

    def close(self, code: int | None = 1000, reason: str = "") -> Closed:
        """Send a close frame, and return what the server answered with; messages before it are dropped."""
        self._said_close = True
        with contextlib.suppress(OSError):
            self.send_frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())
        return self.end()

    def end(self) -> Closed:
        """How the server ends the connection; messages before that are dropped."""
        try:
            while True:
                self.receive()
        except Closed as closed:
            return closed

    def is_ended(self) -> bool:
        """Whether the server closes the connection itself, within the timeout, and sends nothing more."""
        try:
            return not self.inbox and self.sock.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def reset(self) -> None:
        """Close so that the server gets a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RD)  # wakes who receives
        self.sock.close()

    def _answer_close(self, payload: bytes) -> None:
        if not self._said_close:
            with contextlib.suppress(OSError):
                self.send_frame(CLOSE, payload)

    def _body(self) -> bytes:
        if "content-length" in self.headers:
            return self._exactly(int(self.headers["content-length"]))
        body = bytearray()
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size + 2)[:-2]
        return bytes(body)

    def _until(self, mark: bytes) -> bytes:
        while (found := self.inbox.find(mark)) < 0:
            self._fill()
        data = bytes(self.inbox[:found])
        del self.inbox[: found + len(mark)]
        return data

    def _exactly(self, size: int) -> bytes:
        while len(self.inbox) < size:
            self._fill()
        data = bytes(self.inbox[:size])
        del self.inbox[:size]
        return data

    def _fill(self) -> None:
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed(GONE) from error
        if not data:
            raise Closed(GONE)
        self.inbox += data
