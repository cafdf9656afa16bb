"""Append-only money: what every call used, cost and was charged. Amounts are whole nano-USD. To be called inside a work of `Database`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from peewee import SQL, Case, fn

from gateway.dialects.events import BUCKETS, Usage
from gateway.store import budgets, exchanges, holds, idempotency
from gateway.store.exchanges import ExchangeRow
from gateway.store.idempotency import Completion
from gateway.store.models import database, storable
from gateway.store.models_money import EntryRow
from gateway.store.statements import executemany, insert_sql, pipelined

DAY_MS = 86_400_000
WITHHELD, DISPLACED = "withheld", "displaced"
UNCHARGED = frozenset({WITHHELD, DISPLACED})
"""Flags of calls that cost the operator something and nobody else: their end never left, or another call answered in their place."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger. `kind`: usage, attempt, credit, adjust, rerate or void; `usage_source`: provider, estimated or none.

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
    """Sums over the entries of one group. `group` maps what was asked for to its value: ids for team, user and key."""

    group: Mapping[str, int | str | None]
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
SEALED: tuple[str, ...] = _COLUMNS
"""The columns under the seal, as the database names them."""
_INSERT = insert_sql("entry", (*_COLUMNS, "seal"), "(exchange, kind, attempt) WHERE corrects_id IS NULL DO NOTHING")


Seal = Callable[[str], str]
"""A row's text to its seal, which only who has the pepper can make."""


@dataclass(frozen=True, slots=True)
class Booking:
    """The end of a call. `held`: it had a hold, whose closing decides whether there is anything to book. `exchange` None: its row stays.

    `claim`: what becomes of the Idempotency-Key that it came with. `attempts`: what providers bill for attempts that failed, on nobody's account.
    """

    entry: Entry | None
    exchange: ExchangeRow | None
    held: bool = False
    claim: Completion | None = None
    attempts: tuple[Entry, ...] = ()


def record(items: Sequence[Booking], seal: Seal) -> Sequence[bool]:
    """Book calls, and settle their holds: made for `Batched`. What is booked already stays as it is; the exchange's row is replaced.

    False for a call that is charged nothing, since another answered its Idempotency-Key in its place.
    """
    displaced = idempotency.complete([item.claim for item in items if item.claim is not None])
    items = [_uncharged(item) if item.claim is not None and item.claim.exchange in displaced else item for item in items]
    with pipelined(database):
        _book(items, seal)
    return [item.claim is None or item.claim.exchange not in displaced for item in items]


def _book(items: Sequence[Booking], seal: Seal) -> None:
    closed = holds.close([_closing(item.entry) for item in items if item.held and item.entry is not None])
    originals = _originals([id for id, each in closed.items() if each.before == holds.EXPIRED])
    rows: list[Sequence[Any]] = []
    for item in items:
        if item.entry is None:
            continue
        if not item.held:
            rows += [_values(entry, entry.windows) for entry in (item.entry, *item.attempts)]
        elif (each := closed.pop(item.entry.exchange, None)) is not None:
            rows.append(_values(_corrected(item.entry, originals), each.windows))  # those that its hold was taken from
            rows += [_values(entry, entry.windows) for entry in item.attempts]
    _insert(rows, seal)
    exchanges.save([item.exchange for item in items if item.exchange is not None])


def _uncharged(item: Booking) -> Booking:
    """What it cost stays the operator's."""
    return item if item.entry is None else replace(item, entry=replace(item.entry, amount=0, flags=(*item.entry.flags, DISPLACED)))


def _closing(entry: Entry) -> holds.Closing:
    state = {"worker_lost": holds.EXPIRED, "refused": holds.RELEASED, "upstream_error": holds.RELEASED}.get(entry.ending, holds.SETTLED)
    return holds.Closing(entry.exchange, entry.amount, state)


def _corrected(entry: Entry, originals: Mapping[str, int]) -> Entry:
    """After its hold expired, it corrects the entry that said so."""
    return replace(entry, kind="adjust", corrects=originals[entry.exchange]) if entry.exchange in originals else entry


def _originals(exchange_ids: Sequence[str]) -> dict[str, int]:
    if not exchange_ids:
        return {}
    sql = f"SELECT exchange, id FROM entry WHERE exchange IN ({holds.marks(exchange_ids)}) AND corrects_id IS NULL"  # noqa: S608
    return dict(database.execute_sql(sql.replace("?", database.param), list(exchange_ids)).fetchall())


def book_corrections(entries: Sequence[Entry], seal: Seal) -> None:
    """Entries that correct others: each takes its amount to the windows of its `windows`."""
    if any(entry.corrects is None for entry in entries):
        raise ValueError("a correction names the entry that it corrects")
    _insert([_values(entry, entry.windows) for entry in entries], seal)
    _move(entries)


