"""A provider of OpenAI's API on a real socket, scripted: slow, cut, garbled, limited. Threads and raw sockets only.

`with Provider() as provider:` serves 127.0.0.1 on a free port; what it answers is in tests/fakes/answers.py.
By hand: `python -m tests.fakes.provider --port 9000`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from tests.fakes.answers import Default, End, Step, script_of
from tests.fakes.received import Received

_RESET = struct.pack("ii", 1, 0)
_ESTABLISHED = b"\x01"


class _PeerGone(Exception):
    """The other side closed or broke the connection."""


@dataclass(eq=False)
class _Connection:
    """One accepted connection. `watch` is a plain duplicate of its socket: it can be peeked at also where `sock` is TLS."""

    number: int
    sock: socket.socket
    watch: socket.socket
    inbox: bytearray = field(default_factory=bytearray)

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise _PeerGone from error

    def pause(self, seconds: float | None, stopped: threading.Event) -> None:
        """Wait; raises _PeerGone as soon as the other side closes. None waits for ever."""
        until = None if seconds is None else time.monotonic() + seconds
        while not stopped.is_set():
            left = 0.2 if until is None else min(0.2, until - time.monotonic())
            if left <= 0:
                return
            if not select.select([self.watch], [], [], left)[0]:
                continue
            if self._ended():
                raise _PeerGone
            time.sleep(min(left, 0.01))  # a pipelined request, a body that nobody reads, or TLS's own records: look for the end again
        raise _PeerGone

    def _ended(self) -> bool:
        """By the connection's state: unread bytes may stand before the end."""
        try:
            return self.watch.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != _ESTABLISHED
        except OSError:
            return True

    def reset(self) -> None:
        self.watch.close()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()

    def close(self) -> None:
        self.watch.close()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def line(self) -> bytes:
        while b"\n" not in self.inbox:
            self._fill()
        end = self.inbox.index(b"\n") + 1
        line = bytes(self.inbox[:end])
        del self.inbox[:end]
        return line.rstrip(b"\r\n")

    def exactly(self, size: int) -> bytes:
        while len(self.inbox) < size:
            self._fill()
        data = bytes(self.inbox[:size])
        del self.inbox[:size]
        return data

    def _fill(self) -> None:
        try:
            data = self.sock.recv(65_536)
        except (OSError, ValueError) as error:
            raise _PeerGone from error
        if not data:
            raise _PeerGone
        self.inbox += data


class Provider:
    """Serves from `__enter__` to `__exit__`. `tls` makes it serve https.

    `requests`: what came, in order. `closed`: the monotonic moments at which the other side closed before an answer was whole.
    """

    def __init__(self, port: int = 0, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._tls = tls
        self._listener = socket.create_server((host, port), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.root = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self.url = self.root + "/v1"
        self.requests: list[Received] = []
        self.closed: list[float] = []
        self.connections_seen = 0
        self._open: set[_Connection] = set()
        self._queues: defaultdict[str, deque[Step]] = defaultdict(deque)
        self._standing: dict[str, Step] = {}
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def script(self, path: str, *steps: Step) -> None:
        """The next requests for `path` get these answers, one each; then `always`'s, or the sane default."""
        with self._changed:
            self._queues[path].extend(steps)

    def always(self, path: str, step: Step) -> None:
        """Every request for `path` that no script is left for gets this answer."""
        self._standing[path] = step

    def forget(self) -> None:
        """No request, no script: as at the beginning."""
        with self._changed:
            self.requests.clear()
            self.closed.clear()
            self._queues.clear()
            self._standing.clear()

    @property
    def connections_open(self) -> int:
        with self._changed:
            return len(self._open)

    def wait_requests(self, count: int, timeout: float = 5.0) -> list[Received]:
        """The requests, once there are `count`. Raises AssertionError after `timeout` seconds."""
        self._wait(lambda: len(self.requests) >= count, timeout, f"{count} requests")
        return self.requests

    def wait_closed(self, count: int = 1, timeout: float = 5.0) -> list[float]:
        """`closed`, once it has `count` moments. Raises AssertionError after `timeout` seconds."""
        self._wait(lambda: len(self.closed) >= count, timeout, f"{count} closed answers")
        return self.closed

    def wait_open(self, count: int, timeout: float = 5.0) -> None:
        """Returns once `count` connections are open. Raises AssertionError after `timeout` seconds."""
        self._wait(lambda: len(self._open) == count, timeout, f"{count} open connections")

    def _wait(self, met: Any, timeout: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(met, timeout):
                raise AssertionError(f"no {what} within {timeout} s: {len(self.requests)} requests, {len(self.closed)} closed, {len(self._open)} open")

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.watch.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(5)

    def _start(self, run: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True, name="provider")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        for number in itertools.count(1):
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._start(self._serve, number, sock)

    def _serve(self, number: int, sock: socket.socket) -> None:
        watch = socket.socket(fileno=os.dup(sock.fileno()))
        if self._tls is not None:
            try:
                sock = self._tls.wrap_socket(sock, server_side=True)
            except OSError:
                watch.close()
                return sock.close()
        connection = _Connection(number, sock, watch)
        with self._changed:
            self._open.add(connection)
            self.connections_seen += 1
            self._changed.notify_all()
        try:
            self._converse(connection)
        finally:
            connection.close()
            with self._changed:
                self._open.discard(connection)
                self._changed.notify_all()

    def _converse(self, connection: _Connection) -> None:
        while not self._stopped.is_set():
            try:
                received = _head(connection)
                step = self._step(received.path)
                early = getattr(step, "before_body", False)
                if not early:
                    received.body = b"".join(_body(connection, received.headers))
            except _PeerGone:
                return
            with self._changed:
                self.requests.append(received)
                self._changed.notify_all()
            if not self._play(connection, step, received) or early:
                return

    def _step(self, path: str) -> Step:
        with self._changed:
            if self._queues[path]:
                return self._queues[path].popleft()
        return self._standing.get(path) or Default()

    def _play(self, connection: _Connection, step: Step, received: Received) -> bool:
        """Whether the connection goes on."""
        try:
            for action in script_of(step, received):
                if isinstance(action, bytes):
                    connection.send(action)
                elif isinstance(action, (int, float)):
                    connection.pause(action, self._stopped)
                elif action is End.RESET:
                    connection.reset()
                    return False
                elif action is End.CLOSE:
                    return False
                else:
                    connection.pause(None, self._stopped)
        except _PeerGone:
            with self._changed:
                self.closed.append(time.monotonic())
                self._changed.notify_all()
            return False
        return True


def _head(connection: _Connection) -> Received:
    words = connection.line().decode("latin-1").split(" ")
    if len(words) != 3:  # a handshake of TLS, say
        raise _PeerGone
    method, target, _ = words
    headers: list[tuple[str, str]] = []
    while line := connection.line():
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name.lower(), value.strip()))
    path, _, query = target.partition("?")
    return Received(method, path, query, headers, b"", time.monotonic(), connection.number)


def _body(connection: _Connection, headers: dict[str, str]) -> Iterator[bytes]:
    if headers.get("transfer-encoding") == "chunked":
        while size := int(connection.line(), 16):
            yield connection.exactly(size)
            connection.line()
        connection.line()
    else:
        yield connection.exactly(int(headers.get("content-length", "0")))


def main() -> None:
    parser = argparse.ArgumentParser(description="A fake provider of OpenAI's API.")
    parser.add_argument("--port", type=int, default=9000)
    with Provider(parser.parse_args().port) as provider, contextlib.suppress(KeyboardInterrupt):
        print(json.dumps({"url": provider.url}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
