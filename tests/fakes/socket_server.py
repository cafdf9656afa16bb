"""The gateway's own side of a websocket in this process: a listener whose connections are accepted as views accept them, each in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from gateway.api.websocket import NotAWebSocket, WebSocket, WebSocketClosed

Handler = Callable[[WebSocket], None]


def environ_of(head: bytes, rest: bytes, sock: socket.socket) -> dict[str, Any]:
    """What the worker makes of a request."""
    request, *lines = head.decode("latin-1").split("\r\n")
    method, path, version = request.split(" ")
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, "SERVER_PROTOCOL": version}
    for name, _, value in (line.partition(":") for line in lines if line):
        key = name.upper().replace("-", "_")
        key = key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value.strip()}" if key in environ else value.strip()
    return environ | {"gunicorn.socket": sock, "gateway.take_over": lambda: rest}


class SocketServer:
    """A context manager. `handler` serves each connection; `ends`: how each one ended for it, in order. A request for no websocket gets 400."""

    def __init__(self, handler: Handler, subprotocols: Sequence[str] = (), *, send_buffer: int | None = None, **limits: Any) -> None:
        """`limits`: of WebSocket.accept."""
        self._handler, self._subprotocols, self._limits = handler, subprotocols, limits
        self._listener = socket.create_server(("127.0.0.1", 0))
        if send_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.port: int = self._listener.getsockname()[1]
        self.ends: list[WebSocketClosed] = []
        self.changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []

    def __enter__(self) -> SocketServer:
        self._spawn(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def end(self, number: int = 0, timeout_s: float = 10.0) -> WebSocketClosed:
        """How the handler's connection ended. Raises AssertionError where it does not."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.ends) > number, timeout_s), "the handler's websocket was not closed"
            return self.ends[number]

    def _spawn(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._socks.append(sock)
                self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            received = b""
            while b"\r\n\r\n" not in received:
                data = sock.recv(65_536)
                if not data:
                    return
                received += data
            head, _, rest = received.partition(b"\r\n\r\n")
            environ = environ_of(head, rest, sock)
            try:
                websocket = WebSocket.accept(environ, self._subprotocols, **self._limits)
            except NotAWebSocket:
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\nsec-websocket-version: 13\r\ncontent-length: 11\r\n\r\nBad Request")
                return
            try:
                self._handler(websocket)
            except WebSocketClosed as closed:
                with self.changed:
                    self.ends.append(closed)
                    self.changed.notify_all()


def echo(websocket: WebSocket) -> None:
    while (message := websocket.receive(None)) is not None:
        websocket.send(message)
