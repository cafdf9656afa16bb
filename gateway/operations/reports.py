"""Reports: the ledger's totals over a period, with names in place of ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.errors import BadRequest
from gateway.store import accounts, ledger
from gateway.store.database import Database
from gateway.store.ledger import Total

DIMENSIONS = ("user", "key", "model", "deployment", "ending", "day")


@dataclass(frozen=True, slots=True)
class Line:
    """One group. `names` are for people; `ids` are those of "user" and "key" where the report is by them. Amounts are nano-USD."""

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
    totals, users, keys = database.read(lambda: (ledger.totals(since, until, by), accounts.list_users(), accounts.list_keys()))
    user_names = {user.id: user.name for user in users}
    key_names = {key.id: f"{key.label or key.prefix} (#{key.id})" for key in keys}
    lines = [_line(total, {"user": user_names, "key": key_names}) for total in totals]
    return sorted(lines, key=lambda line: tuple(line.names.values()))


def _line(total: Total, known: Mapping[str, Mapping[int, str]]) -> Line:
    ids = {name: value for name, value in total.group.items() if name in known and isinstance(value, int)}
    names = {name: known[name].get(ids[name], f"#{ids[name]}") if name in ids else str(value or "") for name, value in total.group.items()}
    return Line(names, ids, total.calls, total.buckets, total.amount, total.cost)
