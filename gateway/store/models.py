"""The schema of the configuration on one page; models_money.py has that of the money. Rows stay inside the store: query functions turn them into frozen values.

`migrations/` holds the same schema as it grew; a test proves that both agree. Times are milliseconds since 1970 UTC,
money is nano-USD, prices are pico-USD per token. `database` is bound once per process by `Database.bind`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from peewee import (
    AutoField,
    BigIntegerField,
    BlobField,
    BooleanField,
    DatabaseProxy,
    DoubleField,
    ForeignKeyField,
    IntegerField,
    Model,
    TextField,
)

database = DatabaseProxy()


class JsonField(TextField):
    """JSON kept as text: the same on both engines, and integers of any size come back as integers."""

    def db_value(self, value: Any) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def python_value(self, value: str | None) -> Any:
        return None if value is None else json.loads(value)


def storable(values: Sequence[Any]) -> tuple[Any, ...]:
    """The same values, with the characters replaced that a database refuses: clients choose some of them (a model's name)."""
    return tuple([_storable(value) if isinstance(value, str) else value for value in values])


def _storable(text: str) -> str:
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class Row(Model):
    class Meta:
        database = database
        legacy_table_names = False


class GenerationRow(Row):
    """One row, id 1. Raised in the transaction of every change that a worker's snapshot must follow."""

    id = AutoField()
    value = BigIntegerField()

    class Meta:
        table_name = "generation"


class MarkRow(Row):
    """By what a secret is recognised that is not here itself: "pepper"."""

    name = TextField(primary_key=True)
    value = TextField()

    class Meta:
        table_name = "mark"


class TeamRow(Row):
    """`markup_ppm`: what its users pay above the cost, in millionths of it; a discount is negative."""

    id = AutoField()
    name = TextField(unique=True)
    markup_ppm = BigIntegerField()
    created_at = BigIntegerField()

    class Meta:
        table_name = "team"


class UserRow(Row):
    id = AutoField()
    name = TextField(unique=True)
    created_at = BigIntegerField()
    disabled_at = BigIntegerField(null=True)
    team = ForeignKeyField(TeamRow, null=True)

    class Meta:
        table_name = "user"


class ApiKeyRow(Row):
    """`models`: names or globs that the key may use, none for all; `denied_models`: those of them that it may not; null for none.

    `scopes`: what it may do, null for everything; `networks`: from where it may be used, null for anywhere; `batch`: the name of the keys
    that were made together; `successor`: the key that a rotation put in its place. `family`: of the API that it opens, null for the gateway's
    own; `sealed`: the key itself, for a family that lists its keys.
    """

    id = AutoField()
    user = ForeignKeyField(UserRow)
    label = TextField()
    hash = TextField(unique=True)
    prefix = TextField()
    suffix = TextField()
    models = JsonField()
    created_at = BigIntegerField()
    expires_at = BigIntegerField(null=True)
    revoked_at = BigIntegerField(null=True)
    successor = ForeignKeyField("self", null=True)
    denied_models = JsonField(null=True)
    scopes = JsonField(null=True)
    networks = JsonField(null=True)
    batch = TextField(null=True, index=True)
    family = TextField(null=True)
    sealed = BlobField(null=True)

    class Meta:
        table_name = "api_key"


class PoolRow(Row):
    """`policy`: by what its credentials are chosen, null for the gateway's; `affinity`: "soft" or "hard", null for none."""

    id = AutoField()
    name = TextField(unique=True)
    policy = TextField(null=True)
    affinity = TextField(null=True)

    class Meta:
        table_name = "pool"


class CredentialRow(Row):
    """`version` is raised when the secret is replaced; `hint` is the last 4 characters of the secret, `fingerprint` a keyed hash of it.

    `extras`: what is presented beside the secret, a sealed JSON object of texts; null for nothing. `weight`: null for 1. The limits, `per_day`
    calls of a UTC day among them: null for unlimited. `proxy` is the proxy's URL as it is shown; null for the deployment's. `expires_at`: when
    the secret stops working; `replaced_at`: when its issuer gave it, null where an operator did; `draining_at`: since when it takes no new
    conversation.
    """

    id = AutoField()
    pool = ForeignKeyField(PoolRow)
    label = TextField(unique=True)
    sealed = BlobField()
    hint = TextField()
    version = IntegerField()
    created_at = BigIntegerField()
    disabled_at = BigIntegerField(null=True)
    extras = BlobField(null=True)
    weight = IntegerField(null=True)
    rpm = IntegerField(null=True)
    tpm = IntegerField(null=True)
    concurrency = IntegerField(null=True)
    per_day = IntegerField(null=True)
    proxy = TextField(null=True)
    proxy_sealed = BlobField(null=True)
    expires_at = BigIntegerField(null=True)
    replaced_at = BigIntegerField(null=True)
    draining_at = BigIntegerField(null=True)
    tags = JsonField(null=True)
    notes = TextField(null=True)
    fingerprint = TextField(null=True, index=True)

    class Meta:
        table_name = "credential"


class ModelRow(Row):
    """`name` is exact or a glob; `on_client_gone` is "cancel" or "drain". Limits of all its callers together; null for none.

    `max_output`: tokens that a call may answer where it names no limit itself, null for the default. `queue_size` calls may wait for
    at most `queue_s` seconds while the model is at a limit; null: none waits.
    """

    id = AutoField()
    name = TextField(unique=True)
    on_client_gone = TextField()
    created_at = BigIntegerField()
    max_output = IntegerField(null=True)
    rpm = IntegerField(null=True)
    tpm = IntegerField(null=True)
    concurrency = IntegerField(null=True)
    queue_size = IntegerField(null=True)
    queue_s = DoubleField(null=True)

    class Meta:
        table_name = "model"


class DeploymentRow(Row):
    """It presents one `credential`, or any of a `pool`; neither where its backend needs none.

    A deadline that is null is the settings' default. The lower `priority` is tried first. `proxy` is the proxy's URL as it is shown.
    """

    id = AutoField()
    name = TextField(unique=True)
    model = ForeignKeyField(ModelRow)
    backend = TextField()
    base_url = TextField()
    upstream_model = TextField(null=True)
    credential = ForeignKeyField(CredentialRow, null=True)
    priority = IntegerField()
    weight = IntegerField()
    connect_s = DoubleField(null=True)
    first_byte_s = DoubleField(null=True)
    idle_s = DoubleField(null=True)
    total_s = DoubleField(null=True)
    include_usage = BooleanField()
    options = JsonField()
    enabled = BooleanField()
    created_at = BigIntegerField()
    proxy = TextField(null=True)
    proxy_sealed = BlobField(null=True)
    pool = ForeignKeyField(PoolRow, null=True)

    class Meta:
        table_name = "deployment"


class PriceRow(Row):
    """`model` is the upstream's name, exact or a glob; `rates` maps a bucket to pico-USD per token.

    `tiers`: a list of {"above": tokens, "rates": {...}}, for calls with more input than that; `variants`, of the price and of a
    tier: rates by service tier ("batch", "flex", "priority"); null for none.
    """

    id = AutoField()
    model = TextField()
    valid_from = BigIntegerField()
    rates = JsonField()
    per_call_nano = BigIntegerField()
    source = TextField()
    created_at = BigIntegerField()
    tiers = JsonField(null=True)
    variants = JsonField(null=True)

    class Meta:
        table_name = "price"
        indexes = ((("model", "valid_from"), True),)


class ExchangeTableRow(Row):
    """What became of a call, without money; retention may delete it. No foreign keys, for that reason."""

    id = TextField(primary_key=True)
    owner = TextField(null=True)
    api_key = BigIntegerField(null=True)
    user = BigIntegerField(null=True)
    model = TextField(null=True)
    status = IntegerField()
    ending = TextField()
    receipt = TextField()
    at = BigIntegerField(index=True)

    class Meta:
        table_name = "exchange"
        indexes = ((("api_key", "at"), False),)


CONFIGURATION: tuple[type[Row], ...] = (
    GenerationRow,
    MarkRow,
    TeamRow,
    UserRow,
    ApiKeyRow,
    PoolRow,
    CredentialRow,
    ModelRow,
    DeploymentRow,
    PriceRow,
    ExchangeTableRow,
)
