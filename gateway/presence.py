"""This worker's owner id and its flock: the kernel frees the lock when the process dies, however it dies.

What a worker owns (holds, leases, journals) carries its owner id; whoever finds such a thing asks `alive(owner)`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path


class Presence:
    """Held from `start` until `close` or the end of the process. An id is random and never used again."""

    def __init__(self, run_path: Path) -> None:
        self._directory = run_path / "owners"
        self.owner = secrets.token_hex(8)
        self._file: int | None = None

    def start(self) -> None:
        """Take the lock, and remove the files of owners that are gone. Called once in each worker, after the fork."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(self._directory / self.owner, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in self._directory.iterdir():
            if path.name != self.owner and not self.alive(path.name):
                path.unlink(missing_ok=True)

    def alive(self, owner: str) -> bool:
        """Whether the worker with this id still runs on this host."""
        if owner == self.owner and self._file is not None:
            return True
        try:
            file = os.open(self._directory / owner, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(file)

    def close(self) -> None:
        if self._file is not None:
            (self._directory / self.owner).unlink(missing_ok=True)
            os.close(self._file)
            self._file = None
