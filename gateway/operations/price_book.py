"""The price book that is shipped (price_book.json, of genai-prices' data): what it says of a provider's models, and its import into our prices.

Nothing is fetched: deploy/price_book.py makes the file anew. Earlier prices stay, as they do when an operator sets one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from typing import Any

from gateway.core.globs import matches
from gateway.errors import BadRequest
from gateway.operations.prices import completed, nano_usd, pico_per_token
from gateway.store import catalog
from gateway.store.catalog import Price, Tier
from gateway.store.database import Database

FILE = "price_book.json"
STATES = ("new", "changed", "kept", "yours", "other", "differs")
"""new and changed are written; kept is there already; yours: an operator's price holds at that moment; other: another provider's price of this
name was imported; differs: ours of that moment has other figures, and cannot be written over."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A price as the book has it; the fields are a Price's."""

    model: str
    valid_from: int
    rates: Mapping[str, int]
    per_call_nano: int = 0
    tiers: tuple[Tier, ...] = ()
    variants: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def same(self, price: Price) -> bool:
        """Whether the figures are."""
        return (self.rates, self.per_call_nano, self.tiers, self.variants) == (price.rates, price.per_call_nano, price.tiers, price.variants)


@dataclass(frozen=True, slots=True)
class Book:
    """`date`: of which day its figures are, as Unix milliseconds. `left_out`: models that are not billed by tokens or calls, and by what they are."""

    source: str
    version: str
    date: int
    prices: Mapping[str, tuple[Wanted, ...]]
    left_out: Mapping[str, Mapping[str, str]]

    @property
    def label(self) -> str:
        return f"{self.source} {self.version}"


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one of the book's prices, from `valid_from` on. `state`: one of STATES; `note` says more, for people."""

    wanted: Wanted
    valid_from: int
    state: str
    note: str = ""

    @property
    def written(self) -> bool:
        return self.state in ("new", "changed")


def load_book() -> Book:
    """The book of this distribution."""
    return parse_book(json.loads(resources.files(__package__).joinpath(FILE).read_text()))


def parse_book(document: Mapping[str, Any]) -> Book:
    """Raises BadRequest for a figure that is no price."""
    providers = document["providers"]
    prices = {name: tuple(wanted for each in part["prices"] for wanted in _wanted(each)) for name, part in providers.items()}
    left_out = {name: {model: _words(each["billed_by"]) for each in part["left_out"] for model in each["models"]} for name, part in providers.items()}
    return Book(document["source"], document["version"], _day(document["date"]), prices, left_out)


def _wanted(document: Mapping[str, Any]) -> Iterator[Wanted]:
    steps = tuple(Tier(tier["above"], _rates(tier["rates"]), _variants(tier)) for tier in document.get("tiers", ()))
    since = _day(document["from"]) if "from" in document else 0
    per_call = nano_usd(document.get("per_call", "0"))
    for model in document["models"]:
        yield Wanted(model, since, _rates(document["rates"]), per_call, steps, _variants(document))


