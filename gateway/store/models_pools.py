"""The schema of what happens to credentials and deployments; the pools and credentials themselves are models.py's."""

from __future__ import annotations

from peewee import BigAutoField, BigIntegerField, BlobField, BooleanField, DoubleField, ForeignKeyField, IntegerField, TextField

from gateway.store.models import JsonField, PoolRow, Row

ASKED, GOT, FAILED, REFUSED = "asked", "got", "failed", "refused"
"""What became of a refresh."""


class ConditionRow(Row):
    """What keeps a subject from being called. A subject is "deployment:7", "credential:3-AT.1" (made AT, the first
    version of its secret) or "credential:3-AT.1:MODEL".

    `state`: "cooling", "probing", "quarantined", "expired"; what is active has no row. `until_at`: null for no end. `rest_s`: how long this rest
    is, from which the next is made; `named`: the upstream itself named its end.
    """

    subject = TextField(primary_key=True)
    state = TextField()
    until_at = BigIntegerField(null=True)
    reason = TextField()
    rest_s = DoubleField()
    named = BooleanField()
    at = BigIntegerField()

    class Meta:
        table_name = "condition"


class TransitionRow(Row):
    """A change of a condition, with its evidence: the status, the header and the words that caused it. `host` made it. Retention may delete it."""

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
    evidence = JsonField()
    exchange = TextField(null=True)
    host = TextField()

    class Meta:
        table_name = "transition"
        indexes = ((("credential", "id"), False),)


class ConversationRow(Row):
    """To which credential of a pool a conversation is bound. `id` is a hash of the pool, the key and what the client calls it."""

    id = TextField(primary_key=True)
    pool = ForeignKeyField(PoolRow)
    credential = IntegerField()
    at = BigIntegerField(index=True)

    class Meta:
        table_name = "conversation"


class RefreshRow(Row):
    """That a credential's secret is being replaced: written before its issuer is asked. `version`: of the secret that is to be replaced.

    `state`: "asked", then "got" with what the issuer gave, sealed; the row goes when it is in force. "failed": it is asked again after `deadline`;
    "refused": not before the credential changes. `at`: when it was first asked for. Both times are the database's own.
    """

    credential = IntegerField(primary_key=True)
    owner = TextField()
    version = IntegerField()
    state = TextField()
    deadline = BigIntegerField()
    at = BigIntegerField()
    sealed = BlobField(null=True)

    class Meta:
        table_name = "refresh"


POOLS: tuple[type[Row], ...] = (ConditionRow, TransitionRow, ConversationRow, RefreshRow)
