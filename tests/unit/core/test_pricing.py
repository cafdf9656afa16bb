"""What a call costs and what is charged: exact, rounded up once, at the rates of its tier and of the service tier that served it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.pricing import MILLION, Priced, charged_nano, cost_nano, priced, rates, served_tier
from gateway.dialects.events import BUCKETS, Usage
from gateway.store.catalog import Price, Tier
from tests.factories import price


def same(rate: int) -> dict[str, int]:
    return dict.fromkeys(BUCKETS, rate)


USED = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**12)), min_size=len(BUCKETS), max_size=len(BUCKETS))


def counted(used: list[tuple[int, int]]) -> tuple[Usage, dict[str, int]]:
    counts: dict[str, Any] = {bucket: tokens for bucket, (tokens, _) in zip(BUCKETS, used, strict=True)}
    return Usage(**counts), {bucket: rate for bucket, (_, rate) in zip(BUCKETS, used, strict=True)}


@given(USED, st.integers(0, 10**12), st.integers(-MILLION, 10 * MILLION))
def test_cost_and_amount_are_exact_and_each_is_rounded_up_once(used: list[tuple[int, int]], per_call: int, markup_ppm: int) -> None:
    usage, by_bucket = counted(used)
    made = priced(usage, Price(1, "m", 0, by_bucket, per_call, "", 0), markup_ppm)
    exact = sum(Fraction(tokens * rate, 1000) for tokens, rate in used) + per_call
    assert type(made.cost) is type(made.amount) is int
    assert 0 <= made.cost - exact < 1
    assert 0 <= made.amount - exact * Fraction(MILLION + markup_ppm, MILLION) < 1


@given(USED, st.integers(0, 10**12))
def test_without_a_markup_the_amount_is_the_cost(used: list[tuple[int, int]], per_call: int) -> None:
    usage, by_bucket = counted(used)
    made = priced(usage, Price(1, "m", 0, by_bucket, per_call, "", 0))
    assert made.amount == made.cost


@given(USED, st.integers(0, 10**12), st.integers(-MILLION, MILLION))
def test_the_kept_rates_make_the_same_figures_again(used: list[tuple[int, int]], per_call: int, markup_ppm: int) -> None:
    usage, by_bucket = counted(used)
    made = priced(usage, Price(1, "m", 0, by_bucket, per_call, "", 0), markup_ppm)
    assert (cost_nano(usage, made.rates), charged_nano(usage, made.rates, markup_ppm)) == (made.cost, made.amount)


@pytest.mark.parametrize(("tokens", "rate", "amount"), [(1, 1, 1), (1000, 1, 1), (1001, 1, 2), (1, 1000, 1), (1, 1001, 2), (0, 5000, 0), (3, 2_500_000, 7500)])
def test_part_of_a_nano_dollar_is_a_whole_one(tokens: int, rate: int, amount: int) -> None:
    assert priced(Usage(output_text=tokens), price(rate=rate)).amount == amount


def test_two_parts_of_a_nano_dollar_are_rounded_together() -> None:
    assert priced(Usage(input_uncached=1, output_text=1), price(rate=400)).amount == 1


def test_the_markup_is_taken_of_the_exact_sum_and_not_of_the_rounded_cost() -> None:
    made = priced(Usage(output_text=1), price(rate=100), 1_000_000)
    assert (made.cost, made.amount) == (1, 1)


@pytest.mark.parametrize(("markup_ppm", "amount"), [(0, 1000), (250_000, 1250), (-250_000, 750), (-1_000_000, 0), (-3_000_000, 0), (1, 1001)])
def test_the_markup_raises_or_lowers_the_amount_alone(markup_ppm: int, amount: int) -> None:
    made = priced(Usage(output_text=1000), price(rate=900, per_call_nano=100), markup_ppm)
    assert (made.cost, made.amount) == (1000, amount)


def test_every_bucket_has_its_own_rate() -> None:
    for number, bucket in enumerate(BUCKETS):
        by_bucket: dict[str, Any] = {bucket: 1000 * (number + 1)}
        counts: dict[str, Any] = {bucket: 7}
        assert priced(Usage(**counts), price(rate=0, **by_bucket)).amount == 7 * (number + 1)


def test_without_a_price_nothing_is_charged() -> None:
    assert priced(Usage(output_text=5), None, 100) == Priced(0, 0, {})


def test_the_price_of_a_call_is_among_the_rates_where_there_is_one() -> None:
    assert rates(price(rate=7), Usage()) == same(7)
    assert rates(price(rate=7, per_call_nano=40), Usage()) == same(7) | {"per_call": 40}


TIERED = Price(1, "m", 0, same(1), 0, "", 0, (Tier(100, same(2)), Tier(200, same(3))))


@pytest.mark.parametrize(("told", "rate"), [(0, 1), (100, 1), (101, 2), (200, 2), (201, 3), (10**9, 3)])
def test_above_a_tier_the_whole_call_has_its_rates(told: int, rate: int) -> None:
    assert rates(TIERED, Usage(input_uncached=told, output_text=5)) == same(rate)


def test_cached_tokens_and_images_count_towards_the_tier_and_the_answer_does_not() -> None:
    assert rates(TIERED, Usage(cache_read=60, image_in=41)) == same(2)
    assert rates(TIERED, Usage(input_uncached=1, output_text=500)) == same(1)


def test_the_order_in_which_tiers_are_kept_does_not_matter() -> None:
    turned = Price(1, "m", 0, same(1), 0, "", 0, TIERED.tiers[::-1])
    assert rates(turned, Usage(input_uncached=500)) == same(3)


VARIED = Price(1, "m", 0, same(10), 9, "", 0, (Tier(100, same(20), {"batch": same(12)}),), {"batch": same(5), "priority": same(17)})


@pytest.mark.parametrize(
    ("told", "service_tier", "rate"),
    [(1, None, 10), (1, "batch", 5), (1, "priority", 17), (1, "default", 10), (1, "flex", 10), (1, "", 10), (101, None, 20), (101, "batch", 12)],
)
def test_the_service_tier_that_served_has_its_own_rates(told: int, service_tier: str | None, rate: int) -> None:
    assert rates(VARIED, Usage(input_uncached=told), service_tier) == same(rate) | {"per_call": 9}


def test_above_a_tier_that_does_not_know_the_service_tier_the_tier_s_own_rates_hold() -> None:
    assert rates(VARIED, Usage(input_uncached=101), "priority")["output_text"] == 20


def test_a_usage_that_names_its_service_tier_needs_no_other_word_of_it() -> None:
    assert rates(VARIED, Usage(raw={"service_tier": "batch"}))["output_text"] == 5
    assert rates(VARIED, Usage(raw={"service_tier": "batch"}), "priority")["output_text"] == 17


@pytest.mark.parametrize("raw", [None, {}, {"service_tier": None}, {"service_tier": ["batch"]}, {"service_tier": 1}])
def test_a_usage_without_a_service_tier_has_none(raw: dict[str, Any] | None) -> None:
    assert served_tier(Usage(raw=raw)) is None


def test_a_bucket_that_a_price_does_not_name_is_free() -> None:
    assert priced(Usage(audio_in=10), Price(1, "m", 0, {"output_text": 1000}, 0, "", 0)).amount == 0
