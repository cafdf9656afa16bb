"""The shipped price book: its figures are prices, and their import keeps what was set by hand and what was true before."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.catalog import price_book as snapshot_of
from gateway.core.pricing import priced
from gateway.dialects.events import BUCKETS, Usage
from gateway.errors import BadRequest
from gateway.operations import prices
from gateway.operations.names import check_model_name
from gateway.operations.price_book import STATES, Book, Change, Wanted, import_prices, load_book, parse_book
from gateway.store import catalog
from gateway.store.catalog import Price
from gateway.store.database import Database
from tests.unit.operations.times import AT

DAY = 86_400_000
SHIPPED = load_book()


def flat(rate: int) -> dict[str, int]:
    return dict.fromkeys(BUCKETS, rate)


def book(*wanted: Wanted, date: int = AT - DAY, version: str = "1", **others: Sequence[Wanted]) -> Book:
    return Book("genai-prices", version, date, {"openai": wanted, **{name: tuple(each) for name, each in others.items()}}, {})


def imported(database: Database, made: Book, *providers: str, at: int = AT, globs: Sequence[str] = (), dry_run: bool = False) -> list[Change]:
    return import_prices(database, made, providers or ("openai",), globs, at, dry_run=dry_run)


def states(changes: Sequence[Change]) -> list[tuple[str, int, str]]:
    return [(change.wanted.model, change.valid_from, change.state) for change in changes]


def in_force(database: Database, model: str, at: int) -> Price | None:
    return snapshot_of(database.read(catalog.list_prices)).price(model, at)


def rate(database: Database, model: str, at: int) -> int | None:
    found = in_force(database, model, at)
    return None if found is None else found.rates["output_text"]


# the file


def test_the_shipped_book_says_where_it_is_from_and_of_which_day() -> None:
    assert SHIPPED.label.startswith("genai-prices ")
    assert datetime.fromtimestamp(SHIPPED.date // 1000, UTC).year >= 2026
    assert {"openai", "anthropic", "google", "mistral", "deepseek", "groq", "xai", "cohere"} <= set(SHIPPED.prices)


def test_every_shipped_name_can_be_a_model_s_and_has_one_price_from_a_moment_on() -> None:
    for provider, wanted in SHIPPED.prices.items():
        for each in wanted:
            check_model_name(each.model)
        moments = [(each.model, each.valid_from) for each in wanted]
        assert len(set(moments)) == len(moments), provider


def test_every_shipped_price_has_a_rate_for_every_bucket_in_every_tier_and_variant() -> None:
    for each in (each for wanted in SHIPPED.prices.values() for each in wanted):
        steps = [(each.rates, each.variants), *((tier.rates, tier.variants) for tier in each.tiers)]
        assert all(set(rates) == set(BUCKETS) for rates, variants in steps for rates in (rates, *variants.values())), each.model


@pytest.mark.parametrize(
    ("provider", "model", "on", "usage", "service_tier", "cost"),
    [  # figures of the providers' own lists, in nano-USD
        ("openai", "gpt-4o", "2026-11-01", Usage(input_uncached=1000, cache_read=1000, output_text=1000), None, 2_500_000 + 1_250_000 + 10_000_000),
        ("openai", "gpt-4o", "2026-11-01", Usage(input_uncached=1000, output_text=1000), "batch", 1_250_000 + 5_000_000),
        ("openai", "gpt-4o", "2026-11-01", Usage(input_uncached=1000, output_text=1000), "priority", 4_250_000 + 17_000_000),
        ("openai", "o3", "2025-06-09", Usage(output_text=1000), None, 40_000_000),
        ("openai", "o3", "2025-06-10", Usage(output_text=1000, reasoning=1000), None, 16_000_000),
        ("openai", "text-embedding-3-small", "2026-01-01", Usage(input_uncached=1_000_000), None, 20_000_000),
        ("openai", "gpt-audio", "2026-01-01", Usage(input_uncached=1000, audio_in=1000, audio_out=1000), None, 2_500_000 + 32_000_000 + 64_000_000),
        ("openai", "gpt-image-1", "2026-01-01", Usage(input_uncached=1000, image_in=1000, output_text=1000), None, 5_000_000 + 10_000_000 + 40_000_000),
        ("openai", "gpt-5.6-luna-2026-08-06", "2026-11-01", Usage(), None, 0),
        ("anthropic", "claude-sonnet-4-5-20250929", "2026-01-01", Usage(input_uncached=200_000, output_text=1000), None, 600_000_000 + 15_000_000),
        ("anthropic", "claude-sonnet-4-5-20250929", "2026-01-01", Usage(input_uncached=200_001, output_text=1000), None, 1_200_006_000 + 22_500_000),
        (
            "anthropic",
            "claude-haiku-4-5",
            "2026-01-01",
            Usage(cache_write_5m=1000, cache_write_1h=1000, cache_read=1000),
            None,
            1_250_000 + 2_000_000 + 100_000,
        ),
        ("deepseek", "deepseek-chat", "2026-01-01", Usage(input_uncached=1000, output_text=1000), None, 270_000 + 1_100_000),
    ],
)
def test_the_shipped_figures_are_the_providers_(provider: str, model: str, on: str, usage: Usage, service_tier: str | None, cost: int) -> None:
    rows = [Price(1, each.model, each.valid_from, each.rates, each.per_call_nano, "", 0, each.tiers, each.variants) for each in SHIPPED.prices[provider]]
    found = snapshot_of(rows).price(model, int(datetime.fromisoformat(on).replace(tzinfo=UTC).timestamp() * 1000))
    assert found is not None
    assert priced(usage, found, 0, service_tier).cost == cost


def test_a_model_that_is_billed_by_the_hour_is_left_out_and_named() -> None:
    assert "audio hours" in SHIPPED.left_out["openai"]["whisper-1"]
    assert "whisper-1" not in {each.model for each in SHIPPED.prices["openai"]}


@pytest.mark.parametrize("figure", ["-1", "1e-3", "0.0000001", "1000000", ""])
def test_a_figure_that_is_no_price_makes_no_book(figure: str) -> None:
    part = {"prices": [{"models": ["m"], "rates": {"output_text": figure}}], "left_out": []}
    with pytest.raises(BadRequest):
        parse_book({"source": "s", "version": "1", "date": "2026-01-01", "providers": {"openai": part}})


# the import


def test_the_whole_shipped_book_can_be_imported_and_a_second_time_changes_nothing(database: Database) -> None:
    first = import_prices(database, SHIPPED, ("openai", "anthropic"), (), AT)
    before = database.read(catalog.list_prices)
    assert {change.state for change in first} == {"new"}
    second = import_prices(database, SHIPPED, ("openai", "anthropic"), (), AT + 1)
    assert {change.state for change in second} == {"kept"}
    assert database.read(catalog.list_prices) == before
    assert {price.source for price in before} >= {f"{SHIPPED.label}, openai", f"{SHIPPED.label}, anthropic"}


def test_dated_prices_hold_each_in_its_time(database: Database) -> None:
    assert states(imported(database, book(Wanted("m", 0, flat(5)), Wanted("m", AT - 9, flat(6))))) == [("m", 0, "new"), ("m", AT - 9, "new")]
    assert (rate(database, "m", AT - 10), rate(database, "m", AT - 9)) == (5, 6)


def test_a_dry_run_says_the_same_and_writes_nothing(database: Database) -> None:
    made = book(Wanted("m", 0, flat(5)), Wanted("n", 0, flat(6)))
    generation = database.read(catalog.generation)
    seen = imported(database, made, dry_run=True)
    assert in_force(database, "m", AT) is None
    assert database.read(catalog.generation) == generation
    assert seen == imported(database, made)


def test_only_models_that_match_are_imported(database: Database) -> None:
    made = book(Wanted("gpt-a", 0, flat(5)), Wanted("o9", 0, flat(5)), Wanted("x", 0, flat(5)))
    assert [change.wanted.model for change in imported(database, made, globs=("gpt-*", "o?"))] == ["gpt-a", "o9"]


def test_an_unknown_provider_and_a_glob_without_models_are_refused(database: Database) -> None:
    made = book(Wanted("m", 0, flat(5)))
    with pytest.raises(BadRequest, match="no provider 'opneai'; it has openai"):
        imported(database, made, "opneai")
    with pytest.raises(BadRequest, match="no model of openai that matches z"):
        imported(database, made, globs=("z*",))


@pytest.mark.parametrize("valid_from", [0, AT - 5])
def test_a_price_that_was_set_by_hand_holds(database: Database, valid_from: int) -> None:
    prices.set_price(database, "m", flat(1), AT, valid_from=valid_from)
    changes = imported(database, book(Wanted("m", 0, flat(5)), Wanted("m", AT - 2, flat(6))))
    assert [change.state for change in changes] == ["yours" if valid_from == 0 else "new", "yours"]
    assert rate(database, "m", AT) == 1


def test_a_price_that_is_set_later_takes_the_place_of_an_imported_one(database: Database) -> None:
    imported(database, book(Wanted("m", 0, flat(5))))
    prices.set_price(database, "m", flat(1), AT)
    assert (rate(database, "m", AT - 1), rate(database, "m", AT)) == (5, 1)
    newer = book(Wanted("m", 0, flat(7)), date=AT + DAY, version="2")
    assert states(imported(database, newer, at=AT + 2 * DAY)) == [("m", AT + DAY, "yours")]
    assert rate(database, "m", AT + 3 * DAY) == 1


def test_figures_that_changed_hold_from_the_new_book_s_day_on(database: Database) -> None:
    imported(database, book(Wanted("m", 0, flat(5))))
    newer = book(Wanted("m", 0, flat(7)), date=AT + DAY, version="2")
    assert states(imported(database, newer, at=AT + 2 * DAY)) == [("m", AT + DAY, "changed")]
    assert (rate(database, "m", AT + DAY - 1), rate(database, "m", AT + DAY)) == (5, 7)
    assert states(imported(database, newer, at=AT + 3 * DAY)) == [("m", AT + DAY, "kept")]


def test_figures_of_a_time_that_is_over_are_not_written_over(database: Database) -> None:
    imported(database, book(Wanted("m", 0, flat(5)), Wanted("m", AT - 2 * DAY, flat(6))))
    newer = book(Wanted("m", 0, flat(4)), Wanted("m", AT - 2 * DAY, flat(6)), version="2")
    assert states(imported(database, newer)) == [("m", 0, "differs"), ("m", AT - 2 * DAY, "kept")]


def test_a_name_that_another_provider_prices_keeps_the_price_it_has(database: Database) -> None:
    made = book(Wanted("m", 0, flat(5)), groq=[Wanted("m", 0, flat(6)), Wanted("n", 0, flat(6))])
    assert states(imported(database, made)) == [("m", 0, "new")]
    (other, new) = imported(database, made, "groq")
    assert (other.state, other.note, new.state) == ("other", "this name has openai's price", "new")
    assert rate(database, "m", AT) == 5


def test_of_two_providers_at_once_the_first_one_s_price_is_taken(database: Database) -> None:
    made = book(Wanted("m", 0, flat(5)), groq=[Wanted("m", 0, flat(6))])
    for dry_run in (True, False):
        assert [change.state for change in imported(database, made, "groq", "openai", dry_run=dry_run)] == ["new", "other"]
    assert rate(database, "m", AT) == 6


TIMELINES = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=4, unique_by=lambda each: each[0]).map(sorted)
STEPS = st.lists(st.tuples(TIMELINES, st.integers(3, 8), st.none() | st.tuples(st.integers(0, 8), st.integers(90, 99))), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_after_any_books_and_prices_by_hand_an_import_is_settled_and_the_hand_s_price_holds(database: Database, steps: list[Any]) -> None:
    def emptied() -> None:
        for price in catalog.list_prices():
            catalog.delete_price(price.id)

    database.write(emptied)
    now = 8
    for number, (timeline, date, by_hand) in enumerate(steps):
        now += 1
        if by_hand is not None and not any(price.valid_from == by_hand[0] for price in database.read(catalog.list_prices)):
            prices.set_price(database, "m", flat(by_hand[1]), now, valid_from=by_hand[0])
        before = database.read(catalog.list_prices)
        made = book(*(Wanted("m", moment, flat(figure)) for moment, figure in timeline), date=date, version=str(number))
        changes = imported(database, made, at=now)
        after = database.read(catalog.list_prices)
        assert {change.state for change in changes} <= set(STATES)
        assert [price for price in after if price in before] == before
        assert len(after) - len(before) == sum(change.written for change in changes)
        for moment in range(12):
            held = snapshot_of(before).price("m", moment)
            if held is not None and held.source == "operator":
                assert snapshot_of(after).price("m", moment) == held
        again = imported(database, dataclasses.replace(made, version="x"), at=now + 1)
        assert not any(change.written for change in again)
        now += 1
