"""`gateway price`: what is set by hand. price_book.py has what works on the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import click

from gateway.cli import price_book
from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, table
from gateway.cli.values import BEGINNING, MOMENT, Parsed
from gateway.core.globs import matches
from gateway.core.pricing import usd
from gateway.dialects.events import BUCKETS
from gateway.operations import prices
from gateway.store.catalog import Price, Tier

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


SERVICE_TIERS = ("batch", "flex", "priority")
NARROW = MappingProxyType({"input_uncached": "input", "cache_read": "cache-read", "output_text": "output"})
"""The buckets whose rates can be set for a tier and for service tiers; the others follow these."""


@click.group()
def price() -> None:
    """Prices: what a model's tokens cost, from when on. Exact decimals; every earlier price stays."""


for command in (price_book.import_prices, price_book.rerate_entries):
    price.add_command(command)


def _rate_options(command: Any) -> Any:
    for bucket in reversed(BUCKETS):
        flag, text = OPTIONS[bucket]
        command = click.option(flag, bucket, type=RATE, metavar="USD", help=text)(command)
    return command


def _more_options(command: Any) -> Any:
    """--tier-input and so on, for the calls with a long input, and --batch-input and so on, for those of a service tier."""
    texts = {tier: f"As --{{}}, of the service tier {tier}." for tier in reversed(SERVICE_TIERS)} | {"tier": "As --{}, of a call above --tier-above."}
    for kind, text in texts.items():
        for bucket, name in reversed(tuple(NARROW.items())):
            command = click.option(f"--{kind}-{name}", f"{kind}__{bucket}", type=RATE, metavar="USD", help=text.format(name))(command)
    return click.option("--tier-above", type=click.IntRange(1), metavar="TOKENS", help="With more input than this the whole call has other prices.")(command)


@price.command("set")
@click.argument("model")
@_rate_options
@click.option("--per-call", type=PER_CALL, default=None, metavar="USD", help="USD for each call, besides the tokens.")
@_more_options
@click.option("--valid-from", type=MOMENT, metavar="TIME", help="From when on, such as 2026-12-01, UTC. Default: now.")
@json_option
def set_price(model: str, per_call: int | None, tier_above: int | None, valid_from: int | None, as_json: bool, **rates: int | None) -> None:
    """Set the price of MODEL, the name that its upstream knows it by, or a glob: USD per million tokens, such as 2.50."""
    given = {name: rate for name, rate in rates.items() if rate is not None}
    named = {name: rate for name, rate in given.items() if "__" not in name}
    if not given and per_call is None:
        raise click.UsageError("name at least one price: --input, --output, --per-call (0 is a price)")
    if given and not {"input_uncached", "output_text"} <= named.keys():
        raise click.UsageError("name both --input and --output: what is left out would be free (0 is a price)")
    tier = _of("tier", given)
    if (tier_above is None) != (not tier):
        raise click.UsageError("--tier-above goes with --tier-input and --tier-output")
    steps = (Tier(tier_above, tier),) if tier_above is not None else ()
    variants = {name: rates_of for name in SERVICE_TIERS if (rates_of := _of(name, given))}
    with opened() as here:
        now = now_ms()
        created = prices.set_price(here.database, model, named, now, per_call_nano=per_call or 0, valid_from=valid_from, tiers=steps, variants=variants)
    lines = [f"price of {model} from {moment(created.valid_from)}, in USD per million tokens:", *(f"    {line}" for line in _full(created))]
    emit(as_json, _document(created), lambda: lines)


def _of(kind: str, given: Mapping[str, int]) -> dict[str, int]:
    """The rates of that kind. Raises UsageError where one direction would be free."""
    found = {name.removeprefix(f"{kind}__"): rate for name, rate in given.items() if name.startswith(f"{kind}__")}
    if found and not {"input_uncached", "output_text"} <= found.keys():
        raise click.UsageError(f"name both --{kind}-input and --{kind}-output: what is left out would be free (0 is a price)")
    return found


