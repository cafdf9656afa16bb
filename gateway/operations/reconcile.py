"""A provider's bill held against the ledger: by day and model ours, theirs, and the likely cause of what differs. Stores nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import partial, reduce
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from gateway import plugins
from gateway.core.globs import matches
from gateway.core.pricing import NANO_DIGITS
from gateway.errors import BadRequest, PluginError
from gateway.operations import bills, bills_anthropic, bills_openai
from gateway.operations.bills import Bill, BillLine, Buckets, Shape
from gateway.operations.discrepancies import CAUSES, HARMLESS, Compared, Evidence, Side, cause
from gateway.operations.prices import usd_decimal
from gateway.store import catalog, served
from gateway.store.database import Database
from gateway.store.served import Served

DAY_MS = 86_400_000
PROVIDERS: Mapping[str, tuple[Sequence[Shape], str]] = MappingProxyType(
    {"openai": (bills_openai.SHAPES, "api.openai.com"), "anthropic": (bills_anthropic.SHAPES, "api.anthropic.com")}
)
"""The shapes of its exports, and the host of its API (or the end of it: regions stand in front)."""
COUNTERS = ("input", "cache_read", "cache_write", "cache_write_5m", "cache_write_1h", "output")
"""Of all providers, in the order of COLUMNS."""
ALL, OTHER = "", "(other)"
"""Of a line: the figures of all models together, and costs that the bill gives to none of the models that it names."""
_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4}|latest)$", re.ASCII)
_EXACT = Context(prec=200)


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * bills.DAY_S, UTC).date().isoformat()


@dataclass(frozen=True, slots=True)
class Line:
    """`model`: a name, ALL or OTHER. `billed_as`: how the provider calls it. Days are since 1970, UTC."""

    day: int
    model: str
    billed_as: tuple[str, ...]
    compared: Compared
    cause: str | None

    @property
    def date(self) -> str:
        return _date(self.day)


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """`lines`: every day and model of the bill or of ours. `deployments`: those whose entries were compared."""

    shapes: tuple[str, ...]
    first: str
    last: str
    deployments: tuple[str, ...]
    lines: tuple[Line, ...]
    remarks: tuple[str, ...]

    @property
    def differences(self) -> list[Line]:
        """Without those that explain themselves."""
        return [line for line in self.lines if line.cause is not None and line.cause not in HARMLESS]


def read_bills(provider: str, files: Sequence[tuple[str, bytes]]) -> tuple[Bill, ...]:
    """Files by name, of one period. Raises BadRequest, in one line, for what is no export of this provider, and for a file that is given twice."""
    shapes, _ = PROVIDERS[provider]
    known: dict[str, str] = {}
    for name, raw in files:
        digest = hashlib.sha256(raw).hexdigest()
        if digest in known:
            raise BadRequest(f"{name} and {known[digest]} are the same: the figures would count twice")
        known[digest] = name
        for other, (others, _) in PROVIDERS.items():
            if other != provider and bills.fits(others, raw):
                raise BadRequest(f"{name} is an export of {other}: gateway reconcile import {other} {name}")
    return tuple(bills.read(provider, shapes, name, raw) for name, raw in files)


def reconcile(database: Database, provider: str, given: Sequence[Bill], only: Sequence[str] = (), environment_url: str | None = None) -> Reconciliation:
    """`only`: names or globs of deployments; none: those that lead to the provider today, and those that are gone and whose models it bills.

    `environment_url`: where the deployment of the environment leads to. Each day is a transaction of its own. Raises BadRequest where no
    deployment is left, and for bills without days.
    """
    days = frozenset[int]().union(*(bill.days for bill in given))
    if not days:
        raise BadRequest("the export covers no day")
    billed = {_family(line.model) for bill in given for line in bill.lines if line.model}
    chosen = _chosen(database, provider, only, environment_url)
    ours: dict[int, list[Served]] = {}
    for day in sorted(days):
        found = database.read(partial(served.served, day * DAY_MS, (day + 1) * DAY_MS))
        ours[day] = [one for one in found if chosen(one.deployment, _family(one.model) in billed)]
    names = _names({one.model for found in ours.values() for one in found}, {line.model for bill in given for line in bill.lines if line.model})
    deployments = tuple(sorted({one.deployment for found in ours.values() for one in found}))
    if only and not deployments and not any(chosen(row.name, True) for row in database.read(catalog.list_deployments)):
        raise BadRequest(f"there is no deployment {' or '.join(only)}; `gateway deployment list` shows them")
    lines = _lines(given, ours, names)
    remarks = tuple(remark for bill in given for remark in bill.remarks)
    return Reconciliation(tuple(bill.shape for bill in given), _date(min(days)), _date(max(days)), deployments, lines, remarks)


def _chosen(database: Database, provider: str, only: Sequence[str], environment_url: str | None) -> Any:
    """A function of a deployment's name and of whether the bill has its model: whether its entries are compared."""
    if only:
        return lambda deployment, billed: any(matches(deployment, glob) for glob in only)
    rows = database.read(catalog.list_deployments)
    hosts = {row.name: _host(row.base_url or _default_url(row.backend)) for row in rows} | {"environment": _host(environment_url or "")}
    ending = PROVIDERS[provider][1]
    return lambda deployment, billed: hosts[deployment].endswith(ending) if hosts.get(deployment) else billed and deployment not in hosts


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").lower()


