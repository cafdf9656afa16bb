"""A websocket, from the request that asks for one to its end: RFC 6455, text messages, no extensions. A view accepts it, and is its connection's master.

It keeps no queue. What has arrived is read by `receive` alone, so who is busy reads nothing, the kernel's buffers fill, and TCP pauses the peer.
gateway/api/incoming.py makes messages of what it reads.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from wsproto.frame_protocol import Opcode
from wsproto.utilities import generate_accept_token

from gateway.api.incoming import NO_CODE, Incoming, Part, Violation, closing
from gateway.core.agent_session import SocketClosed

MAX_BYTES, SEND_S = 16_000_000, 60.0
MESSAGE_S, SLOWEST_BYTES = 60.0, 65_536
CLOSE_S = 1.0
STEP_BYTES = RECEIVE_BYTES = 65_536
LINGER_BYTES = 16 << 20
TURN_S, PAUSE_S = 0.005, 0.0005
"""While bytes wait to be read, no read waits: after so long a peer's messages let others have their turn."""
GONE = 1006
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")


class NotAWebSocket(Exception):
    """The request asks for no websocket, or not as it should. Nothing was written: it can be answered like any other."""


class WebSocketClosed(SocketClosed):
    """It is at its end. `code` is the peer's, or ours where we closed first; 1005: the peer named none; 1006: its connection was lost."""


