"""Append-only money: what every call used, cost and was charged. Amounts are whole nano-USD. To be called inside a work of `Database`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from peewee import SQL, Case, fn

from gateway.dialects.events import BUCKETS, Usage
from gateway.store import exchanges
from gateway.store.engine import executemany, insert_sql
from gateway.store.exchanges import ExchangeRow
from gateway.store.models import database, storable
from gateway.store.models_money import BudgetWindowRow, EntryRow

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger. `kind`: usage, credit, adjust, rerate or void; `usage_source`: provider, estimated or none.

    `amount` is charged to the user, `cost` is what the operator pays; nano-USD, both negative where something is given back.
    `markup_ppm`: by how many millionths of the cost the amount is above it. `rates` are the pico-USD per token that were used (and
    "per_call", nano-USD), `price` the id of their row. `windows`: the budget windows whose `spent` the amount is part of.
    `deployment` and `credential` are a name and a label. When it is read back, `flags` holds the usage's own flags too. `api_key`
    and `user` are 0 where an entry is nobody's. `id` is given by the database.
    """

    exchange: str
    kind: str
    attempt: int
    api_key: int
    user: int
    amount: int
    cost: int
    usage: Usage
    ending: str
    usage_source: str
    model_asked: str
    model_served: str
    deployment: str
    total_ms: int
    at: int
    team: int | None = None
    corrects: int | None = None
    flags: tuple[str, ...] = ()
    rates: Mapping[str, int] = field(default_factory=dict)
    price: int | None = None
    credential: str | None = None
    first_byte_ms: int | None = None
    markup_ppm: int = 0
    windows: tuple[int, ...] = ()
    note: str | None = None
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over the entries of one group. `group` maps what was asked for to its value: ids for user and key."""

    group: Mapping[str, int | str]
    calls: int
    buckets: Mapping[str, int]
    amount: int
    cost: int


_PLAIN = (
    *("exchange", "kind", "attempt", "corrects", "api_key", "user", "team", "amount", "cost", "price", "ending", "usage_source"),
    *("model_asked", "model_served", "deployment", "credential", "first_byte_ms", "total_ms", "at", "markup_ppm", "note"),
)
_PLAIN_VALUES, _TOKENS = attrgetter(*_PLAIN), attrgetter(*BUCKETS)
_COLUMNS = (*("corrects_id" if name == "corrects" else name for name in _PLAIN), *BUCKETS, "usage_raw", "flags", "rates", "windows")
_INSERT = insert_sql("entry", _COLUMNS, "(exchange, kind, attempt) WHERE corrects_id IS NULL DO NOTHING")


def record(items: Sequence[tuple[Entry | None, ExchangeRow]]) -> Sequence[None]:
    """Book calls: made for `Batched`. What is booked already stays as it is; the exchange's row is replaced."""
    executemany(database, _INSERT, [_values(entry) for entry, _ in items if entry is not None])
    exchanges.save([exchange for _, exchange in items])
    return [None] * len(items)


Seal = Callable[[str], str]
"""A row's text to its seal, which only who has the pepper can make."""


def book_corrections(entries: Sequence[Entry], seal: Seal) -> None:
    """Entries that correct others: each takes its amount to the windows of its `windows`."""
    executemany(database, _INSERT, [_values(entry) for entry in entries])
    for entry in entries:
        BudgetWindowRow.update(spent=BudgetWindowRow.spent + entry.amount).where(BudgetWindowRow.id.in_(entry.windows)).execute()


def find_entry(exchange: str) -> Entry | None:
    """The last attempt's usage, as it was booked."""
    (clean,) = storable((exchange,))
    original = (EntryRow.exchange == clean) & (EntryRow.kind == "usage") & EntryRow.corrects.is_null()
    row = EntryRow.select().where(original).order_by(EntryRow.attempt.desc()).first()
    return None if row is None else _entry(row)


def entries(since: int, until: int, after_id: int, limit: int) -> list[Entry]:
    """A page of what was booked at since <= at < until, by id; the next page starts after the last id."""
    window = (EntryRow.at >= since) & (EntryRow.at < until) & (EntryRow.id > after_id)
    return [_entry(row) for row in EntryRow.select().where(window).order_by(EntryRow.id).limit(limit)]


def totals(since: int, until: int, by: Sequence[str]) -> list[Total]:
    """Sums over since <= at < until, grouped by any of user, key, model (as asked), deployment, ending, day (UTC). Raises KeyError for others.

    Corrections count in the sums, not as calls.
    """
    groups = {
        "user": EntryRow.user,
        "key": EntryRow.api_key,
        "model": EntryRow.model_asked,
        "deployment": EntryRow.deployment,
        "ending": EntryRow.ending,
        "day": EntryRow.at / SQL(str(DAY_MS)),  # a literal: PostgreSQL would take two parameters for two expressions
    }
    keys = [groups[name] for name in by]
    calls = Case(None, (((EntryRow.kind == "usage") & EntryRow.corrects.is_null(), 1),), 0)
    sums = [fn.SUM(column) for column in (calls, EntryRow.amount, EntryRow.cost, *(getattr(EntryRow, name) for name in BUCKETS))]
    query = EntryRow.select(*keys, *sums).where((EntryRow.at >= since) & (EntryRow.at < until)).group_by(*keys).order_by(*keys)
    return [_total(by, row) for row in query.tuples()]


def _total(by: Sequence[str], row: Any) -> Total:
    group = {name: _day(value) if name == "day" else value for name, value in zip(by, row, strict=False)}
    calls, amount, cost, *tokens = (int(value or 0) for value in row[len(by) :])  # PostgreSQL sums into decimals
    return Total(group, calls, dict(zip(BUCKETS, tokens, strict=True)), amount, cost)


def _day(number: int) -> str:
    return datetime.fromtimestamp(int(number) * DAY_MS // 1000, UTC).date().isoformat()


def _values(entry: Entry) -> Sequence[Any]:
    raw = None if entry.usage.raw is None else json.dumps(entry.usage.raw)
    flags = ",".join(dict.fromkeys((*entry.flags, *entry.usage.flags)))
    return storable((*_PLAIN_VALUES(entry), *_TOKENS(entry.usage), raw, flags, json.dumps(dict(entry.rates)), json.dumps(entry.windows)))


def _entry(row: EntryRow) -> Entry:
    plain = {name: row.__data__[name] for name in _PLAIN}
    usage = Usage(**{name: getattr(row, name) for name in BUCKETS}, raw=None if row.usage_raw is None else json.loads(row.usage_raw))
    flags = tuple(row.flags.split(",")) if row.flags else ()
    plain["markup_ppm"] = plain["markup_ppm"] or 0
    windows = tuple(json.loads(row.windows or "[]"))
    return Entry(**plain, usage=usage, flags=flags, rates=json.loads(row.rates), windows=windows, id=row.id)
