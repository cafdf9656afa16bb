"""The condition of credentials and deployments, as the workers of a host see it at once: who may not be called now, why and until when.

What has no condition is active. To look costs a number in shared memory; only a change touches the file.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.state.base import StateUnavailable
from gateway.state.file import ChangeCounter, StateFile

SUSPECT, COOLING, PROBING, QUARANTINED, EXPIRED = "suspect", "cooling", "probing", "quarantined", "expired"
ACTIVE = "active"
FOREVER = math.inf
MOST_CONDITIONS = 2_000
"""Behind a glob the clients choose the names of models: beyond so many, rests that are over are forgotten."""
_COLUMNS = "subject, state, until, reason, rest_s, named, prober, failures"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS condition (
    subject TEXT PRIMARY KEY, state TEXT, until REAL, reason TEXT, rest_s REAL, named INTEGER, prober TEXT, failures TEXT, change INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS condition_change ON condition (change);
CREATE TABLE IF NOT EXISTS tidied (only INTEGER PRIMARY KEY, change INTEGER);
CREATE TABLE IF NOT EXISTS caller (subject TEXT, principal INTEGER, at REAL, PRIMARY KEY (subject, principal)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seeded (only INTEGER PRIMARY KEY);
"""


@dataclass(frozen=True, slots=True)
class Condition:
    """`until`: monotonic seconds, for ever where there is no end. `rest_s`: how long this rest is, from which the next one is made.

    `named`: the upstream itself said when it ends, so that nobody has to find out whether it did. `prober`: whose call finds out.
    `failures`: of a suspect, when and by which principal each was seen.
    """

    state: str
    until: float = FOREVER
    reason: str = ""
    rest_s: float = 0.0
    named: bool = False
    prober: str = ""
    failures: tuple[tuple[float, int], ...] = ()

    def over(self, now: float) -> bool:
        """Whether it keeps nobody from calling any more: suspects are called, and a rest ends."""
        return self.state == SUSPECT or self.until <= now


Decide = Callable[[Condition | None], Condition | None]


class Conditions:
    """Of one worker; the workers of a host share them. Where the file cannot be used, each goes on with what it last saw."""

    def __init__(self, directory: Path) -> None:
        self._file = StateFile(directory, _SCHEMA, self._opened)
        self._counter = ChangeCounter(self._file.path.with_suffix(".count"))
        self._seen = -1
        self._current: dict[str, Condition] = {}

    def current(self) -> Mapping[str, Condition]:
        """Every condition, by subject. Never raises."""
        try:
            count = self._counter.value
            if count != self._seen:
                self._file.run(self._catch_up)
                self._seen = count
        except StateUnavailable:
            pass  # whoever changes something is told
        return self._current

    def _catch_up(self, db: sqlite3.Connection) -> None:
        """Read what changed: a pool of a thousand credentials is not read anew for one of them."""
        tidied = db.execute("SELECT coalesce(max(change), 0) FROM tidied").fetchone()[0]
        if self._seen < tidied or self._seen < 0:
            self._current = {}
            self._seen = -1
        for row in db.execute(f"SELECT {_COLUMNS} FROM condition WHERE change > ?", (self._seen,)):  # noqa: S608
            if row[1] == ACTIVE:
                self._current.pop(row[0], None)
            else:
                self._current[row[0]] = _condition(row)

    def _opened(self) -> None:
        self._counter.close()
        self._seen = -1

    def change(self, subject: str, decide: Decide) -> tuple[Condition | None, Condition | None]:
        """Set a subject's condition to what `decide` makes of it (None: active), in one step; before and after. Raises StateUnavailable."""

        def work(db: sqlite3.Connection) -> tuple[Condition | None, Condition | None]:
            row = db.execute(f"SELECT {_COLUMNS} FROM condition WHERE subject = ?", (subject,)).fetchone()  # noqa: S608
            before = None if row is None or row[1] == ACTIVE else _condition(row)
            after = decide(before)
            if after != before:
                _write(db, subject, after, self._counter.value + 1)
                self._counter.up()
            return before, after

        return self._file.run(work)

    def seed(self, load: Callable[[], Mapping[str, Condition]], now: float) -> bool:
        """Fill a file that is new with what `load` knows; whether it was. Raises StateUnavailable."""
        if self._file.run(lambda db: bool(db.execute("SELECT 1 FROM seeded").fetchone())):
            return False
        known = load()

        def work(db: sqlite3.Connection) -> bool:
            if db.execute("INSERT OR IGNORE INTO seeded VALUES (1)").rowcount != 1:
                return False
            for subject, condition in known.items():
                _write(db, subject, condition, self._counter.value + 1)
            db.execute("DELETE FROM caller WHERE at < ?", (now - 3600,))
            self._counter.up()
            return True

        return self._file.run(work)

    def called(self, subject: str, principal: int, at: float) -> None:
        """Note who called it. Raises StateUnavailable."""
        self._file.run(lambda db: db.execute("INSERT OR REPLACE INTO caller VALUES (?, ?, ?)", (subject, principal, at)))

    def callers_besides(self, subject: str, principal: int, since: float) -> bool:
        """Whether anybody else called it since then; forgets who did before. Raises StateUnavailable."""

        def work(db: sqlite3.Connection) -> bool:
            db.execute("DELETE FROM caller WHERE subject = ? AND at <= ?", (subject, since))
            return bool(db.execute("SELECT 1 FROM caller WHERE subject = ? AND principal <> ? LIMIT 1", (subject, principal)).fetchone())

        return self._file.run(work)

    def tidy(self, now: float) -> None:
        """Forget what became active, and where there are too many, the rests that are over. Raises StateUnavailable."""

        def work(db: sqlite3.Connection) -> None:
            if db.execute("SELECT count(*) FROM condition").fetchone()[0] <= MOST_CONDITIONS:
                return
            db.execute("DELETE FROM condition WHERE state = ? OR until <= ?", (ACTIVE, now))
            db.execute("INSERT OR REPLACE INTO tidied VALUES (1, ?)", (self._counter.value + 1,))
            self._counter.up()

        self._file.run(work)

    def close(self) -> None:
        """Idempotent."""
        self._file.close()
        self._counter.close()


def _condition(row: tuple[str, str, float | None, str, float, int, str, str]) -> Condition:
    _, state, until, reason, rest_s, named, prober, failures = row
    seen = tuple([(float(at), int(principal)) for at, principal in json.loads(failures)]) if failures != "[]" else ()
    return Condition(state, FOREVER if until is None else until, reason, rest_s, bool(named), prober, seen)


def _write(db: sqlite3.Connection, subject: str, condition: Condition | None, change: int) -> None:
    """What is active keeps a row, or nobody would read that it became so."""
    made = condition or Condition(ACTIVE)
    until = None if made.until == FOREVER else made.until
    values = (subject, made.state, until, made.reason, made.rest_s, made.named, made.prober, json.dumps(made.failures), change)
    db.execute(f"INSERT OR REPLACE INTO condition ({_COLUMNS}, change) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608
