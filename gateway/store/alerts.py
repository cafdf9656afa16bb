"""Alerts: what was told, to which webhook, and what still is on its way. To be called inside a work of `Database`.

Unique rows let each alert, and each delivery of it, come into being once, whoever looks at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peewee import fn

from gateway.errors import NotFound
from gateway.store.budgets import Budget, Window
from gateway.store.holds import now_sql
from gateway.store.models import database
from gateway.store.models_alerts import AlertRow, DeliveryRow, WebhookRow
from gateway.store.models_money import AccountRow, BudgetRow, BudgetWindowRow, EntryRow

FIRING, RESOLVED = "firing", "resolved"
"""Events of an alert."""
WAITING, DELIVERED, GIVEN_UP = "waiting", "delivered", "given_up"


def webhook_place(webhook_id: int) -> str:
    """What the sealed URL and secret are bound to."""
    return f"webhook:{webhook_id}:sealed"


@dataclass(frozen=True, slots=True)
class Webhook:
    """`shown`: its URL without what may be secret in it. `thresholds`: percents of a budget; `rules`: what it is told of."""

    id: int
    name: str
    shown: str
    sealed: bytes = field(repr=False)
    thresholds: tuple[int, ...]
    rules: tuple[str, ...]
    created_at: int
    ended_at: int | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """`id` is given by the database."""

    rule: str
    subject: int
    threshold: int
    period: int
    limit_nano: int
    at: int
    resolved_at: int | None = None
    id: int = 0

    @property
    def key(self) -> Key:
        """What makes it one of its own."""
        return self.rule, self.subject, self.threshold, self.period, self.limit_nano


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event on its way; `attempts` counts the one that is under way."""

    id: int
    alert_id: int
    webhook_id: int
    event: str
    body: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Logged:
    """A delivery as the log shows it."""

    alert: Alert
    webhook: str
    event: str
    state: str
    attempts: int
    status: int | None
    problem: str | None
    at: int
    delivered_at: int | None


def find_webhook(name: str) -> Webhook | None:
    row = WebhookRow.get_or_none(WebhookRow.name == name)
    return None if row is None else _webhook(row)


def list_webhooks(*, ended: bool = False) -> list[Webhook]:
    query = WebhookRow.select().order_by(WebhookRow.id)
    return [_webhook(row) for row in (query if ended else query.where(WebhookRow.ended_at.is_null()))]


def create_webhook(name: str, thresholds: Sequence[int], rules: Sequence[str], at: int) -> Webhook:
    """Without a URL: `seal_webhook` gives it one. Raises Conflict for a name that is taken."""
    return _webhook(WebhookRow.create(name=name, shown="", sealed=b"", thresholds=list(thresholds), rules=list(rules), created_at=at))


def change_webhook(webhook_id: int, thresholds: Sequence[int], rules: Sequence[str]) -> None:
    """It is in use again, if it had ended."""
    WebhookRow.update(thresholds=list(thresholds), rules=list(rules), ended_at=None).where(WebhookRow.id == webhook_id).execute()


def seal_webhook(webhook_id: int, shown: str, sealed: bytes) -> Webhook:
    WebhookRow.update(shown=shown, sealed=sealed).where(WebhookRow.id == webhook_id).execute()
    return _webhook(WebhookRow.get_by_id(webhook_id))


def end_webhook(name: str, at: int) -> None:
    """It is told nothing more; what waits is given up. Raises NotFound."""
    row = WebhookRow.get_or_none((WebhookRow.name == name) & WebhookRow.ended_at.is_null())
    if row is None:
        raise NotFound(f"There is no webhook {name}; `gateway alert list` shows all.")
    WebhookRow.update(ended_at=at).where(WebhookRow.id == row.id).execute()
    waiting = (DeliveryRow.webhook == row.id) & (DeliveryRow.state == WAITING)
    DeliveryRow.update(state=GIVEN_UP, problem="the webhook was ended").where(waiting).execute()


