"""Anthropic's exports. Sources: the API reference of `usage_report/messages` and `cost_report`, and the console's CSV files.

The cost report's amounts are cents, as text; those of the console's CSV are dollars. The console names models as people do ("Claude Sonnet 4.5").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.dialects.events import OUTPUT_BUCKETS
from gateway.errors import BadRequest
from gateway.operations.bills import DAY_S, Bill, BillLine, Row, Shape, seconds_of, tokens_of, usd_of, word_of

COUNTERS: Mapping[str, tuple[str, ...]] = {
    "input": ("input_uncached", "audio_in", "image_in"),
    "cache_read": ("cache_read",),
    "cache_write_5m": ("cache_write_5m",),
    "cache_write_1h": ("cache_write_1h",),
    "output": OUTPUT_BUCKETS,
}
_IN_CSV: Mapping[str, str] = {
    "input": "usage_input_tokens_no_cache",
    "cache_read": "usage_input_tokens_cache_read",
    "cache_write_5m": "usage_input_tokens_cache_write_5m",
    "cache_write_1h": "usage_input_tokens_cache_write_1h",
    "output": "usage_output_tokens",
}
_IN_JSON: Mapping[str, str] = {"input": "uncached_input_tokens", "cache_read": "cache_read_input_tokens", "output": "output_tokens"}
_WRITES: Mapping[str, str] = {"cache_write_5m": "ephemeral_5m_input_tokens", "cache_write_1h": "ephemeral_1h_input_tokens"}


def read_usage(shape: str, rows: Iterable[Row]) -> Bill:
    """By model where it was fetched with group_by[]=model; the console's file is. It counts no calls."""
    lines, days = [], set[int]()
    for row in rows:
        day = _day(row)
        days.add(day)
        if row.values is not None:
            lines.append(BillLine(day, word_of(row.values.get("model_version") or row.values.get("model")), _tokens(row.values, row.where)))
    return Bill(shape, frozenset(days), tuple(lines), COUNTERS)


def _tokens(values: Mapping[str, Any], where: str) -> Mapping[str, int]:
    if _IN_CSV["input"] in values:
        return {counter: tokens_of(values, name, where) for counter, name in _IN_CSV.items()}
    written = values.get("cache_creation")
    told = {counter: tokens_of(values, name, where) for counter, name in _IN_JSON.items()}
    return told | {counter: tokens_of(written if isinstance(written, Mapping) else {}, name, where) for counter, name in _WRITES.items()}


def read_costs(shape: str, rows: Iterable[Row]) -> Bill:
    """By model where it was fetched with group_by[]=description."""
    lines, days = [], set[int]()
    for row in rows:
        day = _day(row)
        days.add(day)
        if row.values is None:
            continue
        if str(row.values.get("currency") or "USD").upper() != "USD":
            raise BadRequest(f"{row.where}: the amount is in {str(row.values['currency'])[:10]}, not in USD")
        in_cents = "amount" in row.values
        cost, step = usd_of(row.values["amount" if in_cents else "cost_usd"], row.where, cents=in_cents)
        kind = word_of(row.values.get("cost_type"))
        model = word_of(row.values.get("model"))
        lines.append(BillLine(day, model or (kind if kind not in ("", "token", "tokens") else ""), cost=cost, step=step))
    return Bill(shape, frozenset(days), tuple(lines))


def _day(row: Row) -> int:
    return row.day if row.day is not None else seconds_of((row.values or {}).get("usage_date_utc"), row.where) // DAY_S


SHAPES = (
    Shape(
        "usage: /v1/organizations/usage_report/messages (JSON), or CSV with usage_date_utc, model_version, usage_input_tokens_no_cache",
        frozenset({"usage_date_utc", "model_version", *_IN_CSV.values()}),
        frozenset({"uncached_input_tokens", "output_tokens"}),
        read_usage,
    ),
    Shape(
        "costs: /v1/organizations/cost_report (JSON), or CSV with usage_date_utc, model, token_type, cost_usd",
        frozenset({"usage_date_utc", "model", "token_type", "cost_usd"}),
        frozenset({"amount", "currency"}),
        read_costs,
    ),
)