def _default_url(backend: str) -> str:
    try:
        return str(getattr(plugins.resolve(plugins.BACKENDS, backend), "default_base_url", ""))
    except PluginError:
        return ""


def _family(model: str) -> str:
    """What the names of a model have in common: without a maker in front, a date behind, and in any order for those that changed it."""
    name = model.lower().rpartition("/")[2].replace(" ", "-").replace(".", "-")
    name = _DATED.sub("", name)
    return "-".join(sorted(name.split("-"))) if name.startswith("claude") else name


def _names(ours: set[str], theirs: set[str]) -> Mapping[str, str]:
    """Each name to the one that its line has. Names of one family are one line, unless both sides have the same several."""
    families: dict[str, tuple[set[str], set[str]]] = {}
    for side, models in enumerate((ours, theirs)):
        for model in models:
            families.setdefault(_family(model), (set(), set()))[side].add(model)
    names: dict[str, str] = {}
    for here, there in families.values():
        if here == there:
            names |= {model: model for model in here}
        else:
            shown = min(here or there, key=lambda model: (" " in model, len(model), model))
            names |= dict.fromkeys(here | there, shown)
    return names


Key = tuple[int, str]


def _lines(given: Sequence[Bill], ours: Mapping[int, Sequence[Served]], names: Mapping[str, str]) -> tuple[Line, ...]:
    named = {line.day for bill in given for line in bill.lines if line.model and line.cost is not None}
    theirs: dict[Key, list[tuple[Bill, BillLine]]] = {}
    for bill in given:
        for line in bill.lines:
            apart = line.cost is not None and line.day in named
            theirs.setdefault((line.day, names.get(line.model, OTHER if apart else ALL)), []).append((bill, line))
    here: dict[Key, list[Served]] = {}
    for day, found in ours.items():
        for one in found:
            here.setdefault((day, names[one.model]), []).append(one)
    here |= {key: list(ours[key[0]]) for key in theirs if key[1] == ALL}
    totals = {key[0] for key in theirs if key[1] == ALL and any(line.cost is not None for _, line in theirs[key])}
    counted = {key[0] for key in theirs if key[1] == ALL and any(line.tokens is not None for _, line in theirs[key])}
    compared = {key: _compared(key, given, theirs.get(key, ()), here.get(key, ()), key[0] in totals, key[0] in counted) for key in {*theirs, *here}}
    lines = []
    for day, model in sorted(compared):
        likely = cause(compared[day, model], (compared.get((day - 1, model)), compared.get((day + 1, model))))
        billed_as = tuple(sorted({line.model for _, line in theirs.get((day, model), ()) if line.model}))
        lines.append(Line(day, model, billed_as, compared[day, model], likely))
    return tuple(line for line in lines if line.compared.ours.calls or line.billed_as or line.model == ALL or line.cause)


