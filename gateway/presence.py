"""This worker's owner id and its flock: the kernel frees the lock when the process dies, however it dies.

What a worker owns (holds, leases, journals) carries its owner id; whoever finds such a thing asks `alive(owner)`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path


class Presence:
    """Held from `start` until `close` or the end of the process. An id is random and never used again.

    `host_path`: a directory that outlasts a restart, for what tells this host from others of its name and paths; by default `run_path`.
    """

    def __init__(self, run_path: Path, host_path: Path | None = None) -> None:
        self._directory, self._run_path, self._host_path = run_path / "owners", run_path, host_path or run_path
        self._file: int | None = None

    @cached_property
    def owner(self) -> str:
        return f"{self._host}-{secrets.token_hex(8)}"

    @cached_property
    def _host(self) -> str:
        return hashlib.sha256(f"{socket.gethostname()}:{self._run_path}:{_host_word(self._host_path)}".encode()).hexdigest()[:8]

    def start(self) -> None:
        """Take the lock, and remove the files of owners that are gone. Called once in each worker, after the fork."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._directory / self.owner
        while self._file is None:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)  # waits for whoever is just asking, which is over in microseconds
            if os.fstat(file).st_nlink:
                self._file = file
            else:  # another worker removed it between the two lines
                os.close(file)
        for other in self._directory.iterdir():
            # Removed under its lock, or a worker that is just starting would find itself without its file.
            with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(other, fcntl.LOCK_EX):
                other.unlink()

    def alive(self, owner: str) -> bool:
        """Whether the worker with this id still runs on this host."""
        if owner == self.owner and self._file is not None:
            return True
        try:
            with _locked(self._directory / owner, fcntl.LOCK_SH):  # shared: those who ask do not take each other for the owner
                return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True

    def local(self, owner: str) -> bool:
        """Whether `alive` can tell of this owner: it is, or was, a worker of this host."""
        return owner.startswith(f"{self._host}-")

    def close(self) -> None:
        if self._file is not None:
            (self._directory / self.owner).unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def _host_word(directory: Path) -> str:
    """A random word that is made once, and is the same for all who ask; "" where it can be neither read nor made, as without the directory."""
    path, draft = directory / "host", directory / f".host.{secrets.token_hex(8)}"
    with contextlib.suppress(OSError):
        if not path.exists():
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                file.write(secrets.token_hex(16))
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(draft)
            draft.unlink()
        return path.read_text()
    return ""


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Hold the lock of an existing file for a moment. Raises BlockingIOError where its owner holds it, FileNotFoundError."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)
