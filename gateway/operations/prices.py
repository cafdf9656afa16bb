"""Prices: USD in decimal text to whole pico-dollars and nano-dollars and back, exactly; a float never comes near them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal

from gateway.core.pricing import NANO_DIGITS, decimal
from gateway.dialects.events import BUCKETS
from gateway.errors import BadRequest, NotFound
from gateway.operations.names import check_model_name
from gateway.store import catalog, corrections
from gateway.store.catalog import Price, Tier
from gateway.store.database import Conflict, Database

PICO_DIGITS = 6
"""One USD for a million tokens is 10^12 pico-USD for 10^6 tokens: a rate has at most 6 decimal places."""
WHOLE_DIGITS = 6
"""A price of a million USD or more is a slip of the keyboard, and would let an amount outgrow 64 bits."""
FOLLOWS: Mapping[str, str] = {
    "cache_read": "input_uncached",
    "cache_write_5m": "input_uncached",
    "cache_write_1h": "input_uncached",
    "audio_in": "input_uncached",
    "image_in": "input_uncached",
    "reasoning": "output_text",
    "audio_out": "output_text",
}
"""The bucket whose rate applies where a price names none of its own: buckets are disjoint, and a missing rate would be a silent zero."""
OPERATOR = "operator"
"""The source of a price that was set by hand."""
MINUTE_MS = 60_000
_DECIMAL = re.compile(r"(\d+)(?:\.(\d+))?\Z", re.ASCII)


def pico_per_token(usd_per_million: str) -> int:
    """ "2.50" (USD per million tokens) is 2_500_000 pico-USD a token. Raises BadRequest."""
    return _scaled(usd_per_million, PICO_DIGITS, "a price")


def nano_usd(usd: str) -> int:
    """ "0.01" (USD) is 10_000_000 nano-USD. Raises BadRequest."""
    return _scaled(usd, NANO_DIGITS, "an amount of USD")


def _scaled(text: str, digits: int, what: str) -> int:
    match = _DECIMAL.match(text)
    if match is None:
        raise BadRequest(f"{text!r} is not {what}: write a decimal number such as 2.50, without a sign or an exponent")
    whole, fraction = match[1].lstrip("0"), (match[2] or "").rstrip("0")
    if len(whole) > WHOLE_DIGITS:
        raise BadRequest(f"{text} is too large for {what}: it must be below a million USD")
    if len(fraction) > digits:
        raise BadRequest(f"{text} is too fine: {what} here has at most {digits} decimal places")
    return int((whole or "0") + fraction.ljust(digits, "0"))


def usd_per_million(pico: int) -> str:
    """The inverse of `pico_per_token`, with at least two decimal places."""
    return decimal(pico, PICO_DIGITS)


def usd_decimal(nano: int) -> Decimal:
    """Nano-USD as USD, exactly, with 9 decimal places."""
    return Decimal(nano).scaleb(-NANO_DIGITS)


def completed(rates: Mapping[str, int]) -> dict[str, int]:
    """A rate for every bucket: the named ones, else the one that FOLLOWS names, else 0."""
    return {bucket: rates.get(bucket, rates.get(FOLLOWS.get(bucket, bucket), 0)) for bucket in BUCKETS}


def completed_tier(tier: Tier) -> Tier:
    """The same with a rate for every bucket."""
    return Tier(tier.above, completed(tier.rates), completed_variants(tier.variants))


def completed_variants(variants: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {name: completed(rates) for name, rates in variants.items()}


def set_price(
    database: Database,
    model: str,
    rates: Mapping[str, int],
    at: int,
    *,
    per_call_nano: int = 0,
    valid_from: int | None = None,
    tiers: Sequence[Tier] = (),
    variants: Mapping[str, Mapping[str, int]] | None = None,
) -> Price:
    """`model` is the upstream's name or a glob, `rates` pico-USD per token by bucket, `valid_from` Unix milliseconds (now).

    Earlier prices stay: they hold for the time before. Raises BadRequest, and Conflict for a second price from the same moment.
    """
    check_model_name(model)
    since = at if valid_from is None else valid_from
    steps, versions = tuple(completed_tier(tier) for tier in tiers), completed_variants(variants or {})

    def add() -> Price:
        if any(price.model == model and price.valid_from == since for price in catalog.list_prices()):
            raise Conflict(f"there is a price of {model} from that very moment already")
        return catalog.add_price(model, since, completed(rates), at, per_call_nano=per_call_nano, source=OPERATOR, tiers=steps, variants=versions)

    return database.write(add)


def delete_price(database: Database, model: str, valid_from: int | None) -> Price:
    """Take back a price by which nothing was booked. `valid_from`: the moment it holds from, to the minute; None where the model has one price.

    Raises NotFound, and Conflict for a price that entries name: what it should have been is set from a moment on, and `rerate` corrects.
    """

    def delete() -> Price:
        found = _named([price for price in catalog.list_prices() if price.model == model], model, valid_from)
        if corrections.price_used(found):
            raise Conflict(f"entries were booked by this price of {model}; set another from a moment on, and `gateway price rerate` corrects them")
        catalog.delete_price(found.id)
        return found

    return database.write(delete)


def _named(prices: Sequence[Price], model: str, valid_from: int | None) -> Price:
    """The price of that very moment, else the one of its minute."""
    if valid_from is not None:
        near = [price for price in prices if price.valid_from // MINUTE_MS == valid_from // MINUTE_MS]
        prices = [price for price in near if price.valid_from == valid_from] or near
    if not prices:
        raise NotFound(f"{model} has no {'such ' if valid_from is not None else ''}price; `gateway price list` shows all")
    if len(prices) > 1:
        raise BadRequest(f"{model} has {len(prices)} prices; say which with --valid-from, as `gateway price list` shows it, or to the millisecond")
    return prices[0]


def list_prices(database: Database) -> list[Price]:
    """By model, newest first."""
    return sorted(database.read(catalog.list_prices), key=lambda price: (price.model, -price.valid_from))
