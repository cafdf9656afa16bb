"""A TCP proxy in front of PostgreSQL that lets a COMMIT through, swallows the server's reply to it and breaks the connection: nobody behind it can
tell whether it was committed."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_PREPARES = re.compile(rb"P[\0-\xff]{4}(\w+)\0(COMMIT|ROLLBACK)\0", re.DOTALL)
"""PostgreSQL's Parse message: its length, the name, the statement."""


@dataclass(slots=True, eq=False)
class _Session:
    """One client's connection. `said`: what its transaction under way sent; `doomed`: the next reply is not passed on.

    `prepared`: the names under which it has the statements that end a transaction.
    """

    near: socket.socket
    far: socket.socket
    said: bytearray = field(default_factory=bytearray)
    doomed: bool = False
    prepared: dict[bytes, bytes] = field(default_factory=dict)

    def ending(self, data: bytes) -> bytes:
        """COMMIT or ROLLBACK, where `data` has one executed; b"" where it has none."""
        self.prepared |= dict(_PREPARES.findall(data))
        asked = _PREPARES.sub(b"", data)
        found = [statement for name, statement in self.prepared.items() if b"\0" + name + b"\0" in asked]
        return next((word for word in (b"COMMIT", b"ROLLBACK") if word in asked or word in found), b"")

    def end(self) -> None:
        for sock in (self.near, self.far):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class LostReplies:
    """Use as a context manager, in front of the server of `url`; `url` is then the proxy's own.

    `lost`: how many replies were swallowed.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._far = (parts.hostname or "", parts.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{self._listener.getsockname()[1]}"))
        self.lost = 0
        self._mark, self._skip = b"", 0
        self._guard = threading.Lock()
        self._sessions: set[_Session] = set()
        self._threads: list[threading.Thread] = []

    def lose(self, mark: str, *, after: int = 0) -> None:
        """Swallow the reply of the next COMMIT of a transaction that mentions `mark`, once so many of them have passed."""
        with self._guard:
            self._mark, self._skip = mark.encode(), after

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for session in list(self._sessions):
            session.end()
        for thread in list(self._threads):
            thread.join(5)

    def _start(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True, name="lost-replies")  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._far, 5)
            except OSError:
                near.close()
                continue
            for sock in (near, far):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            session = _Session(near, far)
            self._sessions.add(session)
            self._start(self._asks, session)
            self._start(self._replies, session)

    def _asks(self, session: _Session) -> None:
        with contextlib.suppress(OSError):
            while data := session.near.recv(1 << 20):
                session.said += data
                if ending := session.ending(data):
                    session.doomed = ending == b"COMMIT" and self._is_meant(bytes(session.said))
                    session.said.clear()
                session.far.sendall(data)
        session.end()

    def _is_meant(self, said: bytes) -> bool:
        with self._guard:
            if not self._mark or self._mark not in said:
                return False
            self._skip -= 1
            if self._skip >= 0:
                return False
            self._mark = b""
            return True

    def _replies(self, session: _Session) -> None:
        with contextlib.suppress(OSError):
            while data := session.far.recv(1 << 20):
                if session.doomed:
                    self.lost += 1
                    break
                session.near.sendall(data)
        session.end()
        self._sessions.discard(session)
        session.near.close()
        session.far.close()
