"""Webhooks and what they are told. Their URLs and secrets go in sealed; a secret is shown once, when it is made."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.core.alerts import BUDGET, RULES, SECRET_PREFIX, Post, message, send
from gateway.errors import BadRequest, NotFound
from gateway.operations.names import check_name
from gateway.secrets import Vault
from gateway.store import alerts
from gateway.store.alerts import Logged, Webhook
from gateway.store.database import Database

THRESHOLDS = (80, 100)
SECRET_BYTES = 32
MAX_THRESHOLDS = 20


@dataclass(frozen=True, slots=True)
class Made:
    """`secret` is None where it stays as it was: it is never shown again. `replaced`: where messages went before, if that was changed."""

    webhook: Webhook
    secret: str | None
    replaced: str | None = None


def set_webhook(
    database: Database,
    vault: Vault,
    name: str,
    at: int,
    *,
    url: str | None = None,
    thresholds: Sequence[int] | None = None,
    rules: Sequence[str] | None = None,
    new_secret: bool = False,
) -> Made:
    """Make a webhook or change it: what is None stays as it is. Raises BadRequest."""
    check_name("webhook", name)
    shown = None if url is None else _shown(url)
    _check(thresholds, rules)

    def work() -> Made:
        known = alerts.find_webhook(name)
        if known is None and url is None:
            raise BadRequest(f"there is no webhook {name} yet: give its --url")
        before = known or alerts.create_webhook(name, THRESHOLDS, RULES, at)
        alerts.change_webhook(before.id, before.thresholds if thresholds is None else sorted(set(thresholds)), before.rules if rules is None else list(rules))
        old = json.loads(vault.open(known.sealed, alerts.webhook_place(known.id))) if known is not None else {}
        minted = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode() if known is None or new_secret else None
        target = {"url": url or old.get("url"), "secret": minted or old.get("secret")}
        sealed = vault.seal(json.dumps(target), alerts.webhook_place(before.id))
        replaced = known.shown if known is not None and url is not None and url != old.get("url") else None
        return Made(alerts.seal_webhook(before.id, shown or before.shown, sealed), minted, replaced)

    return database.write(work)


def _check(thresholds: Sequence[int] | None, rules: Sequence[str] | None) -> None:
    if thresholds is not None and (len(thresholds) > MAX_THRESHOLDS or not all(1 <= percent <= 1000 for percent in thresholds)):
        raise BadRequest(f"thresholds are percents from 1 to 1000, {MAX_THRESHOLDS} of them at most, such as 80,100")
    if rules is not None and (unknown := [rule for rule in rules if rule not in RULES]):
        raise BadRequest(f"there is no rule {unknown[0]!r}; there are {' and '.join(RULES)}")
    if (rules is not None and not rules) or (thresholds is not None and not thresholds and (rules is None or BUDGET in rules)):
        raise BadRequest("a webhook without rules or thresholds would be told nothing; gateway alert end ends it")


def _shown(url: str) -> str:
    """What of the URL may be seen: paths of webhooks are often secrets. Raises BadRequest, which does not repeat it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadRequest("the webhook's URL is malformed") from None
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise BadRequest("the webhook's URL must begin with http:// or https:// and name a host")
    if "@" in parts.netloc or "#" in url:
        raise BadRequest("the webhook's URL must not hold a user name, a password or a fragment")
    if not parts.path.startswith("/"):
        raise BadRequest("the webhook's URL must have a path, be it /")
    authority = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{authority}{f':{port}' if port else ''}/..."


def list_webhooks(database: Database) -> list[Webhook]:
    return database.read(alerts.list_webhooks)


def delivery_log(database: Database, limit: int) -> list[Logged]:
    """The newest first."""
    return database.read(lambda: alerts.delivery_log(limit))


def end_webhook(database: Database, name: str, at: int) -> None:
    """It is told nothing more. Raises NotFound."""
    database.write(lambda: alerts.end_webhook(name, at))


def send_test(database: Database, vault: Vault, post: Post, name: str, at: int) -> tuple[int | None, str]:
    """Send a message of the type "test" now: the answer's status, and what went wrong, or nothing. Raises NotFound."""
    found = [webhook for webhook in list_webhooks(database) if webhook.name == name]
    if not found:
        raise NotFound(f"There is no webhook {name}; `gateway alert list` shows all.")
    return send(post, vault, found[0], f"test-{at}", message("test", at, "a test of this webhook", {}), at)
