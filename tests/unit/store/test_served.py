"""A day's calls by deployment and model, on both databases."""

from __future__ import annotations

from dataclasses import replace

from gateway.dialects.events import BUCKETS, Usage
from gateway.store.database import Database
from gateway.store.ledger import Entry
from gateway.store.served import Served, served
from tests.factories import booked
from tests.unit.store.test_ledger import DAY, ENTRY

BEGIN = ENTRY.at - ENTRY.at % DAY


def book(database: Database, *entries: Entry) -> None:
    for entry in entries:
        booked(database, entry)


def test_sums_are_by_deployment_and_model_and_say_what_went_wrong(database: Database) -> None:
    plain = replace(ENTRY, price=2, flags=())
    cut = replace(plain, exchange="x2", usage=Usage(input_uncached=10, output_text=1), usage_source="estimated", price=None, attempt=3)
    failed = replace(plain, exchange="x3", usage=Usage(), usage_source="none", ending="timeout", cost=0)
    late = replace(plain, exchange="x4", at=BEGIN + DAY - 1, total_ms=2, model_served="other")
    lost = replace(failed, exchange="x5", deployment="", model_served="", attempt=0, ending="worker_lost")
    book(database, plain, cut, failed, late, lost, replace(plain, exchange="x6", at=BEGIN - 1), replace(plain, exchange="x7", at=BEGIN + DAY))

    first, second = database.read(lambda: served(BEGIN, BEGIN + DAY))
    used = dict(zip(BUCKETS, range(1, 10), strict=True))
    assert first == Served("main", "gpt-4o-2026", 3, 1_400, used | {"input_uncached": 11, "output_text": 8}, 1, 11, 1, 1, 0, 2)
    assert second == Served("main", "other", 1, 700, used, 0, 0, 0, 0, 1, 0)


def test_corrections_count_where_the_call_was(database: Database) -> None:
    book(database, ENTRY)
    book(database, replace(ENTRY, kind="rerate", corrects=1, cost=-200, usage=Usage(), at=BEGIN + 9 * DAY))
    (one,) = database.read(lambda: served(BEGIN, BEGIN + DAY))
    assert (one.calls, one.cost) == (1, 500)
    assert database.read(lambda: served(BEGIN + 9 * DAY, BEGIN + 10 * DAY)) == []
