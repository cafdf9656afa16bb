"""OpenAI's exports. Sources: the API reference of `organization/costs`, `usage/completions` and `usage/embeddings`, and the dashboard's CSV files.

`input_tokens` holds the cached ones and those written to the cache; `line_item` is a model and what of it, such as "gpt-4o-2024-08-06, input".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.dialects.events import OUTPUT_BUCKETS
from gateway.errors import BadRequest
from gateway.operations.bills import DAY_S, Bill, BillLine, Row, Shape, seconds_of, tokens_of, usd_of, word_of

INPUT, WRITES, OUTPUT = ("input_uncached", "audio_in", "image_in"), ("cache_write_5m", "cache_write_1h"), OUTPUT_BUCKETS
COUNTERS: Mapping[str, tuple[str, ...]] = {"input": INPUT, "cache_read": ("cache_read",), "cache_write": WRITES, "output": OUTPUT}
WITHOUT_WRITES: Mapping[str, tuple[str, ...]] = {"input": (*INPUT, *WRITES), "cache_read": ("cache_read",), "output": OUTPUT}
"""Of an export that counts what is written to the cache as input."""


def read_usage(shape: str, rows: Iterable[Row]) -> Bill:
    """By model where it was fetched with group_by=model; the dashboard's file is."""
    lines, days, writes = [], set[int](), False
    for row in rows:
        day = _day(row)
        days.add(day)
        if row.values is None or not any(row.values.get(name) for name in ("input_tokens", "output_tokens", "num_model_requests")):
            continue
        writes = writes or row.values.get("input_cache_write_tokens") not in (None, "")
        calls = tokens_of(row.values, "num_model_requests", row.where)
        lines.append(BillLine(day, word_of(row.values.get("model")), _tokens(row), calls))
    return Bill(shape, frozenset(days), tuple(lines), COUNTERS if writes else WITHOUT_WRITES)


def _tokens(row: Row) -> Mapping[str, int]:
    values = row.values or {}
    total, read, written = (tokens_of(values, f"input_{name}tokens", row.where) for name in ("", "cached_", "cache_write_"))
    if read + written > total:
        raise BadRequest(f"{row.where}: more cached tokens ({read + written}) than input tokens ({total})")
    return {"input": total - read - written, "cache_read": read, "cache_write": written, "output": tokens_of(values, "output_tokens", row.where)}


def read_costs(shape: str, rows: Iterable[Row]) -> Bill:
    """By model where it was fetched with group_by=line_item."""
    lines, days = [], set[int]()
    for row in rows:
        day = _day(row)
        days.add(day)
        if row.values is None:
            continue
        amount = row.values.get("amount")
        nested = amount if isinstance(amount, Mapping) else {"value": row.values.get("amount_value"), "currency": row.values.get("amount_currency")}
        if nested.get("value") in (None, ""):
            continue  # a day of the dashboard's file on which nothing was used
        if str(nested.get("currency") or "usd").lower() != "usd":
            raise BadRequest(f"{row.where}: the amount is in {str(nested['currency'])[:10]}, not in USD")
        cost, step = usd_of(nested["value"], row.where)
        lines.append(BillLine(day, word_of(row.values.get("line_item")).split(", ")[0], cost=cost, step=step))
    return Bill(shape, frozenset(days), tuple(lines))


def _day(row: Row) -> int:
    if row.day is not None:
        return row.day
    values = row.values or {}
    return seconds_of(values.get("start_time") or values.get("start_time_iso"), row.where) // DAY_S


SHAPES = (
    Shape(
        "usage: /v1/organization/usage/completions and /embeddings (JSON), or CSV with start_time, model, input_tokens, output_tokens",
        frozenset({"start_time", "model", "input_tokens", "output_tokens"}),
        frozenset({"object", "input_tokens", "num_model_requests"}),
        read_usage,
    ),
    Shape(
        "costs: /v1/organization/costs (JSON), or CSV with start_time, amount_value, line_item",
        frozenset({"start_time", "amount_value", "line_item"}),
        frozenset({"object", "amount"}),
        read_costs,
    ),
)
