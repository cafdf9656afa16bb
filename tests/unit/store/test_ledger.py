"""Booking: once, whole, with exact sums; and the exchanges beside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gateway.dialects.events import BUCKETS, Usage
from gateway.store import exchanges, ledger
from gateway.store.database import Database
from gateway.store.exchanges import ExchangeRow
from gateway.store.ledger import Booking, Entry
from tests.factories import booked, seal

NOON = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp() * 1000)
DAY = 86_400_000
USAGE = Usage(1, 2, 3, 4, 5, 6, 7, 8, 9, raw={"total_tokens": 45, "nested": {"ü": [1.5, None]}})
ENTRY = Entry(
    exchange="x1",
    kind="usage",
    attempt=1,
    api_key=11,
    user=3,
    amount=1_000,
    cost=700,
    usage=USAGE,
    ending="complete",
    usage_source="provider",
    model_asked="gpt-4o",
    model_served="gpt-4o-2026",
    deployment="main",
    total_ms=820,
    at=NOON,
    team=5,
    flags=("unpriced",),
    rates={"output_text": 10_000_000},
    price=2,
    credential="prod",
    first_byte_ms=90,
)
EXCHANGE = ExchangeRow("x1", "worker-1", 11, 3, "gpt-4o", 200, "complete", '{"attempts":[]}', NOON)


def book(database: Database, entry: Entry | None, exchange: ExchangeRow = EXCHANGE) -> None:
    booked(database, entry, exchange)


def test_an_entry_comes_back_as_it_was_booked(database: Database) -> None:
    book(database, ENTRY)
    found = database.read(lambda: ledger.find_entry("x1"))
    assert found is not None
    assert replace(found, id=None) == ENTRY
    assert found.usage.raw == USAGE.raw
    assert database.read(lambda: exchanges.find_exchange("x1")) == EXCHANGE


def test_the_usage_s_flags_are_kept_with_the_entry_s(database: Database) -> None:
    book(database, replace(ENTRY, usage=Usage(flags=("clamped", "unpriced"))))
    found = database.read(lambda: ledger.find_entry("x1"))
    assert found is not None
    assert found.flags == ("unpriced", "clamped")
    assert found.usage.raw is None


def test_the_same_entry_is_booked_once_and_its_first_amount_stands(database: Database) -> None:
    book(database, ENTRY)
    book(database, replace(ENTRY, amount=9_999), replace(EXCHANGE, status=502, ending="timeout"))

    assert [entry.amount for entry in database.read(lambda: ledger.entries(0, NOON + 1, 0, 10))] == [1_000]
    assert database.read(lambda: exchanges.find_exchange("x1")) == replace(EXCHANGE, status=502, ending="timeout")


def test_the_same_entry_twice_in_one_batch_is_booked_once(database: Database) -> None:
    other = replace(EXCHANGE, status=500)
    database.write(lambda: ledger.record([Booking(ENTRY, EXCHANGE), Booking(ENTRY, other), Booking(None, replace(EXCHANGE, id="x2"))], seal))

    assert len(database.read(lambda: ledger.entries(0, NOON + 1, 0, 10))) == 1
    assert database.read(lambda: exchanges.find_exchange("x1")) == other
    assert database.read(lambda: exchanges.find_exchange("x2")) is not None


def test_a_second_attempt_and_a_correction_are_entries_of_their_own(database: Database) -> None:
    book(database, ENTRY)
    first = database.read(lambda: ledger.find_entry("x1"))
    assert first is not None
    book(database, replace(ENTRY, attempt=2))
    correction = replace(ENTRY, kind="adjust", corrects=first.id, amount=-400, cost=0)
    book(database, correction)
    book(database, correction)

    booked = database.read(lambda: ledger.entries(0, NOON + 1, 0, 10))
    assert [(entry.kind, entry.attempt, entry.corrects, entry.amount) for entry in booked] == [
        ("usage", 1, None, 1_000),
        ("usage", 2, None, 1_000),
        ("adjust", 1, first.id, -400),
        ("adjust", 1, first.id, -400),
    ]
    (total,) = database.read(lambda: ledger.totals(0, NOON + 1, []))
    assert (total.calls, total.amount) == (2, 1_200)


def test_an_entry_that_is_no_entry_harms_no_other_call(database: Database) -> None:
    """A number beyond 64 bits is refused by both engines."""
    with ThreadPoolExecutor(8) as pool:
        amounts = [1, 2, 10**30, 4, 5, 6, 7, 8]
        futures = [pool.submit(book, database, replace(ENTRY, exchange=f"x{amount}", amount=amount), replace(EXCHANGE, id=f"x{amount}")) for amount in amounts]
    assert [future.exception() is None for future in futures] == [amount < 10**9 for amount in amounts]
    assert len(database.read(lambda: ledger.entries(0, NOON + 1, 0, 100))) == 7


@pytest.mark.parametrize("name", ["nul\0byte", "half \ud800 pair", "ü€😀", "'; DROP TABLE entry; --", "%s %(x)s ?"])
def test_a_client_s_odd_model_name_does_not_keep_its_call_from_the_ledger(database: Database, name: str) -> None:
    book(database, replace(ENTRY, model_asked=name), replace(EXCHANGE, model=name))
    found = database.read(lambda: ledger.find_entry("x1"))
    assert found is not None
    if name.isprintable():
        assert found.model_asked == name
    assert database.read(lambda: exchanges.find_exchange(name)) is None


def test_entries_are_paged_by_id(database: Database) -> None:
    for number in range(7):
        book(database, replace(ENTRY, exchange=f"x{number}", at=NOON + number))
    seen: list[str] = []
    last = 0
    while page := database.read(lambda after=last: ledger.entries(NOON + 1, NOON + 6, after, 2)):  # type: ignore[misc]
        seen += [entry.exchange for entry in page]
        last = page[-1].id or 0
    assert seen == ["x1", "x2", "x3", "x4", "x5"]


def test_totals_are_exact_and_grouped_by_anything(database: Database) -> None:
    big = 2**61
    book(database, replace(ENTRY, exchange="a", amount=big, cost=1))
    book(database, replace(ENTRY, exchange="b", amount=1, cost=2, user=4, at=NOON + DAY))
    book(database, replace(ENTRY, exchange="c", amount=2, cost=3, ending="client_gone", at=NOON + DAY))

    (whole,) = database.read(lambda: ledger.totals(0, NOON + 9 * DAY, []))
    assert (whole.calls, whole.amount, whole.cost) == (3, big + 3, 6)
    assert whole.buckets == {name: 3 * number for number, name in enumerate(BUCKETS, 1)}

    days = database.read(lambda: ledger.totals(0, NOON + 9 * DAY, ["day", "user"]))
    assert [(dict(total.group), total.calls, total.amount) for total in days] == [
        ({"day": "2026-03-01", "user": 3}, 1, big),
        ({"day": "2026-03-02", "user": 3}, 1, 2),
        ({"day": "2026-03-02", "user": 4}, 1, 1),
    ]
    every = database.read(lambda: ledger.totals(NOON + 1, NOON + 9 * DAY, ["team", "user", "key", "model", "deployment", "ending", "day"]))
    assert [dict(total.group) for total in every] == [
        {"team": 5, "user": 3, "key": 11, "model": "gpt-4o", "deployment": "main", "ending": "client_gone", "day": "2026-03-02"},
        {"team": 5, "user": 4, "key": 11, "model": "gpt-4o", "deployment": "main", "ending": "complete", "day": "2026-03-02"},
    ]


def test_totals_of_nothing_are_zero_and_of_unknown_groups_refused(database: Database) -> None:
    (nothing,) = database.read(lambda: ledger.totals(0, 1, []))
    assert (nothing.calls, nothing.amount, set(nothing.buckets.values())) == (0, 0, {0})
    assert database.read(lambda: ledger.totals(0, 1, ["user"])) == []
    with pytest.raises(KeyError):
        database.read(lambda: ledger.totals(0, 1, ["colour"]))


def test_rows_come_in_pages_by_time_with_every_column_and_the_seal(database: Database) -> None:
    for number, moment in enumerate([2, 1, 1, 1, 0]):
        book(database, replace(ENTRY, exchange=f"x{number}", at=NOON + moment))
    page = database.read(lambda: ledger.booked_rows(NOON + 1, NOON + 3, (NOON + 1, 0), 2))
    rest = database.read(lambda: ledger.booked_rows(NOON + 1, NOON + 3, (page[-1]["at"], page[-1]["id"]), 10))
    assert [row["exchange"] for row in [*page, *rest]] == ["x1", "x2", "x3", "x0"]
    assert set(page[0]) == {"id", "seal", *ledger.SEALED}
    assert (page[0]["corrects_id"], page[0]["windows"], page[0]["seal"]) == (None, "[]", seal(ledger.sealed_text([page[0][name] for name in ledger.SEALED])))


def test_calls_of_a_credential_are_counted_from_a_moment_on_without_failed_attempts(database: Database) -> None:
    others = (replace(ENTRY, exchange="x2", at=NOON - 1), replace(ENTRY, exchange="x3", credential="other"), replace(ENTRY, exchange="x4", kind="attempt"))
    for entry in (ENTRY, *others):
        book(database, entry, replace(EXCHANGE, id=entry.exchange))
    assert database.read(lambda: ledger.calls_with("prod", NOON)) == 1
    assert database.read(lambda: ledger.calls_with("prod", NOON - 1)) == 2
