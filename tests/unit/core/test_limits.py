from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.backend import Call, Services
from gateway.core import limits as limits_module
from gateway.core.catalog import Backends, Catalog
from gateway.core.exchange import Attempt, Exchange
from gateway.core.limits import CallLimits, Taken
from gateway.core.rests import Rest
from gateway.core.waiting import WaitingRoom
from gateway.dialects.events import Usage
from gateway.errors import Cancelled, RateLimited
from gateway.secrets import Vault
from gateway.settings import Settings
from gateway.state.base import Limit
from gateway.state.sqlite import DAY_MS, SqliteLimits
from gateway.store import catalog as rows
from gateway.store.budgets import AccountLimits
from tests.factories import Clock, call, deployment, exchange, migrated, principal

TESTER = AccountLimits("user", 1, 60, None, None)


class Stage:
    """Limits over a real state and a catalog that has one model, "m"."""

    def __init__(self, catalog: Catalog, directory: Path, database: Any) -> None:
        self._database, self._catalog = database, catalog
        self.state = SqliteLimits(directory, "me", lambda owner: True)
        self.room = WaitingRoom(self.state)
        self.clock = Clock()
        self.limits = CallLimits(self.state, catalog, self.room, 100, clock=self.clock)

    def model(self, **fields: Any) -> None:
        self._database.write(lambda: rows.set_model(1, **fields))
        self._catalog.refresh()

    def exchange(self, *limits: AccountLimits, made: Call | None = None, key: int = 1) -> Exchange:
        opened = exchange(made)
        opened.principal = dataclasses.replace(principal(key), limits=limits)
        return opened

    def admitted(self, *limits: AccountLimits, made: Call | None = None, key: int = 1) -> Exchange:
        opened = self.exchange(*limits, made=made, key=key)
        self.limits.admit(opened)
        return opened

    def remaining(self, *limits: Limit) -> list[int]:
        return [standing.remaining for standing in self.state.standings(limits)]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with migrated(tmp_path) as database:
        database.write(lambda: rows.create_model("m", 0))
        catalog = Catalog(database, Vault({1: b"m" * 32}, 1), Backends(Services()), Settings().deadlines, None, lambda *secrets: None)
        catalog.refresh()
        yield Stage(catalog, tmp_path / "run", database)


def ended(opened: Exchange, usage: Usage | None = None) -> None:
    """As the ledger ends a call that began."""
    opened.attempts.append(Attempt("d", None, "m", 0.0))
    opened.usage = usage
    opened.release()


def test_a_call_without_limits_touches_no_state(stage: Stage, tmp_path: Path) -> None:
    opened = stage.admitted()
    assert (opened.taken, list(opened.standings)) == (None, [])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (AccountLimits("key", 1, 1, None, None), "Your key's limit of 1 request a minute is reached. Try again in 60 s."),
        (AccountLimits("team", 4, None, None, 1), "Your team's limit of 1 call at once is reached. Try again in 1 s."),
        (AccountLimits("global", 0, None, 120, None), "The gateway's limit of 120 tokens a minute is reached; this call may use 104. Try again in 44 s."),
    ],
)
def test_a_refusal_says_whose_limit_it_is_and_when_to_come_back(stage: Stage, limits: AccountLimits, message: str) -> None:
    stage.admitted(limits)
    with pytest.raises(RateLimited) as caught:
        stage.admitted(limits)
    assert str(caught.value) == message
    assert caught.value.retry_after_s is not None


def test_a_models_limit_holds_for_everybody(stage: Stage) -> None:
    stage.model(rpm=1)
    stage.admitted(key=1)
    with pytest.raises(RateLimited, match="The model's limit of 1 request a minute"):
        stage.admitted(key=2)


def test_tokens_are_counted_by_what_the_call_used(stage: Stage) -> None:
    limit = Limit("user:1", tpm=1000)
    opened = stage.admitted(AccountLimits("user", 1, None, 1000, None), made=call(b'{"model":"m","max_tokens":500,"n":2}'))
    assert stage.remaining(limit) == [1000 - 1000]
    ended(opened, Usage(input_uncached=10, output_text=30))
    assert stage.remaining(limit)[0] == pytest.approx(960, abs=1)


