from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.pricing import usd
from gateway.dialects.events import BUCKETS, Usage
from gateway.errors import BadRequest, NotFound
from gateway.operations import prices
from gateway.store.catalog import Price, Tier
from gateway.store.database import Conflict, Database
from gateway.store.ledger import Entry
from tests.unit.operations.booked import book
from tests.unit.operations.times import AT


@pytest.mark.parametrize(
    ("text", "pico"),
    [("1", 1_000_000), ("2.50", 2_500_000), ("0", 0), ("0.000001", 1), ("0.10", 100_000), ("007.5", 7_500_000), ("999999.999999", 999_999_999_999)],
)
def test_usd_per_million_tokens_is_exact_in_pico_usd_a_token(text: str, pico: int) -> None:
    assert prices.pico_per_token(text) == pico


@pytest.mark.parametrize("text", ["", "-1", "+1", "1e3", "1.", ".5", "1,5", "NaN", "0x1", "1 ", "\u0661", "0.0000001", "1000000"])
def test_what_is_no_price_or_too_fine_or_too_large_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        prices.pico_per_token(text)


def test_digits_that_say_nothing_do_not_count() -> None:
    assert prices.pico_per_token("0.1000000000") == 100_000
    assert prices.nano_usd("0.000000001") == 1


@given(st.integers(0, 10**12 - 1))
def test_every_rate_survives_its_own_text(pico: int) -> None:
    text = prices.usd_per_million(pico)
    assert prices.pico_per_token(text) == pico
    assert Fraction(text) == Fraction(pico, 10**6)


@given(st.integers(-(2**63), 2**63 - 1))
def test_amounts_are_shown_exactly(nano: int) -> None:
    assert Fraction(usd(nano)) == Fraction(nano, 10**9)


def test_every_bucket_has_a_rate_of_its_own_or_follows_one() -> None:
    assert set(prices.FOLLOWS) | {"input_uncached", "output_text"} == set(BUCKETS)
    rates = prices.completed({"input_uncached": 5, "output_text": 9, "cache_read": 1})
    assert rates == dict.fromkeys(BUCKETS, 5) | {"cache_read": 1, "output_text": 9, "reasoning": 9, "audio_out": 9}
    assert set(prices.completed({}).values()) == {0}


def test_a_price_holds_from_a_moment_on_and_earlier_ones_stay(database: Database) -> None:
    first = prices.set_price(database, "gpt-*", {"input_uncached": 5}, AT)
    second = prices.set_price(database, "gpt-*", {"input_uncached": 6}, AT, valid_from=AT + 1000, per_call_nano=7)
    assert (first.valid_from, second.valid_from, second.per_call_nano) == (AT, AT + 1000, 7)
    assert prices.list_prices(database) == [second, first]


def test_a_second_price_of_the_same_moment_is_refused(database: Database) -> None:
    prices.set_price(database, "m", {}, AT)
    with pytest.raises(Conflict, match="from that very moment"):
        prices.set_price(database, "m", {}, AT)


def test_tiers_and_variants_have_a_rate_for_every_bucket_too(database: Database) -> None:
    tier = Tier(100, {"input_uncached": 7, "output_text": 8}, {"batch": {"output_text": 4}})
    made = prices.set_price(database, "m", {"input_uncached": 5}, AT, tiers=(tier,), variants={"batch": {"input_uncached": 2}})
    (above,) = made.tiers
    assert above.rates == dict.fromkeys(BUCKETS, 7) | {"output_text": 8, "reasoning": 8, "audio_out": 8}
    assert (above.variants["batch"]["reasoning"], made.variants["batch"]["cache_read"]) == (4, 2)


def booked(database: Database, price: Price | None) -> None:
    words = {"ending": "complete", "usage_source": "provider", "model_asked": "m", "model_served": "m", "deployment": "d"}
    entry = Entry("x", "usage", 1, 1, 1, 5, 5, Usage(), total_ms=1, at=AT, price=price.id if price else None, **words)  # type: ignore[arg-type]
    book(database, entry)


def test_a_price_by_which_nothing_was_booked_can_be_deleted(database: Database) -> None:
    made = prices.set_price(database, "m", {"input_uncached": 5}, AT)
    booked(database, None)
    assert prices.delete_price(database, "m", None) == made
    assert prices.list_prices(database) == []


def test_a_price_that_entries_name_stays(database: Database) -> None:
    booked(database, prices.set_price(database, "m", {}, AT))
    with pytest.raises(Conflict, match="rerate"):
        prices.delete_price(database, "m", None)
    assert len(prices.list_prices(database)) == 1


def test_of_many_prices_the_one_of_that_moment_or_minute_is_deleted(database: Database) -> None:
    minute = AT - AT % 60_000
    for moment in (0, minute + 1, minute + 2):
        prices.set_price(database, "m", {}, AT, valid_from=moment)
    for refused in (None, minute):
        with pytest.raises(BadRequest, match="say which"):
            prices.delete_price(database, "m", refused)
    assert prices.delete_price(database, "m", minute + 1).valid_from == minute + 1
    assert prices.delete_price(database, "m", minute).valid_from == minute + 2
    with pytest.raises(NotFound, match="no such price"):
        prices.delete_price(database, "m", minute)
    with pytest.raises(NotFound, match="no price"):
        prices.delete_price(database, "n", None)
