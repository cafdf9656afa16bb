"""The audit finds what somebody changed behind the program's back, and names the row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gateway.store import audit
from gateway.store.audit import Audit
from gateway.store.database import Database
from gateway.store.exchanges import ExchangeRow
from gateway.store.models import database as bound
from tests.factories import booked, seal
from tests.unit.store.test_holds import AT, ENTRY, budget, reserve, settle, window


@pytest.fixture
def books(database: Database) -> Database:
    """Two calls settled, one lost, one still held."""
    period = budget(database, 1000)
    for id, amount, ending in (("a", 7, "complete"), ("b", 9, "client_gone"), ("c", 0, "worker_lost")):
        reserve(database, id, 40, period)
        settle(database, id, amount, ending)
    reserve(database, "d", 30, period)
    return database


def audited(database: Database) -> Audit:
    return database.read(lambda: audit.audit(seal))


def forced(database: Database, *statements: str) -> None:
    """Change rows as only somebody can who owns the database: without the triggers."""

    def work() -> None:
        for table, name in (("entry", "entry_keeps_updates_out"), ("entry", "entry_keeps_deletes_out")):
            bound.execute_sql(f"DROP TRIGGER {name}" if bound.param == "?" else f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for statement in statements:
            bound.execute_sql(statement)

    database.write(work)


def test_books_that_nobody_touched_have_no_differences(books: Database) -> None:
    assert audited(books) == Audit(3, 0, 1, 1, ())


@pytest.mark.parametrize("change", ["amount = 6", '"user" = 2', "windows = '[]'", "output_text = 5", "note = 'x'", "seal = 'x'"])
def test_an_entry_that_was_edited_is_named(books: Database, change: str) -> None:
    forced(books, f"UPDATE entry SET {change} WHERE exchange = 'a'")
    found = audited(books).differences
    assert found[0].row == "entry 1"
    assert "exchange a" in found[0].problem


def test_an_entry_that_was_deleted_is_missed(books: Database) -> None:
    forced(books, "DELETE FROM entry WHERE exchange = 'a'")
    assert {difference.row for difference in audited(books).differences} == {"hold a", "exchange a", "budget window 1"}


def test_an_entry_that_was_deleted_is_missed_also_without_a_budget(database: Database) -> None:
    booked(database, replace(ENTRY, exchange="free"), ExchangeRow("free", "owner", 1, 1, "m", 200, "complete", "{}", AT))
    booked(database, None, ExchangeRow("no", "owner", 1, 1, "m", 404, "refused", "{}", AT))
    assert audited(database).differences == ()
    forced(database, "DELETE FROM entry")
    assert [difference.row for difference in audited(database).differences] == ["exchange free"]


@pytest.mark.parametrize(("column", "right"), [("spent", 16), ("held", 30)])
def test_a_counter_that_was_changed_is_found_and_rebuilt(books: Database, column: str, right: int) -> None:
    books.write(lambda: bound.execute_sql(f"UPDATE budget_window SET {column} = 5"))
    (found,) = audited(books).differences
    assert (found.row, found.problem) == ("budget window 1", f"says 5 nano-USD {column}, its rows add up to {right}")
    assert books.write(audit.rebuild) == 1
    assert audited(books).differences == ()


def test_a_rebuild_of_right_counters_changes_nothing(books: Database) -> None:
    before = window(books, budget(books, 1000))
    assert books.write(audit.rebuild) == 0
    assert window(books, budget(books, 1000)) == before


def test_entries_of_an_older_version_are_counted_and_not_judged(books: Database) -> None:
    forced(books, "UPDATE entry SET seal = NULL WHERE exchange = 'a'")
    assert (audited(books).unsealed, audited(books).differences) == (1, ())


def test_more_entries_than_a_page_are_all_read(sqlite_url: str, opened: Callable[..., Database], monkeypatch: pytest.MonkeyPatch) -> None:
    database = opened(sqlite_url)
    monkeypatch.setattr(audit, "_PAGE", 2)
    period = budget(database, 1000)
    for number in range(5):
        reserve(database, str(number), 1, period)
        settle(database, str(number), 1)
    assert audited(database) == Audit(5, 0, 1, 0, ())


def test_a_hold_and_an_exchange_find_their_entry_by_an_index(sqlite_database: Database) -> None:
    """Or the audit of a ledger ten times as long would take a hundred times as long."""
    for query in (audit._without_entry(), audit._unbooked()):
        sql, parameters = query.sql()
        plan = sqlite_database.read(lambda: bound.execute_sql(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall())  # noqa: B023  read before the loop goes on
        assert [step for *_, step in plan if "SEARCH" in step and "entry_original" in step]


def test_seals_of_another_pepper_are_told_without_a_line_for_each_of_millions(books: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST", 2)
    found = books.read(lambda: audit.audit(lambda text: "another"))
    assert [each.row for each in found.differences] == ["entry 1", "entry 2", "1 more entries"]
    assert found.differences[2].problem == "are not as they were booked: their seals do not fit"
    assert found.entries == 3