def crossed(percent: int, at: int, grace_ms: int) -> list[tuple[Budget, Window]]:
    """Windows of which at least `percent` are spent: those that are open, and those that ended less than `grace_ms` ago."""
    is_open = (BudgetWindowRow.starts_at <= at) & (BudgetWindowRow.ends_at.is_null() | (BudgetWindowRow.ends_at > at - grace_ms))
    passed = BudgetWindowRow.spent * 100 >= BudgetWindowRow.limit_nano * percent
    query = BudgetWindowRow.select(BudgetWindowRow, BudgetRow, AccountRow).join(BudgetRow).join(AccountRow)
    rows = query.where(BudgetRow.ended_at.is_null() & is_open & passed).order_by(BudgetWindowRow.id)
    return [_crossed(row) for row in rows]


Key = tuple[str, int, int, int, int]


def told(rule: str, windows: Sequence[Window]) -> dict[Key, set[int]]:
    """Of these windows' alerts, by their keys, the webhooks that have them, or will."""
    found: dict[Key, set[int]] = {}
    if windows:
        subjects, periods = {window.budget_id for window in windows}, {window.starts_at for window in windows}
        rows = AlertRow.select().where((AlertRow.rule == rule) & AlertRow.subject.in_(sorted(subjects)) & AlertRow.period.in_(sorted(periods)))
        alerts = {row.id: _alert(row).key for row in rows}
        found = {key: set() for key in alerts.values()}
        sent = DeliveryRow.select(DeliveryRow.alert, DeliveryRow.webhook).where((DeliveryRow.event == FIRING) & DeliveryRow.alert.in_(list(alerts)))
        for row in sent:
            found[alerts[row.__data__["alert"]]].add(row.__data__["webhook"])
    return found


def fire(alert: Alert, bodies: Mapping[int, str]) -> None:
    """Have this told to webhooks, by their ids, each once. To be called in a write; a second call does nothing."""
    columns = "rule, subject, threshold, period, limit_nano, at, resolved_at"
    values = (*alert.key, alert.at, alert.resolved_at)
    marks = ", ".join([database.param] * len(values))
    database.execute_sql(f"INSERT INTO alert ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING", values)  # noqa: S608
    rule, subject, threshold, period, limit_nano = alert.key
    same = (AlertRow.rule == rule) & (AlertRow.subject == subject) & (AlertRow.threshold == threshold)
    row = AlertRow.get(same & (AlertRow.period == period) & (AlertRow.limit_nano == limit_nano))
    for webhook_id, body in sorted(bodies.items()):
        _deliver(row.id, webhook_id, FIRING, body, alert.at)


def open_alerts(rule: str) -> list[tuple[Alert, Budget | None, Window | None]]:
    """Alerts that are not resolved, with the budget and the window that they are of."""
    rows = list(AlertRow.select().where((AlertRow.rule == rule) & AlertRow.resolved_at.is_null()).order_by(AlertRow.id))
    if not rows:
        return []
    query = BudgetWindowRow.select(BudgetWindowRow, BudgetRow, AccountRow).join(BudgetRow).join(AccountRow)
    ours = BudgetWindowRow.budget.in_(sorted({row.subject for row in rows})) & BudgetWindowRow.starts_at.in_(sorted({row.period for row in rows}))
    windows = query.where(ours)
    known = {(row.__data__["budget"], row.starts_at): _crossed(row) for row in windows}
    return [(_alert(row), *known.get((row.subject, row.period), (None, None))) for row in rows]


def resolve(alert_id: int, at: int, body: str) -> None:
    """Over, and told to those who were told that it began. A second call does nothing."""
    if not AlertRow.update(resolved_at=at).where((AlertRow.id == alert_id) & AlertRow.resolved_at.is_null()).execute():
        return
    query = DeliveryRow.select(DeliveryRow.webhook).join(WebhookRow)
    for row in query.where((DeliveryRow.alert == alert_id) & (DeliveryRow.event == FIRING) & WebhookRow.ended_at.is_null()):
        _deliver(alert_id, row.__data__["webhook"], RESOLVED, body, at)


def _deliver(alert_id: int, webhook_id: int, event: str, body: str, at: int) -> None:
    columns = "alert_id, webhook_id, event, body, state, attempts, next_at, claimed_until, at"
    values = (alert_id, webhook_id, event, body, WAITING, 0, 0, 0, at)
    marks = ", ".join([database.param] * len(values))
    database.execute_sql(f"INSERT INTO delivery ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING", values)  # noqa: S608


