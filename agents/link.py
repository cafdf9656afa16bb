"""The websocket of the Python agent: one thread takes its turns, any thread may post. `say` is the agent's log."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, RejectConnection, Request, TextMessage

PROTOCOL = "chat-gateway.agent.v2"
CONNECT_S, SEND_S = 5.0, 20.0
MOST_CHARACTERS = 64_000_000


class Stop(Exception):
    """It makes no sense to connect again; the text says what to do."""


class Link:
    """One connection to the gateway, which begins with `begin`. `closed`: the gateway's code and reason, once it closed. Raises OSError."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._sock = dialled(self._parts)
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._posted: deque[bytes] = deque()
        self._bell, self._rope = socket.socketpair()
        self._rope.setblocking(False)
        self._text: list[str] = []
        self.closed: tuple[int, str] | None = None
        self.heard_at = time.monotonic()

    def begin(self, token: str) -> None:
        path = self._parts.path.rstrip("/").removesuffix("/client/register") + "/client/register"
        headers = [(b"Authorization", b"Bearer " + token.encode()), (b"User-Agent", b"chat-gateway")]
        self._send(Request(host=self._parts.netloc, target=path, extra_headers=headers, subprotocols=[PROTOCOL]))

    def post(self, frame: Mapping[str, Any] | bytes) -> None:
        """Queue a frame; does not wait. What comes after the end goes nowhere."""
        self._posted.append(frame if isinstance(frame, bytes) else json.dumps(frame).encode())
        with contextlib.suppress(OSError):  # a full bell rings already
            self._rope.send(b"!")

    @property
    def flushed(self) -> bool:
        return not self._posted

    def turn(self, timeout_s: float) -> list[str]:
        """Send what was posted, wait at most so long, and give the messages that came whole.

        Raises OSError, ProtocolError, and Stop where no other connection would do.
        """
        while self._posted and self._ws.state is ConnectionState.OPEN:
            self._send(TextMessage(self._posted.popleft().decode()))
        for ready in select.select([self._sock, self._bell], [], [], timeout_s)[0]:
            if ready is self._bell:
                self._bell.recv(65_536)
            else:
                self._receive()
        return list(self._messages())

    def close(self, code: int, reason: str) -> None:
        """Begin to close; what was sent still arrives, and `closed` is set when the gateway has answered."""
        if self._ws.state is ConnectionState.OPEN:
            self._send(CloseConnection(code, reason))

    def release(self) -> None:
        """The end of its sockets; no more turns are taken."""
        for each in (self._sock, self._bell, self._rope):
            each.close()

    def _send(self, event: Event) -> None:
        self._sock.settimeout(SEND_S)
        self._sock.sendall(self._ws.send(event))

    def _receive(self) -> None:
        self._sock.settimeout(0)
        try:
            data = self._sock.recv(65_536)
        except (BlockingIOError, ssl.SSLWantReadError):  # a record of TLS without data
            return
        if not data:
            raise ConnectionError("the connection was lost")
        self.heard_at = time.monotonic()
        self._ws.receive_data(data)

    def _messages(self) -> Iterator[str]:
        for event in self._ws.events():
            if isinstance(event, TextMessage):
                self._text.append(event.data)
                if sum(map(len, self._text)) > MOST_CHARACTERS:
                    raise self.broken(1009, "larger than this agent takes")
                if event.message_finished:
                    yield "".join(self._text)
                    self._text.clear()
            elif isinstance(event, BytesMessage):
                raise self.broken(4400, "no text frame")
            elif isinstance(event, Ping):
                self._send(event.response())
            elif isinstance(event, CloseConnection):
                self.closed = (event.code, event.reason or "")
                if self._ws.state is ConnectionState.REMOTE_CLOSING:
                    self._send(event.response())
            elif isinstance(event, RejectConnection):
                raise refused(event.status_code)
            elif isinstance(event, AcceptConnection) and event.subprotocol != PROTOCOL:
                raise Stop(f"the gateway does not speak {PROTOCOL}: update it")

    def broken(self, code: int, why: str) -> ConnectionError:
        """Close, since the gateway broke the protocol; the error to raise."""
        with contextlib.suppress(OSError):
            self.close(code, why)
        return ConnectionError(f"the gateway broke the protocol: {why}")


def dialled(parts: SplitResult) -> socket.socket:
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    sock = socket.create_connection((parts.hostname or "", port), CONNECT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if parts.scheme != "wss":
        return sock
    return ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)


def refused(status: int) -> Exception:
    if status in (401, 403):
        return Stop(f"the gateway refused the connection with {status}: check the token and the URL")
    return ConnectionError(f"the gateway refused the connection with {status}")


def say(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    sys.stderr.write("agent: " + "".join(mark if mark.isprintable() else " " for mark in text[:500]) + "\n")
    sys.stderr.flush()


def checked(url: str, schemes: tuple[str, ...]) -> SplitResult:
    """The URL in its parts. Raises ValueError, without the URL, which may hold a secret."""
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname or parts.username is not None or parts.query or parts.fragment or parts.port == 0:
        raise ValueError(f"the URL must be {' or '.join(f'{scheme}://host[:port][/path]' for scheme in schemes)}")
    return parts
