from __future__ import annotations

from dataclasses import replace

from gateway.dialects.events import Usage
from gateway.store import budgets, key_usage, ledger
from gateway.store.database import Database
from gateway.store.ledger import Booking, Entry
from tests.factories import seal

ENTRY = Entry("x1", "usage", 1, 7, 3, 1_000, 600, Usage(input_uncached=5, output_text=2), "complete", "provider", "m", "m", "d", 10, 100)


def book(database: Database, *entries: Entry) -> None:
    database.write(lambda: ledger.record([Booking(entry, None) for entry in entries], seal))


def test_usage_of_keys_is_the_sum_of_their_entries_without_credits(database: Database) -> None:
    book(
        database, ENTRY, replace(ENTRY, exchange="x2", amount=2**60, at=200), replace(ENTRY, exchange="x3", api_key=8), replace(ENTRY, exchange="x4", api_key=9)
    )
    first = database.read(lambda: ledger.find_entry("x1"))
    assert first is not None
    book(database, replace(ENTRY, kind="rerate", corrects=first.id, amount=-400, cost=0, usage=Usage(), at=300))
    database.write(lambda: budgets.set_budget("key", 7, "total", "UTC", 0, 1))
    credit = database.write(lambda: ledger.book_credit("key", 7, 10**9, 400, "c1", "", seal))
    booked = next(entry for entry in database.read(ledger.credits) if entry.exchange == credit.exchange)
    database.write(lambda: ledger.book_corrections([replace(booked, id=None, kind="void", corrects=booked.id, amount=10**9, at=500)], seal))

    found = database.read(lambda: key_usage.key_usage([7, 8, 10]))
    assert set(found) == {7, 8}
    used = found[7]
    assert (used.calls, used.amount, used.cost, used.last_at) == (2, 2**60 + 600, 1_200, 300)
    assert (used.buckets["input_uncached"], used.buckets["output_text"], used.buckets["reasoning"]) == (10, 4, 0)


def test_keys_without_entries_have_no_usage(database: Database) -> None:
    assert database.read(lambda: key_usage.key_usage([])) == {}
    assert database.read(lambda: key_usage.key_usage(range(1, 2_000))) == {}


def test_budgets_of_many_accounts_begin_together(database: Database) -> None:
    subjects = list(range(1, budgets.CHUNK + 10))
    database.write(lambda: budgets.begin_totals("key", subjects, 5, 100))
    found = database.read(budgets.list_budgets)
    assert [each.subject for each in sorted(found, key=lambda each: each.subject)] == subjects
    assert {(each.kind, each.period, each.limit_nano, each.soft, each.created_at) for each in found} == {("key", "total", 5, False, 100)}
    assert database.read(lambda: budgets.account_path(7, 1, None)).budgets == tuple(each for each in found if each.subject == 7)
