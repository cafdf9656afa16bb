"""`gateway alert`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from gateway import plugins
from gateway.backend import Services
from gateway.cli.edge import FAILED
from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, remark, table
from gateway.cli.values import NAMES, Parsed
from gateway.core.alerts import BUDGET, RULES, SENDER
from gateway.core.pricing import usd
from gateway.operations import alerts
from gateway.store.alerts import Logged, Webhook


def parse_percents(text: str) -> tuple[int, ...]:
    """ "80,100". Raises ValueError."""
    parts = [part.strip().removesuffix("%").strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdecimal() and len(part) <= 4 for part in parts):
        raise ValueError("write percents such as 80,100")
    return tuple(int(part) for part in parts)


name_option = click.option("--name", default="main", show_default=True, help="Which webhook.")


@click.group()
def alert() -> None:
    """Alerts: signed messages to webhooks when a budget passes a threshold, or calls are lost. Each is sent once."""


@alert.command("set")
@name_option
@click.option("--url", metavar="URL", help="Where to; - reads it from standard input. It is kept sealed, and only its host is shown.")
@click.option("--threshold", "thresholds", type=Parsed("percents", parse_percents), metavar="80,100", help="Percents of a budget. Default: 80,100.")
@click.option("--rule", "rules", type=NAMES, metavar=",".join(RULES), help="What to tell of. Default: all.")
@click.option("--new-secret", is_flag=True, help="Make another secret for the signatures.")
@json_option
def set_alert(name: str, url: str | None, thresholds: tuple[int, ...] | None, rules: tuple[str, ...] | None, new_secret: bool, as_json: bool) -> None:
    """Make a webhook, or change it. Its secret is shown once; `gateway alert test` tries it."""
    address = sys.stdin.readline().strip() if url == "-" else url
    with opened() as here:
        vault = here.secrets().vault
        made = alerts.set_webhook(here.database, vault, name, now_ms(), url=address, thresholds=thresholds, rules=rules, new_secret=new_secret)
    lines = [f"webhook {name}: {made.webhook.shown}, {_told(made.webhook)}"]
    if made.replaced is not None:
        remark(f"the webhook {name} was there: what went to {made.replaced} goes to the new URL; --name makes another webhook")
    if made.secret is not None:
        lines += ["Its messages are signed with this secret, which is not shown again:", made.secret]
    emit(as_json, _document(made.webhook) | ({"secret": made.secret} if made.secret else {}), lambda: lines)


def _told(webhook: Webhook) -> str:
    percents = ", ".join(f"{percent} %" for percent in webhook.thresholds)
    return " and ".join(f"budgets at {percents}" if rule == BUDGET else "calls whose worker was lost" for rule in webhook.rules)


@alert.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many deliveries, the newest first.")
@json_option
def list_alerts(limit: int, as_json: bool) -> None:
    """List the webhooks, and what was sent to them."""
    with opened() as here:
        webhooks, log = alerts.list_webhooks(here.database), alerts.delivery_log(here.database, limit)
    document = {"webhooks": [_document(webhook) for webhook in webhooks], "deliveries": [_delivery(item) for item in log]}
    emit(as_json, document, lambda: _lines(webhooks, log))


def _lines(webhooks: Sequence[Webhook], log: Sequence[Logged]) -> list[str]:
    if not webhooks and not log:
        return ["No webhooks yet. Make one: gateway alert set --url https://..."]
    lines = table(("WEBHOOK", "WHERE", "TOLD OF"), [(each.name, each.shown, _told(each)) for each in webhooks]) if webhooks else ["No webhook is in use."]
    if not log:
        return [*lines, "", "Nothing was sent yet."]
    return [*lines, "", *table(("AT", "WEBHOOK", "ALERT", "EVENT", "STATE", "ATTEMPTS", "ANSWER"), map(_row, log), right=("ATTEMPTS",))]


def _row(item: Logged) -> tuple[object, ...]:
    one = item.alert
    what = f"budget {one.subject}, {one.threshold} % of {usd(one.limit_nano)}" if one.rule == BUDGET else one.rule
    return moment(item.at), item.webhook, what, item.event, item.state, item.attempts, item.problem or item.status or ""


@alert.command("test")
@name_option
@json_option
def test(name: str, as_json: bool) -> None:
    """Send a message of the type "test" from here, now; exit 1 where it is not answered with 2xx."""
    with opened() as here:
        sender = plugins.resolve(plugins.BACKENDS, SENDER)(Services(allow_networks=here.settings.allow_networks or ()))
        try:
            status, problem = alerts.send_test(here.database, here.secrets().vault, sender.post, name, now_ms())
        finally:
            sender.close()
    emit(as_json, {"webhook": name, "status": status, "problem": problem or None}, lambda: [f"webhook {name}: {problem or f'answered with {status}'}"])
    if problem:
        click.get_current_context().exit(FAILED)


@alert.command("end")
@click.argument("name")
@json_option
def end(name: str, as_json: bool) -> None:
    """End a webhook: it is told nothing more. `gateway alert set` begins it again."""
    with opened() as here:
        alerts.end_webhook(here.database, name, now_ms())
    emit(as_json, {"name": name, "ended": True}, lambda: [f"webhook {name} ended"])


def _document(webhook: Webhook) -> dict[str, Any]:
    return {"name": webhook.name, "url": webhook.shown, "thresholds": list(webhook.thresholds), "rules": list(webhook.rules)}


def _delivery(item: Logged) -> dict[str, Any]:
    one = item.alert
    return {
        "at": item.at,
        "webhook": item.webhook,
        "alert": one.id,
        "rule": one.rule,
        "subject": one.subject,
        "threshold_percent": one.threshold if one.rule == BUDGET else None,
        "limit_nano_usd": one.limit_nano if one.rule == BUDGET else None,
        "period": one.period,
        "event": item.event,
        "state": item.state,
        "attempts": item.attempts,
        "status": item.status,
        "problem": item.problem,
        "delivered_at": item.delivered_at,
        "resolved_at": one.resolved_at,
    }
