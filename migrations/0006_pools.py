"""Pools of several credentials: their policies and limits, the condition of each, what changed it, and which conversation is bound to whom."""

from __future__ import annotations

from typing import Any

from peewee import (
    AutoField,
    BigAutoField,
    BigIntegerField,
    BlobField,
    BooleanField,
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


class Pool(Row):
    id = AutoField()

    class Meta:
        table_name = "pool"


class Condition(Row):
    subject = TextField(primary_key=True)
    state = TextField()
    until_at = BigIntegerField(null=True)
    reason = TextField()
    rest_s = DoubleField()
    named = BooleanField()
    at = BigIntegerField()

    class Meta:
        table_name = "condition"


class Transition(Row):
    id = BigAutoField()
    at = BigIntegerField(index=True)
    subject = TextField()
    credential = TextField(null=True)
    deployment = TextField(null=True)
    model = TextField(null=True)
    before = TextField()
    after = TextField()
    until_at = BigIntegerField(null=True)
    reason = TextField()
    evidence = TextField()
    exchange = TextField(null=True)
    host = TextField()

    class Meta:
        table_name = "transition"
        indexes = ((("credential", "id"), False),)


class Conversation(Row):
    id = TextField(primary_key=True)
    pool = ForeignKeyField(Pool)
    credential = IntegerField()
    at = BigIntegerField(index=True)

    class Meta:
        table_name = "conversation"


class Refresh(Row):
    credential = IntegerField(primary_key=True)
    owner = TextField()
    version = IntegerField()
    state = TextField()
    deadline = BigIntegerField()
    at = BigIntegerField()
    sealed = BlobField(null=True)

    class Meta:
        table_name = "refresh"


TABLES = (Condition, Transition, Conversation, Refresh)
COLUMNS = (
    ("pool", "policy", TextField(null=True)),
    ("pool", "affinity", TextField(null=True)),
    ("deployment", "pool_id", ForeignKeyField(Pool, field=Pool.id, null=True)),
    ("credential", "extras", BlobField(null=True)),
    ("credential", "weight", IntegerField(null=True)),
    ("credential", "rpm", IntegerField(null=True)),
    ("credential", "tpm", IntegerField(null=True)),
    ("credential", "concurrency", IntegerField(null=True)),
    ("credential", "per_day", IntegerField(null=True)),
    ("credential", "proxy", TextField(null=True)),
    ("credential", "proxy_sealed", BlobField(null=True)),
    ("credential", "expires_at", BigIntegerField(null=True)),
    ("credential", "replaced_at", BigIntegerField(null=True)),
    ("credential", "draining_at", BigIntegerField(null=True)),
    ("credential", "tags", TextField(null=True)),
    ("credential", "notes", TextField(null=True)),
    ("credential", "fingerprint", TextField(null=True)),
)


def up(migrator: Any, db: Database) -> None:
    with db.bind_ctx(TABLES):
        db.create_tables(TABLES, safe=False)
    migrator.migrate(*(migrator.add_column(table, name, field) for table, name, field in COLUMNS))
    migrator.migrate(migrator.add_index("credential", ("fingerprint",)))
