"""Limits shared by the workers of a host: a SQLite file in the run directory, one short transaction for each decision.

Rates are GCRA cells: when a bucket that holds a minute's worth, and drains evenly, will be empty. Calls at once and queues are rows
that carry their owner: those of a worker that died are removed by whoever finds them in the way. Times are CLOCK_MONOTONIC, which the
host's processes share and no clock change moves; a file belongs to one boot. Losing it loses counters, and nothing else.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from gateway.state.base import CONCURRENCY, DAY, QUEUE, REQUESTS, TOKENS, Full, Limit, Line, Standing
from gateway.state.file import StateFile

T = TypeVar("T")
Work = Callable[[sqlite3.Connection, int], T]
MINUTE_NS = 60_000_000_000
DAY_MS = 86_400_000
MOST_NS = 60 * MINUTE_NS
"""How far beyond now a bucket may be filled: one wrong figure of an upstream's shall not shut everybody out for days."""
RETRY_S = 1.0
"""When to come back where nobody can tell."""
PACE_SHARE = 0.2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS cell (subject TEXT, resource TEXT, empty_at INTEGER, PRIMARY KEY (subject, resource)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tally (subject TEXT PRIMARY KEY, day INTEGER, count INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lease (subject TEXT, owner TEXT, call TEXT, PRIMARY KEY (subject, owner, call)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS queue (name TEXT PRIMARY KEY, turn INTEGER, moved_at INTEGER, pace INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiter (seq INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT, call TEXT UNIQUE, owner TEXT, api_key INTEGER, turn INTEGER);
CREATE INDEX IF NOT EXISTS waiter_turn ON waiter (queue, turn, seq);
CREATE TABLE IF NOT EXISTS had_turn (queue TEXT, api_key INTEGER, turn INTEGER, PRIMARY KEY (queue, api_key)) WITHOUT ROWID;
"""


class SqliteLimits:
    """Of one worker, `owner`; `alive` tells whether the worker of such an id still runs. Opens its file at the first use, so it may be built before a fork."""

    def __init__(
        self,
        directory: Path,
        owner: str,
        alive: Callable[[str], bool],
        clock: Callable[[], int] = time.monotonic_ns,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._file = StateFile(directory, _SCHEMA)
        self._owner, self._alive, self._clock, self._wall = owner, alive, clock, wall_ms

    def take(self, call: str, limits: Sequence[Limit], tokens: int, queue: str | None = None) -> Full | tuple[Standing, ...]:
        return self._run(lambda db, now: self._take(db, now, call, limits, tokens, queue))

    def finish(self, call: str, limits: Sequence[Limit], tokens: int, used: int) -> None:
        # What a call really used may fill a bucket beyond its brim: nobody knew before.
        self._correct(call, limits, lambda rate: MINUTE_NS * used // rate - _cost(rate, tokens), 0)

    def give_back(self, call: str, limits: Sequence[Limit], tokens: int) -> None:
        self._correct(call, limits, lambda rate: -_cost(rate, tokens), -1)

    def standings(self, limits: Sequence[Limit]) -> tuple[Standing, ...]:
        def work(db: sqlite3.Connection, now: int) -> tuple[Standing, ...]:
            cells, found = _cells(db, limits), list[Standing]()
            for limit in limits:
                found += [_standing(limit.subject, resource, rate, cells.get((limit.subject, resource), 0), now) for resource, rate in _rates(limit)]
                if limit.concurrency is not None:
                    used = self._count(db, limit.subject, 1)
                    found.append(Standing(limit.subject, CONCURRENCY, limit.concurrency, max(limit.concurrency - used, 0), 0.0))
                if limit.per_day is not None:
                    found.append(self._today(db, limit.subject, limit.per_day))
            return tuple(found)

        return self._run(work)

    def crowded(self, limits: Sequence[Limit]) -> frozenset[str]:
        bounds = {limit.subject: limit.concurrency for limit in limits if limit.concurrency is not None}

        def work(db: sqlite3.Connection, now: int) -> frozenset[str]:
            used, alive = dict[str, int](), dict[str, bool]()
            for subject, owner, count in db.execute("SELECT subject, owner, count(*) FROM lease GROUP BY subject, owner"):
                if subject in bounds and (alive[owner] if owner in alive else alive.setdefault(owner, self._alive(owner))):
                    used[subject] = used.get(subject, 0) + count
            return frozenset(subject for subject, count in used.items() if count >= bounds[subject])

        return self._run(work)

    def is_tallied(self, subject: str) -> bool:
        day = self._wall() // DAY_MS
        return self._run(lambda db, now: bool(db.execute("SELECT 1 FROM tally WHERE subject = ? AND day = ?", (subject, day)).fetchone()))

    def tally(self, subject: str, count: int) -> None:
        def work(db: sqlite3.Connection, now: int) -> None:
            day = self._wall() // DAY_MS
            db.execute("DELETE FROM tally WHERE subject = ? AND day <> ?", (subject, day))
            db.execute("INSERT OR IGNORE INTO tally VALUES (?, ?, ?)", (subject, day, count))

        self._run(work)

    def join(self, queue: str, call: str, key: int, size: int) -> bool:
        def work(db: sqlite3.Connection, now: int) -> bool:
            waiting = self._waiting(db, queue, size)
            turn = _one(db, "SELECT coalesce(max(turn), -1) + 1 FROM waiter WHERE queue = ? AND api_key = ?", queue, key)
            turn = max(turn, _one(db, "SELECT coalesce((SELECT turn FROM queue WHERE name = ?), 0)", queue))
            turn = max(turn, _one(db, "SELECT coalesce((SELECT turn FROM had_turn WHERE queue = ? AND api_key = ?), -1) + 1", queue, key))
            if waiting >= size:
                last = db.execute("SELECT turn, seq FROM waiter WHERE queue = ? ORDER BY turn DESC, seq DESC LIMIT 1", (queue,)).fetchone()
                if last is None or last[0] <= turn:
                    return False
                db.execute("DELETE FROM waiter WHERE seq = ?", (last[1],))  # of the key that has the most of the queue
            db.execute("INSERT INTO waiter (queue, call, owner, api_key, turn) VALUES (?, ?, ?, ?, ?)", (queue, call, self._owner, key, turn))
            return True

        return self._run(work)

    def line(self, queue: str) -> Line:
        def work(db: sqlite3.Connection, now: int) -> Line:
            first = self._first(db, queue)
            own = db.execute("SELECT call FROM waiter WHERE queue = ? AND owner = ?", (queue, self._owner)).fetchall()
            return Line(first[0] if first else None, frozenset(row[0] for row in own))

        return self._run(work)

    def leave(self, queue: str, call: str) -> None:
        self._run(lambda db, now: db.execute("DELETE FROM waiter WHERE call = ?", (call,)))

    def wait_s(self, queue: str) -> float:
        def work(db: sqlite3.Connection, now: int) -> float:
            return _wait_s(db, queue)

        return self._run(work)

    @property
    def exists(self) -> bool:
        """Whether a worker has used it since the host's last boot, as far as this user can see."""
        return self._file.exists

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def _run(self, work: Work[T]) -> T:
        return self._file.run(lambda db: work(db, self._clock()))

    # decisions

    def _take(self, db: sqlite3.Connection, now: int, call: str, limits: Sequence[Limit], tokens: int, queue: str | None) -> Full | tuple[Standing, ...]:
        first = self._first(db, queue) if queue is not None else None
        if queue is not None and first is not None and first[0] != call:
            return Full(queue, QUEUE, 0, _wait_s(db, queue))
        cells, changed, standings = _cells(db, limits), list[tuple[str, str, int]](), list[Standing]()
        full: Full | None = None
        for limit in limits:
            for resource, rate in _rates(limit):
                before = max(cells.get((limit.subject, resource), 0), now)
                after = before + _cost(rate, 1 if resource == REQUESTS else tokens)
                if full is None and after > now + MINUTE_NS:
                    full = Full(limit.subject, resource, rate, (after - now - MINUTE_NS) / 1e9)
                changed.append((limit.subject, resource, after))
                standings.append(_standing(limit.subject, resource, rate, before, now))
            if limit.concurrency is not None:
                used = self._count(db, limit.subject, limit.concurrency)
                if full is None and used >= limit.concurrency:
                    full = Full(limit.subject, CONCURRENCY, limit.concurrency, RETRY_S)
                standings.append(Standing(limit.subject, CONCURRENCY, limit.concurrency, max(limit.concurrency - used, 0), 0.0))
            if limit.per_day is not None:
                standing = self._today(db, limit.subject, limit.per_day)
                if full is None and standing.remaining < 1:
                    full = Full(limit.subject, DAY, limit.per_day, standing.reset_s)
                standings.append(standing)
        if full is not None:
            return Full(full.subject, full.resource, full.limit, full.retry_after_s, tuple(standings))
        day = self._wall() // DAY_MS
        for limit in [each for each in limits if each.per_day is not None]:
            db.execute("UPDATE tally SET count = count + 1 WHERE subject = ? AND day = ?", (limit.subject, day))
        db.executemany("INSERT OR REPLACE INTO cell VALUES (?, ?, ?)", changed)
        db.executemany("INSERT INTO lease VALUES (?, ?, ?)", [(limit.subject, self._owner, call) for limit in limits if limit.concurrency is not None])
        if queue is not None and first is not None:
            _move_on(db, queue, call, first[1], now)
        after_take = {(subject, resource): empty_at for subject, resource, empty_at in changed}
        return tuple([_taken(standing, after_take.get((standing.subject, standing.resource)), now) for standing in standings])

    def _today(self, db: sqlite3.Connection, subject: str, per_day: int) -> Standing:
        """Of the calls of this UTC day; a new day begins with none."""
        now = self._wall()
        day = now // DAY_MS
        row = db.execute("SELECT count FROM tally WHERE subject = ? AND day = ?", (subject, day)).fetchone()
        if row is None:
            db.execute("INSERT OR REPLACE INTO tally VALUES (?, ?, 0)", (subject, day))
        count = 0 if row is None else int(row[0])
        return Standing(subject, DAY, per_day, max(per_day - count, 0), ((day + 1) * DAY_MS - now) / 1000)

    def _correct(self, call: str, limits: Sequence[Limit], tokens: Callable[[int], int], requests: int) -> None:
        """Free the call's places, and move its buckets: by `tokens(rate)` nanoseconds, and by so many `requests`."""
        places = [(limit.subject, self._owner, call) for limit in limits if limit.concurrency is not None]
        moves = [
            (_cost(rate, 1) * requests if resource == REQUESTS else tokens(rate), limit.subject, resource)
            for limit in limits
            for resource, rate in _rates(limit)
        ]

        def work(db: sqlite3.Connection, now: int) -> None:
            db.executemany("DELETE FROM lease WHERE subject = ? AND owner = ? AND call = ?", places)
            changes = [(now if move > 0 else 0, min(move, MOST_NS), now + MOST_NS, subject, resource) for move, subject, resource in moves if move]
            db.executemany("UPDATE cell SET empty_at = min(max(empty_at, ?) + ?, ?) WHERE subject = ? AND resource = ?", changes)

        if places or any(move[0] for move in moves):
            self._run(work)

    def _count(self, db: sqlite3.Connection, subject: str, enough: int) -> int:
        """Calls under way; where they are `enough` to be in the way, without those of workers that are gone."""
        owners = dict[str, int](db.execute("SELECT owner, count(*) FROM lease WHERE subject = ? GROUP BY owner", (subject,)).fetchall())
        if sum(owners.values()) < enough:
            return sum(owners.values())
        for owner in [owner for owner in owners if not self._alive(owner)]:
            db.execute("DELETE FROM lease WHERE owner = ?", (owner,))
            del owners[owner]
        return sum(owners.values())

    def _waiting(self, db: sqlite3.Connection, queue: str, enough: int) -> int:
        """Like `_count`, of those who wait."""
        owners = dict[str, int](db.execute("SELECT owner, count(*) FROM waiter WHERE queue = ? GROUP BY owner", (queue,)).fetchall())
        if sum(owners.values()) >= enough:
            for owner in [owner for owner in owners if not self._alive(owner)]:
                db.execute("DELETE FROM waiter WHERE owner = ?", (owner,))
                del owners[owner]
        return sum(owners.values())

    def _first(self, db: sqlite3.Connection, queue: str) -> tuple[str, int] | None:
        """Who is next, and its turn; those whose worker is gone are removed."""
        while row := db.execute("SELECT call, turn, owner FROM waiter WHERE queue = ? ORDER BY turn, seq LIMIT 1", (queue,)).fetchone():
            if self._alive(row[2]):
                return row[0], row[1]
            db.execute("DELETE FROM waiter WHERE owner = ?", (row[2],))
        return None


def untouched(limit: Limit) -> list[Standing]:
    """Of a limit of which nothing is used."""
    numbers = ((REQUESTS, limit.rpm), (TOKENS, limit.tpm), (CONCURRENCY, limit.concurrency))
    return [Standing(limit.subject, resource, number, number, 0.0) for resource, number in numbers if number is not None]


def _rates(limit: Limit) -> list[tuple[str, int]]:
    return [(resource, rate) for resource, rate in ((REQUESTS, limit.rpm), (TOKENS, limit.tpm)) if rate is not None]


def _cost(rate: int, amount: int) -> int:
    """Nanoseconds of a bucket that `amount` fills. No call fills more than all of it, or it could never begin."""
    return MINUTE_NS * min(amount, rate) // rate


def _cells(db: sqlite3.Connection, limits: Sequence[Limit]) -> dict[tuple[str, str], int]:
    subjects = [limit.subject for limit in limits if limit.rpm is not None or limit.tpm is not None]
    if not subjects:
        return {}
    rows = db.execute(f"SELECT subject, resource, empty_at FROM cell WHERE subject IN ({', '.join('?' * len(subjects))})", subjects)  # noqa: S608
    return {(subject, resource): empty_at for subject, resource, empty_at in rows}


def _standing(subject: str, resource: str, rate: int, empty_at: int, now: int) -> Standing:
    backlog = max(empty_at - now, 0)
    return Standing(subject, resource, rate, max(MINUTE_NS - backlog, 0) * rate // MINUTE_NS, backlog / 1e9)


def _taken(standing: Standing, empty_at: int | None, now: int) -> Standing:
    """The same after the call has begun."""
    if empty_at is not None:
        return _standing(standing.subject, standing.resource, standing.limit, empty_at, now)
    return Standing(standing.subject, standing.resource, standing.limit, standing.remaining - 1, standing.reset_s)


def _one(db: sqlite3.Connection, sql: str, *values: object) -> int:
    return int(db.execute(sql, values).fetchone()[0])


def _move_on(db: sqlite3.Connection, queue: str, call: str, turn: int, now: int) -> None:
    """The first has begun: the next turn is up, and its key has had this one. Notes how fast the queue moves."""
    db.execute("DELETE FROM had_turn WHERE queue = ? AND turn < ?", (queue, turn))
    db.execute("INSERT OR REPLACE INTO had_turn SELECT queue, api_key, turn FROM waiter WHERE call = ?", (call,))
    db.execute("DELETE FROM waiter WHERE call = ?", (call,))
    row = db.execute("SELECT moved_at, pace FROM queue WHERE name = ?", (queue,)).fetchone()
    pace = 0
    if row is not None and now - row[0] < MINUTE_NS:
        pace = int(row[1] + PACE_SHARE * (now - row[0] - row[1])) if row[1] else now - row[0]
    db.execute("INSERT OR REPLACE INTO queue VALUES (?, ?, ?, ?)", (queue, turn, now, pace))


def _wait_s(db: sqlite3.Connection, queue: str) -> float:
    row = db.execute("SELECT pace FROM queue WHERE name = ?", (queue,)).fetchone()
    waiting = _one(db, "SELECT count(*) FROM waiter WHERE queue = ?", queue)
    return max(RETRY_S, row[0] / 1e9 * (waiting + 1)) if row is not None else RETRY_S