class WebSocket:
    """One connection. One greenlet receives; any may send or close. `subprotocol`: what was agreed on.

    Between greenlets nothing happens but where one waits; in threads a time that one sets for the socket could hit another's read.
    """

    __slots__ = (
        "_closed",
        "_incoming",
        "_left_at",
        "_message_s",
        "_pong",
        "_receiving",
        "_send_s",
        "_sending",
        "_since",
        "_sock",
        "_turn",
        "_until",
        "subprotocol",
    )

    def __init__(self, sock: socket.socket, subprotocol: str | None, max_bytes: int, send_s: float, message_s: float) -> None:
        self._sock, self.subprotocol, self._send_s, self._message_s = sock, subprotocol, send_s, message_s
        self._incoming = Incoming(max_bytes)
        self._receiving, self._sending = threading.Lock(), threading.Lock()
        self._closed: tuple[int, str] | None = None
        self._until = 0.0
        """When it is closed: how long the peer's last bytes are taken in (monotonic)."""
        self._pong: bytes | None = None
        self._turn = self._left_at = self._since = time.monotonic()
        """Since when this greenlet has its turn; when nobody received any more; since when a message is under way, not counting while nobody received."""

    @classmethod
    def accept(
        cls,
        environ: Mapping[str, Any],
        subprotocols: Sequence[str] = (),
        *,
        max_bytes: int = MAX_BYTES,
        send_s: float = SEND_S,
        message_s: float = MESSAGE_S,
    ) -> WebSocket:
        """Take the connection over and answer with 101. `subprotocols`: the best first. Raises NotAWebSocket or WebSocketClosed.

        `send_s`: how long the peer may take nothing of what it is sent. `message_s`: how long a message of its own may take to arrive, and a second more
        for each SLOWEST_BYTES of it that are there. Time in which nobody receives does not count.
        """
        key, offered = _key(environ), _listed(environ, "HTTP_SEC_WEBSOCKET_PROTOCOL")
        subprotocol = next((name for name in subprotocols if name in offered), None)
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines.append(f"Sec-WebSocket-Accept: {generate_accept_token(key.encode()).decode()}")
        lines += [f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []
        websocket = cls(environ["gunicorn.socket"], subprotocol, max_bytes, send_s, message_s)
        websocket._incoming.feed(environ["gateway.take_over"]())
        websocket._push("\r\n".join([*lines, "", ""]).encode())
        return websocket

    def allow(self, max_bytes: int) -> None:
        """From now on messages may be so large."""
        self._incoming.max_bytes = max_bytes

    def send(self, text: str | bytes) -> None:
        """Send a text message; bytes are UTF-8 already. Waits while the peer reads slowly. Raises WebSocketClosed, also where it took nothing for `send_s`."""
        payload = text.encode() if isinstance(text, str) else text
        with self._sending:
            self._check_open()
            self._frame(Opcode.TEXT, payload)
        self._send_pong()

    def receive(self, timeout_s: float | None) -> str | None:
        """The next message, whole; None when the time is up, and what has come of a message is kept. Raises WebSocketClosed.

        Reads no further than its message, to the end of a block of RECEIVE_BYTES, and answers pings. Closes the connection of a peer that breaks the
        protocol, sends anything but text (1003), too much (1009), or too slowly (1008).
        """
        with self._receiving:
            began = time.monotonic()
            self._since += began - self._left_at
            try:
                return self._receive(None if timeout_s is None else began + timeout_s)
            except Violation as violation:
                self._say(violation.code, violation.reason)
                self._linger()
                raise WebSocketClosed(*self._closed or (violation.code, violation.reason)) from violation
            finally:
                self._left_at = time.monotonic()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Say that this is the end, and why. Who receives learns of it when the peer has closed too. Takes at most about CLOSE_S. Idempotent."""
        if not self._say(code, reason):
            return
        if self._receiving.acquire(timeout=max(self._until - time.monotonic(), 0)):
            try:
                self._linger()
            finally:
                self._receiving.release()
        self._shut(socket.SHUT_RDWR)

    def _receive(self, until: float | None) -> str | None:
        tried = False
        while True:
            if self._closed is not None:
                self._linger()
                raise WebSocketClosed(*self._closed)
            if (now := time.monotonic()) - self._turn > TURN_S:
                time.sleep(PAUSE_S)  # not 0: the hub takes up to 50 such turns before it looks at a socket
                self._turn = now = time.monotonic()
            got = self._incoming.next()
            if isinstance(got, str):
                self._since = now
                return got
            if got is not None:
                self._obey(got)
            elif until is not None and now >= until and tried:
                return None
            else:
                self._fill(now, until)
                tried = True

    def _fill(self, now: float, until: float | None) -> None:
        """Read once, within the time for the message that is under way, and until `until`."""
        wait_s = None if until is None else max(until - now, 0)
        is_under_way = self._incoming.is_under_way
        if is_under_way:
            left_s = self._since + self._message_s + self._incoming.held / SLOWEST_BYTES - now
            if left_s <= 0:
                raise Violation(1008, "a message took too long to arrive")
            wait_s = left_s if wait_s is None else min(wait_s, left_s)
        try:
            self._sock.settimeout(wait_s)
            data = self._sock.recv(RECEIVE_BYTES)
        except (TimeoutError, BlockingIOError):
            return
        except OSError:
            data = b""
        if (after := time.monotonic()) - now > PAUSE_S:
            self._turn = after  # it waited: others had their turn
        if not is_under_way:
            self._since = after
        if data:
            self._incoming.feed(data)
        else:
            self._lost("the connection was lost")

    def _obey(self, part: Part) -> None:
        if part.opcode is Opcode.PING:
            self._pong = part.payload
            self._send_pong()
        elif part.opcode is Opcode.CLOSE:
            self._say(*closing(part.payload))
            self._until = 0.0

    def _send_pong(self) -> None:
        """Answer the last ping, unless somebody sends: then that greenlet will."""
        while self._pong is not None and self._closed is None and self._sending.acquire(blocking=False):
            try:
                payload, self._pong = self._pong, None
                if payload is not None:
                    self._frame(Opcode.PONG, payload)
            finally:
                self._sending.release()

    def _say(self, code: int, reason: str) -> bool:
        """Send the close frame, if this is the end's beginning. Nothing is sent after it."""
        if self._closed is not None:
            return False
        self._closed, self._until = (code, reason), time.monotonic() + CLOSE_S
        told = b"" if code == NO_CODE else struct.pack("!H", code) + reason.encode()[:123].decode(errors="ignore").encode()
        if self._sending.acquire(timeout=CLOSE_S):  # else somebody waits in the middle of a frame, and the end of the connection must do
            try:
                with contextlib.suppress(WebSocketClosed):
                    self._frame(Opcode.CLOSE, told, max(self._until - time.monotonic(), PAUSE_S))
            finally:
                self._sending.release()
        else:
            self._end_by_reset()
        self._shut(socket.SHUT_WR)
        return True

    def _linger(self) -> None:
        """Take in what the peer still sends: a connection that is closed with bytes unread is reset, and the peer would not learn why."""
        taken, turn = 0, time.monotonic()
        with contextlib.suppress(OSError):  # it is gone, or late
            while taken < LINGER_BYTES and (now := time.monotonic()) < self._until:
                if now - turn > TURN_S:
                    time.sleep(PAUSE_S)
                    turn = time.monotonic()
                self._sock.settimeout(self._until - now)
                block = self._sock.recv(RECEIVE_BYTES)
                if not block:
                    break
                taken += len(block)
        self._until = 0.0
        self._shut(socket.SHUT_RDWR)

    def _frame(self, opcode: Opcode, payload: bytes, send_s: float | None = None) -> None:
        size, first = len(payload), 0x80 | opcode
        short = struct.pack("!BB", first, size) if size < 126 else struct.pack("!BBH", first, 126, size) if size < 1 << 16 else b""
        view = memoryview(payload)
        self._push((short or struct.pack("!BBQ", first, 127, size)) + view[:STEP_BYTES], send_s)
        for start in range(STEP_BYTES, size, STEP_BYTES):
            self._push(view[start : start + STEP_BYTES], send_s)

    def _push(self, data: bytes | memoryview, send_s: float | None = None) -> None:
        """Not by `sendall`, whose timeout is for all of it: who takes a little in time is slow, not gone."""
        try:
            while data:
                self._sock.settimeout(self._send_s if send_s is None else send_s)
                data = data[self._sock.send(data) :]
        except OSError as error:
            if isinstance(error, TimeoutError):
                self._end_by_reset()
            self._lost("it takes nothing" if isinstance(error, TimeoutError) else "the connection was lost")
            raise WebSocketClosed(*self._closed or (GONE, "")) from error

    def _check_open(self) -> None:
        if self._closed is not None:
            raise WebSocketClosed(*self._closed)

    def _lost(self, reason: str) -> None:
        self._closed = self._closed or (GONE, reason)
        self._until = 0.0
        self._shut(socket.SHUT_RDWR)  # wakes who receives

    def _end_by_reset(self) -> None:
        """Where a frame cannot be finished. Otherwise the kernel would keep what was sent, and the connection, for a peer that takes nothing."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(how)


def _key(environ: Mapping[str, Any]) -> str:
    """The client's key, of a request that asks for a websocket as it should."""
    asked = environ.get("REQUEST_METHOD") == "GET" and environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
    asked = asked and "upgrade" in _listed(environ, "HTTP_CONNECTION", str.lower) and "websocket" in _listed(environ, "HTTP_UPGRADE", str.lower)
    bare = environ.get("CONTENT_LENGTH", "0") in ("", "0") and "HTTP_TRANSFER_ENCODING" not in environ  # a body would stand where the frames begin
    key: str = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    if not (asked and bare and environ.get("HTTP_SEC_WEBSOCKET_VERSION") == "13" and _KEY.fullmatch(key)):
        raise NotAWebSocket("no request for a websocket")
    if environ.get("gateway.take_over") is None:
        raise NotAWebSocket("this server does not give its connections away")
    return key


def _listed(environ: Mapping[str, Any], name: str, form: Any = str) -> list[str]:
    return [form(word.strip()) for word in environ.get(name, "").split(",")]
