"""The file in the run directory that the workers of a host share: SQLite, one short transaction for each decision.

It belongs to one boot of the host, as the monotonic times in it do. Losing it loses counters, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gateway.state.base import StateUnavailable

T = TypeVar("T")
BLOCK_S = 0.005
"""How long another worker's decision may block the hub. It takes microseconds, but on a busy machine its worker must get a core first."""
PATIENCE_S, BUSY_WAIT_S = 1.0, 0.002
"""Where the file is not to be had for so long, asked for so often, something else is wrong."""
_COUNT = struct.Struct("=Q")


class StateFile:
    """One user's connection to the file; `schema` is what it needs in it. Opened at the first use, so it may be built before a fork.

    `opened` is called whenever it was, also where another file took the place of the one before.
    """

    def __init__(self, directory: Path, schema: str, opened: Callable[[], None] = lambda: None) -> None:
        self._path, self._schema, self._opened = directory / f"state-{_boot()}.db", schema, opened
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in a transaction of its own. Nothing in it may wait, so no other greenlet runs before its end. Raises StateUnavailable."""
        deadline, replaced = time.monotonic() + PATIENCE_S, False
        while True:
            try:
                with self._lock:
                    return self._once(work)
            except sqlite3.Error as error:
                busy = isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                damaged = not busy and not replaced and error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
                if not (busy or damaged) or time.monotonic() > deadline:
                    raise StateUnavailable(f"the state that workers share, {self._path.name}, cannot be used: {error}") from error
                if damaged:
                    replaced = True
                    self._discard()
            except OSError as error:
                raise StateUnavailable(f"the state that workers share, {self._path.name}, cannot be used: {error.strerror}") from error
            time.sleep(BUSY_WAIT_S)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def exists(self) -> bool:
        """Whether a worker has used it since the host's last boot, as far as this user can see."""
        return os.path.exists(self._path)

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._drop()

    def _once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        db = self._connection
        if db is None or not self._is_current():
            self._drop()
            db = self._open()
        db.execute("BEGIN IMMEDIATE")
        try:
            result = work(db)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        return result

    def _is_current(self) -> bool:
        """Whether the open file is still the one that the others use: one of them may have replaced it, or somebody tidied up."""
        try:
            return os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for other in self._path.parent.glob("state-*.*"):
            if not other.name.startswith(self._path.stem):  # an earlier boot's
                other.unlink(missing_ok=True)
        # Only where it is new: whoever closes a descriptor of a file gives up all locks that his process has on it, and SQLite has some.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._inode = os.stat(self._path).st_ino
        db = sqlite3.connect(self._path, timeout=BLOCK_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            db.executescript(self._schema)
        except BaseException:
            db.close()
            raise
        self._connection = db
        self._opened()
        return db

    def _discard(self) -> None:
        """The file is damaged: away with it, unless another worker has replaced it already."""
        with self._lock, contextlib.suppress(OSError):
            self._drop()
            with open(self._path.parent / "state.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _sound(self._path):
                    for suffix in ("-wal", "-shm", ""):
                        Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class ChangeCounter:
    """A number in memory that the workers of a host share: whoever changes something raises it, and nobody asks a file whether anything changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory: mmap.mmap | None = None

    @property
    def value(self) -> int:
        """Raises StateUnavailable."""
        return int(_COUNT.unpack_from(self._mapped())[0])

    def up(self) -> None:
        """To be called where nobody else can at the same time: within a transaction of the file. Raises StateUnavailable."""
        _COUNT.pack_into(self._mapped(), 0, self.value + 1)

    def close(self) -> None:
        """Idempotent. The mapping goes with its last reader: another thread may be reading it now."""
        self._memory = None

    def _mapped(self) -> mmap.mmap:
        memory = self._memory
        return self._open() if memory is None else memory

    def _open(self) -> mmap.mmap:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(file).st_size < _COUNT.size:
                    os.ftruncate(file, _COUNT.size)
                self._memory = memory = mmap.mmap(file, _COUNT.size)
            finally:
                os.close(file)
        except OSError as error:
            raise StateUnavailable(f"the state that workers share, {self._path.name}, cannot be used: {error.strerror}") from error
        return memory


def _sound(path: Path) -> bool:
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=PATIENCE_S)) as db:
        return bool(db.execute("PRAGMA quick_check").fetchone() == ("ok",))
    return False


def _boot() -> str:
    """What tells this boot of the host from others: monotonic times of another mean nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "boot"