def book_credit(kind: str, subject: int, amount_nano: int, at: int, exchange_id: str, note: str, seal: Seal) -> Entry:
    """Give an account (`kind` key, user, team or global) so much: its budgets of the period "total" have that much more room.

    `exchange_id` is an id of the credit's own: a second credit under it is none. Its entry's amount is negative: what was spent is
    the sum of all entries.
    """
    if (known := EntryRow.get_or_none((EntryRow.exchange == exchange_id) & (EntryRow.kind == "credit"))) is not None:
        return _entry(known)
    windows = holds.total_windows(budgets.current_budgets(kind, subject, "total"))
    owner = {"api_key": subject if kind == "key" else 0, "user": subject if kind == "user" else 0, "team": subject if kind == "team" else None}
    words = {"ending": "complete", "usage_source": "none", "model_asked": "", "model_served": "", "deployment": ""}
    credit = Entry(exchange_id, "credit", 0, amount=-amount_nano, cost=0, usage=Usage(), total_ms=0, at=at, windows=windows, note=note, **owner, **words)  # type: ignore[arg-type]
    _insert([_values(credit, windows)], seal)
    _move([credit])
    return credit


def credits() -> list[Entry]:
    """All that were booked, the oldest first."""
    return [_entry(row) for row in EntryRow.select().where(EntryRow.kind == "credit").order_by(EntryRow.id)]


def _move(entries: Sequence[Entry]) -> None:
    moved: dict[int, int] = {}
    for entry in entries:
        for window in entry.windows:
            moved[window] = moved.get(window, 0) + entry.amount
    holds.move({window: (amount, 0) for window, amount in moved.items()})


def _insert(rows: Sequence[Sequence[Any]], seal: Seal) -> None:
    executemany(database, _INSERT, [_sealed(values, seal) for values in rows])


def _sealed(values: Sequence[Any], seal: Seal) -> Sequence[Any]:
    return (*values, seal(sealed_text(values)))


def sealed_text(values: Sequence[Any]) -> str:
    """What a seal is made over: a row's values in the order of SEALED."""
    return "entry:1:" + "\x1f".join(["" if value is None else str(value) for value in values])


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


def booked_rows(since: int, until: int, after: tuple[int, int], limit: int) -> list[Mapping[str, Any]]:
    """A page of what was booked at since <= at < until, in the order of time: every column as the database has it, the seal among them.

    `after`: (at, id) of the row before the page, which the index on the time leads to at once.
    """
    at, id = max(since, after[0]), after[1] if after[0] >= since else 0
    columns = [EntryRow.id, *(EntryRow._meta.columns[name] for name in SEALED), EntryRow.seal]
    window = (EntryRow.at >= at) & (EntryRow.at < until) & ((EntryRow.at > at) | (EntryRow.id > id))
    query: Any = EntryRow.select(*columns).where(window).order_by(EntryRow.at, EntryRow.id).limit(limit)
    return [dict(zip(("id", *SEALED, "seal"), row, strict=True)) for row in query.tuples()]


def totals(since: int, until: int, by: Sequence[str]) -> list[Total]:
    """Sums over since <= at < until, grouped by any of team, user, key, model (as asked), deployment, ending, day (UTC).

    Raises KeyError for others. The team is that of the call's time, None for none. Corrections count in the sums, not as calls; credits, which
    are of no model, in neither.
    """
    groups = {
        "team": EntryRow.team,
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
    query = EntryRow.select(*keys, *sums).where((EntryRow.at >= since) & (EntryRow.at < until) & (EntryRow.model_asked != "")).group_by(*keys).order_by(*keys)
    return [_total(by, row) for row in query.tuples()]


def _total(by: Sequence[str], row: Any) -> Total:
    group = {name: _day(value) if name == "day" else value for name, value in zip(by, row, strict=False)}
    calls, amount, cost, *tokens = (int(value or 0) for value in row[len(by) :])  # PostgreSQL sums into decimals
    return Total(group, calls, dict(zip(BUCKETS, tokens, strict=True)), amount, cost)


def _day(number: int) -> str:
    return datetime.fromtimestamp(int(number) * DAY_MS // 1000, UTC).date().isoformat()


def _values(entry: Entry, windows: Sequence[int]) -> Sequence[Any]:
    raw = None if entry.usage.raw is None else json.dumps(entry.usage.raw)
    flags = ",".join(dict.fromkeys((*entry.flags, *entry.usage.flags)))
    return storable((*_PLAIN_VALUES(entry), *_TOKENS(entry.usage), raw, flags, json.dumps(dict(entry.rates)), json.dumps(windows)))


def _entry(row: EntryRow) -> Entry:
    plain = {name: row.__data__[name] for name in _PLAIN}
    usage = Usage(**{name: getattr(row, name) for name in BUCKETS}, raw=None if row.usage_raw is None else json.loads(row.usage_raw))
    flags = tuple(row.flags.split(",")) if row.flags else ()
    plain["markup_ppm"] = plain["markup_ppm"] or 0
    windows = tuple(json.loads(row.windows or "[]"))
    return Entry(**plain, usage=usage, flags=flags, rates=json.loads(row.rates), windows=windows, id=row.id)


def calls_with(credential: str, since: int) -> int:
    """How many calls were answered, or failed at the last, with a credential, by its label, since that moment (Unix milliseconds)."""
    where = (EntryRow.credential == credential) & (EntryRow.at >= since) & (EntryRow.kind == "usage")
    return int(EntryRow.select().where(where).count())