def due(webhook_id: int, limit: int) -> list[int]:
    """Of one webhook, the deliveries that should be on their way and are in nobody's hands, oldest first."""
    now = now_sql()
    free = f"webhook_id = {database.param} AND state = 'waiting' AND next_at <= {now} AND claimed_until <= {now}"
    sql = f"SELECT id FROM delivery WHERE {free} ORDER BY id LIMIT {int(limit)}"  # noqa: S608
    return [row[0] for row in database.execute_sql(sql, (webhook_id,)).fetchall()]


def claim(delivery_id: int, lease_ms: int) -> Delivery | None:
    """Take a delivery into one's hands for so long; None where it is in others', or done."""
    now, param = now_sql(), database.param
    free = f"id = {param} AND state = 'waiting' AND next_at <= {now} AND claimed_until <= {now}"
    sql = f"UPDATE delivery SET claimed_until = {now} + {param}, attempts = attempts + 1 WHERE {free}"  # noqa: S608
    if not database.execute_sql(sql, (lease_ms, delivery_id)).rowcount:
        return None
    row = DeliveryRow.get_by_id(delivery_id)
    return Delivery(row.id, row.__data__["alert"], row.__data__["webhook"], row.event, row.body, row.attempts)


def delivered(delivery_id: int, status: int, at: int) -> None:
    DeliveryRow.update(state=DELIVERED, status=status, problem=None, delivered_at=at, claimed_until=0).where(DeliveryRow.id == delivery_id).execute()


def failed(delivery_id: int, status: int | None, problem: str, again_ms: int | None) -> None:
    """To be tried again in so long; None: given up."""
    state, now, param = (GIVEN_UP if again_ms is None else WAITING), now_sql(), database.param
    values = (state, status, problem, again_ms or 0, delivery_id)
    given = ", ".join(f"{column} = {param}" for column in ("state", "status", "problem"))
    sql = f"UPDATE delivery SET {given}, next_at = {now} + {param}, claimed_until = 0 WHERE id = {param} AND state = 'waiting'"  # noqa: S608
    database.execute_sql(sql, values)


def forget(before: int, limit: int) -> int:
    """Delete alerts that were over before then, with their deliveries; how many."""
    old = AlertRow.select(AlertRow.id).where(AlertRow.resolved_at < before).order_by(AlertRow.id).limit(limit)
    ids = [row.id for row in old]
    if ids:
        DeliveryRow.delete().where(DeliveryRow.alert.in_(ids)).execute()
        AlertRow.delete().where(AlertRow.id.in_(ids)).execute()
    return len(ids)


def delivery_log(limit: int) -> list[Logged]:
    """The newest first."""
    query = DeliveryRow.select(DeliveryRow, AlertRow, WebhookRow).join(AlertRow).switch(DeliveryRow).join(WebhookRow)
    rows = query.order_by(DeliveryRow.id.desc()).limit(limit)
    return [Logged(_alert(row.alert), row.webhook.name, row.event, row.state, row.attempts, row.status, row.problem, row.at, row.delivered_at) for row in rows]


def lost_calls(after_id: int, since: int) -> tuple[int, list[str]]:
    """The newest entry's id, and the exchanges whose worker died, of entries after this one and since then."""
    newest = EntryRow.select(fn.MAX(EntryRow.id)).scalar() or 0
    lost = (EntryRow.id > after_id) & (EntryRow.at >= since) & (EntryRow.ending == "worker_lost") & (EntryRow.kind == "usage")
    return int(newest), [row.exchange for row in EntryRow.select(EntryRow.exchange).where(lost).order_by(EntryRow.id)]


def _webhook(row: WebhookRow) -> Webhook:
    return Webhook(row.id, row.name, row.shown, bytes(row.sealed), tuple(row.thresholds), tuple(row.rules), row.created_at, row.ended_at)


def _alert(row: AlertRow) -> Alert:
    return Alert(row.rule, row.subject, row.threshold, row.period, row.limit_nano, row.at, row.resolved_at, row.id)


def _crossed(row: Any) -> tuple[Budget, Window]:
    budget, account = row.budget, row.budget.account
    made = Budget(budget.id, account.kind, account.subject, budget.period, budget.timezone, budget.limit_nano, budget.soft, budget.created_at, budget.ended_at)
    return made, Window(row.id, budget.id, row.starts_at, row.ends_at, row.limit_nano, row.spent, row.held)