def test_a_call_that_no_upstream_was_asked_for_consumes_nothing(stage: Stage) -> None:
    opened = stage.admitted(AccountLimits("user", 1, 60, 1000, 3))
    opened.release()
    opened.release()
    assert stage.remaining(Limit("user:1", 60, 1000, 3)) == [60, 1000, 3]


def test_a_call_that_failed_upstream_counts_as_a_request_of_no_tokens(stage: Stage) -> None:
    opened = stage.admitted(AccountLimits("user", 1, 60, 1000, 3))
    ended(opened, Usage())
    assert stage.remaining(Limit("user:1", 60, 1000, 3)) == [59, 1000, 3]


def test_an_absurd_usage_neither_stops_later_calls_nor_locks_everybody_out_for_days(stage: Stage) -> None:
    strict = AccountLimits("user", 1, None, 1, None)
    ended(stage.admitted(strict), Usage(input_uncached=10**9, output_text=10**9, reasoning=10**9))
    for _ in range(2):
        with pytest.raises(RateLimited) as caught:
            stage.admitted(strict)
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s <= 3700
    stage.admitted(AccountLimits("user", 2, None, 100, None))


def test_what_cannot_be_given_back_at_all_stops_nobody_else(stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    opened = stage.admitted(TESTER)

    def broken(*args: Any) -> None:
        raise OverflowError("too large")

    with monkeypatch.context() as patched:
        patched.setattr(stage.state, "finish", broken)
        ended(opened)
    assert "what a call took of its limits cannot be given back: OverflowError" in caplog.messages
    stage.admitted(TESTER)


@pytest.mark.parametrize("digits", [9, 2000, 4000])
def test_an_absurd_wish_for_tokens_is_refused_in_a_short_line(stage: Stage, digits: int) -> None:
    limits, number = AccountLimits("user", 1, None, 100, None), "9" * digits
    made = call(f'{{"model":"m","max_tokens":{number},"n":{number}}}'.encode())
    stage.admitted(limits)
    with pytest.raises(RateLimited) as caught:
        stage.admitted(limits, made=made)
    assert len(str(caught.value)) < 200


def test_the_answer_can_tell_what_is_left(stage: Stage) -> None:
    assert [(each.limit, each.remaining) for each in stage.admitted(TESTER).standings] == [(60, 59)]


def test_a_broken_state_lets_calls_through_and_says_so_once(tmp_path: Path, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("")
    with caplog.at_level(logging.WARNING):
        assert [stage.admitted(TESTER).taken for _ in range(3)] == [None] * 3
    assert len([line for line in caplog.messages if "limits are not enforced" in line]) == 1


def test_places_that_could_not_be_given_back_are_free_once_the_state_is_back(stage: Stage, tmp_path: Path) -> None:
    limits = AccountLimits("user", 1, None, None, 1)
    opened = stage.admitted(limits)
    stage.state.close()
    (tmp_path / "run").rename(tmp_path / "away")
    (tmp_path / "run").write_text("")
    ended(opened)
    (tmp_path / "run").unlink()
    (tmp_path / "away").rename(tmp_path / "run")
    stage.clock.now += 1.1
    stage.admitted(limits)


def test_places_that_could_not_be_given_back_are_given_back_without_another_call(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "BROKEN_S", 0.05)
    limits, other = AccountLimits("user", 1, None, None, 1), SqliteLimits(tmp_path / "run", "other", lambda owner: True)
    opened = stage.admitted(limits)
    stage.state.close()
    (tmp_path / "run").rename(tmp_path / "away")
    (tmp_path / "run").write_text("")
    ended(opened)
    (tmp_path / "run").unlink()
    (tmp_path / "away").rename(tmp_path / "run")
    wait_until(lambda: other.standings([Limit("user:1", concurrency=1)])[0].remaining == 1)


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Asking:
    """Calls that wait, each in a thread; `order` is that of their admission, by key."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.order, self.refused = stage, list[int](), list[Exception]()
        self.open: list[Exchange] = []
        self._threads: list[threading.Thread] = []

    def ask(self, key: int, limits: Sequence[AccountLimits] = ()) -> Exchange:
        opened = self.stage.exchange(*limits, key=key)

        def run() -> None:
            try:
                self.stage.limits.admit(opened)
            except Exception as error:
                self.refused.append(error)
            else:
                self.order.append(key)
                self.open.append(opened)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()
        return opened

    def join(self) -> None:
        for thread in self._threads:
            thread.join(5)


def test_calls_wait_for_a_busy_model_and_keys_take_turns(stage: Stage) -> None:
    stage.model(concurrency=1, queue_size=10, queue_s=5.0)
    running, crowd = stage.admitted(), Asking(stage)
    for count in range(1, 4):
        crowd.ask(1)
        wait_until(lambda count=count: stage.room.count == count)
    crowd.ask(2)
    wait_until(lambda: stage.room.count == 4)
    for count in range(1, 5):
        ended(running)
        wait_until(lambda count=count: len(crowd.open) == count)
        running = crowd.open[-1]
    crowd.join()
    assert (crowd.order, crowd.refused, stage.room.count) == ([1, 2, 1, 1], [], 0)


def test_who_waited_for_too_long_is_refused_and_leaves_the_queue(stage: Stage) -> None:
    stage.model(concurrency=1, queue_size=10, queue_s=0.1)
    running = stage.admitted()
    with pytest.raises(RateLimited, match="The model is busy, and too many calls wait for it") as caught:
        stage.admitted(key=2)
    assert caught.value.retry_after_s
    ended(running)
    ended(stage.admitted(key=2))
    assert stage.state.line("model:1").first is None


def test_a_full_queue_refuses_at_once_the_key_that_fills_it(stage: Stage) -> None:
    stage.model(concurrency=1, queue_size=2, queue_s=5.0)
    running, crowd = stage.admitted(), Asking(stage)
    crowd.ask(1)
    wait_until(lambda: stage.room.count == 1)
    crowd.ask(1)
    wait_until(lambda: stage.room.count == 2)
    with pytest.raises(RateLimited):
        stage.admitted(key=1)
    crowd.ask(2)  # a key with less of the queue takes the place of its last
    wait_until(lambda: len(crowd.refused) == 1)
    for count in (1, 2):
        ended(running)
        wait_until(lambda count=count: len(crowd.open) == count)
        running = crowd.open[-1]
    crowd.join()
    assert crowd.order == [1, 2]


def test_a_client_that_leaves_leaves_the_queue(stage: Stage) -> None:
    stage.model(concurrency=1, queue_size=10, queue_s=5.0)
    stage.admitted()
    crowd = Asking(stage)
    opened = crowd.ask(2)
    wait_until(lambda: stage.room.count == 1)
    opened.client_left()
    crowd.join()
    assert [type(error) for error in crowd.refused] == [Cancelled]
    assert stage.state.line("model:1").first is None


def test_a_keys_own_limit_refuses_it_also_in_a_queue_and_holds_nobody_up(stage: Stage) -> None:
    stage.model(concurrency=1, queue_size=10, queue_s=5.0)
    strict = [AccountLimits("key", 7, 2, None, None)]
    running, crowd = stage.admitted(*strict, key=7), Asking(stage)
    for count, key in enumerate((7, 7, 2), 1):
        crowd.ask(key, strict if key == 7 else ())
        wait_until(lambda count=count: stage.room.count == count)
    for count in (1, 2):
        ended(running)
        wait_until(lambda count=count: len(crowd.open) == count)
        running = crowd.open[-1]
    ended(running)
    crowd.join()
    assert crowd.order == [7, 2]
    assert [str(error).partition(" is")[0] for error in crowd.refused] == ["Your key's limit of 2 requests a minute"]


def test_a_days_calls_of_a_credential_are_counted_from_the_ledger_once_and_end_at_midnight(stage: Stage) -> None:
    asked: list[str] = []

    def calls_today(label: str) -> int:
        asked.append(label)
        return 3

    limits = CallLimits(stage.state, stage._catalog, WaitingRoom(stage.state), 100, calls_today)
    made = deployment("d", limit=Limit("credential:1", per_day=5))
    wall = [20_000 * DAY_MS + 1000]
    stage.state._wall = lambda: wall[0]
    found = [limits.lease(exchange(), made, str(number)) for number in range(3)]
    assert [isinstance(each, Taken) for each in found] == [True, True, False]
    assert asked == ["d-key"]
    full = found[2]
    assert isinstance(full, Rest)
    assert full.reason == "requests_today"
    assert full.until - time.monotonic() == pytest.approx(DAY_MS / 1000 - 1, abs=5)
    wall[0] += DAY_MS
    assert isinstance(limits.lease(exchange(), made, "next"), Taken)
    assert asked == ["d-key", "d-key"]
