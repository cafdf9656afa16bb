"""Money: teams, budgets with their windows, holds, idempotency, redeem codes; what a key, a model and a price may say of it."""

from __future__ import annotations

from typing import Any

from peewee import (
    AutoField,
    BigAutoField,
    BigIntegerField,
    BlobField,
    BooleanField,
    CompositeKey,
    Database,
    DoubleField,
    ForeignKeyField,
    IntegerField,
    Model,
    TextField,
)


class Row(Model):
    class Meta:
        legacy_table_names = False


class Team(Row):
    id = AutoField()
    name = TextField(unique=True)
    markup_ppm = BigIntegerField()
    created_at = BigIntegerField()

    class Meta:
        table_name = "team"


class Account(Row):
    id = AutoField()
    kind = TextField()
    subject = BigIntegerField()
    rpm = IntegerField(null=True)
    tpm = IntegerField(null=True)
    concurrency = IntegerField(null=True)

    class Meta:
        table_name = "account"
        indexes = ((("kind", "subject"), True),)


class Budget(Row):
    id = AutoField()
    account = ForeignKeyField(Account)
    period = TextField()
    timezone = TextField()
    limit_nano = BigIntegerField()
    soft = BooleanField()
    created_at = BigIntegerField()
    ended_at = BigIntegerField(null=True)

    class Meta:
        table_name = "budget"


class BudgetWindow(Row):
    id = BigAutoField()
    budget = ForeignKeyField(Budget)
    starts_at = BigIntegerField()
    ends_at = BigIntegerField(null=True)
    limit_nano = BigIntegerField()
    spent = BigIntegerField()
    held = BigIntegerField()

    class Meta:
        table_name = "budget_window"
        indexes = ((("budget", "starts_at"), True),)


class Hold(Row):
    id = TextField(primary_key=True)
    state = TextField()
    owner = TextField()
    deadline = BigIntegerField()
    api_key = BigIntegerField()
    user = BigIntegerField()
    team = BigIntegerField(null=True)
    model = TextField()
    at = BigIntegerField(index=True)

    class Meta:
        table_name = "hold"


class HoldLine(Row):
    hold = ForeignKeyField(Hold)
    window = ForeignKeyField(BudgetWindow)
    amount = BigIntegerField()

    class Meta:
        table_name = "hold_line"
        primary_key = CompositeKey("hold", "window")


class Idempotency(Row):
    id = BigAutoField()
    api_key = BigIntegerField()
    key = TextField()
    fingerprint = TextField()
    exchange = TextField()
    owner = TextField()
    state = TextField()
    status = IntegerField(null=True)
    headers = TextField(null=True)
    body = BlobField(null=True)
    at = BigIntegerField(index=True)

    class Meta:
        table_name = "idempotency"
        indexes = ((("api_key", "key"), True),)


class RedeemCode(Row):
    id = AutoField()
    hash = TextField(unique=True)
    suffix = TextField()
    amount = BigIntegerField()
    note = TextField()
    created_at = BigIntegerField()
    expires_at = BigIntegerField(null=True)
    revoked_at = BigIntegerField(null=True)
    redeemed_at = BigIntegerField(null=True)
    redeemed_by = BigIntegerField(null=True)

    class Meta:
        table_name = "redeem_code"


Budget.add_index(Budget.account, Budget.period, unique=True, where=Budget.ended_at.is_null(), name="budget_current")


Hold.add_index(Hold.owner, where=(Hold.state == "held"), name="hold_open")

TABLES = (Team, Account, Budget, BudgetWindow, Hold, HoldLine, Idempotency, RedeemCode)
COLUMNS = (
    ("user", "team_id", ForeignKeyField(Team, field=Team.id, null=True)),
    ("api_key", "denied_models", TextField(null=True)),
    ("api_key", "scopes", TextField(null=True)),
    ("api_key", "networks", TextField(null=True)),
    ("api_key", "batch", TextField(null=True)),
    ("model", "max_output", IntegerField(null=True)),
    ("model", "rpm", IntegerField(null=True)),
    ("model", "tpm", IntegerField(null=True)),
    ("model", "concurrency", IntegerField(null=True)),
    ("model", "queue_size", IntegerField(null=True)),
    ("model", "queue_s", DoubleField(null=True)),
    ("price", "tiers", TextField(null=True)),
    ("price", "variants", TextField(null=True)),
    ("entry", "markup_ppm", BigIntegerField(null=True)),
    ("entry", "windows", TextField(null=True)),
    ("entry", "note", TextField(null=True)),
    ("entry", "seal", TextField(null=True)),
)
"""All may be null: filling in a default would be an UPDATE, which the ledger's trigger refuses."""


def up(migrator: Any, db: Database) -> None:
    with db.bind_ctx(TABLES):
        db.create_tables(TABLES, safe=False)
    migrator.migrate(*(migrator.add_column(table, name, field) for table, name, field in COLUMNS))
    migrator.migrate(migrator.add_index("api_key", ("batch",)), migrator.add_index("entry", ("team", "at")))
