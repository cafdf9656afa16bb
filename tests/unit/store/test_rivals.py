"""A database that others lock, stop or lose: SQLite's rival processes, PostgreSQL's restarts and broken connections."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from gateway.errors import StoreUnavailable
from gateway.store import accounts
from gateway.store.database import CannotOpen, Database
from gateway.store.models import database as bound
from tests.fakes.postgres import Postgres

Opener = Callable[..., Database]
RIVAL = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("COMMIT")
"""


@contextmanager
def rival(url: str, seconds: float) -> Iterator[None]:
    """Another process holds the write lock for so long."""
    command = [sys.executable, "-c", RIVAL, url.removeprefix("sqlite://"), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            yield
        finally:
            other.kill()


def add(name: str) -> Callable[[], None]:
    def work() -> None:
        accounts.create_user(name, 1)

    return work


def names(database: Database) -> list[str]:
    return [user.name for user in database.read(accounts.list_users)]


def test_two_that_wait_for_each_other_are_no_error_for_the_one_that_is_broken_off(postgres_database: Database, postgres_url: str) -> None:
    postgres_database.write(add("ann"))
    postgres_database.write(add("bob"))
    holds_both, tries = threading.Event(), list[int]()

    def work() -> None:
        tries.append(1)
        bound.execute_sql("UPDATE \"user\" SET created_at = 2 WHERE name = 'ann'")
        holds_both.set()
        bound.execute_sql("UPDATE \"user\" SET created_at = 2 WHERE name = 'bob'")

    with psycopg.connect(postgres_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("UPDATE \"user\" SET created_at = 3 WHERE name = 'bob'")
        written = pool.submit(postgres_database.write, work)
        assert holds_both.wait(5)
        time.sleep(0.3)  # it waits for bob first, and so is the one that PostgreSQL breaks off
        other.execute("UPDATE \"user\" SET created_at = 3 WHERE name = 'ann'")
        other.commit()
        written.result(5)
    assert len(tries) == 2
    assert [user.created_at for user in postgres_database.read(accounts.list_users)] == [2, 2]


def test_a_write_waits_for_a_rival_s_lock(sqlite_database: Database, sqlite_url: str) -> None:
    with rival(sqlite_url, 0.4):
        assert names(sqlite_database) == []  # readers do not wait
        sqlite_database.write(add("a"))
    assert names(sqlite_database) == ["a"]


def test_a_lock_held_too_long_is_unavailable_and_then_over(sqlite_url: str, opened: Opener) -> None:
    database = opened(sqlite_url, timeout_s=0.4)
    with rival(sqlite_url, 30):
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            database.write(add("never"))
        assert time.monotonic() - begun >= 0.3
        assert caught.value.__cause__ is not None
        assert "\n" not in str(caught.value)
    time.sleep(0.1)

    database.write(add("later"))
    assert names(database) == ["later"]


def test_a_missing_file_is_not_made_by_the_way(sqlite_url: str, opened: Opener) -> None:
    database = opened(sqlite_url, migrate=False)
    with pytest.raises(StoreUnavailable) as caught:
        database.write(add("a"))
    assert isinstance(caught.value.__cause__, CannotOpen)
    assert "gateway migrate" in str(caught.value.__cause__)
    assert sqlite_url not in str(caught.value)

    database.migrate()
    database.write(add("a"))
    assert names(database) == ["a"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_restart_of_the_server_is_survived(postgres: Postgres, postgres_database: Database, how: signal.Signals) -> None:
    postgres_database.write(add("before"))
    assert names(postgres_database) == ["before"]

    postgres.restart(how)

    assert "before" in names(postgres_database)
    postgres_database.write(add("after"))
    assert names(postgres_database)[-1] == "after"


def test_a_stopped_server_is_unavailable_until_it_is_back(postgres: Postgres, postgres_database: Database) -> None:
    postgres_database.write(add("before"))
    postgres.stop()
    try:
        for ask in (lambda: postgres_database.write(add("never")), lambda: names(postgres_database)):
            with pytest.raises(StoreUnavailable):
                ask()
    finally:
        postgres.start()

    postgres_database.write(add("after"))
    assert names(postgres_database) == ["before", "after"]


def test_a_connection_lost_in_a_work_is_replaced_and_the_work_run_again(postgres_database: Database) -> None:
    runs: list[int] = []

    def work() -> None:
        runs.append(1)
        accounts.create_user("once", 1)
        if len(runs) == 1:
            bound.execute_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    postgres_database.write(work)

    assert len(runs) == 2
    assert names(postgres_database) == ["once"]


def test_a_connection_lost_in_a_read_is_replaced(postgres_database: Database) -> None:
    runs: list[int] = []

    def work() -> int:
        runs.append(1)
        if len(runs) == 1:
            bound.execute_sql("SELECT pg_terminate_backend(pg_backend_pid())")
        return len(runs)

    assert postgres_database.read(work) == 2


def test_a_connection_lost_in_the_commit_is_not_tried_again(postgres_database: Database) -> None:
    """Whether it was committed is unknown: to run the work again could do it twice."""
    runs: list[int] = []

    def prepare() -> None:
        bound.execute_sql("CREATE TABLE trap (id integer)")
        bound.execute_sql(
            "CREATE FUNCTION spring() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
        )
        bound.execute_sql("CREATE CONSTRAINT TRIGGER spring AFTER INSERT ON trap DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION spring()")

    def work() -> None:
        runs.append(1)
        bound.execute_sql("INSERT INTO trap VALUES (1)")

    postgres_database.write(prepare)
    with pytest.raises(StoreUnavailable):
        postgres_database.write(work)

    assert runs == [1]
    postgres_database.write(add("after"))
    assert names(postgres_database) == ["after"]


def test_a_statement_that_takes_too_long_is_broken_off(postgres_url: str, opened: Opener) -> None:
    database = opened(postgres_url, timeout_s=0.5)
    with pytest.raises(StoreUnavailable):
        database.write(lambda: bound.execute_sql("SELECT pg_sleep(20)"))
    time.sleep(0.3)

    database.write(add("next"))
    assert names(database) == ["next"]


def test_a_silent_server_holds_nobody_up_for_another(opened: Opener) -> None:
    """Each of three connections dials for 2 s, the driver's least; one after the other they would take 6 s."""
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(3) as pool:
        database = opened(f"postgresql://gateway@127.0.0.1:{silent.getsockname()[1]}/any", migrate=False, timeout_s=20)
        begun = time.monotonic()
        asks: list[Callable[[], object]] = [lambda: database.write(add("a")), *[lambda: database.read(accounts.list_users)] * 2]
        asked = [pool.submit(ask) for ask in asks]
        errors = [each.exception(30) for each in asked]
        took_s = time.monotonic() - begun

    assert [type(error) for error in errors] == [StoreUnavailable] * 3
    assert took_s < 5


def test_a_file_that_was_replaced_takes_no_commits_that_nobody_would_find(tmp_path: Path) -> None:
    path = tmp_path / "data" / "gateway.db"
    with closing(Database(f"sqlite://{path}", timeout_s=1.0)) as database:
        database.bind()
        database.migrate()
        database.write(lambda: accounts.create_user("before", 1))
        path.rename(path.with_suffix(".moved"))
        with pytest.raises(StoreUnavailable):
            database.write(lambda: accounts.create_user("lost", 1))
        with pytest.raises(StoreUnavailable):
            database.read(accounts.list_users)
        path.with_suffix(".moved").rename(path)
        database.write(lambda: accounts.create_user("after", 1))
        assert [user.name for user in database.read(accounts.list_users)] == ["before", "after"]
