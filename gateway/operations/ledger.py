"""The books as an operator checks them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from gateway.dialects.events import BUCKETS
from gateway.errors import BadRequest
from gateway.operations.prices import usd_decimal
from gateway.store import accounts, audit, ledger
from gateway.store.audit import Audit
from gateway.store.database import Database
from gateway.store.ledger import Seal

PATIENCE_S = 3600
"""The whole ledger is read in one transaction."""
EXPORT_PAGE = 1_000
"""Entries a transaction: an export holds nobody up, and needs the memory of one page."""
COLUMNS: tuple[str, ...] = (
    *("id", "at", "at_ms", "exchange", "kind", "attempt", "corrects", "key_id", "key", "user_id", "user", "team_id", "team"),
    *("amount_usd", "amount_nano_usd", "cost_usd", "cost_nano_usd", "markup_ppm", *BUCKETS, "usage_source", "usage_raw", "flags", "rates", "price_id"),
    *("ending", "model_asked", "model_served", "deployment", "credential", "first_byte_ms", "total_ms", "windows", "note", "seal"),
)
"""Of an export. Names of keys, users and teams are those of today; what is not among the rest is not in the entry either."""


def verify(database_url: str, seal: Seal) -> Audit:
    """Recompute every counter from the entries, and check each entry's seal. Raises StoreUnavailable."""
    with contextlib.closing(Database(database_url, timeout_s=PATIENCE_S)) as database:
        database.bind()
        return database.read(lambda: audit.audit(seal))


def rebuild(database_url: str) -> int:
    """Put every budget window's counters right; how many were wrong. Calls wait meanwhile. Raises StoreUnavailable."""
    with contextlib.closing(Database(database_url, timeout_s=PATIENCE_S)) as database:
        database.bind()
        return database.write(audit.rebuild)


@dataclass(frozen=True, slots=True)
class _Names:
    keys: Mapping[int, str]
    users: Mapping[int, str]
    teams: Mapping[int, str]


def export(database: Database, since: int, until: int) -> Iterator[Mapping[str, Any]]:
    """Every entry of since <= at < until (Unix milliseconds), in the order of time, by COLUMNS.

    USD are Decimals, exact; nano-USD whole numbers; flags, rates, windows and the provider's usage what their JSON says. Each page is a
    transaction of its own: what is booked meanwhile may be there or not. Raises BadRequest for a period that ends before it begins.
    """
    if since >= until:
        raise BadRequest("the period ends before it begins")
    return _exported(database, since, until)


def _exported(database: Database, since: int, until: int) -> Iterator[Mapping[str, Any]]:
    names, after = database.read(_names), (since, 0)
    while True:
        page = database.read(partial(ledger.booked_rows, since, until, after, EXPORT_PAGE))
        for row in page:
            yield _exported_row(row, names)
        if len(page) < EXPORT_PAGE:
            return
        after = page[-1]["at"], page[-1]["id"]


def _names() -> _Names:
    keys = {key.id: key.label or key.prefix for key in accounts.list_keys()}
    return _Names(keys, {user.id: user.name for user in accounts.list_users()}, {team.id: team.name for team in accounts.list_teams()})


def _exported_row(row: Mapping[str, Any], names: _Names) -> Mapping[str, Any]:
    """The columns that are not named here are as they are in the row."""
    key, user, team = row["api_key"], row["user"], row["team"]
    made = {
        "at": datetime.fromtimestamp(row["at"] // 1000, UTC).replace(microsecond=row["at"] % 1000 * 1000).isoformat(timespec="milliseconds"),
        "at_ms": row["at"],
        "corrects": row["corrects_id"],
        "key_id": key or None,
        "key": names.keys.get(key),
        "user_id": user or None,
        "user": names.users.get(user),
        "team_id": team,
        "team": names.teams.get(team),
        "amount_usd": usd_decimal(row["amount"]),
        "amount_nano_usd": row["amount"],
        "cost_usd": usd_decimal(row["cost"]),
        "cost_nano_usd": row["cost"],
        "usage_raw": _parsed(row["usage_raw"]),
        "flags": row["flags"].split(",") if row["flags"] else [],
        "rates": _parsed(row["rates"]),
        "price_id": row["price"],
        "windows": _parsed(row["windows"]),
    }
    return {name: made[name] if name in made else row[name] for name in COLUMNS}


def _parsed(text: str | None) -> Any:
    """What somebody wrote over a row with may be no JSON: it is shown as it stands."""
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text
