"""The writer by itself, its batch and its deadlines in the test's hand."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from gateway.concurrency import Job
from gateway.errors import StoreUnavailable
from gateway.store import accounts
from gateway.store.commit import Ask, Batched, Writer
from gateway.store.database import Database
from gateway.store.engine import CannotOpen, Engine, engine_for
from gateway.store.models import database as bound


@pytest.fixture
def engine(sqlite_url: str, opened: Callable[..., Database]) -> Iterator[Engine]:
    """A migrated database, opened by this thread."""
    opened(sqlite_url)
    engine = engine_for(sqlite_url, 5.0)
    bound.initialize(engine.peewee)
    yield engine
    engine.drop()


def job(work: Any, waits_s: float = 5.0) -> Job:
    return Job(Ask(work, time.monotonic() + waits_s))


def add(runs: list[str], name: str) -> Callable[[], None]:
    def work() -> None:
        runs.append(name)

    return work


def test_who_gave_up_while_the_lock_was_awaited_is_left_out(engine: Engine, sqlite_url: str) -> None:
    runs: list[str] = []
    gone, waiting = job(add(runs, "gone"), 0.1), job(add(runs, "waiting"))
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite://"), isolation_level=None, check_same_thread=False)) as rival:
        rival.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, rival.execute, ("COMMIT",))
        release.start()
        Writer(engine).run([gone, waiting])
        release.join()

    assert isinstance(gone.error, StoreUnavailable)
    assert waiting.error is None
    assert runs == ["waiting"]


def test_works_run_in_the_order_in_which_they_were_asked_for(engine: Engine) -> None:
    runs: list[str] = []

    def all_of(items: Sequence[str]) -> Sequence[int]:
        runs.extend(items)
        return [len(item) for item in items]

    jobs = [job(add(runs, "a")), job(Batched(all_of, "bb")), job(add(runs, "c")), job(Batched(all_of, "dddd"))]
    Writer(engine).run(jobs)

    assert runs == ["a", "bb", "dddd", "c"]
    assert [each.result for each in jobs] == [None, 2, None, 4]


def test_a_run_that_returns_too_few_results_fails_every_caller(engine: Engine) -> None:
    jobs = [job(Batched(lambda items: [], name)) for name in "ab"]
    shared: Callable[[Sequence[str]], Sequence[None]] = lambda items: [None]  # noqa: E731
    jobs += [job(Batched(shared, "c"))]
    Writer(engine).run(jobs)

    assert [type(each.error) for each in jobs] == [ValueError, ValueError, type(None)]


def test_nothing_is_filled_in_before_the_commit(engine: Engine) -> None:
    first = job(lambda: accounts.list_users())
    seen: list[Any] = []
    Writer(engine).run([first, job(lambda: seen.append(first.result))])

    assert seen == [None]
    assert first.result == []


def test_the_last_call_closes_the_connection(engine: Engine) -> None:
    writer = Writer(engine)
    writer.run([job(lambda: None)])
    assert engine.connections == 1
    writer.run([])
    assert engine.connections == 0


def test_a_database_that_several_write_and_that_is_away_is_not_dialled_for_each_work(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: list[float] = []

    def away(**options: Any) -> None:
        dialled.append(time.monotonic())
        raise CannotOpen("no route to host")

    monkeypatch.setattr(engine, "shared", True, raising=False)
    monkeypatch.setattr(engine, "open", away)
    jobs = [job(lambda: None) for _ in range(20)]
    Writer(engine).run(jobs)

    assert [type(each.error) for each in jobs] == [StoreUnavailable] * 20
    assert len(dialled) == 1


def test_nothing_is_begun_for_those_who_gave_up_while_works_before_theirs_ran(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "shared", True, raising=False)
    begun: list[float] = []
    begin = engine.begin
    monkeypatch.setattr(engine, "begin", lambda **options: begun.append(time.monotonic()) or begin(**options))
    slow, gone, waiting = job(lambda: time.sleep(0.2)), job(lambda: None, 0.1), job(lambda: 7)
    Writer(engine).run([slow, gone, waiting])

    assert isinstance(gone.error, StoreUnavailable)
    assert (waiting.result, len(begun)) == (7, 2)
