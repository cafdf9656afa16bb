"""What is held for a call, who is told that there is no room, and what becomes of a hold of which nobody knows whether it was made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.backend import Call
from gateway.core.exchange import Ending, Exchange
from gateway.core.holds import GRACE_S, Holds, choices_bound
from gateway.core.identity import principal_of
from gateway.core.routing import Candidate
from gateway.errors import BudgetExceeded, StoreUnavailable
from gateway.store import accounts, budgets, holds
from gateway.store.budgets import Window
from gateway.store.catalog import Tier
from gateway.store.database import Database
from gateway.store.ledger import find_entry
from tests.factories import Books, Clock, call, candidate, exchange, migrated, price

NANO = 10**9


class Stage:
    def __init__(self, database: Database) -> None:
        self.database, self.clock = database, Clock()
        self.holds = Holds(database, "owner", 100, self.clock)
        self.user = database.write(lambda: accounts.create_user("ann", 0))
        self.key = database.write(lambda: accounts.create_key(self.user.id, "hash", 0, prefix="", suffix=""))

    def budget(self, limit: int, period: str = "total", timezone: str = "UTC", kind: str = "user") -> int:
        return self.database.write(lambda: budgets.set_budget(kind, self.user.id, period, timezone, limit, 0)).id

    def begun(self, made: Call | None = None) -> Exchange:
        ex = exchange(made or call(b'{"model":"m","max_tokens":10}'), clock=self.clock)
        ex.principal = principal_of(self.key, self.database.read(lambda: budgets.account_path(self.key.id, self.user.id, None)))
        return ex

    def window(self, budget: int, ex: Exchange) -> Window:
        (found,) = self.database.read(lambda: budgets.windows_of([budget], ex.at))
        return found


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with migrated(tmp_path) as database:
        yield Stage(database)


def held(stage: Stage, raw: bytes, *candidates: Candidate, max_output: int | None = None, made: tuple[str, ...] = ()) -> int:
    budget = stage.budget(10**17)
    ex = stage.begun(call(raw, *made))
    assert stage.holds.reserve(ex, candidates or (candidate(price=price(rate=1000)),), max_output)
    return stage.window(budget, ex).held


def test_a_call_without_a_budget_holds_nothing_and_asks_no_database(stage: Stage) -> None:
    ex = stage.begun()
    stage.database.close()
    assert not stage.holds.reserve(ex, [candidate(price=price())], None)


@pytest.mark.parametrize(
    ("raw", "max_output", "output"),
    [
        (b'{"model":"m"}', None, 100),
        (b'{"model":"m"}', 30, 30),
        (b'{"model":"m","max_tokens":7}', None, 7),
        (b'{"model":"m","max_tokens":70}', 30, 30),
        (b'{"model":"m","max_completion_tokens":8,"max_tokens":7}', None, 8),
        (b'{"model":"m","max_tokens":7,"n":3}', None, 21),
        (b'{"model":"m","max_completion_tokens":7,"max_tokens":8}', None, 8),
        (b'{"model":"m","max_tokens":7,"n":1,"best_of":3}', None, 21),
        (b'{"model":"m","max_tokens":7,"n":"3"}', None, 21),
        (b'{"model":"m","max_tokens":7,"n":3.0}', None, 21),
        (b'{"model":"m","max_tokens":"7"}', None, 100),
        (b'{"model":"m","max_tokens":"700"}', None, 700),
        (b'{"model":"m","max_tokens":7e2}', None, 700),
        (b'{"model":"m","max_tokens":"1e999999","n":"nan"}', 30, 30),
        (b'{"model":"m","max_tokens":true,"n":true}', None, 100),
        (b'{"model":"m","max_tokens":-7}', None, 100),
    ],
)
def test_input_and_the_longest_answer_are_held(stage: Stage, raw: bytes, max_output: int | None, output: int) -> None:
    assert held(stage, raw, max_output=max_output) == -(-len(raw) // 4) + output


@pytest.mark.parametrize(
    ("raw", "output"),
    [
        (b'{"model":"m","max_tokens":7,"prompt":["a","b","c","d"]}', 28),
        (b'{"model":"m","max_tokens":7,"prompt":[[1,2],[3]],"n":2}', 28),
        (b'{"model":"m","max_tokens":7,"prompt":[1,2,3]}', 7),
        (b'{"model":"m","max_tokens":7,"prompt":"a, b"}', 7),
        (b'{"model":"m","max_tokens":7,"prompt":[]}', 7),
        (b'{"model":"m","max_tokens":7,"best_of":20,"n":2}', 140),
        (b'{"model":"m","max_tokens":7,"best_of":20,"prompt":["a","b"]}', 280),
    ],
)
def test_every_answer_that_a_text_completion_has_made_is_held(stage: Stage, raw: bytes, output: int) -> None:
    assert held(stage, raw, made=("openai_completions", "/completions")) == min(-(-len(raw) // 4) + output, 10**16)


@pytest.mark.parametrize(
    ("raw", "output"),
    [
        (b'{"model":"m","max_completion_tokens":1,"max_tokens":5000}', 5000),
        (b'{"model":"m","max_output_tokens":0,"max_tokens":5000}', 5000),
        (b'{"model":"m","max_output_tokens":0}', 100),
        (b'{"model":"m","max_tokens":"5000"}', 5000),
        (b'{"model":"m","max_tokens":5000.0}', 5000),
        (b'{"model":"m","max_tokens":" 5_000 "}', 5000),
        (b'{"model":"m","max_tokens":5000.5}', 100),
        (b'{"model":"m","max_tokens":"000_"}', 100),
        (b'{"model":"m","max_tokens":true}', 100),
        (b'{"model":"m","max_tokens":"1' + b"0" * 5000 + b'"}', 10**16),
        (b'{"model":"m","max_tokens":1' + b"0" * 5000 + b"}", 10**16),
        (b'{"model":"m","max_tokens":7,"n":"3"}', 21),
        (b'{"model":"m","max_tokens":7,"n":3.0}', 21),
        (b'{"model":"m","max_tokens":7,"n":-3}', 7),
    ],
)
def test_a_number_in_other_clothes_counts_as_an_upstream_may_take_it(stage: Stage, raw: bytes, output: int) -> None:
    assert held(stage, raw) == min(-(-len(raw) // 4) + output, 10**16)


@pytest.mark.parametrize("soft", [True, False])
def test_an_absurd_wish_is_refused_or_counted_and_breaks_nothing(stage: Stage, soft: bool) -> None:
    stage.database.write(lambda: budgets.set_budget("user", stage.user.id, "total", "UTC", NANO, 0, soft=soft))
    ex = stage.begun(call(b'{"model":"m","max_tokens":' + b"9" * 300 + b"}"))
    if soft:
        assert stage.holds.reserve(ex, [candidate(price=price(rate=1000))], None)
    else:
        with pytest.raises(BudgetExceeded):
            stage.holds.reserve(ex, [candidate(price=price(rate=1000))], None)


def test_the_dearest_candidate_tier_and_bucket_count(stage: Stage) -> None:
    raw = b'{"model":"m","max_tokens":10}'
    cheap = candidate("a", price=price(rate=1000))
    dear = candidate("b", price=price(rate=1000, reasoning=9000))
    tiered = candidate("c", price=price_with_tier(20_000))
    told = -(-len(raw) // 4)
    assert held(stage, raw, cheap, dear) == told + 90
    assert held(stage, raw, cheap, tiered) == (told + 90) + (told * 20 + 200)


def price_with_tier(rate: int) -> Any:
    plain = price(rate=1000)
    return type(plain)(1, "m", 0, plain.rates, 0, "", 0, (Tier(10, dict.fromkeys(plain.rates, rate)),))


def test_a_dear_service_tier_counts_also_above_a_step_of_input(stage: Stage) -> None:
    plain = price(rate=1000)
    dear = dict.fromkeys(plain.rates, 5000)
    stepped = dataclasses.replace(plain, tiers=(Tier(10, plain.rates, {"priority": dear}),))
    raw = b'{"model":"m","max_tokens":10}'
    assert held(stage, raw, candidate(price=stepped)) == 5 * (-(-len(raw) // 4) + 10)


def test_a_picture_is_held_for_by_the_piece_and_not_by_its_bytes(stage: Stage) -> None:
    raw = b'{"model":"m","max_tokens":0,"messages":[{"url":"data:image/png;base64,' + b"A" * 100_000 + b'"}]}'
    assert 2_000 < held(stage, raw) < 2_100


@pytest.mark.parametrize(
    ("prompt", "answers"), [('"a"', 1), ('["a", "b", "c"]', 3), ("[[1, 2], [3]]", 2), ("[1, 2, 3]", 1), ("[]", 1), ('["a", ' + "9" * 5000 + "]", 1)]
)
def test_each_prompt_of_a_list_has_an_answer(prompt: str, answers: int) -> None:
    raw = f'{{"model":"m","max_tokens":7,"n":2,"prompt":{prompt}}}'.encode()
    assert choices_bound(call(raw, "openai_completions", "/completions")) == 2 * answers


def test_words_that_look_like_a_picture_are_held_for_by_their_bytes(stage: Stage) -> None:
    raw = b'{"model":"m","max_tokens":0,"messages":[{"role":"user","content":"' + b"say_a_word_" * 10_000 + b'"}]}'
    assert held(stage, raw) == -(-len(raw) // 4)


def test_no_room_is_told_with_whose_budget_and_when_it_begins_anew(stage: Stage) -> None:
    stage.budget(5, "month", "Europe/Berlin")
    with pytest.raises(BudgetExceeded) as caught:
        stage.holds.reserve(stage.begun(), [candidate(price=price(rate=1000))], None)
    assert (caught.value.status, caught.value.code) == (402, "budget_exceeded")
    assert "The user's budget of 0.000000005 USD for the month has no room" in caught.value.message
    assert "T00:00+0" in caught.value.message
    assert stage.holds.leaked() == []


def test_a_hold_that_outlives_its_call_is_noticed_by_its_own_clock(stage: Stage) -> None:
    stage.budget(NANO)
    ex = stage.begun()
    stage.holds.reserve(ex, [candidate(price=price())], None)
    total_s = candidate().deployment.deadlines.total_s
    stage.clock.now += total_s + GRACE_S - 1
    assert stage.holds.leaked() == []
    stage.clock.now += 2
    assert stage.holds.leaked() == [ex.id]
    stage.holds.closed(ex.id)
    assert stage.holds.leaked() == []


class Doubtful:
    """A database that says nothing about what it was told to write; `does` whether it was written all the same."""

    shared = False

    def __init__(self, database: Database, does: bool) -> None:
        self.database, self.does = database, does

    def write(self, work: Any) -> Any:
        if self.does:
            self.database.write(work)
        raise StoreUnavailable("the reply of the COMMIT is lost")


@pytest.mark.parametrize("does", [True, False])
def test_a_doubtful_hold_ends_whether_it_was_made_or_not(stage: Stage, tmp_path: Path, does: bool) -> None:
    budget = stage.budget(NANO)
    ex = stage.begun()
    doubtful = Holds(Doubtful(stage.database, does), "owner", 100, stage.clock)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable) as caught:
        doubtful.reserve(ex, [candidate(price=price())], None)
    assert caught.value.retry_after_s
    doubtful._database = stage.database  # it is back
    ledger = Books(stage.database, tmp_path).ledger
    assert doubtful.release_doubtful(lambda hold: ledger.book([ledger.abandoned(hold, Ending.REFUSED)])) == 1
    assert doubtful.release_doubtful(lambda hold: None) == 0
    assert stage.database.read(holds.owners) == set()
    entry = stage.database.read(lambda: find_entry(ex.id))
    assert (entry is not None and entry.ending == "refused") is does
    assert not does or stage.window(budget, ex).held == 0


class Shared:
    """A database that other workers write to at the same time; counts its own writes."""

    shared = True

    def __init__(self, database: Database) -> None:
        self.database, self.writes = database, 0

    def write(self, work: Any) -> Any:
        self.writes += 1
        return self.database.write(work)


def test_a_window_is_made_before_any_is_locked_and_once(stage: Stage) -> None:
    stage.budget(NANO)
    shared = Shared(stage.database)
    holds = Holds(shared, "owner", 100, stage.clock)  # type: ignore[arg-type]
    writes = []
    for _ in range(3):
        assert holds.reserve(stage.begun(), [candidate(price=price())], None)
        writes.append(shared.writes)
    assert writes == [2, 3, 4]