def _variants(document: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    return {name: _rates(rates) for name, rates in document.get("variants", {}).items()}


def _rates(texts: Mapping[str, str]) -> dict[str, int]:
    return completed({bucket: pico_per_token(text) for bucket, text in texts.items()})


def _day(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def _words(keys: Sequence[str]) -> str:
    return ", ".join(key.replace("_", " ") for key in keys)


def import_prices(database: Database, book: Book, providers: Sequence[str], globs: Sequence[str], at: int, *, dry_run: bool = False) -> list[Change]:
    """Bring the prices of these providers' models (those that match a glob, or all) into ours; what became, or would become, of each.

    A name that two providers price is the first one's. Raises BadRequest for a provider that the book does not have, and for globs that match
    nothing; Conflict where another import writes the same at the same time.
    """
    unknown = [name for name in providers if name not in book.prices]
    if unknown:
        raise BadRequest(f"the price book has no provider {unknown[0]!r}; it has {', '.join(sorted(book.prices))}")
    wanted = {name: [each for each in book.prices[name] if _asked(each.model, globs)] for name in providers}
    if not any(wanted.values()):
        raise BadRequest(_nothing(book, providers, globs))
    if dry_run:
        return database.read(partial(_plan, book, wanted, at, False))
    return database.write(partial(_plan, book, wanted, at, True))


def left_out(book: Book, providers: Sequence[str], globs: Sequence[str]) -> dict[str, str]:
    """The models that match and have no price in the book, each with what it is billed by."""
    return {model: words for name in providers for model, words in book.left_out.get(name, {}).items() if _asked(model, globs)}


def _asked(model: str, globs: Sequence[str]) -> bool:
    return not globs or any(matches(model, glob) for glob in globs)


def _nothing(book: Book, providers: Sequence[str], globs: Sequence[str]) -> str:
    for model, words in left_out(book, providers, globs).items():
        return f"{model} is billed by {words}, not by tokens; you can set a price for each call: gateway price set {model} --per-call USD"
    return f"the price book has no model of {', '.join(providers)} that matches {', '.join(globs)}"


def _plan(book: Book, wanted: Mapping[str, Sequence[Wanted]], at: int, write: bool) -> list[Change]:
    rows: dict[str, list[Price]] = {}
    for price in catalog.list_prices():
        rows.setdefault(price.model, []).append(price)
    changes: list[Change] = []
    for provider, prices in wanted.items():
        timelines: dict[str, list[Wanted]] = {}
        for each in prices:
            timelines.setdefault(each.model, []).append(each)
        for model, timeline in timelines.items():
            planned = list(_changes(timeline, rows.get(model, []), book, provider, at))
            rows[model] = [*rows.get(model, []), *(_added(change, book.label + ", " + provider, at, write) for change in planned if change.written)]
            changes += planned
    return changes


def _added(change: Change, source: str, at: int, write: bool) -> Price:
    """`write` False: as it would be, with the id 0."""
    new = change.wanted
    if not write:
        return Price(0, new.model, change.valid_from, new.rates, new.per_call_nano, source, at, new.tiers, new.variants)
    more: dict[str, Any] = {"per_call_nano": new.per_call_nano, "source": source, "tiers": new.tiers, "variants": new.variants}
    return catalog.add_price(new.model, change.valid_from, new.rates, at, **more)


def _changes(timeline: Sequence[Wanted], rows: Sequence[Price], book: Book, provider: str, at: int) -> Iterator[Change]:
    """Of one model's prices in their order. No row is ever written over: figures that changed hold from the book's day on, or from now."""
    own = [row for row in rows if row.source.startswith(f"{book.source} ")]
    other = next((row for row in own if not row.source.endswith(f", {provider}")), None)
    if other is not None:
        note = f"this name has {other.source.rpartition(', ')[2]}'s price"
        yield from (Change(each, each.valid_from, "other", note) for each in timeline)
        return
    for each, following in zip(timeline, [*timeline[1:], None], strict=True):
        end = following.valid_from if following else None
        within = sorted((row for row in own if each.valid_from <= row.valid_from and (end is None or row.valid_from < end)), key=_begin)
        yield from _change(each, end, within, rows, book, at)


def _change(each: Wanted, end: int | None, within: Sequence[Price], rows: Sequence[Price], book: Book, at: int) -> Iterator[Change]:
    """`within`: the book's rows between this price's beginning and `end`, the next one's."""
    taken = {row.valid_from: row for row in rows}
    if not within or within[0].valid_from > each.valid_from:
        holds = _operator_s(rows, each.valid_from, book)
        yield Change(each, each.valid_from, "yours", "your own price holds") if holds else Change(each, each.valid_from, "new")
        if not within or holds:
            return
    last = within[-1]
    if each.same(last):
        if within[0].valid_from == each.valid_from:
            yield Change(each, last.valid_from, "kept")
        return
    begin = next((moment for moment in (book.date, at) if moment > last.valid_from and moment not in taken and (end is None or moment < end)), None)
    if begin is None:
        yield Change(each, each.valid_from, "differs", "see `gateway price list`; set or delete the price of that moment by hand")
    elif _operator_s(rows, begin, book):
        yield Change(each, begin, "yours", "your own price holds")
    else:
        yield Change(each, begin, "changed", "the figures before it stay for the time before")


def _operator_s(rows: Sequence[Price], moment: int, book: Book) -> bool:
    """Whether the price that holds at that moment is one that was set by hand."""
    found = max((row for row in rows if row.valid_from <= moment), key=_begin, default=None)
    return found is not None and not found.source.startswith(f"{book.source} ")


def _begin(price: Price) -> int:
    return price.valid_from
