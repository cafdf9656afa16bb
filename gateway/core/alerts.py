"""Alerts: looks at budgets and lost calls, and has what passed a threshold told to webhooks, once each.

Called by housekeeping, of one worker of a host; hosts agree by unique rows. A webhook has a thread (or greenlet) of its own while it is sent to,
so that one that hangs holds up nobody. A delivery may arrive twice, where its answer was lost: its id is the same then.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from gateway.backend import Headers
from gateway.concurrency import spawn
from gateway.core.pricing import usd
from gateway.errors import GatewayError
from gateway.secrets import SecretsError, Vault
from gateway.store import accounts, alerts
from gateway.store.alerts import FIRING, RESOLVED, Alert, Delivery, Webhook
from gateway.store.budgets import Budget, Window
from gateway.store.database import Conflict, Database

log = logging.getLogger(__name__)
SENDER = "backends.webhook:Webhook"
"""The transport of messages, by its name: the gateway imports no backend."""
BUDGET, WORKER_LOST = "budget", "worker_lost"
RULES = (BUDGET, WORKER_LOST)
LOOK_EVERY_S = 5.0
GRACE_MS = 600_000
"""A call that began before midnight is settled in the period that is over."""
LOOK_BACK_MS = 3_600_000
DAY_MS = 86_400_000
LEASE_MS = 60_000
AT_ONCE = 100
TOGETHER = 50
"""Alerts a transaction."""
DELAYS_S = (10, 60, 300, 1_800, 7_200, 21_600, 43_200)
"""Between attempts; after the last of them a delivery is given up, most of a day after the first."""
SECRET_PREFIX = "whsec_"  # noqa: S105
Item = TypeVar("Item")
Post = Callable[[str, Headers, bytes], int]
"""Sends a message and says with which status it was answered."""


@dataclass(frozen=True, slots=True)
class _Due:
    """An alert that is still to be told to these webhooks."""

    alert: Alert
    webhooks: tuple[Webhook, ...]
    body: str


class Alerts:
    """`learn` is told what must not be shown in a log. `delays_s`: how long to wait after each failed attempt."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        post: Post,
        learn: Callable[..., None] = lambda *secrets: None,
        delays_s: Sequence[float] = DELAYS_S,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._database, self._vault, self._post, self._learn = database, vault, post, learn
        self._delays_s, self._clock, self._wall_ms = tuple(delays_s), clock, wall_ms
        self._webhooks: dict[int, Webhook] = {}
        self._busy: set[int] = set()
        self._look_at = 0.0
        self._seen: int | None = None

    def tick(self) -> None:
        """Never raises, and waits for no webhook: what a database that is away leaves undone is done later."""
        try:
            if self._clock() >= self._look_at:
                self._look_at = self._clock() + LOOK_EVERY_S
                self.look()
            if self._webhooks:
                self._start_deliveries()
        except GatewayError as error:
            log.debug("alerts wait: %s", error)
        except Exception as error:  # housekeeping's task: the loop must go on
            log.error("alerts failed: %s", type(error).__name__, exc_info=error)

    def look(self) -> None:
        """Have what passed a threshold, or is over, delivered. Raises StoreUnavailable."""
        now = self._wall_ms()
        self._webhooks = {webhook.id: webhook for webhook in self._database.read(alerts.list_webhooks)}
        if not self._webhooks:
            self._seen = None
            return
        newest, lost = self._lost(now)
        for some in _parts([*self._database.read(lambda: self._crossed(now)), *lost]):
            self._once(partial(_fire, some))
        self._seen = newest
        for ended in _parts(self._database.read(lambda: self._over(now))):
            self._once(partial(_resolve, ended, now))

    def _once(self, work: Callable[[], None]) -> None:
        try:
            self._database.write(work)
        except Conflict as error:
            log.debug("another host was first: %s", error)

    def _crossed(self, now: int) -> list[_Due]:
        webhooks = [webhook for webhook in self._webhooks.values() if BUDGET in webhook.rules and webhook.thresholds]
        if not webhooks:
            return []
        found = alerts.crossed(min(percent for webhook in webhooks for percent in webhook.thresholds), now, GRACE_MS)
        told = alerts.told(BUDGET, [window for _, window in found])
        due = []
        for budget, window in found:
            for percent in sorted({percent for webhook in webhooks for percent in webhook.thresholds if passed(percent, window)}):
                alert = Alert(BUDGET, budget.id, percent, window.starts_at, window.limit_nano, now)
                waiting = [each for each in webhooks if percent in each.thresholds and each.id not in told.get(alert.key, ())]
                if waiting:
                    due.append(_Due(alert, tuple(waiting), budget_message(alert, budget, window, FIRING, "")))
        return due

    def _over(self, now: int) -> list[tuple[Alert, str]]:
        return [
            (alert, budget_message(alert, budget, window, RESOLVED, reason))
            for alert, budget, window in alerts.open_alerts(BUDGET)
            if budget is not None and window is not None and (reason := why_over(alert, budget, window, now))
        ]

    def _lost(self, now: int) -> tuple[int | None, list[_Due]]:
        """Of calls that were booked as lost since the last look (after a start: of those of the last hour), and up to which entry it looked."""
        webhooks = tuple(webhook for webhook in self._webhooks.values() if WORKER_LOST in webhook.rules)
        if not webhooks:
            return None, []
        after, since = (0, now - LOOK_BACK_MS) if self._seen is None else (self._seen, 0)
        newest, lost = self._database.read(lambda: alerts.lost_calls(after, since))
        if not lost:
            return newest, []
        alert = Alert(WORKER_LOST, 0, 1, now - now % DAY_MS, 0, now, resolved_at=now)
        text = f"{len(lost)} calls ended with their worker: what the provider bills for them is charged to nobody"
        return newest, [_Due(alert, webhooks, message("worker_lost", now, text, {"calls": len(lost), "exchanges": lost[:20]}))]

    def _start_deliveries(self) -> None:
        idle = [webhook_id for webhook_id in self._webhooks if webhook_id not in self._busy]
        waiting = self._database.read(lambda: {webhook_id: alerts.due(webhook_id, AT_ONCE) for webhook_id in idle})
        for webhook_id, ids in waiting.items():
            if not ids:
                continue
            self._busy.add(webhook_id)
            spawn(lambda webhook=self._webhooks[webhook_id], ids=ids: self._deliver_all(webhook, ids), "alerts")  # type: ignore[misc]

    def _deliver_all(self, webhook: Webhook, ids: Sequence[int]) -> None:
        """One after the other; the first that fails leaves the rest for later."""
        try:
            for delivery_id in ids:
                delivery = self._database.write(lambda id=delivery_id: alerts.claim(id, LEASE_MS))  # type: ignore[misc]
                if delivery is not None and not self._deliver(webhook, delivery):
                    return
        except GatewayError as error:
            log.debug("alerts wait: %s", error)
        except Exception as error:  # a thread's outermost edge
            log.error("an alert was not delivered: %s", type(error).__name__, exc_info=error)
        finally:
            self._busy.discard(webhook.id)

    def _deliver(self, webhook: Webhook, delivery: Delivery) -> bool:
        status, problem = send(self._post, self._vault, webhook, f"alert-{delivery.alert_id}-{delivery.event}", delivery.body, self._wall_ms(), self._learn)
        if not problem:
            self._database.write(lambda: alerts.delivered(delivery.id, status or 0, self._wall_ms()))
            return True
        again_ms = int(self._delays_s[delivery.attempts - 1] * 1000) if delivery.attempts <= len(self._delays_s) else None
        self._database.write(lambda: alerts.failed(delivery.id, status, problem, again_ms))
        level = logging.ERROR if again_ms is None else logging.WARNING
        log.log(level, "webhook %s: %s%s", webhook.name, problem, "; given up" if again_ms is None else "")
        return False


