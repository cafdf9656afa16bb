"""Between the workers of a host: a unix socket for each channel, so that the kernel is the flow control and the death of a worker an end of file.

The first frame that an opener sends is its Opening, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from gateway.bus.base import Accept, Opening
from gateway.bus.socket_channel import MOST_BYTES, SocketChannel
from gateway.concurrency import spawn
from gateway.frames import ChannelLost

HEAD_BYTES, HEAD_S = 4096, 1.0
CONNECT_S, CONNECT_WAIT_S = 0.5, 0.005
"""How long a worker with a full backlog is asked again, and how often."""
BACKLOG = 1024
PATH_BYTES = 100
"""A socket's address holds 107; a longer path is named through its directory's descriptor."""
DRAFT_S = 60.0
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_CREDENTIALS = struct.Struct("3i")


class UnixBus:
    """Of the worker `owner`. Workers reach each other by the sockets in `run_path`/bus, which are for our own user only."""

    def __init__(self, run_path: Path, owner: str) -> None:
        self._directory, self._owner = run_path / "bus", owner
        self._lock = threading.Lock()
        self._channels: set[SocketChannel] = set()
        self._listener: socket.socket | None = None
        self._accept: Accept | None = None
        self._closed = False

    def start(self, accept: Accept) -> None:
        self._accept = accept
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweep()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(listener.fileno(), 0o600)
            draft = f".{self._owner}"
            (self._directory / draft).unlink(missing_ok=True)
            with _address(self._directory, draft) as address:
                listener.bind(address)
            listener.listen(BACKLOG)
            # Under its own name only when it listens: nobody takes it for a dead one's.
            (self._directory / draft).rename(self._directory / self._owner)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        spawn(partial(self._listen, listener), "bus-listen")

    def open(self, owner: str, opening: Opening) -> SocketChannel:
        if self._closed:
            raise ChannelLost("closed")
        if owner == self._owner:
            return self._open_here(opening)
        sock = self._connect(owner)
        channel = self._add(sock)
        try:
            channel.send(json.dumps({"agent": opening.agent, "epoch": opening.epoch, "by": opening.by}).encode())
        except ChannelLost:
            channel.close()
            raise
        return channel

    def close(self) -> None:
        with self._lock:
            self._closed = True
            channels, listener, self._listener = list(self._channels), self._listener, None
        if listener is not None:
            (self._directory / self._owner).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # its greenlet wakes and closes it
        for channel in channels:
            channel.close()

    def _open_here(self, opening: Opening) -> SocketChannel:
        if self._listener is None:
            raise ChannelLost("gone")
        try:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise ChannelLost("gone") from error
        served = self._add(far)
        spawn(partial(self._serve, opening, served), "bus-serve")
        return self._add(near)

    def _connect(self, owner: str) -> socket.socket:
        """Raises ChannelLost."""
        if not _OWNER.fullmatch(owner):
            raise ChannelLost("gone")
        deadline = time.monotonic() + CONNECT_S
        try:
            while True:
                sock = _connected(self._directory, owner)
                if sock is not None:
                    return sock
                if time.monotonic() > deadline:
                    raise ChannelLost("gone")
                time.sleep(CONNECT_WAIT_S)
        except OSError as error:
            raise ChannelLost("gone") from error

    def _listen(self, listener: socket.socket) -> None:
        with listener:
            while not self._closed:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    if not self._closed:
                        time.sleep(0.05)  # too many open files, for instance: whoever asks waits in the backlog
                    continue
                if _is_ours(sock):
                    spawn(partial(self._welcome, self._add(sock, HEAD_BYTES)), "bus-serve")
                else:
                    sock.close()

    def _welcome(self, channel: SocketChannel) -> None:
        try:
            head = channel.receive(HEAD_S)
        except ChannelLost:
            head = None
        opening = None if head is None else _opening(head)
        if opening is None:
            channel.close()
            return
        channel.most = MOST_BYTES
        self._serve(opening, channel)

    def _serve(self, opening: Opening, channel: SocketChannel) -> None:
        try:
            if self._accept is not None:
                self._accept(opening, channel)
        finally:
            channel.close()

    def _add(self, sock: socket.socket, most: int = MOST_BYTES) -> SocketChannel:
        channel = SocketChannel(sock, most, self._forget)
        with self._lock:
            self._channels.add(channel)
            closed = self._closed
        if closed:
            channel.close()
        return channel

    def _forget(self, channel: SocketChannel) -> None:
        with self._lock:
            self._channels.discard(channel)

    def _sweep(self) -> None:
        """Remove the sockets of workers that are gone: nobody listens there."""
        for path in list(self._directory.iterdir()):
            if path.name.startswith("."):  # one that is just being made, unless it is old
                with contextlib.suppress(FileNotFoundError):
                    if abs(time.time() - path.stat().st_mtime) > DRAFT_S:
                        path.unlink()
            elif path.is_socket() and _is_deserted(self._directory, path.name):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _address(directory: Path, name: str) -> Iterator[str]:
    """The address of a socket file, however long its path is."""
    path = directory / name
    if len(os.fsencode(path)) <= PATH_BYTES:
        yield str(path)
        return
    file = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{file}/{name}"
    finally:
        os.close(file)


def _connected(directory: Path, owner: str) -> socket.socket | None:
    """None where its backlog is full. Raises OSError where nobody listens, or who does is another user."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(0)
        with _address(directory, owner) as address:
            sock.connect(address)
        if not _is_ours(sock):
            raise PermissionError("another user's socket")
    except BlockingIOError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def _is_deserted(directory: Path, owner: str) -> bool:
    try:
        sock = _connected(directory, owner)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    if sock is not None:
        sock.close()
    return False


def _is_ours(sock: socket.socket) -> bool:
    """Whether the process at the other end is our own user's."""
    _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.geteuid())


def _opening(head: bytes) -> Opening | None:
    """None where it is none."""
    try:
        fields = json.loads(head)
        agent, epoch, by = fields["agent"], fields["epoch"], fields["by"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    well = isinstance(agent, str) and isinstance(by, str) and isinstance(epoch, int) and not isinstance(epoch, bool)
    return Opening(agent, epoch, by) if well else None
