"""The entrances: group commit, isolation of failures, time limits, one view of a read."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from gateway.errors import SettingsError, StoreUnavailable
from gateway.store import accounts
from gateway.store.database import Batched, Conflict, Database
from gateway.store.models import UserRow
from gateway.store.models import database as bound
from gateway.store.statements import insert_rows, pipelined


def names(database: Database) -> set[str]:
    return {user.name for user in database.read(accounts.list_users)}


def add(name: str) -> Callable[[], None]:
    def work() -> None:
        accounts.create_user(name, 1)

    return work


def add_all(items: Sequence[str]) -> Sequence[str]:
    for item in items:
        accounts.create_user(item, 1)
    return [item.upper() for item in items]


class Gate:
    """Holds the writer, so that what is asked meanwhile makes one batch."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held, self._go = threading.Event(), threading.Event()

    def _hold(self) -> None:
        self._held.set()
        self._go.wait(10)

    def together(self, works: Sequence[Any]) -> list[Future[Any]]:
        with ThreadPoolExecutor(len(works) + 1) as pool:
            pool.submit(self._database.write, self._hold)
            self._held.wait(10)
            futures: list[Future[Any]] = []
            for work in works:
                futures.append(pool.submit(self._database.write, work))
                time.sleep(0.01)  # their order in the queue is the order of `works`
            self._go.set()
        return futures


def test_a_write_is_visible_when_it_returns(database: Database) -> None:
    with ThreadPoolExecutor(20) as pool:
        seen = pool.map(lambda number: (database.write(add(f"u{number}")), f"u{number}" in names(database))[1], range(60))
        assert all(seen)
    assert len(names(database)) == 60


def test_batched_works_of_one_kind_become_one_run(database: Database) -> None:
    sizes: list[int] = []

    def run(items: Sequence[str]) -> Sequence[str]:
        sizes.append(len(items))
        return add_all(items)

    futures = Gate(database).together([Batched(run, f"u{number}") for number in range(12)])

    assert [future.result() for future in futures] == [f"U{number}" for number in range(12)]
    assert sizes == [12]
    assert len(names(database)) == 12


def test_a_failing_work_harms_no_other(database: Database) -> None:
    def bad() -> None:
        accounts.create_user("half", 1)
        raise LookupError("mine")

    good, broken, batched, last = Gate(database).together([add("a"), bad, Batched(add_all, "b"), add("c")])

    assert (good.result(), batched.result(), last.result()) == (None, "B", None)
    with pytest.raises(LookupError, match="mine"):
        broken.result()
    assert names(database) == {"a", "b", "c"}


def test_a_failing_item_of_a_batched_run_harms_no_other(database: Database) -> None:
    futures = Gate(database).together([Batched(add_all, name) for name in ("a", "b", "a", "c")])

    assert [type(future.exception()) for future in futures] == [type(None), type(None), Conflict, type(None)]
    assert names(database) == {"a", "b", "c"}


def test_a_failing_commit_harms_only_the_guilty(database: Database) -> None:
    """A deferred constraint speaks up at COMMIT, when every work has returned already."""
    database.write(lambda: bound.execute_sql("CREATE TABLE parent (id integer PRIMARY KEY)"))
    database.write(lambda: bound.execute_sql("CREATE TABLE child (parent integer REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)"))

    def orphan() -> None:
        bound.execute_sql("INSERT INTO child VALUES (7)")

    first, guilty, batched = Gate(database).together([add("a"), orphan, Batched(add_all, "b")])

    assert (first.result(), batched.result()) == (None, "B")
    with pytest.raises(Conflict):
        guilty.result()
    assert names(database) == {"a", "b"}


def test_a_swallowed_error_is_never_taken_for_success(postgres_database: Database) -> None:
    """PostgreSQL answers COMMIT with a quiet ROLLBACK after any error inside."""

    def careless() -> None:
        accounts.create_user("a", 1)
        with contextlib.suppress(Exception):  # the mistake under test
            accounts.create_user("a", 1)

    with pytest.raises(StoreUnavailable):
        postgres_database.write(careless)
    alone, other = Gate(postgres_database).together([careless, add("b")])

    assert isinstance(alone.exception(), StoreUnavailable)
    assert other.result() is None
    assert names(postgres_database) == {"b"}