def _parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[start : start + TOGETHER] for start in range(0, len(items), TOGETHER))


def _fire(some: Sequence[_Due]) -> None:
    for due in some:
        alerts.fire(due.alert, {webhook.id: due.body for webhook in due.webhooks})


def _resolve(ended: Sequence[tuple[Alert, str]], at: int) -> None:
    for alert, body in ended:
        alerts.resolve(alert.id, at, body)


def passed(percent: int, window: Window) -> bool:
    """Whether so much of the window is spent. Of a limit of 0 there are no parts: it is passed as a whole."""
    return window.spent * 100 >= window.limit_nano * percent and (window.limit_nano > 0 or percent >= 100)


def why_over(alert: Alert, budget: Budget, window: Window, now: int) -> str:
    """Why an alert is over; empty while it is not. For GRACE_MS calls are still settled in a period that has ended."""
    if budget.ended_at is not None:
        return "budget_ended"
    if window.ends_at is not None and window.ends_at + GRACE_MS <= now:
        return "period_over"
    if window.limit_nano != alert.limit_nano:
        return "limit_changed"
    return "" if passed(alert.threshold, window) else "spent_less"


def send(
    post: Post, vault: Vault, webhook: Webhook, message_id: str, body: str, now_ms: int, learn: Callable[..., None] = lambda *secrets: None
) -> tuple[int | None, str]:
    """One attempt: the status of the answer, if there was one, and what went wrong, or nothing."""
    try:
        target = json.loads(vault.open(webhook.sealed, alerts.webhook_place(webhook.id)))
    except SecretsError as error:
        return None, str(error)
    learn(target["url"], target["secret"])
    raw = body.encode()
    headers: Headers = (
        ("content-type", "application/json"),
        ("user-agent", "chat-gateway"),
        *signed(target["secret"], message_id, now_ms // 1000, raw),
    )
    try:
        status = post(target["url"], headers, raw)
    except GatewayError as error:
        return None, str(error)
    return status, "" if 200 <= status < 300 else f"answered with {status}"


def signed(secret: str, message_id: str, timestamp: int, body: bytes) -> Headers:
    """The headers of the Standard Webhooks specification: HMAC-SHA256 over id, Unix seconds and body, under the secret's bytes."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    mark = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return (("webhook-id", message_id), ("webhook-timestamp", str(timestamp)), ("webhook-signature", "v1," + base64.b64encode(mark).decode()))


def budget_message(alert: Alert, budget: Budget, window: Window, event: str, reason: str) -> str:
    """To be made inside a work of the database: names are looked up."""
    name = accounts.account_name(budget.kind, budget.subject)
    whose = name if budget.kind == "global" else f"{budget.kind} {name}"
    period = {"day": "daily", "month": "monthly", "total": "total"}[budget.period]
    said = f"{usd(window.spent)} of {usd(window.limit_nano)} USD are spent"
    text = f"{alert.threshold} % of the {period} budget of {whose} passed: {said}"
    if event == RESOLVED:
        text = f"no longer: {alert.threshold} % of the {period} budget of {whose} ({reason.replace('_', ' ')}): {said}"
    data: dict[str, Any] = {
        "threshold_percent": alert.threshold,
        "budget": {"id": budget.id, "kind": budget.kind, "name": name, "period": budget.period, "timezone": budget.timezone, "soft": budget.soft},
        "period_starts_at": None if budget.period == "total" else _iso(window.starts_at),
        "period_ends_at": None if window.ends_at is None else _iso(window.ends_at),
        "limit_usd": usd(window.limit_nano),
        "limit_nano_usd": window.limit_nano,
        "spent_usd": usd(window.spent),
        "spent_nano_usd": window.spent,
    }
    return message(f"budget.{'threshold' if event == FIRING else 'resolved'}", alert.at, text, data | ({"reason": reason} if reason else {}))


def message(kind: str, at: int, text: str, data: Mapping[str, Any]) -> str:
    """`text` is for people; chat programs show it as it is."""
    return json.dumps({"type": kind, "timestamp": _iso(at), "text": text, "data": data})


def _iso(at: int) -> str:
    return datetime.fromtimestamp(at // 1000, UTC).isoformat().replace("+00:00", "Z")
