"""What was booked on top of an entry, and by which price. To be called inside a work of `Database`; ledger.py has the entries themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from peewee import fn

from gateway.store.catalog import Price
from gateway.store.models import database
from gateway.store.models_money import EntryRow
from gateway.store.statements import locked


@dataclass(frozen=True, slots=True)
class Corrected:
    """Of one entry: the sums of its re-ratings, nano-USD, and whether it was voided."""

    amount: int = 0
    cost: int = 0
    void: bool = False


def lock_entries(entry_ids: Collection[int]) -> None:
    """Until the transaction ends, nobody else locks or corrects these. For a work that reads what corrects them and books more."""
    if entry_ids:
        locked(database, f"SELECT id FROM entry WHERE id IN ({', '.join('?' * len(entry_ids))})", list(entry_ids))  # noqa: S608


def corrected(entry_ids: Collection[int]) -> Mapping[int, Corrected]:
    """By the id of the entry; those without a re-rating or void are left out."""
    sums = (fn.SUM(EntryRow.amount), fn.SUM(EntryRow.cost))
    named = EntryRow.corrects.in_(list(entry_ids)) & EntryRow.kind.in_(["rerate", "void"])
    found: dict[int, Corrected] = {}
    rows: Any = EntryRow.select(EntryRow.corrects, EntryRow.kind, *sums).where(named).group_by(EntryRow.corrects, EntryRow.kind).tuples()
    for entry_id, kind, amount, cost in rows:
        before = found.get(entry_id, Corrected())
        rerated = (int(amount), int(cost)) if kind == "rerate" else (0, 0)  # PostgreSQL sums into decimals
        found[entry_id] = Corrected(before.amount + rerated[0], before.cost + rerated[1], before.void or kind == "void")
    return found


def price_used(price: Price) -> bool:
    """Whether an entry names it. Reads every entry since it holds."""
    return bool(EntryRow.select().where((EntryRow.at >= price.valid_from) & (EntryRow.price == price.id)).exists())