def test_a_unique_violation_is_a_conflict_that_shows_no_value(database: Database) -> None:
    database.write(add("confidential"))

    with pytest.raises(Conflict) as caught:
        database.write(add("confidential"))

    assert str(caught.value) == "already exists: user.name"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_read_sees_one_state(database: Database) -> None:
    def twice() -> tuple[int, int]:
        before = UserRow.select().count()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(database.write, add("meanwhile")).result(10)
        return before, UserRow.select().count()

    assert database.read(twice) == (0, 0)
    assert names(database) == {"meanwhile"}


def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(StoreUnavailable):
        database.read(lambda: accounts.create_user("a", 1))
    assert names(database) == set()


def test_read_and_write_do_not_nest(database: Database) -> None:
    for outer in (database.read, database.write):
        with pytest.raises(RuntimeError, match="nest"):
            outer(lambda: database.read(lambda: None))


def test_a_caller_waits_no_longer_than_the_limit(url: str, opened: Callable[..., Database]) -> None:
    database = opened(url, timeout_s=0.3)
    done: list[str] = []
    go = threading.Event()

    def slow() -> None:
        accounts.create_user("slow", 1)
        go.wait(10)

    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(database.write, slow)
        time.sleep(0.1)
        late = pool.submit(database.write, lambda: done.append("late"))
        assert isinstance(held.exception(5), StoreUnavailable)
        assert isinstance(late.exception(5), StoreUnavailable)
    time.sleep(0.1)
    go.set()

    database.write(add("next"))
    assert names(database) == {"next"}  # nobody waited for the others any more
    assert done == []


def test_a_slow_read_does_not_hold_up_another(database: Database) -> None:
    go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(database.read, lambda: go.wait(10))
        time.sleep(0.05)
        assert [database.read(lambda: 1) for _ in range(4)] == [1, 1, 1, 1]
        go.set()
        assert slow.result()


def test_close_leaves_no_connection_and_may_be_repeated(database: Database) -> None:
    database.write(add("a"))
    names(database)
    database.close()
    database.close()

    with pytest.raises(RuntimeError):
        database.read(lambda: None)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "mysql://h/x",
        "sqlite://relative.db",
        "sqlite:///",
        "postgresql://",
        "postgresql://u:hidden@h:port/x",
        "postgresql://u:h/idden@h/x",
        "postgresql://u:1/hidden@h/x",
    ],
)
def test_a_malformed_url_is_refused_in_one_line_without_its_password(wrong: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Database(wrong)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_the_url_s_password_is_not_shown() -> None:
    database = Database("postgresql://someone:hidden@db.example:5433/books")
    assert str(database) == "postgresql://db.example:5433/books"
    assert "hidden" not in repr(database)


@pytest.mark.parametrize("count", [0, 1, 5, 150])
def test_many_rows_are_inserted_at_once_each_with_its_own_values(database: Database, count: int) -> None:
    columns = {"id": "bigint", "name": "text", "created_at": "bigint"}
    rows = [(number + 10, f"n{number}", 2**40 + number) for number in range(count)]

    def work() -> None:
        with pipelined(bound):
            insert_rows(bound, "team", columns | {"markup_ppm": "bigint"}, [(*row, 7) for row in rows], created_at="{} + 1")
            insert_rows(bound, "team", columns | {"markup_ppm": "bigint"}, [(*row, 8) for row in rows], " ON CONFLICT (id) DO NOTHING")

    database.write(work)
    found = database.read(lambda: bound.execute_sql("SELECT id, name, created_at, markup_ppm FROM team ORDER BY id").fetchall())
    assert [tuple(row) for row in found] == [(id, name, at + 1, 7) for id, name, at in rows]


def test_an_error_among_statements_that_do_not_wait_undoes_them_all(database: Database) -> None:
    columns = {"id": "bigint", "name": "text", "created_at": "bigint", "markup_ppm": "bigint"}

    def work() -> None:
        with pipelined(bound):
            insert_rows(bound, "team", columns, [(1, "a", 0, 0)])
            insert_rows(bound, "team", columns, [(1, "b", 0, 0)])
            insert_rows(bound, "team", columns, [(2, "c", 0, 0)])

    with pytest.raises(Conflict):
        database.write(work)
    assert database.read(lambda: bound.execute_sql("SELECT COUNT(*) FROM team").fetchall()) == [(0,)]
    assert database.write(lambda: 5) == 5
