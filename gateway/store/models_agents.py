"""The schema of agents, which connect in, and of the tokens that let them in."""

from __future__ import annotations

from peewee import AutoField, BigIntegerField, ForeignKeyField, IntegerField, TextField

from gateway.store.models import JsonField, PoolRow, Row


class EnrolmentRow(Row):
    """A token that lets agents in, kept as a hash. `models`: names and globs that they may serve. `pool`: where they stand.

    `max_agents`: how many there may be; null for the default.
    """

    id = AutoField()
    name = TextField(unique=True)
    hash = TextField(unique=True)
    prefix = TextField()
    suffix = TextField()
    models = JsonField()
    pool = ForeignKeyField(PoolRow)
    created_at = BigIntegerField()
    expires_at = BigIntegerField(null=True)
    revoked_at = BigIntegerField(null=True)
    max_agents = IntegerField(null=True)

    class Meta:
        table_name = "enrolment"


class AgentRow(Row):
    """What is known of a credential that is an agent. `name`: what it calls itself, "" where it does not. The rest is what it announced last."""

    credential = IntegerField(primary_key=True)
    enrolment = ForeignKeyField(EnrolmentRow)
    name = TextField()
    models = JsonField()
    protocol = IntegerField()
    software = TextField()
    concurrency = IntegerField()
    seen_at = BigIntegerField(index=True)

    class Meta:
        table_name = "agent"
        indexes = ((("enrolment", "name"), True),)


AGENTS: tuple[type[Row], ...] = (EnrolmentRow, AgentRow)
