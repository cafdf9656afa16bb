"""What a usage costs at a price, and what is charged for it. Pure: the ledger, the holds and the re-rating call it.

Amounts are integers of nano-dollars, rates integers of pico-dollars a token; each amount is rounded up once, from the exact sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.dialects.events import BUCKETS, Usage
from gateway.store.catalog import Price, Tier

PICO_PER_NANO = 1000
NANO_DIGITS = 9
MILLION = 1_000_000
PER_CALL = "per_call"
"""Beside the buckets in the rates that an entry keeps: nano-USD for the call itself, named where it is not 0."""


def usd(nano: int) -> str:
    """Nano-USD as USD, exactly, with at least two decimal places."""
    return decimal(nano, NANO_DIGITS)


def decimal(amount: int, digits: int) -> str:
    """A whole number of 10^-digits as decimal text, with at least two decimal places."""
    whole, fraction = divmod(abs(amount), 10**digits)
    return f"{'-' if amount < 0 else ''}{whole}.{str(fraction).zfill(digits).rstrip('0').ljust(2, '0')}"


@dataclass(frozen=True, slots=True)
class Priced:
    """`cost`: what the operator pays; `amount`: what is charged, with the markup; nano-USD. `rates`: what `total` makes them from again."""

    cost: int
    amount: int
    rates: Mapping[str, int]


def priced(usage: Usage, price: Price | None, markup_ppm: int = 0, service_tier: str | None = None) -> Priced:
    """`service_tier`: the one that served, where the usage itself does not name it. Without a price all is 0, and the rates are empty."""
    if price is None:
        return Priced(0, 0, {})
    used = rates(price, usage, service_tier)
    return Priced(cost_nano(usage, used), charged_nano(usage, used, markup_ppm), used)


def rates(price: Price, usage: Usage, service_tier: str | None = None) -> dict[str, int]:
    """The rates of a call with this usage, for every bucket, and PER_CALL.

    Above a tier's tokens the whole call has that tier's rates. A service tier that a price does not know has its plain ones;
    one that only the price below the tier knows has the tier's own, which are the dearer.
    """
    told = usage.input_tokens
    step: Price | Tier = max((tier for tier in price.tiers if told > tier.above), key=lambda tier: tier.above, default=price)
    found = step.variants.get(service_tier or served_tier(usage) or "", step.rates)
    per_call = {PER_CALL: price.per_call_nano} if price.per_call_nano else {}
    return {bucket: found.get(bucket, 0) for bucket in BUCKETS} | per_call


def cost_nano(usage: Usage, used: Mapping[str, int]) -> int:
    """Rounded up, so that no call is free by rounding."""
    return -(-_pico(usage, used) // PICO_PER_NANO)


def charged_nano(usage: Usage, used: Mapping[str, int], markup_ppm: int) -> int:
    """The cost with so many millionths on top of it. A discount ends at nothing: nobody is paid for calling."""
    return -(-_pico(usage, used) * max(MILLION + markup_ppm, 0) // (PICO_PER_NANO * MILLION))


def served_tier(usage: Usage) -> str | None:
    """The service tier that stands in the provider's usage object."""
    named = usage.raw.get("service_tier") if usage.raw is not None else None
    return named if isinstance(named, str) else None


def _pico(usage: Usage, used: Mapping[str, int]) -> int:
    return sum(tokens * used.get(bucket, 0) for bucket, tokens in usage.buckets().items()) + used.get(PER_CALL, 0) * PICO_PER_NANO
