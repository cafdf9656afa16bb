"""The directory of agents among the workers of a host: in the file that they share. To look costs a number in shared memory."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import msgspec

from gateway.state.agents import FORGET_S, Holder
from gateway.state.base import StateUnavailable
from gateway.state.file import ChangeCounter, StateFile

LOOK_S = 1.0
"""How often a worker looks whether the file is still there."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS agent (agent TEXT PRIMARY KEY, holder BLOB, change INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS agent_change ON agent (change);
CREATE TABLE IF NOT EXISTS agent_epoch (only INTEGER PRIMARY KEY, last INTEGER);
CREATE TABLE IF NOT EXISTS agents_forgotten (only INTEGER PRIMARY KEY, change INTEGER);
"""


AWAY_S = 1.0
"""How long nobody looks into a file that could not be used: a call looks many times, and would wait each time."""


class SqliteAgents:
    """Of one worker; `alive` tells whether the worker of an owner id still runs. Opens its file at the first use, so it may be built before a fork."""

    def __init__(
        self,
        directory: Path,
        alive: Callable[[str], bool],
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = StateFile(directory, _SCHEMA, self._opened)
        self._counter = ChangeCounter(self._file.path.with_suffix(".agents"))
        self._alive, self._wall, self._clock = alive, wall_ms, clock
        self._own: dict[str, Holder] = {}
        self._seen, self._look_at, self._away_until = -1, 0.0, 0.0
        self._current: Mapping[str, Holder] = MappingProxyType({})

    def claim(self, holder: Holder) -> Holder:
        def work(db: sqlite3.Connection) -> Holder:
            # One number for all agents, from the clock on: it falls neither when an entry is forgotten nor when the file is lost.
            last = db.execute("SELECT coalesce(max(last), 0) FROM agent_epoch").fetchone()[0]
            claimed = replace(holder, epoch=max(last + 1, self._wall()))
            db.execute("INSERT OR REPLACE INTO agent_epoch VALUES (1, ?)", (claimed.epoch,))
            self._write(db, claimed)
            return claimed

        claimed = self._file.run(work)
        self._own[holder.agent] = claimed
        return claimed

    def change(self, holder: Holder) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            before = _holder(db, holder.agent)
            if before is None and not self._is_own(holder):  # an own one that is not there went with a lost file
                return False
            if before is not None and before.epoch != holder.epoch:
                return False
            if before != holder:
                self._write(db, holder)
            return True

        changed = self._file.run(work)
        if changed and self._is_own(holder):
            self._own[holder.agent] = holder
        return changed

    def release(self, agent: str, epoch: int, at: float) -> None:
        def work(db: sqlite3.Connection) -> None:
            before = _holder(db, agent)
            if before is not None and before.epoch == epoch and before.gone_at is None:
                self._write(db, replace(before, gone_at=at))

        self._disown(agent, epoch)
        self._file.run(work)

    def current(self) -> Mapping[str, Holder]:
        """By agent. Where the file cannot be used, what was seen last stands."""
        if self._clock() >= self._away_until:
            try:
                if self._counter.value != self._seen:
                    self._file.run(self._catch_up)
            except StateUnavailable:  # whoever changes something is told
                self._away_until = self._clock() + AWAY_S
        return self._current

    def tidy(self, now: float) -> None:
        known = self.current().values()
        owners = {holder.owner for holder in known if holder.gone_at is None}
        dead = {owner for owner in owners if not self._alive(owner)}
        if dead or self._clock() >= self._look_at or any(_is_over(holder, now) for holder in known):
            self._look_at = self._clock() + LOOK_S
            self._file.run(lambda db: self._tidy(db, dead, now))

    @property
    def exists(self) -> bool:
        """Whether a worker has used the file since the host's last boot, as far as this user can see."""
        return self._file.exists

    def close(self) -> None:
        self._file.close()
        self._counter.close()

    def _opened(self) -> None:
        self._counter.close()
        self._seen, self._look_at = -1, 0.0

    def _is_own(self, holder: Holder) -> bool:
        return holder.agent in self._own and self._own[holder.agent].epoch == holder.epoch

    def _disown(self, agent: str, epoch: int) -> None:
        if agent in self._own and self._own[agent].epoch == epoch:
            del self._own[agent]

    def _catch_up(self, db: sqlite3.Connection) -> None:
        """Read what changed: a thousand agents are not read anew for one of them."""
        count = self._counter.value
        forgotten = db.execute("SELECT coalesce(max(change), 0) FROM agents_forgotten").fetchone()[0]
        since = self._seen if forgotten <= self._seen <= count else -1
        found = dict(self._current) if since >= 0 else {}
        for agent, text in db.execute("SELECT agent, holder FROM agent WHERE change > ?", (since,)):
            found[agent] = _decoded(text)
        self._current, self._seen = MappingProxyType(found), count

    def _tidy(self, db: sqlite3.Connection, dead: set[str], now: float) -> None:
        over = list[str]()
        for holder in [_decoded(row[0]) for row in db.execute("SELECT holder FROM agent")]:
            if holder.gone_at is None and holder.owner in dead:
                self._write(db, replace(holder, gone_at=now))
            elif _is_over(holder, now):
                over.append(holder.agent)
        if over:
            db.executemany("DELETE FROM agent WHERE agent = ?", [(agent,) for agent in over])
            db.execute("INSERT OR REPLACE INTO agents_forgotten VALUES (1, ?)", (self._counter.value + 1,))
            self._counter.up()
        self._write_again(db)

    def _write_again(self, db: sqlite3.Connection) -> None:
        """The connections of this worker that went with a lost file: their sockets are there still."""
        for holder in list(self._own.values()):
            found = _holder(db, holder.agent)
            if found is None:
                self._write(db, holder)
            elif found.epoch != holder.epoch:
                self._disown(holder.agent, holder.epoch)

    def _write(self, db: sqlite3.Connection, holder: Holder) -> None:
        row = (holder.agent, msgspec.json.encode(holder), self._counter.value + 1)
        db.execute("INSERT OR REPLACE INTO agent VALUES (?, ?, ?)", row)
        self._counter.up()


def _holder(db: sqlite3.Connection, agent: str) -> Holder | None:
    row = db.execute("SELECT holder FROM agent WHERE agent = ?", (agent,)).fetchone()
    return None if row is None else _decoded(row[0])


def _decoded(text: bytes) -> Holder:
    return msgspec.json.decode(text, type=Holder)


def _is_over(holder: Holder, now: float) -> bool:
    return holder.gone_at is not None and holder.gone_at < now - FORGET_S
