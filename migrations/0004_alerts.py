"""Alerts: the webhooks that they go to, what was told once, and the deliveries."""

from __future__ import annotations

from typing import Any

from peewee import AutoField, BigAutoField, BigIntegerField, BlobField, Database, ForeignKeyField, IntegerField, Model, TextField


class Row(Model):
    class Meta:
        legacy_table_names = False


class Webhook(Row):
    id = AutoField()
    name = TextField(unique=True)
    shown = TextField()
    sealed = BlobField()
    thresholds = TextField()
    rules = TextField()
    created_at = BigIntegerField()
    ended_at = BigIntegerField(null=True)

    class Meta:
        table_name = "webhook"


class Alert(Row):
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


class Delivery(Row):
    id = BigAutoField()
    alert = ForeignKeyField(Alert)
    webhook = ForeignKeyField(Webhook)
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


Alert.add_index(Alert.rule, where=Alert.resolved_at.is_null(), name="alert_open")

Delivery.add_index(Delivery.next_at, where=(Delivery.state == "waiting"), name="delivery_waiting")

TABLES = (Webhook, Alert, Delivery)


def up(migrator: Any, db: Database) -> None:
    with db.bind_ctx(TABLES):
        db.create_tables(TABLES, safe=False)
