"""Holds: never more than a window has room for, moved once, whoever asks and however often."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.dialects.events import Usage
from gateway.store import budgets, holds, ledger
from gateway.store.budgets import Window
from gateway.store.database import Batched, Conflict, Database
from gateway.store.exchanges import ExchangeRow
from gateway.store.holds import Period, Refused, Wanted
from gateway.store.ledger import Booking, Entry
from tests.factories import seal

AT = 1_700_000_000_000
ENTRY = Entry("x", "usage", 1, 1, 1, 0, 0, Usage(), "complete", "provider", "m", "m", "d", 1, AT)
WANTED = Wanted("x", "owner", 60, 1, 1, None, "m", AT, 10, ())


def budget(database: Database, limit: int, kind: str = "user", subject: int = 1, *, soft: bool = False) -> Period:
    made = database.write(lambda: budgets.set_budget(kind, subject, "total", "UTC", limit, AT, soft=soft))
    return Period(made.id, 0, None, soft)


def reserve(database: Database, id: str, amount: int, *periods: Period, owner: str = "owner") -> Refused | None:
    return database.write(Batched(holds.reserve, replace(WANTED, id=id, amount=amount, periods=periods, owner=owner)))


def settle(database: Database, id: str, amount: int, ending: str = "complete") -> None:
    entry = replace(ENTRY, exchange=id, amount=amount, cost=amount, ending=ending)
    database.write(lambda: ledger.record([Booking(entry, ExchangeRow(id, "owner", 1, 1, "m", 200, ending, "{}", AT), held=True)], seal))


def window(database: Database, period: Period) -> Window:
    (found,) = database.read(lambda: budgets.windows_of([period.budget_id], AT))
    return found


def amounts(database: Database) -> list[tuple[str, int]]:
    return [(entry.kind, entry.amount) for entry in database.read(lambda: ledger.entries(0, 2**62, 0, 1000))]


def test_a_hold_is_taken_back_and_what_the_call_cost_is_spent(database: Database) -> None:
    period = budget(database, 100)
    assert reserve(database, "a", 40, period) is None
    assert (window(database, period).spent, window(database, period).held) == (0, 40)
    settle(database, "a", 7)
    assert (window(database, period).spent, window(database, period).held) == (7, 0)
    (entry,) = database.read(lambda: ledger.entries(0, 2**62, 0, 10))
    assert entry.windows == (window(database, period).id,)


def test_what_has_no_room_is_refused_and_holds_nothing_anywhere(database: Database) -> None:
    wide, narrow = budget(database, 1000), budget(database, 50, "team", 9)
    assert reserve(database, "a", 30, wide, narrow) is None
    refused = reserve(database, "b", 30, wide, narrow)
    assert refused == Refused(narrow.budget_id, 50, 0, 30, None)
    assert (window(database, wide).held, window(database, narrow).held) == (30, 30)


def test_a_budget_is_used_to_its_last_nano_dollar(database: Database) -> None:
    period = budget(database, 100)
    assert [reserve(database, str(number), 25, period) is None for number in range(5)] == [True] * 4 + [False]


def test_a_soft_budget_counts_and_refuses_nothing(database: Database) -> None:
    period = budget(database, 5, soft=True)
    assert reserve(database, "a", 10, period) is None
    assert window(database, period).held == 10


def test_a_crowd_gets_exactly_what_there_is(database: Database) -> None:
    period = budget(database, 1000)
    with ThreadPoolExecutor(32) as pool:
        outcomes = list(pool.map(lambda number: reserve(database, f"h{number}", 10, period), range(200)))
    assert outcomes.count(None) == 100
    assert window(database, period).held == 1000


def test_a_call_is_settled_once(database: Database) -> None:
    period = budget(database, 100)
    reserve(database, "a", 40, period)
    settle(database, "a", 7)
    settle(database, "a", 9)
    assert (window(database, period).spent, window(database, period).held) == (7, 0)
    assert amounts(database) == [("usage", 7)]


def test_the_same_settlement_twice_in_one_batch_moves_money_once(database: Database) -> None:
    period = budget(database, 100)
    reserve(database, "a", 40, period)
    booking = Booking(replace(ENTRY, exchange="a", amount=7), None, held=True)
    database.write(lambda: ledger.record([booking, booking], seal))
    assert (window(database, period).spent, amounts(database)) == (7, [("usage", 7)])


def test_a_failed_call_is_released_and_costs_nothing(database: Database) -> None:
    period = budget(database, 100)
    reserve(database, "a", 40, period)
    settle(database, "a", 0, "upstream_error")
    assert (window(database, period).spent, window(database, period).held) == (0, 0)


def test_a_late_end_of_an_expired_hold_is_booked_once_and_corrects_the_loss(database: Database) -> None:
    period = budget(database, 100)
    reserve(database, "a", 40, period)
    settle(database, "a", 0, "worker_lost")
    settle(database, "a", 7)
    settle(database, "a", 7)
    assert (window(database, period).spent, window(database, period).held) == (7, 0)
    assert amounts(database) == [("usage", 0), ("adjust", 7)]


def test_two_reapers_expire_a_hold_once(database: Database) -> None:
    period = budget(database, 100)
    reserve(database, "a", 40, period)
    settle(database, "a", 0, "worker_lost")
    settle(database, "a", 0, "worker_lost")
    assert (window(database, period).held, amounts(database)) == (0, [("usage", 0)])


def test_a_buried_hold_is_never_made(database: Database) -> None:
    period = budget(database, 100)
    database.write(lambda: holds.bury(replace(WANTED, id="a", amount=40, periods=(period,))))
    with pytest.raises(Conflict):
        reserve(database, "a", 40, period)
    assert not database.read(lambda: budgets.windows_of([period.budget_id], AT))


def test_holds_are_found_by_their_owner_until_they_are_closed(database: Database) -> None:
    period = budget(database, 100)
    reserve(database, "a", 1, period, owner="one")
    reserve(database, "b", 1, period, owner="two")
    settle(database, "b", 1)
    assert database.read(holds.owners) == {"one"}
    assert [hold.id for hold in database.read(lambda: holds.open_holds("one", 10))] == ["a"]


def test_a_deadline_is_in_the_database_s_own_time(database: Database) -> None:
    period = budget(database, 100)
    database.write(lambda: holds.reserve([replace(WANTED, id="late", lease_s=-1, periods=(period,)), replace(WANTED, id="early", periods=(period,))]))
    assert database.read(lambda: holds.overdue(["late", "early", "none"])) == {"late"}


def test_closed_holds_are_forgotten_and_open_ones_are_not(database: Database) -> None:
    period = budget(database, 100)
    reserve(database, "a", 1, period)
    reserve(database, "b", 1, period)
    settle(database, "a", 1)
    assert database.write(lambda: holds.forget(AT + 1, 10)) == 1
    assert [hold.id for hold in database.read(lambda: holds.open_holds("owner", 10))] == ["b"]


def test_a_new_limit_holds_for_the_window_that_is_open(database: Database) -> None:
    period = budget(database, 10)
    assert reserve(database, "a", 10, period) is None
    assert isinstance(reserve(database, "b", 10, period), Refused)
    budget(database, 20)
    assert reserve(database, "c", 10, period) is None


def test_a_credit_makes_room(database: Database) -> None:
    period = budget(database, 0)
    assert isinstance(reserve(database, "a", 10, period), Refused)
    credit = database.write(lambda: ledger.book_credit("user", 1, 15, AT, "c1", "welcome", seal))
    assert (credit.amount, credit.user, credit.windows) == (-15, 1, (window(database, period).id,))
    assert reserve(database, "b", 10, period) is None
    assert window(database, period).remaining == 5


def test_a_correction_moves_the_windows_of_what_it_corrects(database: Database) -> None:
    period = budget(database, 100)
    reserve(database, "a", 40, period)
    settle(database, "a", 7)
    (entry,) = database.read(lambda: ledger.entries(0, 2**62, 0, 10))
    database.write(lambda: ledger.book_corrections([replace(entry, kind="rerate", corrects=entry.id, amount=-3, cost=-3)], seal))
    assert (window(database, period).spent, amounts(database)) == (4, [("usage", 7), ("rerate", -3)])


def rerate(database: Database, id: str, amount: int) -> None:
    originals = [entry for entry in database.read(lambda: ledger.entries(0, 2**62, 0, 10_000)) if entry.exchange == id and entry.corrects is None]
    corrections = [replace(entry, kind="rerate", corrects=entry.id, amount=amount) for entry in originals]
    database.write(lambda: ledger.book_corrections(corrections, seal))


def test_a_credit_counts_once_under_its_id(database: Database) -> None:
    period = budget(database, 0)
    for _ in range(2):
        database.write(lambda: ledger.book_credit("user", 1, 15, AT, "c1", "welcome", seal))
    assert window(database, period).spent == -15


STEPS = st.lists(st.tuples(st.sampled_from(["reserve", "settle", "lose", "fail", "credit", "rerate"]), st.integers(0, 5), st.integers(0, 60)), max_size=25)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_happens_spent_is_the_sum_of_entries_and_held_that_of_open_holds(
    sqlite_url: str, opened: Callable[..., Database], steps: list[tuple[str, int, int]]
) -> None:
    database = opened(sqlite_url)
    number = len(database.read(budgets.list_budgets)) + 1
    period = budget(database, 200, "user", number)
    open_holds: dict[str, int] = {}
    for step, which, amount in steps:
        id = f"{number}-{which}"
        if step == "reserve" and id not in open_holds:
            try:
                if reserve(database, id, amount, period) is None:
                    open_holds[id] = amount
            except Conflict:
                continue
        elif step == "settle":
            settle(database, id, amount)
            open_holds.pop(id, None)
        elif step == "lose":
            settle(database, id, 0, "worker_lost")
            open_holds.pop(id, None)
        elif step == "fail":
            settle(database, id, 0, "upstream_error")
            open_holds.pop(id, None)
        elif step == "credit":
            database.write(lambda amount=amount: ledger.book_credit("user", number, amount, AT, f"credit-{amount}-{number}", "", seal))  # type: ignore[misc]
        else:
            rerate(database, id, amount)
        found = database.read(lambda: budgets.windows_of([period.budget_id], AT))
        if found:
            entries = database.read(lambda: ledger.entries(0, 2**62, 0, 10_000))
            assert found[0].spent == sum(entry.amount for entry in entries if found[0].id in entry.windows)
            assert found[0].held == sum(open_holds.values())
