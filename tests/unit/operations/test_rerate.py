"""Re-rating: what was booked follows the price book as it is now, by entries that are added, once."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.catalog import price_book
from gateway.core.pricing import priced
from gateway.dialects.events import BUCKETS, Usage
from gateway.errors import BadRequest
from gateway.operations import rerate as module
from gateway.operations.rerate import Difference, rerate
from gateway.store import budgets, catalog, ledger
from gateway.store.catalog import Tier
from gateway.store.database import Database
from gateway.store.ledger import Entry
from gateway.store.models_money import BudgetWindowRow
from tests.fakes.postgres import Postgres
from tests.unit.operations.booked import book, seal

BEGIN, END = 1_000, 2_000
NOW = 9_000
USAGE = Usage(input_uncached=1000, output_text=1000)


def flat(rate: int) -> dict[str, int]:
    return dict.fromkeys(BUCKETS, rate)


ENTRY = Entry(
    exchange="x",
    kind="usage",
    attempt=1,
    api_key=7,
    user=3,
    amount=4,
    cost=4,
    usage=USAGE,
    ending="complete",
    usage_source="provider",
    model_asked="asked",
    model_served="m",
    deployment="d",
    total_ms=5,
    at=BEGIN,
    team=2,
    rates=flat(2),
    price=1,
    credential="c",
)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/data/either.db" if request.param == "sqlite" else str(request.getfixturevalue("postgres").emptied("rerate"))


@pytest.fixture
def either(url: str) -> Iterator[Database]:
    """A database of each kind."""
    database = Database(url)
    database.bind()
    database.migrate()
    yield database
    database.close()


def price(database: Database, rate: int, valid_from: int = 0, model: str = "m", **more: Any) -> None:
    database.write(lambda: catalog.add_price(model, valid_from, flat(rate), NOW, **more))


def entries(database: Database) -> list[Entry]:
    return database.read(lambda: ledger.entries(0, 2**62, 0, 10_000))


def looked(database: Database, glob: str = "*") -> list[Difference]:
    return rerate(database, BEGIN, END, glob, NOW)


def applied(database: Database, glob: str = "*") -> list[Difference]:
    return rerate(database, BEGIN, END, glob, NOW, seal)


def test_a_dry_run_shows_the_difference_of_each_model_and_books_nothing(database: Database) -> None:
    price(database, 3)
    price(database, 2, model="n")
    book(database, ENTRY, replace(ENTRY, exchange="y"), replace(ENTRY, exchange="z", model_served="n"))
    assert looked(database) == [Difference("m", 2, 2, 8, 12, 8, 12), Difference("n", 1, 0, 4, 4, 4, 4)]
    assert len(entries(database)) == 3


def test_a_difference_is_booked_as_an_entry_that_corrects_the_first(database: Database) -> None:
    price(database, 3, per_call_nano=1)
    book(database, replace(ENTRY, markup_ppm=500_000, amount=6, windows=()))
    applied(database)
    original, correction = entries(database)
    assert (correction.kind, correction.corrects, correction.exchange, correction.attempt) == ("rerate", original.id, "x", 1)
    assert (correction.cost, correction.amount) == (7 - 4, 11 - 6)
    assert correction.rates == flat(3) | {"per_call": 1}
    assert (correction.at, correction.markup_ppm, correction.total_ms, correction.usage) == (NOW, 500_000, 0, Usage())
    assert (correction.api_key, correction.user, correction.team, correction.model_served) == (7, 3, 2, "m")
    assert correction.price == database.read(catalog.list_prices)[0].id


def test_a_second_rerating_books_nothing(either: Database) -> None:
    price(either, 3)
    book(either, ENTRY)
    assert applied(either)[0].changed == 1
    assert applied(either) == [Difference("m", 1, 0, 6, 6, 6, 6)]
    assert len(entries(either)) == 2


def test_many_reratings_at_once_book_each_difference_once(either: Database) -> None:
    price(either, 3)
    book(either, *(replace(ENTRY, exchange=f"x{number}") for number in range(40)))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: applied(either), range(6)))
    assert sum(entry.amount for entry in entries(either)) == 40 * 6
    assert len(entries(either)) == 80


OTHER_PROCESS = """
import sys
from gateway.operations.rerate import rerate
from gateway.store.database import Database
database = Database(sys.argv[1], timeout_s=20)
database.bind()
print("ready", flush=True)
sys.stdin.readline()
rerate(database, 0, 10_000, "*", 9_000, lambda text: "sealed")
database.close()
"""


def test_processes_that_rerate_at_once_take_turns(either: Database, url: str) -> None:
    price(either, 3)
    book(either, *(replace(ENTRY, exchange=f"x{number}") for number in range(1200)))
    command = [sys.executable, "-c", OTHER_PROCESS, url]
    with contextlib.ExitStack() as stack:
        started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        for each in started:
            stack.enter_context(each)
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in started:
            assert each.stdin is not None
            each.stdin.write("\n")
            each.stdin.flush()
    assert [each.returncode for each in started] == [0, 0, 0]
    assert (len(entries(either)), sum(entry.amount for entry in entries(either))) == (2400, 1200 * 6)


def test_the_budgets_of_the_corrected_entry_follow(either: Database) -> None:
    budget = either.write(lambda: budgets.set_budget("user", 3, "total", "UTC", 100, 0))
    window = either.write(lambda: BudgetWindowRow.create(budget=budget.id, starts_at=0, ends_at=None, limit_nano=100, spent=4, held=0).id)
    price(either, 3)
    book(either, replace(ENTRY, windows=(window,)))
    applied(either)
    assert entries(either)[1].windows == (window,)
    assert either.read(lambda: budgets.windows_of([budget.id], NOW))[0].spent == 6


def test_the_price_is_the_one_of_the_entry_s_own_time_and_upstream_name(database: Database) -> None:
    price(database, 3)
    price(database, 9, valid_from=BEGIN + 5)
    price(database, 50, model="asked")
    book(database, replace(ENTRY, at=BEGIN + 4), replace(ENTRY, exchange="y", at=BEGIN + 5))
    assert [(each.amount_before, each.amount_after) for each in looked(database)] == [(8, 6 + 18)]


def test_the_service_tier_and_the_tokens_of_the_entry_choose_the_rates(database: Database) -> None:
    price(database, 3, variants={"flex": flat(1)}, tiers=(Tier(1000, flat(5)),))
    flex = replace(USAGE, raw={"service_tier": "flex"})
    book(database, replace(ENTRY, usage=flex), replace(ENTRY, exchange="y", usage=replace(USAGE, input_uncached=1001)))
    assert looked(database)[0].amount_after == 2 + 11


def test_what_had_no_price_is_charged_once_it_has_one(database: Database) -> None:
    price(database, 3)
    book(database, replace(ENTRY, amount=0, cost=0, rates={}, price=None, flags=("unpriced",)))
    applied(database)
    assert [entry.amount for entry in entries(database)] == [0, 6]


def test_only_the_period_and_the_models_that_were_named_are_looked_at(database: Database) -> None:
    price(database, 3, model="*")
    others = (replace(ENTRY, exchange="a", at=BEGIN - 1), replace(ENTRY, exchange="b", at=END), replace(ENTRY, exchange="c", model_served="other"))
    book(database, ENTRY, *others)
    assert [each.model for each in looked(database)] == ["m", "other"]
    assert [(each.model, each.calls) for each in applied(database, "m*")] == [("m", 1)]
    assert len(entries(database)) == 5


@pytest.mark.parametrize(
    "untouched",
    [
        replace(ENTRY, usage_source="none", ending="timeout", amount=0, cost=0, usage=Usage()),
        replace(ENTRY, usage_source="none", ending="worker_lost", amount=0, cost=0, usage=Usage()),
        replace(ENTRY, kind="credit", usage=Usage(), usage_source="none"),
        replace(ENTRY, kind="adjust", corrects=None, usage=Usage()),
    ],
)
def test_what_was_not_made_from_a_usage_stays(database: Database, untouched: Entry) -> None:
    price(database, 3, per_call_nano=50)
    book(database, untouched)
    assert applied(database) == []


def test_a_call_without_tokens_that_was_complete_has_the_price_of_a_call(database: Database) -> None:
    price(database, 3, per_call_nano=50)
    book(database, replace(ENTRY, usage_source="none", usage=Usage(), amount=40, cost=40))
    assert looked(database) == [Difference("m", 1, 1, 40, 50, 40, 50)]


def test_a_voided_entry_stays_void_and_an_adjustment_stays_on_top(database: Database) -> None:
    price(database, 3)
    book(database, ENTRY, replace(ENTRY, exchange="y"))
    voided, adjusted = entries(database)
    word = {"usage": Usage(), "usage_source": "none"}
    book(database, replace(voided, id=None, kind="void", corrects=voided.id, amount=-4, cost=0, **word))
    book(database, replace(adjusted, id=None, kind="adjust", corrects=adjusted.id, amount=-1, cost=0, **word))
    applied(database)
    sums = {exchange: sum(entry.amount for entry in entries(database) if entry.exchange == exchange) for exchange in ("x", "y")}
    assert sums == {"x": 0, "y": 6 - 1}


def test_what_was_settled_after_its_hold_expired_is_rated_too(database: Database) -> None:
    price(database, 3)
    book(database, replace(ENTRY, usage_source="none", ending="worker_lost", amount=0, cost=0, usage=Usage()))
    book(database, replace(ENTRY, kind="adjust", corrects=entries(database)[0].id))
    assert applied(database) == [Difference("m", 1, 1, 4, 6, 4, 6)]
    assert applied(database) == [Difference("m", 1, 0, 6, 6, 6, 6)]


def test_what_the_operator_pays_is_rated_and_charged_to_nobody(database: Database) -> None:
    price(database, 3)
    book(database, replace(ENTRY, api_key=0, user=0, amount=0, cost=4))
    applied(database)
    assert [(entry.amount, entry.cost) for entry in entries(database)] == [(0, 4), (0, 2)]


def test_a_failed_attempt_is_rated_for_the_operator(database: Database) -> None:
    price(database, 3)
    book(database, replace(ENTRY, kind="attempt", api_key=0, user=0, amount=0, cost=4))
    applied(database)
    assert [(entry.kind, entry.amount, entry.cost) for entry in entries(database)] == [("attempt", 0, 4), ("rerate", 0, 2)]


@pytest.mark.parametrize("flag", ["withheld", "displaced"])
def test_what_was_not_charged_since_its_end_never_left_is_never_charged(database: Database, flag: str) -> None:
    price(database, 3)
    book(database, replace(ENTRY, amount=0, cost=4, flags=(flag,)))
    applied(database)
    assert [(entry.amount, entry.cost) for entry in entries(database)] == [(0, 4), (0, 2)]


def test_pages_follow_each_other_to_the_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 3)
    price(database, 3)
    book(database, *(replace(ENTRY, exchange=f"x{number}") for number in range(9)))
    assert applied(database)[0].changed == 9
    assert sum(entry.amount for entry in entries(database)) == 54


def test_a_period_that_ends_before_it_begins_is_refused(database: Database) -> None:
    with pytest.raises(BadRequest, match="ends before it begins"):
        rerate(database, 5, 5, "*", NOW)


RATES = st.fixed_dictionaries({}, optional={bucket: st.integers(0, 10**7) for bucket in BUCKETS})
CALLS = st.tuples(st.just("call"), st.integers(BEGIN, END - 1), st.lists(st.integers(0, 10**5), min_size=9, max_size=9), st.integers(-(10**6), 10**6))
PRICES = st.tuples(st.just("price"), st.integers(0, END), RATES, st.integers(0, 10**6))
DELETED, RERATED = st.tuples(st.just("delete"), st.integers(0, 5)), st.tuples(st.just("rerate"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CALLS | PRICES | DELETED | RERATED, min_size=3, max_size=12))
def test_any_price_changes_and_reratings_leave_what_the_book_of_the_time_says(either: Database, steps: Sequence[Any]) -> None:
    """After the last re-rating, the sum of each call's entries is its usage at the prices that are in the book for its time."""
    number = next(COUNTER)
    model = f"m{number}"
    calls: list[tuple[str, int, Usage, int]] = []
    for step in steps:
        if step[0] == "call":
            calls.append(_called(either, model, f"{number}.{len(calls)}", *step[1:]))
        elif step[0] == "rerate":
            applied(either, model)
        else:
            either.write(partial(_changed, model, step))
    applied(either, model)
    prices = price_book(either.read(catalog.list_prices))
    sums: Mapping[str, list[Entry]] = {name: [] for name, *_ in calls}
    for entry in entries(either):
        if entry.exchange in sums:
            sums[entry.exchange].append(entry)
    for name, at, usage, markup_ppm in calls:
        due = priced(usage, prices.price(model, at), markup_ppm)
        assert (sum(entry.amount for entry in sums[name]), sum(entry.cost for entry in sums[name])) == (due.amount, due.cost)


COUNTER = itertools.count()


def _called(database: Database, model: str, name: str, at: int, counts: Sequence[int], markup_ppm: int) -> tuple[str, int, Usage, int]:
    usage = Usage(*counts)
    found = price_book(database.read(catalog.list_prices)).price(model, at)
    made = priced(usage, found, markup_ppm)
    booked = replace(ENTRY, exchange=name, model_served=model, at=at, usage=usage, markup_ppm=markup_ppm, amount=made.amount, cost=made.cost)
    book(database, booked)
    return name, at, usage, markup_ppm


def _changed(model: str, step: Sequence[Any]) -> None:
    own = [price for price in catalog.list_prices() if price.model == model]
    if step[0] == "delete" and own:
        catalog.delete_price(own[step[1] % len(own)].id)
    elif step[0] == "price" and not any(price.valid_from == step[1] for price in own):
        catalog.add_price(model, step[1], step[2], NOW, per_call_nano=step[3])
