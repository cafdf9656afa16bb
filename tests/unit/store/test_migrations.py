"""The schema: applied once, equal to the models, refused when it is newer, and guarded by triggers."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playhouse.schema_diff import diff_models  # type: ignore[import-untyped]

from gateway.store.database import CannotOpen, Conflict, Database, SchemaMismatch
from gateway.store.models import GenerationRow
from gateway.store.models import database as bound
from gateway.store.models_money import MODELS
from tests.fakes.postgres import Postgres

Opener = Callable[..., Database]
RUNNER = """
import sys
from gateway.store.database import Database
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(database.migrate())
"""
KILLED = """
import os, signal, sys
import peewee
from gateway.store.database import Database
left, execute = int(sys.argv[2]), peewee.Database.execute_sql

def execute_sql(*arguments, **options):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return execute(*arguments, **options)

peewee.Database.execute_sql = execute_sql
Database(sys.argv[1]).migrate()
"""


def test_migrations_are_applied_once(sqlite_url: str, opened: Opener) -> None:
    database = opened(sqlite_url, migrate=False)

    assert database.migrate() == ["0001_initial", "0002_deployment_proxy", "0003_money", "0004_alerts", "0005_lean_hold_lines", "0006_pools", "0007_agents"]
    assert database.migrate() == []
    assert database.pending() == []


def test_an_empty_server_database_has_everything_pending(postgres_url: str, opened: Opener) -> None:
    assert opened(postgres_url, migrate=False).pending() == [
        "0001_initial",
        "0002_deployment_proxy",
        "0003_money",
        "0004_alerts",
        "0005_lean_hold_lines",
        "0006_pools",
        "0007_agents",
    ]


def test_processes_that_start_together_apply_each_migration_once(url: str, opened: Opener) -> None:
    command = [sys.executable, "-c", RUNNER, url]
    runners = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for runner in runners:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "ready\n"
    for runner in runners:
        assert runner.stdin is not None
        runner.stdin.write("go\n")
        runner.stdin.flush()
    answers = sorted(runner.communicate(timeout=30)[0].strip() for runner in runners)

    assert answers == [
        "['0001_initial', '0002_deployment_proxy', '0003_money', '0004_alerts', '0005_lean_hold_lines', '0006_pools', '0007_agents']",
        "[]",
        "[]",
        "[]",
    ]
    assert opened(url, migrate=False).pending() == []


def test_a_runner_that_is_killed_at_any_moment_leaves_what_the_next_one_finishes(url: str, opened: Opener) -> None:
    for statement in (8, 30, 60):
        assert subprocess.run([sys.executable, "-c", KILLED, url, str(statement)], timeout=30).returncode == -signal.SIGKILL
    database = opened(url, migrate=False)
    before = database.pending()
    assert database.migrate() == before
    assert "0003_money" in before
    difference = database.read(lambda: diff_models(bound, MODELS))
    assert not difference, str(difference)


def described() -> dict[str, Any]:
    """Every column, key and index of our tables, as the database knows them."""
    tables = {}
    for model in MODELS:
        name = model._meta.table_name
        tables[name] = (
            [tuple(column)[:6] for column in bound.get_columns(name)],
            sorted(tuple(key) for key in bound.get_foreign_keys(name)),
            sorted((index.name, str(index.sql).replace("IF NOT EXISTS ", ""), index.unique) for index in bound.get_indexes(name)),
        )
    return tables


def test_models_and_migrations_agree(url: str, opened: Opener) -> None:
    migrated = opened(url)
    difference = migrated.read(lambda: diff_models(bound, MODELS))
    assert not difference, str(difference)
    by_migrations = migrated.read(described)

    def make() -> None:
        bound.execute_sql("DROP TABLE IF EXISTS schema_migration")
        bound.drop_tables(MODELS)
        bound.create_tables(MODELS)

    migrated.write(make)
    assert migrated.read(described) == by_migrations


@pytest.mark.parametrize("statement", ["UPDATE entry SET amount = 0", "DELETE FROM entry", "DELETE FROM entry WHERE id = 1"])
def test_ledger_entries_cannot_be_changed(database: Database, statement: str) -> None:
    values = "'x', 'usage', 1, 1, 1, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, '', '{}', 'complete', 'none', 'm', 'm', 'd', 1, 1"
    columns = (
        'exchange, kind, attempt, api_key, "user", amount, cost, input_uncached, cache_read, cache_write_5m, cache_write_1h, audio_in, image_in, '
        "output_text, reasoning, audio_out, flags, rates, ending, usage_source, model_asked, model_served, deployment, total_ms, at"
    )
    database.write(lambda: bound.execute_sql(f"INSERT INTO entry ({columns}) VALUES ({values})"))

    with pytest.raises(Conflict, match="append-only"):
        database.write(lambda: bound.execute_sql(statement))
    assert database.read(lambda: bound.execute_sql("SELECT amount FROM entry").fetchall()) == [(5,)]


def test_the_ledger_cannot_be_truncated(postgres_database: Database) -> None:
    with pytest.raises(Conflict, match="append-only"):
        postgres_database.write(lambda: bound.execute_sql("TRUNCATE entry"))


def test_a_newer_database_is_refused(database: Database) -> None:
    stamp = "INSERT INTO schema_migration (name, applied) VALUES ('9999_future', '2030-01-01 00:00:00')"
    database.write(lambda: bound.execute_sql(stamp))

    for ask in (database.migrate, database.pending):
        with pytest.raises(SchemaMismatch, match=r"newer than this program.*9999_future") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_failing_migration_leaves_nothing_half_done(url: str, opened: Opener) -> None:
    database = opened(url)
    database.write(lambda: bound.execute_sql("DELETE FROM schema_migration"))

    with pytest.raises(CannotOpen, match=r"^cannot migrate the database .*already exists$"):
        database.migrate()
    assert database.pending() == ["0001_initial", "0002_deployment_proxy", "0003_money", "0004_alerts", "0005_lean_hold_lines", "0006_pools", "0007_agents"]
    assert database.read(lambda: GenerationRow.select().count()) == 1


def test_a_migration_waits_for_a_lock_and_then_says_so(sqlite_url: str, opened: Opener) -> None:
    opened(sqlite_url)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite://"), isolation_level=None)) as rival:
        rival.execute("DELETE FROM schema_migration")
        rival.execute("BEGIN IMMEDIATE")
        with pytest.raises(CannotOpen, match="database is locked"):
            Database(sqlite_url, timeout_s=0.3).migrate()


def test_the_database_s_files_are_the_owner_s_alone(sqlite_url: str, opened: Opener) -> None:
    database = opened(sqlite_url)
    database.write(lambda: bound.execute_sql("UPDATE generation SET value = 2"))
    directory = Path(sqlite_url.removeprefix("sqlite://")).parent

    assert directory.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert modes == dict.fromkeys(modes, 0o600)
    assert {"gateway.db", "gateway.db-wal"} <= set(modes)


def test_a_file_that_is_no_database_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("not a database, but long enough to be read as the header of one: " * 20)

    with pytest.raises(CannotOpen) as caught:
        Database(f"sqlite://{path}").migrate()
    assert str(caught.value) == f"cannot open the database {path}: file is not a database"


def test_a_directory_that_cannot_be_made_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(CannotOpen) as caught:
        Database(f"sqlite://{tmp_path}/file/gateway.db").migrate()
    assert str(caught.value).startswith(f"cannot open the database {tmp_path}/file/gateway.db: ")
    assert "\n" not in str(caught.value)


def test_an_unreachable_server_is_named_in_one_line_without_its_password(postgres: Postgres) -> None:
    free = postgres.port  # a port of its own would do as well; the name is what is wrong here
    with pytest.raises(CannotOpen) as caught:
        Database(f"postgresql://gateway:hidden@127.0.0.1:{free}/nowhere").migrate()
    assert "nowhere" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)
