"""Alerts over real sockets: each once, signed, tried again, and never in anybody's way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.webhook import Webhook as Sender
from gateway.backend import Services
from gateway.core import alerts as core
from gateway.core.alerts import Alerts, passed, signed
from gateway.dialects.events import Usage
from gateway.operations import alerts as operations
from gateway.operations import batches
from gateway.operations.alerts import Made
from gateway.operations.batches import Owner
from gateway.secrets import KeyHasher, Vault
from gateway.store import accounts, alerts, budgets, holds
from gateway.store.alerts import Logged
from gateway.store.budgets import Window
from gateway.store.database import Database
from gateway.store.holds import Period
from gateway.store.models_alerts import DeliveryRow
from tests.factories import Clock, booked, migrated
from tests.fakes.answers import Redirect, Silent, Status
from tests.fakes.provider import Provider
from tests.unit.store.test_ledger import ENTRY

MIDNIGHT = 20_758 * 86_400_000
DAY_MS = 86_400_000
PATH = "/hook"


class Stage:
    """A budget of a user, a webhook, and who looks after both. The wall clock is the test's; deliveries are due in the database's time."""

    def __init__(self, database: Database, receiver: Provider, limit: int = 1_000, period: str = "day") -> None:
        self.database, self.receiver = database, receiver
        self.now = MIDNIGHT + 1_000
        self.vault = Vault({1: b"m" * 32}, 1)
        self.sender = Sender(Services())
        database.write(lambda: accounts.create_user("ann", 0))
        self.budget = database.write(lambda: budgets.set_budget("user", 1, period, "UTC", limit, 0))
        self.clock = Clock()
        self.alerts = self.another()

    def another(self, **options: Any) -> Alerts:
        return Alerts(self.database, self.vault, self.sender.post, clock=self.clock, wall_ms=lambda: self.now, **options)

    def webhook(self, name: str = "main", path: str = PATH, **options: Any) -> Made:
        return operations.set_webhook(self.database, self.vault, name, self.now, url=self.receiver.root + path, **options)

    def limit(self, limit: int) -> None:
        self.database.write(lambda: budgets.set_budget("user", 1, self.budget.period, "UTC", limit, self.now))

    def spend(self, amount: int) -> None:
        begins = self.now - self.now % DAY_MS
        period = Period(self.budget.id, begins, begins + DAY_MS) if self.budget.period == "day" else Period(self.budget.id, 0, None)

        def work() -> None:
            holds._windows({(period.budget_id, period.starts_at): period})
            (window,) = budgets.windows_of([self.budget.id], self.now)
            holds.move({window.id: (amount, 0)})

        self.database.write(work)

    def tick(self, who: Alerts | None = None) -> None:
        self.clock.now += 10
        (who or self.alerts).tick()

    def log(self) -> list[Logged]:
        return self.database.read(lambda: alerts.delivery_log(1_000))[::-1]

    def settled(self, count: int, timeout_s: float = 5.0) -> list[Logged]:
        """The log, once so many deliveries are done."""
        until = time.monotonic() + timeout_s
        while sum(each.state != "waiting" for each in self.log()) < count and time.monotonic() < until:
            time.sleep(0.01)
        return self.log()

    def events(self) -> list[tuple[int, str, str]]:
        return [(each.alert.threshold, each.event, each.state) for each in self.log()]


Staged = Callable[..., Stage]


@pytest.fixture
def receiver() -> Iterator[Provider]:
    with Provider() as receiver:
        receiver.always(PATH, Status(204, b""))
        yield receiver


@pytest.fixture
def staged(tmp_path: Path, receiver: Provider) -> Iterator[Staged]:
    with migrated(tmp_path) as database:
        stages: list[Stage] = []

        def make(**options: Any) -> Stage:
            stages.append(Stage(database, receiver, **options))
            return stages[-1]

        yield make
        for stage in stages:
            stage.sender.close()


def test_a_threshold_is_told_once_and_the_message_is_signed(staged: Staged, receiver: Provider) -> None:
    stage = staged()
    secret = stage.webhook().secret or ""
    stage.spend(850)
    for _ in range(3):
        stage.tick()
    assert [(each.state, each.status, each.attempts) for each in stage.settled(1)] == [("delivered", 204, 1)]
    (received,) = receiver.requests
    assert received.path == PATH
    told = received.json()
    assert (told["type"], told["timestamp"]) == ("budget.threshold", "2026-11-01T00:00:01Z")
    assert told["text"] == "80 % of the daily budget of user ann passed: 0.00000085 of 0.000001 USD are spent"
    assert (told["data"]["budget"]["name"], told["data"]["spent_nano_usd"], told["data"]["limit_nano_usd"]) == ("ann", 850, 1_000)
    assert (told["data"]["period_starts_at"], told["data"]["period_ends_at"]) == ("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z")

    id, at, mark = (received.headers[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    assert (id, at) == ("alert-1-firing", str(stage.now // 1000))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = hmac.new(key, f"{id}.{at}.".encode() + received.body, hashlib.sha256).digest()
    assert mark == "v1," + base64.b64encode(expected).decode()


def test_the_signature_is_that_of_the_specification() -> None:
    """Its own example: the same secret, id, time and body."""
    headers = dict(signed("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'))
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_hundred_crossings_at_once_are_one_delivery(staged: Staged, receiver: Provider) -> None:
    """Ten keepers, as of ten hosts, look while a hundred calls settle beyond the threshold."""
    stage = staged(limit=100)
    stage.webhook(thresholds=(80,))
    keepers = [stage.another() for _ in range(10)]
    stage.spend(79)

    def call(number: int) -> None:
        stage.spend(1)
        keeper = keepers[number % 10]
        keeper.look()
        keeper.tick()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(call, range(100)))
    for keeper in keepers:
        stage.tick(keeper)
    assert [(each.state, each.attempts) for each in stage.settled(1)] == [("delivered", 1)]
    time.sleep(0.1)
    assert len(receiver.requests) == 1


def test_each_threshold_is_one_and_a_new_period_is_told_anew(staged: Staged) -> None:
    stage = staged()
    stage.webhook(thresholds=(50, 80, 100))
    stage.spend(600)
    stage.tick()
    stage.spend(500)
    stage.tick()
    stage.settled(3)
    assert stage.events() == [(50, "firing", "delivered"), (80, "firing", "delivered"), (100, "firing", "delivered")]
    stage.now += DAY_MS + core.GRACE_MS
    stage.spend(510)
    stage.tick()
    stage.settled(7)
    assert sorted(stage.events()[3:]) == [(50, "firing", "delivered"), *((percent, "resolved", "delivered") for percent in (50, 80, 100))]
    assert {each.alert.period for each in stage.log() if each.event == "firing"} == {MIDNIGHT, MIDNIGHT + DAY_MS}


def test_a_call_that_is_settled_after_midnight_counts_for_its_own_period(staged: Staged) -> None:
    stage = staged()
    stage.webhook(thresholds=(80,))
    stage.spend(900)
    stage.now = MIDNIGHT + DAY_MS + 60_000
    stage.tick()
    stage.settled(1)
    assert [(each.alert.period, each.event) for each in stage.log()] == [(MIDNIGHT, "firing")]


@pytest.mark.parametrize("answers", [(Status(500), Status(503), Status(429)), (Status(404), Redirect("http://127.0.0.1/"), Status(500))])
def test_what_is_not_answered_with_success_is_sent_again_under_the_same_id(staged: Staged, receiver: Provider, answers: Any) -> None:
    stage = staged()
    stage.webhook(thresholds=(80,))
    keeper = stage.another(delays_s=[0] * 9)
    receiver.script(PATH, *answers)
    stage.spend(900)
    until = time.monotonic() + 5
    while len(receiver.requests) < 4 and time.monotonic() < until:
        stage.tick(keeper)
        time.sleep(0.01)
    assert [(each.state, each.attempts, each.status) for each in stage.settled(1)] == [("delivered", 4, 204)]
    assert {(each.headers["webhook-id"], each.body) for each in receiver.requests} == {("alert-1-firing", receiver.requests[0].body)}


def test_a_failure_waits_before_it_is_tried_again(staged: Staged, receiver: Provider) -> None:
    stage = staged()
    stage.webhook(thresholds=(80,))
    receiver.script(PATH, Status(500))
    stage.spend(900)
    stage.tick()
    receiver.wait_requests(1)
    for _ in range(3):
        time.sleep(0.05)
        stage.tick()
    (logged,) = stage.log()
    assert (logged.state, logged.attempts, logged.problem, len(receiver.requests)) == ("waiting", 1, "answered with 500", 1)


def test_the_last_failure_is_given_up_and_in_the_log(staged: Staged, receiver: Provider, caplog: pytest.LogCaptureFixture) -> None:
    stage = staged()
    stage.webhook(thresholds=(80,))
    receiver.always(PATH, Status(500))
    stage.spend(900)
    stage.tick(stage.another(delays_s=()))
    assert [(each.state, each.attempts) for each in stage.settled(1)] == [("given_up", 1)]
    assert "webhook main: answered with 500; given up" in caplog.text


def test_a_webhook_that_hangs_holds_up_neither_housekeeping_nor_another(staged: Staged, receiver: Provider) -> None:
    stage = staged()
    receiver.always("/hangs", Silent())
    stage.webhook("hangs", "/hangs", thresholds=(80,))
    stage.webhook("main", thresholds=(80,))
    stage.spend(900)
    begun = time.monotonic()
    stage.tick()
    assert time.monotonic() - begun < 2.0
    assert [each.webhook for each in stage.settled(1) if each.state == "delivered"] == ["main"]
    stage.spend(100)
    stage.tick()
    stage.tick()
    assert sum(each.path == "/hangs" for each in receiver.wait_requests(2)) == 1


def test_a_webhook_with_much_that_waits_holds_up_no_other(staged: Staged, receiver: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.core.alerts.AT_ONCE", 1)
    stage = staged()
    receiver.always("/hangs", Silent())
    stage.webhook("hangs", "/hangs", thresholds=(50, 80, 100))
    stage.spend(1_000)
    stage.tick()
    receiver.wait_requests(1)
    stage.webhook("main", thresholds=(100,))
    stage.tick()
    assert [each.webhook for each in stage.settled(1) if each.state == "delivered"] == ["main"]


def test_the_keys_of_a_whole_batch_pass_at_once(staged: Staged) -> None:
    """In less than a read may take: each name is looked up by itself, not in a list of all."""
    stage = staged()
    stage.webhook(thresholds=(80,))
    made = batches.create_batch(stage.database, KeyHasher(b"p" * 32), "course", 1_000, Owner(), 0, budget_nano=100)
    totals = stage.database.read(lambda: [each.id for each in budgets.list_budgets() if each.kind == "key"])
    stage.database.write(lambda: holds.move(dict.fromkeys(holds.total_windows(totals), (90, 0))))
    stage.alerts.look()
    told = [json.loads(row.body)["data"]["budget"]["name"] for row in stage.database.read(lambda: list(DeliveryRow.select()))]
    assert sorted(told) == sorted(f"{one.key.label} (#{one.key.id})" for one in made)


def test_a_raised_limit_resolves_and_can_be_passed_anew(staged: Staged, receiver: Provider) -> None:
    stage = staged()
    stage.webhook(thresholds=(80,))
    stage.spend(900)
    stage.tick()
    stage.settled(1)
    stage.limit(2_000)
    stage.tick()
    assert [each.event for each in stage.settled(2)] == ["firing", "resolved"]
    assert (receiver.wait_requests(2)[1].json()["type"], receiver.requests[1].json()["data"]["reason"]) == ("budget.resolved", "limit_changed")
    stage.spend(800)
    stage.tick()
    assert [(each.event, each.alert.limit_nano) for each in stage.settled(3)] == [("firing", 1_000), ("resolved", 1_000), ("firing", 2_000)]
    stage.limit(1_000)
    stage.tick()
    stage.settled(4)
    assert len([each for each in stage.log() if each.event == "firing"]) == 2


def test_each_webhook_has_thresholds_and_rules_of_its_own(staged: Staged) -> None:
    stage = staged()
    stage.webhook("early", thresholds=(50,))
    stage.webhook("late", thresholds=(100,))
    stage.webhook("lost", rules=("worker_lost",))
    stage.spend(700)
    stage.tick()
    booked(stage.database, replace(ENTRY, usage=Usage(), ending="worker_lost", usage_source="none", attempt=0, at=stage.now))
    for _ in range(2):
        stage.tick()
    told = sorted((each.webhook, each.alert.rule) for each in stage.settled(4))
    assert told == [("early", "budget"), ("early", "worker_lost"), ("late", "worker_lost"), ("lost", "worker_lost")]


def test_lost_calls_before_the_start_are_told_once_a_day(staged: Staged, receiver: Provider) -> None:
    stage = staged()
    stage.webhook(rules=("worker_lost",))
    lost = replace(ENTRY, usage=Usage(), ending="worker_lost", usage_source="none", attempt=0)
    booked(stage.database, replace(lost, exchange="old", at=stage.now - 2 * core.LOOK_BACK_MS))
    booked(stage.database, replace(lost, exchange="x1", at=stage.now - 1_000))
    stage.tick()
    booked(stage.database, replace(lost, exchange="x2", at=stage.now))
    stage.tick()
    stage.tick(stage.another())
    stage.settled(1)
    (received,) = receiver.wait_requests(1)
    assert received.json()["data"] == {"calls": 1, "exchanges": ["x1"]}


def test_a_secret_that_does_not_open_is_told_and_nothing_is_sent(staged: Staged, receiver: Provider) -> None:
    stage = staged()
    stage.webhook(thresholds=(80,))
    stage.vault = Vault({1: b"x" * 32}, 1)
    stage.spend(900)
    stage.tick(stage.another(delays_s=()))
    (logged,) = stage.settled(1)
    assert (logged.state, "another master key" in (logged.problem or ""), receiver.requests) == ("given_up", True, [])


def test_without_webhooks_and_without_a_database_nothing_happens(staged: Staged, receiver: Provider) -> None:
    stage = staged()
    stage.spend(900)
    stage.tick()
    stage.webhook()
    stage.database.close()
    stage.tick()
    assert receiver.requests == []


@pytest.mark.parametrize(("limit", "spent", "expected"), [(0, 0, [100]), (0, -5, []), (1_000, 799, []), (1_000, 800, [80]), (1_000, 5_000, [80, 100])])
def test_a_threshold_is_passed_by_what_is_spent(limit: int, spent: int, expected: list[int]) -> None:
    window = Window(1, 1, 0, None, limit, spent, 10_000)
    assert [percent for percent in (80, 100) if passed(percent, window)] == expected


def test_a_secret_is_in_no_message_and_no_row_that_is_shown(staged: Staged, receiver: Provider) -> None:
    stage = staged()
    made = stage.webhook(path="/hook?token=hidden", thresholds=(80,))
    assert "hidden" not in f"{made.webhook}"
    assert (made.secret or "") not in f"{made.webhook}"
    stage.spend(900)
    stage.tick()
    stage.settled(1)
    assert receiver.requests[0].query == "token=hidden"
    assert "hidden" not in json.dumps(receiver.requests[0].json())
