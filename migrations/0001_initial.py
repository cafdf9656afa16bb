"""The first schema: accounts, the catalogue, credentials, exchanges and the ledger, whose rows nothing may change."""

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
    SqliteDatabase,
    TextField,
)


class Row(Model):
    class Meta:
        legacy_table_names = False


class Generation(Row):
    id = AutoField()
    value = BigIntegerField()

    class Meta:
        table_name = "generation"


class Mark(Row):
    name = TextField(primary_key=True)
    value = TextField()

    class Meta:
        table_name = "mark"


class User(Row):
    id = AutoField()
    name = TextField(unique=True)
    created_at = BigIntegerField()
    disabled_at = BigIntegerField(null=True)

    class Meta:
        table_name = "user"


class ApiKey(Row):
    id = AutoField()
    user = ForeignKeyField(User)
    label = TextField()
    hash = TextField(unique=True)
    prefix = TextField()
    suffix = TextField()
    models = TextField()
    created_at = BigIntegerField()
    expires_at = BigIntegerField(null=True)
    revoked_at = BigIntegerField(null=True)
    successor = ForeignKeyField("self", null=True)

    class Meta:
        table_name = "api_key"


class Pool(Row):
    id = AutoField()
    name = TextField(unique=True)

    class Meta:
        table_name = "pool"


class Credential(Row):
    id = AutoField()
    pool = ForeignKeyField(Pool)
    label = TextField(unique=True)
    sealed = BlobField()
    hint = TextField()
    version = IntegerField()
    created_at = BigIntegerField()
    disabled_at = BigIntegerField(null=True)

    class Meta:
        table_name = "credential"


class PublicModel(Row):
    id = AutoField()
    name = TextField(unique=True)
    on_client_gone = TextField()
    created_at = BigIntegerField()

    class Meta:
        table_name = "model"


class Deployment(Row):
    id = AutoField()
    name = TextField(unique=True)
    model = ForeignKeyField(PublicModel)
    backend = TextField()
    base_url = TextField()
    upstream_model = TextField(null=True)
    credential = ForeignKeyField(Credential, null=True)
    priority = IntegerField()
    weight = IntegerField()
    connect_s = DoubleField(null=True)
    first_byte_s = DoubleField(null=True)
    idle_s = DoubleField(null=True)
    total_s = DoubleField(null=True)
    include_usage = BooleanField()
    options = TextField()
    enabled = BooleanField()
    created_at = BigIntegerField()

    class Meta:
        table_name = "deployment"


class Price(Row):
    id = AutoField()
    model = TextField()
    valid_from = BigIntegerField()
    rates = TextField()
    per_call_nano = BigIntegerField()
    source = TextField()
    created_at = BigIntegerField()

    class Meta:
        table_name = "price"
        indexes = ((("model", "valid_from"), True),)


class Exchange(Row):
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


class Entry(Row):
    id = BigAutoField()
    exchange = TextField()
    kind = TextField()
    attempt = IntegerField()
    corrects = ForeignKeyField("self", null=True)
    api_key = BigIntegerField()
    user = BigIntegerField()
    team = BigIntegerField(null=True)
    amount = BigIntegerField()
    cost = BigIntegerField()
    input_uncached = BigIntegerField()
    cache_read = BigIntegerField()
    cache_write_5m = BigIntegerField()
    cache_write_1h = BigIntegerField()
    audio_in = BigIntegerField()
    image_in = BigIntegerField()
    output_text = BigIntegerField()
    reasoning = BigIntegerField()
    audio_out = BigIntegerField()
    usage_raw = TextField(null=True)
    flags = TextField()
    rates = TextField()
    price = BigIntegerField(null=True)
    ending = TextField()
    usage_source = TextField()
    model_asked = TextField()
    model_served = TextField()
    deployment = TextField()
    credential = TextField(null=True)
    first_byte_ms = BigIntegerField(null=True)
    total_ms = BigIntegerField()
    at = BigIntegerField(index=True)

    class Meta:
        table_name = "entry"
        indexes = ((("api_key", "at"), False), (("user", "at"), False))


Entry.add_index(Entry.exchange, Entry.kind, Entry.attempt, unique=True, where=Entry.corrects.is_null(), name="entry_original")

TABLES = (Generation, Mark, User, ApiKey, Pool, Credential, PublicModel, Deployment, Price, Exchange, Entry)

SQLITE_TRIGGERS = (
    "CREATE TRIGGER entry_keeps_updates_out BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END",
    "CREATE TRIGGER entry_keeps_deletes_out BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'ledger entries are append-only'); END",
)

POSTGRES_TRIGGERS = (
    """
    CREATE FUNCTION entry_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'ledger entries are append-only' USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    """
    CREATE TRIGGER entry_keeps_changes_out BEFORE UPDATE OR DELETE OR TRUNCATE ON entry
    FOR EACH STATEMENT EXECUTE FUNCTION entry_is_append_only()
    """,
)


def up(migrator: Any, db: Database) -> None:
    with db.bind_ctx(TABLES):
        db.create_tables(TABLES, safe=False)
        Generation.create(value=1)
    for statement in SQLITE_TRIGGERS if isinstance(db, SqliteDatabase) else POSTGRES_TRIGGERS:
        db.execute_sql(statement)
