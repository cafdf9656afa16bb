"""What upstreams served on a day, by deployment and model: our side of a provider's bill. To be called inside a work of `Database`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peewee import Case, Expression, fn

from gateway.dialects.events import BUCKETS
from gateway.store.models_money import EntryRow


@dataclass(frozen=True, slots=True)
class Served:
    """Sums over the entries of one deployment and model, as its upstream knows it. `cost` is nano-USD, what the operator pays.

    Of `calls`: `estimated` have a usage that is ours, with `estimated_tokens`; `unmetered` were sent and came to nothing that was charged; `unpriced`
    had no price; `late` ended on another day. `further`: attempts before those that the entries are of.
    """

    deployment: str
    model: str
    calls: int
    cost: int
    buckets: Mapping[str, int]
    estimated: int
    estimated_tokens: int
    unmetered: int
    unpriced: int
    late: int
    further: int


def served(since: int, until: int) -> list[Served]:
    """Of the calls that began at since <= at < until. What corrects an entry counts on the day of the call, whenever it was booked."""
    corrected = EntryRow.alias()
    original, corrects_nothing = (
        fn.COALESCE(table.corrects, 0) == 0 for table in (EntryRow, corrected)
    )  # no plain NULL: its index would lead to all originals
    here = (EntryRow.at >= since) & (EntryRow.at < until)
    found: dict[tuple[str, str], list[int]] = {}
    of_the_day = EntryRow.select(*_sums(until)).where(here & original & (EntryRow.deployment != ""))
    days = corrected.select(corrected.id).where((corrected.at >= since) & (corrected.at < until) & corrects_nothing)
    on_top = EntryRow.select(*_sums(until)).where(EntryRow.corrects.in_(days) & (EntryRow.deployment != ""))
    for query in (of_the_day, on_top):
        grouped: Any = query.group_by(EntryRow.deployment, EntryRow.model_served).tuples()
        for row in grouped:
            numbers = [int(number or 0) for number in row[2:]]  # PostgreSQL sums into decimals
            before = found.setdefault((row[0], row[1]), [0] * len(numbers))
            found[row[0], row[1]] = [one + other for one, other in zip(before, numbers, strict=True)]
    return [_served(key, numbers) for key, numbers in sorted(found.items())]


def _sums(until: int) -> list[Any]:
    call = (EntryRow.kind == "usage") & EntryRow.corrects.is_null()
    estimated = EntryRow.usage_source == "estimated"
    tokens: Any = sum((getattr(EntryRow, name) for name in BUCKETS[1:]), getattr(EntryRow, BUCKETS[0]))
    columns = [
        _count(call),
        EntryRow.cost,
        *(getattr(EntryRow, name) for name in BUCKETS),
        _count(call & estimated),
        Case(None, ((estimated, tokens),), 0),
        _count(call & (EntryRow.usage_source == "none") & (EntryRow.attempt > 0)),
        _count(call & EntryRow.price.is_null() & (EntryRow.usage_source != "none")),
        _count(call & (EntryRow.at + EntryRow.total_ms >= until)),
        Case(None, ((call & (EntryRow.attempt > 1), EntryRow.attempt - 1),), 0),
    ]
    return [EntryRow.deployment, EntryRow.model_served, *(fn.SUM(column) for column in columns)]


def _count(condition: Expression) -> Any:
    return Case(None, ((condition, 1),), 0)


def _served(key: tuple[str, str], numbers: list[int]) -> Served:
    calls, cost, *rest = numbers
    return Served(*key, calls, cost, dict(zip(BUCKETS, rest, strict=False)), *rest[len(BUCKETS) :])
