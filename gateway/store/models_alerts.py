"""The schema of the alerts on one page. models.py says what holds for every row."""

from __future__ import annotations

from peewee import AutoField, BigAutoField, BigIntegerField, BlobField, ForeignKeyField, IntegerField, TextField

from gateway.store.models import JsonField, Row


class WebhookRow(Row):
    """Where alerts go. `sealed`: its URL and its secret, as JSON; `shown`: what of the URL may be seen. `thresholds`: percents of a budget."""

    id = AutoField()
    name = TextField(unique=True)
    shown = TextField()
    sealed = BlobField()
    thresholds = JsonField()
    rules = JsonField()
    created_at = BigIntegerField()
    ended_at = BigIntegerField(null=True)

    class Meta:
        table_name = "webhook"


class AlertRow(Row):
    """Something that is told once: for a `rule`, a `subject` (a budget's id, or 0), a `threshold` and a `period` (its beginning).

    A budget that got another limit can pass a threshold of it anew, so `limit_nano` is part of what makes an alert one of its own.
    """

    id = BigAutoField()
    rule = TextField()
    subject = BigIntegerField()
    threshold = IntegerField()
    period = BigIntegerField()
    limit_nano = BigIntegerField()
    at = BigIntegerField()
    resolved_at = BigIntegerField(null=True)

    class Meta:
        table_name = "alert"
        indexes = ((("rule", "subject", "threshold", "period", "limit_nano"), True),)


AlertRow.add_index(AlertRow.rule, where=AlertRow.resolved_at.is_null(), name="alert_open")


class DeliveryRow(Row):
    """An `event` (firing, resolved) of an alert on its way to a webhook. `state`: waiting, delivered or given_up.

    `next_at` and `claimed_until` are in the database's time: who claimed it delivers it. `status`, `problem`: of the last attempt.
    """

    id = BigAutoField()
    alert = ForeignKeyField(AlertRow)
    webhook = ForeignKeyField(WebhookRow)
    event = TextField()
    body = TextField()
    state = TextField()
    attempts = IntegerField()
    next_at = BigIntegerField()
    claimed_until = BigIntegerField()
    status = IntegerField(null=True)
    problem = TextField(null=True)
    at = BigIntegerField()
    delivered_at = BigIntegerField(null=True)

    class Meta:
        table_name = "delivery"
        indexes = ((("alert", "webhook", "event"), True),)


DeliveryRow.add_index(DeliveryRow.next_at, where=(DeliveryRow.state == "waiting"), name="delivery_waiting")

ALERTS: tuple[type[Row], ...] = (WebhookRow, AlertRow, DeliveryRow)
