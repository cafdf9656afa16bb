"""The schema of the money on one page: budgets, holds, the ledger, and what is paid with. models.py says what holds for every row."""

from __future__ import annotations

from peewee import AutoField, BigAutoField, BigIntegerField, BlobField, BooleanField, CompositeKey, ForeignKeyField, IntegerField, TextField

from gateway.store.models import CONFIGURATION, Row
from gateway.store.models_agents import AGENTS
from gateway.store.models_alerts import ALERTS
from gateway.store.models_pools import POOLS


class AccountRow(Row):
    """Who can have budgets and limits. `kind`: key, user, team or global; `subject`: the id of that row, 0 for global. A null limit is none."""

    id = AutoField()
    kind = TextField()
    subject = BigIntegerField()
    rpm = IntegerField(null=True)
    tpm = IntegerField(null=True)
    concurrency = IntegerField(null=True)

    class Meta:
        table_name = "account"
        indexes = ((("kind", "subject"), True),)


class BudgetRow(Row):
    """`period`: day, month or total, beginning in `timezone`; a soft budget refuses nothing. Once ended it counts nothing more."""

    id = AutoField()
    account = ForeignKeyField(AccountRow)
    period = TextField()
    timezone = TextField()
    limit_nano = BigIntegerField()
    soft = BooleanField()
    created_at = BigIntegerField()
    ended_at = BigIntegerField(null=True)

    class Meta:
        table_name = "budget"


BudgetRow.add_index(BudgetRow.account, BudgetRow.period, unique=True, where=BudgetRow.ended_at.is_null(), name="budget_current")


class BudgetWindowRow(Row):
    """One period of a budget. `spent` is the sum of the entries that name it, `held` that of the open holds' lines; both are caches."""

    id = BigAutoField()
    budget = ForeignKeyField(BudgetRow)
    starts_at = BigIntegerField()
    ends_at = BigIntegerField(null=True)
    limit_nano = BigIntegerField()
    spent = BigIntegerField()
    held = BigIntegerField()

    class Meta:
        table_name = "budget_window"
        indexes = ((("budget", "starts_at"), True),)


class HoldRow(Row):
    """What a call may still spend. `id` is its exchange's; `state`: held, settled, released or expired; `deadline` in the database's time."""

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


HoldRow.add_index(HoldRow.owner, where=(HoldRow.state == "held"), name="hold_open")


class HoldLineRow(Row):
    """What a hold takes of a window. Written four times a call: no index but the key."""

    hold = ForeignKeyField(HoldRow, index=False)
    window = ForeignKeyField(BudgetWindowRow, index=False)
    amount = BigIntegerField()

    class Meta:
        table_name = "hold_line"
        primary_key = CompositeKey("hold", "window")


class EntryRow(Row):
    """The ledger: append-only, triggers refuse UPDATE and DELETE. A row with `corrects` is a correction of that entry.

    `windows`: ids of the budget windows whose `spent` its amount is part of, as JSON; `markup_ppm`: by how much the amount is above the
    cost; `seal`: an HMAC over the rest of the row; null where an older version of the program wrote the row. `note`: an operator's words.
    """

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
    markup_ppm = BigIntegerField(null=True)
    windows = TextField(null=True)
    note = TextField(null=True)
    seal = TextField(null=True)

    class Meta:
        table_name = "entry"
        indexes = ((("api_key", "at"), False), (("user", "at"), False), (("team", "at"), False))


EntryRow.add_index(EntryRow.exchange, EntryRow.kind, EntryRow.attempt, unique=True, where=EntryRow.corrects.is_null(), name="entry_original")


class IdempotencyRow(Row):
    """An Idempotency-Key that a client sent. `state`: running or done; `body` is sealed, null where it was too large or was cut.

    `api_key` is the first of its rotations. `at`, in the database's time: while it runs, when others may take its owner for gone; then, when it ended.
    """

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


class RedeemCodeRow(Row):
    """A code that is worth `amount` once. Kept as a hash; `suffix` is what is shown of it."""

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


MODELS: tuple[type[Row], ...] = (
    *CONFIGURATION,
    AccountRow,
    BudgetRow,
    BudgetWindowRow,
    HoldRow,
    HoldLineRow,
    EntryRow,
    IdempotencyRow,
    RedeemCodeRow,
    *ALERTS,
    *POOLS,
    *AGENTS,
)
