"""`gateway price`."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import click

from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, table
from gateway.cli.values import MOMENT, Parsed
from gateway.dialects.events import BUCKETS
from gateway.operations import prices
from gateway.store.catalog import Price

RATE = Parsed("USD", prices.pico_per_token)
PER_CALL = Parsed("USD", prices.nano_usd)
OPTIONS = MappingProxyType(
    {
        "input_uncached": ("--input", "Input tokens."),
        "cache_read": ("--cache-read", "Input tokens read from the provider's cache. Default: as --input."),
        "cache_write_5m": ("--cache-write-5m", "Input tokens written to its cache for 5 minutes. Default: as --input."),
        "cache_write_1h": ("--cache-write-1h", "Input tokens written to its cache for an hour. Default: as --input."),
        "audio_in": ("--audio-in", "Tokens of sound in the input. Default: as --input."),
        "image_in": ("--image-in", "Tokens of images in the input. Default: as --input."),
        "output_text": ("--output", "Output tokens."),
        "reasoning": ("--reasoning", "Output tokens spent on reasoning. Default: as --output."),
        "audio_out": ("--audio-out", "Tokens of sound in the output. Default: as --output."),
    }
)
"""The option of each bucket."""


@click.group()
def price() -> None:
    """Prices: what a model's tokens cost, from when on. Exact decimals; every earlier price stays."""


def _rate_options(command: Any) -> Any:
    for bucket in reversed(BUCKETS):
        flag, text = OPTIONS[bucket]
        command = click.option(flag, bucket, type=RATE, metavar="USD", help=text)(command)
    return command


@price.command("set")
@click.argument("model")
@_rate_options
@click.option("--per-call", type=PER_CALL, default=None, metavar="USD", help="USD for each call, besides the tokens.")
@click.option("--valid-from", type=MOMENT, metavar="TIME", help="From when on, such as 2026-12-01, UTC. Default: now.")
@json_option
def set_price(model: str, per_call: int | None, valid_from: int | None, as_json: bool, **rates: int | None) -> None:
    """Set the price of MODEL, the name that its upstream knows it by, or a glob: USD per million tokens, such as 2.50."""
    named = {bucket: rate for bucket, rate in rates.items() if rate is not None}
    if not named and per_call is None:
        raise click.UsageError("name at least one price: --input, --output, --per-call (0 is a price)")
    if named and not {"input_uncached", "output_text"} <= named.keys():
        raise click.UsageError("name both --input and --output: what is left out would be free (0 is a price)")
    with opened() as here:
        created = prices.set_price(here.database, model, named, now_ms(), per_call_nano=per_call or 0, valid_from=valid_from)
    lines = [f"price of {model} from {moment(created.valid_from)}, in USD per million tokens:", f"    {_rates(created)}"]
    emit(as_json, _document(created), lambda: lines)


@price.command("list")
@json_option
def list_prices(as_json: bool) -> None:
    """List the prices in USD per million tokens, each model's newest first."""
    with opened() as here:
        found = prices.list_prices(here.database)
    headings = ("MODEL", "FROM", "INPUT", "OUTPUT", "PER CALL", "OTHERS", "SOURCE")
    rows = [_row(item) for item in found]
    empty = ["No prices yet. Set one: gateway price set MODEL --input 2.50 --output 10"]
    emit(as_json, [_document(item) for item in found], lambda: table(headings, rows, right=("INPUT", "OUTPUT", "PER CALL")) if rows else empty)


def _row(item: Price) -> tuple[object, ...]:
    text, result = (prices.usd_per_million(item.rates.get(bucket, 0)) for bucket in ("input_uncached", "output_text"))
    start = moment(item.valid_from) if item.valid_from else "always"
    return item.model, start, text, result, prices.usd(item.per_call_nano), _others(item), item.source


def _others(item: Price) -> str:
    """The rates that differ from the one that they would follow."""
    rates = {bucket: item.rates.get(bucket, 0) for bucket in BUCKETS}
    own = [bucket for bucket, followed in prices.FOLLOWS.items() if rates[bucket] != rates[followed]]
    return ", ".join(f"{_name(bucket)} {prices.usd_per_million(rates[bucket])}" for bucket in own)


def _rates(item: Price) -> str:
    parts = [f"{_name(bucket)} {prices.usd_per_million(item.rates.get(bucket, 0))}" for bucket in BUCKETS]
    return ", ".join([*parts, f"and {prices.usd(item.per_call_nano)} a call"])


def _name(bucket: str) -> str:
    return OPTIONS[bucket][0].removeprefix("--")


def _document(item: Price) -> dict[str, Any]:
    return {
        "id": item.id,
        "model": item.model,
        "valid_from": item.valid_from,
        "usd_per_million_tokens": {bucket: prices.usd_per_million(rate) for bucket, rate in item.rates.items()},
        "rates_pico_usd": dict(item.rates),
        "per_call_usd": prices.usd(item.per_call_nano),
        "source": item.source,
        "created_at": item.created_at,
    }
