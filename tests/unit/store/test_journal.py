"""The outbox journal: what it took is there after any crash, whole lines only, and is booked until the database has it."""

from __future__ import annotations

import resource
import threading
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.dialects.events import Usage
from gateway.store.exchanges import ExchangeRow
from gateway.store.idempotency import DONE, Completion
from gateway.store.journal import Journal, read
from gateway.store.ledger import Booking, Entry

USAGE = Usage(3, output_text=4, raw={"total_tokens": 7, "ü": [None, 1.5]}, flags=("clamped",))
ENTRY = Entry(
    "x1", "usage", 1, 7, 3, 1_000, 700, USAGE, "complete", "provider", "m", "real", "d", 820, 5, flags=("unpriced",), rates={"output_text": 9}, note="ü"
)
ROW = ExchangeRow("x1", "worker", 7, 3, "m", 200, "complete", '{"a":1}', 5)
BOOKINGS = [Booking(replace(ENTRY, exchange=f"x{number}"), replace(ROW, id=f"x{number}"), held=number % 2 == 0) for number in range(2)]
BOOKINGS.append(Booking(replace(ENTRY, exchange="x2"), None, attempts=(replace(ENTRY, exchange="x2", kind="attempt"),)))


class Book:
    def __init__(self, fails: bool = False) -> None:
        self.booked: list[Booking] = []
        self.fails = fails

    def __call__(self, bookings: Sequence[Booking]) -> None:
        if self.fails:
            raise RuntimeError("the database is away")
        self.booked += bookings


def alive(owner: str) -> bool:
    return owner == "living"


def written(directory: Path, owner: str = "gone") -> Journal:
    journal = Journal(directory, owner)
    for booking in BOOKINGS:
        journal.append(booking)
    return journal


def test_a_booking_comes_back_as_it_was(tmp_path: Path) -> None:
    written(tmp_path)
    found, torn = read((tmp_path / "gone.journal").read_bytes())
    assert (found, torn) == (BOOKINGS, 0)
    assert found[0].entry is not None
    assert found[0].entry.usage.raw == USAGE.raw


def test_what_becomes_of_a_key_comes_back_without_the_answer(tmp_path: Path) -> None:
    completion = Completion((7, "their key"), "x1", DONE, 200, "[]", b"sealed")
    journal = Journal(tmp_path, "gone")
    journal.append(Booking(None, None, claim=completion))
    found, torn = read((tmp_path / "gone.journal").read_bytes())
    assert (found, torn) == ([Booking(None, None, claim=replace(completion, body=None))], 0)


def test_a_line_of_a_version_that_knew_no_keys_is_read(tmp_path: Path) -> None:
    text = b'{"entry":null,"exchange":null,"held":true}'
    assert read(b"\n%08x %s" % (zlib.crc32(text), text)) == ([Booking(None, None, held=True)], 0)


def test_it_is_for_its_owner_s_eyes_only(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "journal", tmp_path / "journal" / "gone.journal")] == [0o700, 0o600]


def test_cut_anywhere_every_whole_line_is_read_and_nothing_raises(tmp_path: Path) -> None:
    written(tmp_path)
    data = (tmp_path / "gone.journal").read_bytes()
    ends = [position for position in range(len(data) + 1) if position == len(data) or data[position : position + 1] == b"\n"][1:]
    for cut in range(len(data) + 1):
        found, torn = read(data[:cut])
        assert found == BOOKINGS[: sum(end <= cut for end in ends)]
        assert torn <= 1


def test_a_changed_byte_costs_its_own_line_only(tmp_path: Path) -> None:
    written(tmp_path)
    data = bytearray((tmp_path / "gone.journal").read_bytes())
    data[len(data) // 2] ^= 1
    assert read(bytes(data)) == ([BOOKINGS[0], BOOKINGS[2]], 1)


def test_what_follows_a_torn_line_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "gone")
    journal.append(BOOKINGS[0])
    with (tmp_path / "gone.journal").open("ab") as file:
        file.write(b"\n0123abcd {half a li")
    journal.append(BOOKINGS[1])
    assert read((tmp_path / "gone.journal").read_bytes()) == (BOOKINGS[:2], 1)


def test_a_replay_books_what_is_the_worker_s_own_and_what_the_dead_left(tmp_path: Path) -> None:
    written(tmp_path, "gone")
    own = written(tmp_path, "living")
    book = Book()
    assert own.replay(book, alive) == 6
    assert len(book.booked) == 6
    assert not list(tmp_path.iterdir())


def test_a_living_worker_s_journal_is_left_to_it(tmp_path: Path) -> None:
    written(tmp_path, "living")
    assert Journal(tmp_path, "other").replay(Book(), alive) == 0
    assert (tmp_path / "living.journal").exists()


def test_what_the_database_does_not_take_stays(tmp_path: Path) -> None:
    journal = written(tmp_path)
    with pytest.raises(RuntimeError):
        journal.replay(Book(fails=True), alive)
    journal.append(BOOKINGS[0])
    book = Book()
    assert journal.replay(book, alive) == 4
    assert not list(tmp_path.iterdir())


def test_a_torn_line_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = written(tmp_path)
    with (tmp_path / "gone.journal").open("ab") as file:
        file.write(b"\nhalf")
    assert journal.replay(Book(), alive) == 3
    assert "1 torn lines" in caplog.text


def test_a_disk_that_takes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Not a directory"):
        Journal(Path("/dev/null/journal"), "gone").append(BOOKINGS[0])


def test_a_line_of_which_nobody_was_told_does_not_stay(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "gone")
    journal.append(BOOKINGS[0])
    before = (tmp_path / "gone.journal").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.append(BOOKINGS[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "gone.journal").read_bytes() == before


def test_many_at_once_are_all_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "gone")
    threads = [threading.Thread(target=journal.append, args=(replace(BOOKINGS[0], entry=replace(ENTRY, exchange=f"x{number}")),)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, _ = read((tmp_path / "gone.journal").read_bytes())
    assert {booking.entry.exchange for booking in found if booking.entry} == {f"x{number}" for number in range(50)}
