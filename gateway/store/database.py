"""The only entrances to the database: `read` and `write` run a work in a transaction, in a thread made for it.

Built by app.py and the CLI. No thread is started and nothing is opened before the first use, so a Database may be
built before a fork. A work must not call `read` or `write` again, and its effects must all be in the database: a
write that shared a transaction with a failing one is run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from playhouse.migrations import Runner  # type: ignore[import-untyped]

import migrations
from gateway.concurrency import Job, OffloadTimeout
from gateway.errors import AWAY_S, StoreUnavailable
from gateway.store import models
from gateway.store.commit import Ask, Batched, Committed, Writer, refuse_late
from gateway.store.engine import CannotOpen, Conflict, Engine, Worker, engine_for

__all__ = ["Batched", "CannotOpen", "Conflict", "Database", "SchemaMismatch"]

T = TypeVar("T")
MIGRATIONS = Path(migrations.__file__ or "").parent


class SchemaMismatch(Exception):
    """The database was migrated by a newer version of the program. One line."""


class Database:
    """One database, used by every thread of a worker process. `timeout_s` bounds what a caller waits.

    `url`: sqlite:///absolute/path or postgresql://user:password@host:port/name. Raises SettingsError for any other.
    """

    def __init__(self, url: str, *, readers: int = 2, timeout_s: float = 5.0, committed: Committed = lambda works, seconds: None) -> None:
        self._timeout_s = timeout_s
        self._engine = engine_for(url, timeout_s)
        self._writer = self._engine.worker(Writer(self._engine, committed).run, "store-writer", limit=512)
        self._readers = [_Reader(self._engine, number) for number in range(readers)]
        self.waiting = 0
        """Writes under way or queued."""

    def __str__(self) -> str:
        return self._engine.place

    def __repr__(self) -> str:
        return f"<Database {self._engine.place}>"

    @property
    def shared(self) -> bool:
        """Whether workers of other hosts may use it too."""
        return self._engine.shared

    def bind(self) -> None:
        """Make this the process's database: the models know no other way. Call once, before the first read."""
        models.database.initialize(self._engine.peewee)

    def read(self, work: Callable[[], T]) -> T:
        """`work()` in a read-only transaction that sees one state of the database. Raises what it raises, or StoreUnavailable."""
        return self._ask(min(self._readers, key=_Reader.waiting), work)  # type: ignore[no-any-return]

    @overload
    def write(self, work: Batched[Any, T]) -> T: ...
    @overload
    def write(self, work: Callable[[], T]) -> T: ...
    def write(self, work: Any) -> Any:
        """The work's result, once it is committed, together with whatever else was queued.

        Raises what the work raised, Conflict, or StoreUnavailable. After StoreUnavailable the work is not committed, as a
        rule; it may be, where the time ran out or the connection broke during the COMMIT.
        """
        self.waiting += 1
        try:
            return self._ask(self._writer, work)
        finally:
            self.waiting -= 1

    def _ask(self, worker: Worker, work: Any) -> Any:
        if not self._engine.peewee.is_closed():
            raise RuntimeError("read and write do not nest: this already runs in a work")
        try:
            return worker.submit(Ask(work, time.monotonic() + self._timeout_s), self._timeout_s)
        except OffloadTimeout as error:
            raise StoreUnavailable("The database did not answer in time.", retry_after_s=AWAY_S) from error

    def migrate(self) -> list[str]:
        """Bring the schema up to date; the names of what was applied. Waits for another process that does the same.

        Raises CannotOpen or SchemaMismatch.
        """
        return self._once(self._migrate)

    def pending(self) -> list[str]:
        """The names of migrations that are still to be applied. Raises StoreUnavailable or SchemaMismatch."""
        return self.read(lambda: _pending(self._runner()))

    def close(self) -> None:
        """Finish what is queued, close the connections and end the threads; waits for that for at most `timeout_s`. Idempotent."""
        workers: list[Worker] = [self._writer, *self._readers]
        for worker in workers:
            worker.close()
        deadline = time.monotonic() + self._timeout_s
        while self._engine.connections and time.monotonic() < deadline:
            time.sleep(0.002)

    def _runner(self) -> Any:
        return Runner(self._engine.peewee, str(MIGRATIONS))

    def _migrate(self) -> list[str]:
        with self._engine.migrating():
            runner = self._runner()
            _pending(runner)
            applied: list[str] = runner.up()
            return applied

    def _once(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread of the engine's kind, which ends with it."""

        def run(jobs: list[Job]) -> None:
            try:
                for job in jobs:
                    job.result = job.item()
            finally:
                self._engine.drop()

        worker = self._engine.worker(run, "store-once", limit=1)
        try:
            return worker.submit(work)  # type: ignore[no-any-return]
        finally:
            worker.close()


def _pending(runner: Any) -> list[str]:
    """Raises SchemaMismatch if the database knows a migration that this program does not."""
    known = {migration.name for migration in runner.migrations()}
    applied = set(runner.applied())
    unknown = sorted(applied - known)
    if unknown:
        raise SchemaMismatch(f"the database is newer than this program: it knows migration {unknown[-1]}; install the version that made it, or a later one")
    return sorted(known - applied)


class _Reader:
    """One connection for reads and its queue."""

    def __init__(self, engine: Engine, number: int) -> None:
        self._engine = engine
        self._worker: Worker = engine.worker(self._run, f"store-reader-{number}", limit=1)
        self._asked: set[int] = set()

    def waiting(self) -> int:
        return len(self._asked)

    def submit(self, item: Ask, timeout_s: float | None = None) -> Any:
        self._asked.add(id(item))
        try:
            return self._worker.submit(item, timeout_s)
        finally:
            self._asked.discard(id(item))

    def close(self) -> None:
        self._worker.close()

    def _run(self, jobs: list[Job]) -> None:
        if not jobs:
            self._engine.drop()
        for job in refuse_late(jobs):
            self._answer(job, last=False)

    def _answer(self, job: Job, *, last: bool) -> None:
        """A connection that turns out to be dead is replaced, once."""
        try:
            self._engine.open(read_only=True)
            self._engine.begin(read_only=True)
            job.result = job.item.work()
        except BaseException as error:  # whatever the work raised: its caller gets it
            if self._engine.rollback() and not last:
                return self._answer(job, last=True)
            job.error = self._engine.translate(error)
        else:
            self._engine.rollback()  # nothing to keep: the transaction only held one state in view
        return None
