"""A gateway as an agent sees it, on a real socket: it lets agents in, asks what a test tells it to ask, and breaks what a test tells it to break.

`with AgentGateway() as gateway: agent = gateway.accept(); agent.send(type="request", ...); agent.receive()`.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from typing import Any, Self

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, RejectConnection, RejectData, Request, TextMessage
from wsproto.utilities import ProtocolError

PROTOCOL = "chat-gateway.agent.v2"
WELCOME: Mapping[str, Any] = {"type": "welcome", "agent": "box", "session": "s", "ping_s": 20, "grace_s": 5, "max_bytes": 16_000_000}
_RESET = struct.pack("ii", 1, 0)


class Attached:
    """One agent's connection. `request`: its handshake; `hello`: its first frame; `closed`: the code that it closed with, 1006 for a connection lost."""

    def __init__(self, sock: socket.socket, ws: WSConnection, request: Request) -> None:
        self._sock, self._ws, self.request = sock, ws, request
        self._lock = threading.Lock()
        self._frames: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.hello: dict[str, Any] = {}
        self.closed: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode() for name, value in self.request.extra_headers}

    def send(self, **members: Any) -> None:
        self.send_text(json.dumps(members))

    def send_text(self, text: str) -> None:
        self.send_event(TextMessage(text))

    def send_event(self, event: Event) -> None:
        with self._lock:
            self._sock.sendall(self._ws.send(event))

    def ask(self, identity: str, credit: int = 1000, **members: Any) -> None:
        """A request. `members` are the frame's, but `body`'s are added to those of a sane body."""
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]} | members.pop("body", {})
        self.send(type="request", id=identity, model=body["model"], stream=True, credit=credit, body=body, **members)

    def receive(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """The next frame. Raises AssertionError where none comes, EOFError at the connection's end."""
        try:
            frame = self._frames.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"no frame within {timeout_s} s") from None
        if frame is None:
            self._frames.put(None)
            raise EOFError(self.closed)
        return frame

    def answer(self, timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """The frames up to the end of one request, which is the only one."""
        frames = [self.receive(timeout_s)]
        while frames[-1]["type"] == "delta":
            frames.append(self.receive(timeout_s))
        return frames

    def silent(self, seconds: float = 0.2) -> bool:
        """Whether no frame comes for so long."""
        try:
            self._frames.put(self._frames.get(timeout=seconds))
        except queue.Empty:
            return True
        return False

    def close(self, code: int, reason: str = "") -> None:
        self.send_event(CloseConnection(code, reason))

    def drop(self) -> None:
        """The connection is lost, without a word."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def wait_closed(self, timeout_s: float = 5.0) -> int | None:
        """`closed`, once the connection is at its end; frames that came before are passed over."""
        with contextlib.suppress(EOFError):
            while True:
                self.receive(timeout_s)
        return self.closed

    def read(self) -> None:
        """Until the end, in a thread of the gateway's."""
        text = ""
        try:
            while self.closed is None:
                for event in self._events():
                    if isinstance(event, TextMessage):
                        text += event.data
                        if event.message_finished:
                            self._frames.put(json.loads(text))
                            text = ""
        finally:
            self.closed = 1006 if self.closed is None else self.closed
            self._frames.put(None)

    def _events(self) -> list[Event]:
        try:
            data = self._sock.recv(65_536)
            if not data:
                self.closed = 1006
                return []
            with self._lock:
                self._ws.receive_data(data)
                events = list(self._ws.events())
                for event in events:
                    if isinstance(event, Ping):
                        self._sock.sendall(self._ws.send(event.response()))
                    if isinstance(event, CloseConnection):
                        self.closed = event.code
                        with contextlib.suppress(ProtocolError):
                            self._sock.sendall(self._ws.send(event.response()))
        except (OSError, ProtocolError):
            self.closed = 1006
            return []
        return events


class AgentGateway:
    """Listens from `__enter__` to `__exit__`. `welcome`: the members of that frame; None for none. `refuses`: a status in place of the handshake.

    `protocol`: the subprotocol that it speaks.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'wss' if tls else 'ws'}://127.0.0.1:{self.port}"
        self.welcome: dict[str, Any] | None = dict(WELCOME)
        self.refuses: int | None = None
        self.protocol: str | None = PROTOCOL
        self.handshakes = 0
        self._attached: queue.Queue[Attached] = queue.Queue()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def accept(self, timeout_s: float = 10.0) -> Attached:
        """The next agent, once it has said hello and was welcomed."""
        try:
            return self._attached.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(f"no agent within {timeout_s} s, {self.handshakes} handshakes") from None

    def drop(self) -> None:
        """Every connection is lost."""
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(5)

    def _start(self, run: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True, name="agent gateway")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        if self._tls is not None:
            try:
                sock = self._tls.wrap_socket(sock, server_side=True)
            except OSError:
                return sock.close()
        self._open.add(sock)
        try:
            attached = self._shaken(sock)
            if attached is not None:
                self._attach(attached)
        except OSError:
            pass
        finally:
            self._open.discard(sock)
            sock.close()

    def _shaken(self, sock: socket.socket) -> Attached | None:
        ws = WSConnection(ConnectionType.SERVER)
        while True:
            data = sock.recv(65_536)
            if not data:
                return None
            ws.receive_data(data)
            for event in ws.events():
                if isinstance(event, Request):
                    self.handshakes += 1
                    if self.refuses is not None:
                        sock.sendall(ws.send(RejectConnection(status_code=self.refuses, headers=[(b"content-length", b"0")], has_body=True)))
                        sock.sendall(ws.send(RejectData(b"")))
                        return None
                    protocol = self.protocol if self.protocol in event.subprotocols else None
                    sock.sendall(ws.send(AcceptConnection(subprotocol=protocol)))
                    return Attached(sock, ws, event)

    def _attach(self, attached: Attached) -> None:
        reader = threading.Thread(target=attached.read, daemon=True)
        reader.start()
        with contextlib.suppress(AssertionError, EOFError):
            attached.hello = attached.receive()
            if self.welcome is not None:
                attached.send(**{"models": attached.hello["models"], **self.welcome})
            self._attached.put(attached)
        reader.join()


__all__ = ["PROTOCOL", "AgentGateway", "Attached", "BytesMessage"]
