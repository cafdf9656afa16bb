"""Re-rating: what was booked in a period, recomputed with the price book as it is now. What differs is shown, or booked as compensating entries.

An entry's own past stays: its usage, its time, its markup and its service tier are what is rated; voided entries are passed over, and what
an operator adjusted stays on top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from gateway.core.catalog import Snapshot, price_book
from gateway.core.globs import matches
from gateway.core.pricing import Priced, priced
from gateway.dialects.events import Usage
from gateway.errors import BadRequest
from gateway.store import catalog, corrections, ledger
from gateway.store.corrections import Corrected
from gateway.store.database import Database
from gateway.store.ledger import Entry, Seal

PAGE = 500
"""Entries a transaction: short enough that calls which settle meanwhile do not wait."""
UNTOUCHED = Corrected()


@dataclass(frozen=True, slots=True)
class Rerated:
    """An entry and what it should be; `amount` and `cost` are what is booked for it so far."""

    entry: Entry
    amount: int
    cost: int
    due: Priced
    price: int | None

    @property
    def differs(self) -> bool:
        return (self.amount, self.cost) != (self.due.amount, self.due.cost)


Page = tuple[int | None, list[Rerated]]
"""The id after which the next page begins, or None, and what is rated on this one."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The sums of one model, as its upstream knows it: `calls` were looked at, `changed` of them differ. Nano-USD."""

    model: str
    calls: int = 0
    changed: int = 0
    amount_before: int = 0
    amount_after: int = 0
    cost_before: int = 0
    cost_after: int = 0

    def and_also(self, other: Difference) -> Difference:
        """The sums of both, under this one's model."""
        return Difference(
            self.model,
            self.calls + other.calls,
            self.changed + other.changed,
            self.amount_before + other.amount_before,
            self.amount_after + other.amount_after,
            self.cost_before + other.cost_before,
            self.cost_after + other.cost_after,
        )


def rerate(database: Database, since: int, until: int, glob: str, at: int, seal: Seal | None = None) -> list[Difference]:
    """What the entries from `since` up to, not including, `until` (Unix milliseconds) would be, by model; `glob` of upstreams' model names.

    With a `seal` the differences are booked, a page at a time, each recomputed in the transaction that books it: two at once book nothing
    twice, and a second one nothing. Raises BadRequest for a period that ends before it begins.
    """
    if since >= until:
        raise BadRequest("the period ends before it begins")
    found: dict[str, Difference] = {}
    after: int | None = 0
    while after is not None:
        look = partial(_page, since, until, after, glob)
        after, rerated = database.read(look) if seal is None else database.write(partial(_booked, look, at, seal))
        for each in rerated:
            model = each.entry.model_served
            found[model] = found.get(model, Difference(model)).and_also(_difference(each))
    return sorted(found.values(), key=lambda difference: difference.model)


def _booked(look: Callable[[], Page], at: int, seal: Seal) -> Page:
    """Decided once nobody else can correct the page's entries."""
    _, found = look()
    corrections.lock_entries(sorted(each.entry.id for each in found if each.entry.id is not None))
    after, rerated = look()
    ledger.book_corrections([correction(each, at) for each in rerated if each.differs], seal)
    return after, rerated


def _page(since: int, until: int, after: int, glob: str) -> Page:
    entries = ledger.entries(since, until, after, PAGE)
    rated = [entry for entry in entries if is_rated(entry) and matches(entry.model_served, glob)]
    on_top = corrections.corrected({id for entry in rated for id in (entry.id, entry.corrects) if id is not None})
    snapshot = price_book(catalog.list_prices() if rated else ())
    rerated = [_rerated(entry, on_top, snapshot) for entry in rated if not _is_void(entry, on_top)]
    return (entries[-1].id if len(entries) == PAGE else None), rerated


def is_rated(entry: Entry) -> bool:
    """Whether its amount or cost was made from its usage: of a call that was charged, by the table of endings, be it late, or of a failed attempt."""
    if entry.kind == "attempt":
        return True
    if entry.kind == "usage" and entry.corrects is None:
        return entry.usage_source != "none" or entry.ending == "complete"
    return entry.kind == "adjust" and any(entry.usage.buckets().values())


def _is_void(entry: Entry, on_top: Mapping[int, Corrected]) -> bool:
    return any(on_top.get(id or 0, UNTOUCHED).void for id in (entry.id, entry.corrects))


def _rerated(entry: Entry, on_top: Mapping[int, Corrected], snapshot: Snapshot) -> Rerated:
    so_far = on_top.get(entry.id or 0, UNTOUCHED)
    price = snapshot.price(entry.model_served, entry.at)
    due = priced(entry.usage, price, entry.markup_ppm)
    if not entry.api_key or not ledger.UNCHARGED.isdisjoint(entry.flags):  # the operator pays for what is nobody's, and no one is charged
        due = replace(due, amount=entry.amount + so_far.amount)
    return Rerated(entry, entry.amount + so_far.amount, entry.cost + so_far.cost, due, None if price is None else price.id)


def correction(rerated: Rerated, at: int) -> Entry:
    """The entry that makes up the difference, in the windows that the corrected one is in. It uses no tokens and is no call."""
    return replace(
        rerated.entry,
        id=None,
        kind="rerate",
        corrects=rerated.entry.id,
        amount=rerated.due.amount - rerated.amount,
        cost=rerated.due.cost - rerated.cost,
        usage=Usage(),
        flags=(),
        rates=rerated.due.rates,
        price=rerated.price,
        first_byte_ms=None,
        total_ms=0,
        at=at,
        note=None,
    )


def _difference(each: Rerated) -> Difference:
    return Difference(each.entry.model_served, 1, int(each.differs), each.amount, each.due.amount, each.cost, each.due.cost)
