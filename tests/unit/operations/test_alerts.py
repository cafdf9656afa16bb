from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import BadRequest, NotFound, UpstreamUnreachable
from gateway.operations import alerts
from gateway.secrets import Secrets
from gateway.store.alerts import webhook_place
from gateway.store.database import Database
from tests.unit.operations.times import AT

URL = "https://hooks.example.com:8443/services/T0/secret-path?x=1"


def test_a_secret_is_given_once_and_both_are_sealed_at_their_place(database: Database, secrets: Secrets) -> None:
    made = alerts.set_webhook(database, secrets.vault, "main", AT, url=URL)
    assert (made.webhook.shown, made.webhook.thresholds, made.webhook.rules) == ("https://hooks.example.com:8443/...", (80, 100), ("budget", "worker_lost"))
    assert made.secret is not None
    assert made.secret.startswith("whsec_")
    assert made.secret.encode() not in made.webhook.sealed
    assert json.loads(secrets.vault.open(made.webhook.sealed, webhook_place(made.webhook.id))) == {"url": URL, "secret": made.secret}


def test_a_change_keeps_what_it_does_not_name(database: Database, secrets: Secrets) -> None:
    first = alerts.set_webhook(database, secrets.vault, "main", AT, url=URL, thresholds=(100, 50, 50))
    again = alerts.set_webhook(database, secrets.vault, "main", AT, rules=("budget",))
    assert (again.secret, again.webhook.thresholds, again.webhook.rules) == (None, (50, 100), ("budget",))
    rotated = alerts.set_webhook(database, secrets.vault, "main", AT, new_secret=True)
    assert rotated.secret not in (None, first.secret)
    opened = json.loads(secrets.vault.open(rotated.webhook.sealed, webhook_place(1)))
    assert opened == {"url": URL, "secret": rotated.secret}


def test_a_webhook_that_ended_can_begin_again(database: Database, secrets: Secrets) -> None:
    alerts.set_webhook(database, secrets.vault, "main", AT, url=URL)
    alerts.end_webhook(database, "main", AT)
    assert alerts.list_webhooks(database) == []
    assert alerts.set_webhook(database, secrets.vault, "main", AT).secret is None
    assert [each.name for each in alerts.list_webhooks(database)] == ["main"]


WRONG: list[dict[str, Any]] = [
    {},
    {"url": "ftp://example.com/"},
    {"url": "https://"},
    {"url": "https://example.com"},
    {"url": "https://user:password@example.com/"},
    {"url": "https://example.com/#part"},
    {"url": "https://example.com/a b"},
    {"url": "https://[::1/x"},
    {"url": URL, "thresholds": (0,)},
    {"url": URL, "thresholds": (1001,)},
    {"url": URL, "thresholds": tuple(range(1, 30))},
    {"url": URL, "thresholds": ()},
    {"url": URL, "rules": ()},
    {"url": URL, "rules": ("weather",)},
]


@pytest.mark.parametrize("options", WRONG)
def test_what_cannot_be_is_refused_without_repeating_the_url_and_changes_nothing(database: Database, secrets: Secrets, options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        alerts.set_webhook(database, secrets.vault, "main", AT, **options)
    assert "example.com" not in str(caught.value)
    assert alerts.list_webhooks(database) == []


def test_a_test_says_what_was_answered_or_went_wrong(database: Database, secrets: Secrets) -> None:
    alerts.set_webhook(database, secrets.vault, "main", AT, url=URL)
    sent: list[tuple[str, dict[str, str], bytes]] = []

    def post(url: str, headers: Any, body: bytes) -> int:
        sent.append((url, dict(headers), body))
        if len(sent) == 3:
            raise UpstreamUnreachable("The upstream refused the connection.")
        return 200 if len(sent) == 1 else 404

    results = [alerts.send_test(database, secrets.vault, post, "main", AT) for _ in range(3)]
    assert results == [(200, ""), (404, "answered with 404"), (None, "The upstream refused the connection.")]
    assert (sent[0][0], json.loads(sent[0][2])["type"], sent[0][1]["webhook-id"]) == (URL, "test", f"test-{AT}")
    with pytest.raises(NotFound):
        alerts.send_test(database, secrets.vault, post, "other", AT)
