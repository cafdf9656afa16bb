"""Reports: the ledger's totals over a period, with names in place of ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.dialects.events import BUCKETS
from gateway.errors import BadRequest
from gateway.operations.prices import usd_decimal
from gateway.store import accounts, ledger
from gateway.store.database import Database
from gateway.store.ledger import Total

ACCOUNTS = ("team", "user", "key")
OPERATOR = "(operator)"
"""Which no name can be."""
DIMENSIONS = (*ACCOUNTS, "model", "deployment", "ending", "day")


@dataclass(frozen=True, slots=True)
class Line:
    """One group. `names` are for people; `ids` are those of "team", "user" and "key" where the report is by them. Amounts are nano-USD."""

    names: Mapping[str, str]
    ids: Mapping[str, int]
    calls: int
    buckets: Mapping[str, int]
    amount: int
    cost: int


def report(database: Database, since: int, until: int, by: Sequence[str]) -> list[Line]:
    """Totals of the entries from `since` up to, not including, `until` (Unix milliseconds), in the order of their names.

    Raises BadRequest for a dimension that is none of DIMENSIONS, and for a period that ends before it begins.
    """
    unknown = [name for name in by if name not in DIMENSIONS]
    if unknown or not by:
        raise BadRequest(f"a report is by one or more of {', '.join(DIMENSIONS)}" + (f", not by {unknown[0]!r}" if unknown else ""))
    if since >= until:
        raise BadRequest("the period ends before it begins")
    by = tuple(dict.fromkeys(by))
    totals, names = database.read(lambda: (ledger.totals(since, until, by), accounts.account_names()))
    lines = [_line(total, names) for total in totals]
    return sorted(lines, key=lambda line: tuple(line.names.values()))


def _line(total: Total, known: Mapping[tuple[str, int], str]) -> Line:
    ids = {name: value for name, value in total.group.items() if name in ACCOUNTS and isinstance(value, int)}
    names = {name: _named(known, name, ids[name]) if name in ids else str(value or "") for name, value in total.group.items()}
    return Line(names, ids, total.calls, total.buckets, total.amount, total.cost)


def _named(known: Mapping[tuple[str, int], str], kind: str, id: int) -> str:
    """0 is nobody's id: what providers bill for attempts that failed."""
    return known.get((kind, id), f"#{id}") if id else OPERATOR


def columns(by: Sequence[str]) -> tuple[str, ...]:
    """Of a report as rows for other programs."""
    ids = [f"{name}_id" for name in by if name in ACCOUNTS]
    return (*by, *ids, "calls", *BUCKETS, "amount_usd", "amount_nano_usd", "cost_usd", "cost_nano_usd")


def rows(by: Sequence[str], lines: Iterable[Line]) -> Iterator[Mapping[str, Any]]:
    """By `columns`. USD are Decimals, exact."""
    for line in lines:
        ids = {f"{name}_id": line.ids.get(name) for name in by if name in ACCOUNTS}
        amounts = {"amount_usd": usd_decimal(line.amount), "amount_nano_usd": line.amount, "cost_usd": usd_decimal(line.cost), "cost_nano_usd": line.cost}
        yield {**line.names, **ids, "calls": line.calls, **line.buckets, **amounts}
