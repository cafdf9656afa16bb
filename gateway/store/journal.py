"""The outbox journal: bookings that the database did not take, on the disk until it does. One file for each worker, a checked line for each booking.

What stands here counts as committed: `append` returns once it is on the disk. Whoever replays a file may do so as often as it likes, since booking
is idempotent; a line whose end is missing was never acknowledged and is passed over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from gateway.concurrency import Job, NativeWorker
from gateway.dialects.events import Usage
from gateway.store.exchanges import ExchangeRow
from gateway.store.idempotency import Completion
from gateway.store.ledger import Booking, Entry

log = logging.getLogger(__name__)
APPEND_S = 10.0
BATCH = 200


class Journal:
    """`directory` must outlast the host's restart. Nothing is made before the first booking."""

    def __init__(self, directory: Path, owner: str) -> None:
        self._directory, self._owner = directory, owner
        self._path = directory / f"{owner}.journal"
        self._worker = NativeWorker(self._run, "journal")
        self._rotations = 0

    def append(self, booking: Booking) -> None:
        """Returns when the booking is on the disk. Raises OSError, or OffloadTimeout."""
        self._worker.submit(_line(booking), APPEND_S)

    def replay(self, book: Callable[[Sequence[Booking]], None], alive: Callable[[str], bool]) -> int:
        """Hand this worker's bookings, and those of owners that are gone, to `book`, in batches; how many. What `book` raises is passed on, and
        its file stays."""
        if self._path.exists():
            self._worker.submit(None, APPEND_S)  # moves it aside, between two appends
        count = 0
        for path in self._waiting(alive):
            with contextlib.suppress(FileNotFoundError), _alone(path):
                count += _replayed(path, book)
        return count

    def owners(self, alive: Callable[[str], bool]) -> set[str]:
        """Those whose bookings wait for a replay."""
        return {_owner(path) for path in self._waiting(alive)}

    def _waiting(self, alive: Callable[[str], bool]) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return sorted(path for path in self._directory.iterdir() if path.suffix == ".replay" or (path.suffix == ".journal" and not alive(_owner(path))))

    def close(self) -> None:
        self._worker.close()

    def _run(self, jobs: list[Job]) -> None:
        """In the journal's own thread."""
        lines = [job.item for job in jobs if job.item is not None]
        if lines:
            self._write(b"".join(lines))
        if any(job.item is None for job in jobs):
            self._rotate()

    def _write(self, data: bytes) -> None:
        fresh = not self._path.exists()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        before = os.fstat(file).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(file, data[written:])
            os.fdatasync(file)
        except OSError:  # nobody is told that these bookings stand here, so they must not
            os.ftruncate(file, before)
            raise
        finally:
            os.close(file)
        if fresh:
            _sync(self._directory)

    def _rotate(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._rotations += 1
            self._path.rename(self._directory / f"{self._owner}.{self._rotations}.replay")


def _owner(path: Path) -> str:
    return path.name.partition(".")[0]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One replay of a file at a time; a file that another replays is left to it."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise FileNotFoundError(path) from None
    try:
        yield
    finally:
        os.close(file)


def _replayed(path: Path, book: Callable[[Sequence[Booking]], None]) -> int:
    bookings, torn = read(path.read_bytes())
    for start in range(0, len(bookings), BATCH):
        book(bookings[start : start + BATCH])
    if torn:
        log.warning("%d torn lines of the journal were passed over: they were never acknowledged", torn, extra={"fields": {"journal": path.name}})
    path.unlink()
    _sync(path.parent)
    return len(bookings)


def read(data: bytes) -> tuple[list[Booking], int]:
    """The bookings of a journal, and how many of its lines are torn."""
    bookings, torn = [], 0
    for line in data.split(b"\n"):
        if not line:
            continue
        booking = _booking(line)
        if booking is None:
            torn += 1
        else:
            bookings.append(booking)
    return bookings, torn


def _line(booking: Booking) -> bytes:
    """The line break comes first: what follows a torn line begins on a line of its own. An answer's body is not kept here: its key stays taken."""
    document = {
        "entry": None if booking.entry is None else _members(booking.entry) | {"usage": _members(booking.entry.usage)},
        "exchange": None if booking.exchange is None else _members(booking.exchange),
        "held": booking.held,
        "attempts": [_members(each) | {"usage": _members(each.usage)} for each in booking.attempts],
        "claim": None if booking.claim is None else _members(replace(booking.claim, body=None)),
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    return b"\n%08x %s" % (zlib.crc32(text), text)


def _members(value: Any) -> dict[str, Any]:
    """Not `asdict`: that copies, and so fails at a backend's unusual Mapping."""
    found = {item.name: getattr(value, item.name) for item in fields(value)}
    return {name: dict(member) if name in ("rates", "raw") and member is not None else member for name, member in found.items()}


def _booking(line: bytes) -> Booking | None:
    check, _, text = line.partition(b" ")
    if check != b"%08x" % zlib.crc32(text):
        return None
    document = json.loads(text)
    entry, exchange, claim = document["entry"], document["exchange"], document.get("claim")
    if claim is not None:
        claim = Completion(**{**claim, "place": tuple(claim["place"])})
    attempts = tuple(map(_entry, document.get("attempts", ())))
    return Booking(None if entry is None else _entry(entry), None if exchange is None else ExchangeRow(**exchange), document["held"], claim, attempts)


def _entry(members: dict[str, Any]) -> Entry:
    usage = Usage(**{**members["usage"], "flags": tuple(members["usage"]["flags"])})
    return Entry(**{**members, "usage": usage, "flags": tuple(members["flags"]), "windows": tuple(members["windows"])})


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
