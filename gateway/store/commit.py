"""The group commit: whatever is queued becomes one transaction. One writer per worker process, called by its queue's thread."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gateway.concurrency import Job
from gateway.errors import StoreUnavailable
from gateway.store.engine import Engine, TransactionLost, deadlocked

Item = TypeVar("Item")
Result = TypeVar("Result")


Committed = Callable[[int, float], None]
"""Told after each commit, in the database's own thread: how many works shared it, and its seconds."""


@dataclass(frozen=True, slots=True)
class Batched(Generic[Item, Result]):
    """A work that shares its statements: all queued ones with the same `run` become one `run(items)`, one result each, in order."""

    run: Callable[[Sequence[Item]], Sequence[Result]]
    item: Item


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller queues. Past `deadline` (monotonic) the caller is gone: it is not begun."""

    work: Callable[[], Any] | Batched[Any, Any]
    deadline: float


@dataclass(frozen=True, slots=True)
class _Outcome:
    result: Any = None
    error: BaseException | None = None


class _Stage(enum.Enum):
    BEGIN = "begin"
    WORK = "work"
    COMMIT = "commit"


class _Failed(Exception):
    """The whole transaction failed at `stage`; `lost` if the connection died with it."""

    def __init__(self, stage: _Stage, lost: bool, cause: BaseException) -> None:
        super().__init__(stage.value)
        self.stage, self.lost, self.cause = stage, lost, cause


def refuse_late(jobs: Sequence[Job]) -> list[Job]:
    """The jobs whose callers still wait; the others get their error."""
    waiting: list[Job] = []
    for job in jobs:
        if _awaited(job):
            waiting.append(job)
        else:
            job.error = StoreUnavailable("The database was too busy.", retry_after_s=1.0)
    return waiting


def _awaited(job: Job) -> bool:
    return bool(job.item.deadline > time.monotonic())


class Writer:
    """Runs batches of jobs whose items are Asks. A work may be run more than once, but is committed at most once.

    Where other workers write at the same time, only what shares its statements shares a transaction: each run locks its rows in one order, so
    that no two transactions wait for each other; two runs after each other do not.
    """

    def __init__(self, engine: Engine, committed: Committed = lambda works, seconds: None) -> None:
        self._engine, self._committed = engine, committed

    def run(self, jobs: list[Job]) -> None:
        """An empty list is the end: the connection is closed."""
        if not jobs:
            self._engine.drop()
        waiting = refuse_late(jobs)
        if waiting and self._engine.shared:
            self._apart([[waiting[position] for position in positions] for positions in _groups(waiting)])
        elif waiting:
            self._together(waiting)

    def _apart(self, groups: list[list[Job]]) -> None:
        """One transaction for each; where the database is away, it is dialled for the first alone: it may take seconds."""
        away: _Failed | None = None
        for jobs in groups:
            if away is not None:
                self._divide(jobs, away)
            elif waiting := refuse_late(jobs):  # the groups before may have taken long
                failed = self._together(waiting)
                away = failed if failed is not None and failed.stage is _Stage.BEGIN else None

    def _together(self, waiting: list[Job]) -> _Failed | None:
        failed = self._try(waiting)
        if failed is not None and (failed.lost or deadlocked(failed.cause)) and failed.stage is not _Stage.COMMIT:
            failed = self._try(waiting)
        if failed is not None:
            self._divide(waiting, failed)
        return failed

    def _divide(self, jobs: list[Job], failed: _Failed) -> None:
        """One by one, so that only the guilty fails, unless the database is away or its COMMIT may have happened."""
        if len(jobs) > 1 and failed.stage is not _Stage.BEGIN and not failed.lost:
            for job in jobs:
                self.run([job])
            return
        for job in jobs:
            job.error = self._engine.translate(failed.cause)

    def _try(self, jobs: list[Job]) -> _Failed | None:
        try:
            self._transact(jobs)
        except _Failed as failed:
            return failed
        return None

    def _transact(self, jobs: list[Job]) -> None:
        """One transaction for all jobs; their outcomes are filled in after its COMMIT. Raises _Failed, nothing filled in."""
        stage, began = _Stage.BEGIN, time.monotonic()
        try:
            self._engine.open(read_only=False)
            self._engine.begin(read_only=False)
            jobs = refuse_late(jobs)  # the lock may have come late
            stage = _Stage.WORK
            outcomes = self._run_all(jobs)
            if not any(map(_awaited, jobs)):  # told that it failed, nobody should find it done
                raise TransactionLost("it took longer than its callers wait")
            stage = _Stage.COMMIT
            self._engine.commit()
        except BaseException as error:  # whatever a work raised: its caller gets it
            raise _Failed(stage, self._engine.rollback(), error) from error
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.result, job.error = outcome.result, outcome.error
        self._committed(len(jobs), time.monotonic() - began)

    def _run_all(self, jobs: list[Job]) -> list[_Outcome]:
        """Each plain work by itself, each group of Batched together, in the order in which they were first asked for."""
        outcomes: dict[int, _Outcome] = {}
        for positions in _groups(jobs):
            work = jobs[positions[0]].item.work
            if isinstance(work, Batched):
                results = work.run([jobs[position].item.work.item for position in positions])
                outcomes.update(zip(positions, map(_Outcome, results), strict=True))
            else:
                outcomes[positions[0]] = self._isolated(work) if len(jobs) > 1 else _Outcome(work())
        return [outcomes[position] for position in range(len(jobs))]

    def _isolated(self, work: Callable[[], Any]) -> _Outcome:
        try:
            return _Outcome(self._engine.isolated(work))
        except TransactionLost:
            raise
        except Exception as error:  # the work's own: its caller gets it, the rest of the batch goes on
            if deadlocked(error):
                raise
            return _Outcome(error=self._engine.translate(error))


def _groups(jobs: list[Job]) -> list[list[int]]:
    """Positions of jobs that run together."""
    groups: dict[Any, list[int]] = {}
    for position, job in enumerate(jobs):
        work = job.item.work
        groups.setdefault(work.run if isinstance(work, Batched) else position, []).append(position)
    return list(groups.values())