@price.command("delete")
@click.argument("model")
@click.option("--valid-from", type=BEGINNING, metavar="TIME", help="Which one: when it begins, as `gateway price list` shows it. Default: the only one.")
@json_option
def delete_price(model: str, valid_from: int | None, as_json: bool) -> None:
    """Delete a price of MODEL by which nothing was booked, such as a slip of the keyboard."""
    with opened() as here:
        deleted = prices.delete_price(here.database, model, valid_from)
    emit(as_json, _document(deleted), lambda: [f"deleted the price of {model} from {_start(deleted)}"])


@price.command("list")
@click.argument("model", required=False, metavar="[MODEL]")
@json_option
def list_prices(model: str | None, as_json: bool) -> None:
    """List the prices in USD per million tokens, each model's newest first. MODEL: a name or glob, such as 'gpt-*'."""
    with opened() as here:
        found = [item for item in prices.list_prices(here.database) if model is None or matches(item.model, model)]
    headings = ("MODEL", "FROM", "INPUT", "OUTPUT", "PER CALL", "OTHERS", "SOURCE")
    rows = [_row(item) for item in found]
    empty = ["No prices yet. Set one: gateway price set MODEL --input 2.50 --output 10, or see `gateway price import --dry-run`"]
    emit(as_json, [_document(item) for item in found], lambda: table(headings, rows, right=("INPUT", "OUTPUT", "PER CALL")) if rows else empty)


def _row(item: Price) -> tuple[object, ...]:
    text, result = (prices.usd_per_million(item.rates.get(bucket, 0)) for bucket in ("input_uncached", "output_text"))
    return item.model, _start(item), text, result, usd(item.per_call_nano), _others(item), item.source


def _start(item: Price) -> str:
    return moment(item.valid_from) if item.valid_from else "always"


def _others(item: Price) -> str:
    """The rates that differ from the one that they would follow, and which tiers and variants there are."""
    rates = {bucket: item.rates.get(bucket, 0) for bucket in BUCKETS}
    own = [bucket for bucket, followed in prices.FOLLOWS.items() if rates[bucket] != rates[followed]]
    steps = [f"others above {tier.above} tokens" for tier in item.tiers]
    return ", ".join([*(f"{_name(bucket)} {prices.usd_per_million(rates[bucket])}" for bucket in own), *steps, *sorted(item.variants)])


def _full(item: Price) -> list[str]:
    variants = [f"{name}: {_rates(rates)}" for name, rates in sorted(item.variants.items())]
    steps = [f"above {tier.above} tokens of input: {_rates(tier.rates)}" for tier in item.tiers]
    return [f"{_rates(item.rates)}, and {usd(item.per_call_nano)} a call", *variants, *steps]


def _rates(rates: Mapping[str, int]) -> str:
    return ", ".join(f"{_name(bucket)} {prices.usd_per_million(rates.get(bucket, 0))}" for bucket in BUCKETS)


def _name(bucket: str) -> str:
    return OPTIONS[bucket][0].removeprefix("--")


def _document(item: Price) -> dict[str, Any]:
    return {
        "id": item.id,
        "model": item.model,
        "valid_from": item.valid_from,
        "usd_per_million_tokens": _usd(item.rates),
        "rates_pico_usd": dict(item.rates),
        "per_call_usd": usd(item.per_call_nano),
        "tiers": [{"above": tier.above, "usd_per_million_tokens": _usd(tier.rates), **_variants(tier.variants)} for tier in item.tiers],
        **_variants(item.variants),
        "source": item.source,
        "created_at": item.created_at,
    }


def _variants(variants: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    return {"variants": {name: {"usd_per_million_tokens": _usd(rates)} for name, rates in variants.items()}}


def _usd(rates: Mapping[str, int]) -> dict[str, str]:
    return {bucket: prices.usd_per_million(rate) for bucket, rate in rates.items()}
