"""Alerts on both databases: what comes into being once does so whoever looks at the same time, and who claims a delivery has it alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from gateway.dialects.events import Usage
from gateway.errors import NotFound
from gateway.store import alerts, budgets, holds
from gateway.store.alerts import Alert
from gateway.store.database import Database
from gateway.store.holds import Period
from tests.factories import booked
from tests.unit.store.test_ledger import ENTRY

DAY_MS = 86_400_000
ALERT = Alert("budget", 1, 80, 0, 1_000, 5)


def webhook(database: Database, name: str = "main") -> int:
    return database.write(lambda: alerts.create_webhook(name, (80, 100), ("budget",), 0)).id


def window(database: Database, limit: int, spent: int, period: str = "total", begins: int = 0, ends: int | None = None) -> int:
    made = database.write(lambda: budgets.set_budget("user", 1, period, "UTC", limit, 0))

    def spend() -> None:
        holds._windows({(made.id, begins): Period(made.id, begins, ends)})
        (found,) = [each for each in budgets.windows_of([made.id], begins) if each.starts_at == begins]
        holds.move({found.id: (spent, 0)})

    database.write(spend)
    return made.id


def test_an_alert_and_its_deliveries_come_into_being_once(database: Database) -> None:
    first, second = webhook(database), webhook(database, "other")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: database.write(lambda: alerts.fire(ALERT, {first: "{}", second: "{}"})), range(30)))
    assert [(each.webhook, each.event, each.state) for each in database.read(lambda: alerts.delivery_log(9))] == [
        ("other", "firing", "waiting"),
        ("main", "firing", "waiting"),
    ]
    database.write(lambda: alerts.fire(replace(ALERT, limit_nano=2_000), {first: "{}"}))
    assert len(database.read(lambda: alerts.delivery_log(9))) == 3


def test_a_delivery_is_in_one_s_hands_at_a_time(database: Database) -> None:
    first = webhook(database)
    database.write(lambda: alerts.fire(ALERT, {first: "body"}))
    (id,) = database.read(lambda: alerts.due(first, 9))
    with ThreadPoolExecutor(8) as pool:
        claimed = [each for each in pool.map(lambda _: database.write(lambda: alerts.claim(id, 60_000)), range(30)) if each is not None]
    assert [(each.body, each.attempts, each.event) for each in claimed] == [("body", 1, "firing")]
    assert database.read(lambda: alerts.due(first, 9)) == []


def test_who_claimed_and_died_leaves_the_delivery_to_others(database: Database) -> None:
    first = webhook(database)
    database.write(lambda: alerts.fire(ALERT, {first: "body"}))
    again = [database.write(lambda: alerts.claim(1, 0)) for _ in range(2)]
    assert [each.attempts if each else None for each in again] == [1, 2]


def test_a_failure_waits_for_its_turn_and_the_last_is_given_up(database: Database) -> None:
    first = webhook(database)
    database.write(lambda: alerts.fire(ALERT, {first: "body"}))
    database.write(lambda: alerts.claim(1, 60_000))
    database.write(lambda: alerts.failed(1, 500, "answered with 500", 60_000))
    assert database.read(lambda: alerts.due(first, 9)) == []
    database.write(lambda: alerts.failed(1, 500, "answered with 500", 0))
    assert database.read(lambda: alerts.due(first, 9)) == [1]
    database.write(lambda: alerts.failed(1, None, "unreachable", None))
    (logged,) = database.read(lambda: alerts.delivery_log(9))
    assert (logged.state, logged.problem, logged.status) == ("given_up", "unreachable", None)


def test_windows_that_are_open_or_ended_a_moment_ago_are_looked_at(database: Database) -> None:
    window(database, 1_000, 800)
    window(database, 1_000, 799, "month", 10 * DAY_MS, 40 * DAY_MS)
    day = window(database, 500, 500, "day", 10 * DAY_MS, 11 * DAY_MS)
    at = 11 * DAY_MS
    assert [(budget.period, found.spent) for budget, found in database.read(lambda: alerts.crossed(80, at - 1, 0))] == [("total", 800), ("day", 500)]
    assert [budget.period for budget, _ in database.read(lambda: alerts.crossed(80, at + 5, 10))] == ["total", "day"]
    assert [budget.period for budget, _ in database.read(lambda: alerts.crossed(80, at + 10, 10))] == ["total"]
    database.write(lambda: budgets.end_budget(day, at))
    assert [budget.period for budget, _ in database.read(lambda: alerts.crossed(80, at - 1, 0))] == ["total"]


def test_what_is_over_is_told_to_those_who_heard_of_it_and_are_in_use(database: Database) -> None:
    budget = window(database, 1_000, 800)
    first, second, _ = webhook(database), webhook(database, "other"), webhook(database, "third")
    alert = replace(ALERT, subject=budget)
    database.write(lambda: alerts.fire(alert, {first: "{}", second: "{}"}))
    ((found, its_budget, its_window),) = database.read(lambda: alerts.open_alerts("budget"))
    assert (found.key, its_budget and its_budget.id, its_window and its_window.spent) == (alert.key, budget, 800)
    database.write(lambda: alerts.end_webhook("other", 9))
    for _ in range(2):
        database.write(lambda: alerts.resolve(found.id, 9, "over"))
    assert database.read(lambda: alerts.open_alerts("budget")) == []
    assert [(each.webhook, each.event, each.state) for each in database.read(lambda: alerts.delivery_log(9))] == [
        ("main", "resolved", "waiting"),
        ("other", "firing", "given_up"),
        ("main", "firing", "waiting"),
    ]


def test_who_has_an_alert_is_known_by_its_key(database: Database) -> None:
    budget, first = window(database, 1_000, 800), webhook(database)
    database.write(lambda: alerts.fire(replace(ALERT, subject=budget), {first: "{}"}))
    found = database.read(lambda: alerts.told("budget", [each for _, each in alerts.crossed(80, 1, 0)]))
    assert found == {("budget", budget, 80, 0, 1_000): {first}}
    assert database.read(lambda: alerts.told("budget", [])) == {}


def test_lost_calls_are_those_after_an_entry(database: Database) -> None:
    lost = replace(ENTRY, usage=Usage(), ending="worker_lost", usage_source="none", attempt=0)
    booked(database, ENTRY)
    booked(database, replace(lost, exchange="x2"))
    assert database.read(lambda: alerts.lost_calls(0, ENTRY.at)) == (2, ["x2"])
    assert database.read(lambda: alerts.lost_calls(0, ENTRY.at + 1)) == (2, [])
    assert database.read(lambda: alerts.lost_calls(2, 0)) == (2, [])


def test_a_webhook_that_is_not_there_cannot_be_ended(database: Database) -> None:
    webhook(database)
    database.write(lambda: alerts.end_webhook("main", 1))
    with pytest.raises(NotFound):
        database.write(lambda: alerts.end_webhook("main", 1))
    assert database.read(alerts.list_webhooks) == []
    assert [each.name for each in database.read(lambda: alerts.list_webhooks(ended=True))] == ["main"]


def test_what_waits_for_one_webhook_is_none_of_another_s(database: Database) -> None:
    first, second = webhook(database), webhook(database, "other")
    for limit_nano in (1, 2):
        database.write(lambda limit_nano=limit_nano: alerts.fire(replace(ALERT, limit_nano=limit_nano), {first: "{}"}))  # type: ignore[misc]
    database.write(lambda: alerts.fire(ALERT, {first: "{}", second: "{}"}))
    assert [database.read(lambda id=id: alerts.due(id, 2)) for id in (first, second)] == [[1, 2], [4]]  # type: ignore[misc]


def test_alerts_that_are_over_are_forgotten_with_their_deliveries_and_open_ones_are_not(database: Database) -> None:
    first = webhook(database)
    for threshold in (50, 80, 100):
        database.write(lambda threshold=threshold: alerts.fire(replace(ALERT, threshold=threshold), {first: "{}"}))  # type: ignore[misc]
    database.write(lambda: alerts.resolve(1, 10, "{}"))
    database.write(lambda: alerts.resolve(2, 20, "{}"))
    assert [database.write(lambda: alerts.forget(20, 1)) for _ in range(2)] == [1, 0]
    assert [(each.alert.threshold, each.event) for each in database.read(lambda: alerts.delivery_log(9))] == [(80, "resolved"), (100, "firing"), (80, "firing")]
