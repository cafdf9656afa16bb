"""The audit of the books: what the entries say, held against every counter. To be called inside a work of `Database`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peewee import fn

from gateway.store.ledger import SEALED, Seal, sealed_text
from gateway.store.models import ExchangeTableRow
from gateway.store.models_money import BudgetWindowRow, EntryRow, HoldLineRow, HoldRow

_PAGE = 2_000
MOST = 10_000
"""Entries that are named one by one: under another pepper no seal fits, and there may be millions."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`row` names what differs, such as "entry 7"; `problem` says how."""

    row: str
    problem: str


@dataclass(frozen=True, slots=True)
class Audit:
    """`unsealed`: entries of an older version of the program, which nothing can be said of."""

    entries: int
    unsealed: int
    windows: int
    holds: int
    differences: tuple[Difference, ...]


def newest_entry() -> int:
    """Its id, 0 where there is none: about how many there are, without counting them."""
    return int(EntryRow.select(fn.MAX(EntryRow.id)).scalar() or 0)


def audit(seal: Seal) -> Audit:
    """Read all entries once. In one `Database.read`, and so of one moment."""
    found: list[Difference] = []
    spent: dict[int, int] = {}
    entries = unsealed = unfit = 0
    for row in _entries():
        entries += 1
        values, mark = row[1:-1], row[-1]
        if mark is None:
            unsealed += 1
        elif seal(sealed_text(values)) != mark and (unfit := unfit + 1) <= MOST:
            found.append(Difference(f"entry {row[0]}", f"of exchange {values[0]} is not as it was booked: its seal does not fit"))
        for window in json.loads(values[_WINDOWS] or "[]"):
            spent[window] = spent.get(window, 0) + values[_AMOUNT]
    if unfit > MOST:
        found.append(Difference(f"{unfit - MOST} more entries", "are not as they were booked: their seals do not fit"))
    held = dict(_held())
    windows = list(BudgetWindowRow.select().order_by(BudgetWindowRow.id))
    for window in windows:
        for name, stored, counted in (("spent", window.spent, spent.pop(window.id, 0)), ("held", window.held, held.pop(window.id, 0))):
            if stored != counted:
                found.append(Difference(f"budget window {window.id}", f"says {stored} nano-USD {name}, its rows add up to {counted}"))
    found += [Difference(f"budget window {id}", "is named by entries, and is gone") for id in sorted({*spent, *held})]
    found += [Difference(f"hold {id}", "is closed, and its entry is gone") for (id,) in _without_entry()]
    found += [Difference(f"exchange {id}", "ended as a call that is booked, and its entry is gone") for (id,) in _unbooked()]
    return Audit(entries, unsealed, len(windows), HoldRow.select().where(HoldRow.state == "held").count(), tuple(found))


_AMOUNT, _WINDOWS = SEALED.index("amount"), SEALED.index("windows")


def _entries() -> Iterator[Any]:
    """Rows as (id, the columns under the seal, the seal), in pages."""
    columns = [EntryRow.id, *(EntryRow._meta.columns[name] for name in SEALED), EntryRow.seal]
    after = 0
    while True:
        query: Any = EntryRow.select(*columns).where(EntryRow.id > after).order_by(EntryRow.id).limit(_PAGE)
        page = list(query.tuples())
        if not page:
            return
        yield from page
        after = page[-1][0]


def _held() -> Iterator[tuple[int, int]]:
    query: Any = HoldLineRow.select(HoldLineRow.window, fn.SUM(HoldLineRow.amount)).join(HoldRow, on=HoldLineRow.hold == HoldRow.id)
    for window, amount in query.where(HoldRow.state == "held").group_by(HoldLineRow.window).tuples():
        yield window, int(amount)


def _without_entry() -> Any:
    """Closed holds that had lines (others were never made), and no entry."""
    line = HoldLineRow.select(HoldLineRow.hold).where(HoldLineRow.hold == HoldRow.id)
    query = HoldRow.select(HoldRow.id).where((HoldRow.state != "held") & fn.EXISTS(line) & ~fn.EXISTS(_original(HoldRow.id)))
    return query.order_by(HoldRow.id).tuples()


def _unbooked() -> Any:
    """Exchanges that were written together with an entry, which is not there any more."""
    query = ExchangeTableRow.select(ExchangeTableRow.id).where((ExchangeTableRow.ending != "refused") & ~fn.EXISTS(_original(ExchangeTableRow.id)))
    return query.order_by(ExchangeTableRow.id).tuples()


def _original(exchange: Any) -> Any:
    """In the terms of the index of original entries: without it every hold would read the whole ledger."""
    return EntryRow.select(EntryRow.id).where((EntryRow.exchange == exchange) & (EntryRow.kind == "usage") & EntryRow.corrects.is_null())


def rebuild() -> int:
    """Set every window's counters to what its rows add up to; how many were changed. In a `Database.write`."""
    windows = list(BudgetWindowRow.select().order_by(BudgetWindowRow.id).for_update()) if _is_postgres() else list(BudgetWindowRow.select())
    spent: dict[int, int] = {}
    for row in _entries():
        for window in json.loads(row[1 + _WINDOWS] or "[]"):
            spent[window] = spent.get(window, 0) + row[1 + _AMOUNT]
    held, changed = dict(_held()), 0
    for window in windows:
        values = {"spent": spent.get(window.id, 0), "held": held.get(window.id, 0)}
        if values != {"spent": window.spent, "held": window.held}:
            changed += 1
            BudgetWindowRow.update(**values).where(BudgetWindowRow.id == window.id).execute()
    return changed


def _is_postgres() -> bool:
    return bool(BudgetWindowRow._meta.database.param != "?")
