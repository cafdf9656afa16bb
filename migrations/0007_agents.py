"""Agents that connect in, the tokens that let them in, and keys that belong to one family of the API."""

from __future__ import annotations

from typing import Any

from peewee import AutoField, BigIntegerField, BlobField, Database, ForeignKeyField, IntegerField, Model, TextField


class Row(Model):
    class Meta:
        legacy_table_names = False


class Pool(Row):
    id = AutoField()

    class Meta:
        table_name = "pool"


class Enrolment(Row):
    id = AutoField()
    name = TextField(unique=True)
    hash = TextField(unique=True)
    prefix = TextField()
    suffix = TextField()
    models = TextField()
    pool = ForeignKeyField(Pool)
    created_at = BigIntegerField()
    expires_at = BigIntegerField(null=True)
    revoked_at = BigIntegerField(null=True)
    max_agents = IntegerField(null=True)

    class Meta:
        table_name = "enrolment"


class Agent(Row):
    credential = IntegerField(primary_key=True)
    enrolment = ForeignKeyField(Enrolment)
    name = TextField()
    models = TextField()
    protocol = IntegerField()
    software = TextField()
    concurrency = IntegerField()
    seen_at = BigIntegerField(index=True)

    class Meta:
        table_name = "agent"
        indexes = ((("enrolment", "name"), True),)


TABLES = (Enrolment, Agent)
COLUMNS = (("api_key", "family", TextField(null=True)), ("api_key", "sealed", BlobField(null=True)))


def up(migrator: Any, db: Database) -> None:
    with db.bind_ctx(TABLES):
        db.create_tables(TABLES, safe=False)
    migrator.migrate(*(migrator.add_column(table, name, field) for table, name, field in COLUMNS))