def _compared(
    key: Key, given: Sequence[Bill], theirs: Sequence[tuple[Bill, BillLine]], here: Sequence[Served], cost_of_all: bool, tokens_of_all: bool
) -> Compared:
    """Where a file covers the day and has nothing of the model, it says 0, unless its figures are of all models together."""
    day, model = key
    priced = any(not bill.counters and day in bill.days for bill in given) and cost_of_all == (model == ALL)
    counters = next((bill.counters for bill in given if bill.counters and day in bill.days), None) if tokens_of_all == (model == ALL) else None
    told = [line for _, line in theirs]
    cost = _nano(_sum(line.cost for line in told if line.cost is not None)) if priced else None
    their_calls = [line.calls for line in told if line.calls is not None]
    calls_known = bool(their_calls) or (counters is not None and any(line.calls is not None for bill in given for line in bill.lines))
    side = Side(_summed(counters, told) if counters is not None else None, sum(their_calls) if calls_known and counters is not None else None, cost)
    ours = Side(_ours(counters, here), sum(one.calls for one in here), sum(one.cost for one in here))
    evidence = Evidence(*(sum(getattr(one, name) for one in here) for name in Evidence.__slots__))
    return Compared(ours, side, evidence, (ours.calls or 0) + _nano(_sum(line.step for line in told)) + len(told))


def _summed(counters: Buckets, lines: Iterable[BillLine]) -> Mapping[str, int]:
    summed = dict.fromkeys(counters, 0)
    for line in lines:
        for counter, count in (line.tokens or {}).items():
            if counter in summed:
                summed[counter] += count
    return summed


def _ours(counters: Buckets | None, here: Sequence[Served]) -> Mapping[str, int]:
    counters = counters or {"input": bills_openai.INPUT, "cache_read": ("cache_read",), "cache_write": bills_openai.WRITES, "output": bills_openai.OUTPUT}
    return {counter: sum(one.buckets[bucket] for one in here for bucket in buckets) for counter, buckets in counters.items()}


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    return reduce(_EXACT.add, amounts, Decimal(0))


def _nano(usd: Decimal) -> int:
    """The nearest whole nano-USD."""
    return int(usd.scaleb(NANO_DIGITS, _EXACT).to_integral_value(ROUND_HALF_UP, _EXACT))


COLUMNS: tuple[str, ...] = (
    *("day", "model", "billed_as", "calls_ours", "calls_theirs"),
    *(f"{counter}_{side}" for counter in COUNTERS for side in ("ours", "theirs", "delta")),
    *("cost_usd_ours", "cost_usd_theirs", "cost_usd_delta", "cost_nano_usd_ours", "cost_nano_usd_theirs", "cost_nano_usd_delta", "cause", "explanation"),
)


def rows(lines: Iterable[Line]) -> Iterator[Mapping[str, Any]]:
    """By COLUMNS, for other programs. A delta is theirs without ours; empty where they do not say. USD are Decimals."""
    for line in lines:
        ours, theirs, deltas = line.compared.ours, line.compared.theirs, line.compared.token_deltas()
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"day": line.date, "model": line.model, "billed_as": ", ".join(line.billed_as), "calls_ours": ours.calls, "calls_theirs": theirs.calls}
        for counter, count in (ours.tokens or {}).items():
            row |= {f"{counter}_ours": count, f"{counter}_theirs": (theirs.tokens or {}).get(counter), f"{counter}_delta": deltas.get(counter)}
        delta = None if theirs.cost is None else line.compared.cost_delta
        for side, nano in (("ours", ours.cost), ("theirs", theirs.cost), ("delta", delta)):
            row |= {f"cost_nano_usd_{side}": nano, f"cost_usd_{side}": None if nano is None else usd_decimal(nano)}
        yield row | {"cause": line.cause, "explanation": CAUSES[line.cause] if line.cause else None}
