from __future__ import annotations

from collections.abc import Sequence

import pytest

from gateway.cli.prices import OPTIONS
from gateway.dialects.events import BUCKETS
from tests.unit.cli.conftest import Typed


def test_every_bucket_has_an_option() -> None:
    assert tuple(OPTIONS) == BUCKETS


def test_a_price_is_kept_exactly_and_shown_as_it_was_given(installed: Typed) -> None:
    made = installed("price", "set", "m", "--input", "2.5", "--output", "10", "--cache-read", "0.000001", "--per-call", "0.01", "--json").json()
    rates = made["rates_pico_usd"]
    assert (rates["input_uncached"], rates["output_text"], rates["cache_read"], rates["reasoning"]) == (2_500_000, 10_000_000, 1, 10_000_000)
    assert (made["usd_per_million_tokens"]["input_uncached"], made["per_call_usd"]) == ("2.50", "0.01")
    assert "2.50   10.00      0.01  cache-read 0.000001  operator" in installed("price", "list").out


def test_a_price_of_one_direction_only_is_refused_since_the_other_would_be_free(installed: Typed) -> None:
    for named in (("--input", "1"), ("--output", "1"), ("--cache-read", "1")):
        refused = installed("price", "set", "m", *named)
        assert refused.code == 2
        assert "--output" in refused.err
    assert installed("price", "set", "m", "--per-call", "0.01").code == 0


def test_a_price_may_begin_later(installed: Typed) -> None:
    installed("price", "set", "m", "--input", "1", "--output", "2", "--valid-from", "2030-01-01")
    assert "2030-01-01 00:00 UTC" in installed("price", "list").out


def test_a_price_that_names_nothing_or_is_too_fine_is_refused(installed: Typed) -> None:
    assert installed("price", "set", "m").code == 2
    result = installed("price", "set", "m", "--input", "0.0000001")
    assert (result.code, "at most 6 decimal places" in result.err) == (2, True)
    assert [item["model"] for item in installed("price", "list", "--json").json()] == ["echo"]


def test_a_long_input_and_a_batch_have_prices_of_their_own(installed: Typed) -> None:
    tier, batch = (
        ("--tier-above", "1000", "--tier-input", "2", "--tier-output", "3"),
        ("--batch-input", "0.5", "--batch-output", "1", "--batch-cache-read", "0.1"),
    )
    made = installed("price", "set", "m", "--input", "1", "--output", "2", *tier, *batch, "--json").json()
    (above,) = made["tiers"]
    assert (above["above"], above["usd_per_million_tokens"]["cache_read"], above["usd_per_million_tokens"]["reasoning"]) == (1000, "2.00", "3.00")
    rates = made["variants"]["batch"]["usd_per_million_tokens"]
    assert (rates["input_uncached"], rates["cache_read"], rates["output_text"]) == ("0.50", "0.10", "1.00")
    assert "others above 1000 tokens, batch" in installed("price", "list").out


@pytest.mark.parametrize(
    "named",
    [
        ("--tier-input", "1", "--tier-output", "1"),
        ("--tier-above", "5"),
        ("--tier-above", "5", "--tier-input", "1"),
        ("--tier-above", "0", "--tier-input", "1", "--tier-output", "1"),
        ("--batch-input", "1"),
        ("--batch-cache-read", "1"),
    ],
)
def test_half_a_tier_or_half_a_batch_is_refused(installed: Typed, named: Sequence[str]) -> None:
    refused = installed("price", "set", "m", "--input", "1", "--output", "1", *named)
    assert refused.code == 2
    assert "--tier" in refused.err or "--batch" in refused.err


@pytest.mark.parametrize(("figure", "reason"), [("-1", "without a sign"), ("1e3", "without a sign"), ("0.0000001", "too fine"), ("1000000", "too large")])
def test_a_figure_that_is_no_price_is_one_clear_line(installed: Typed, figure: str, reason: str) -> None:
    result = installed("price", "set", "m", "--input=" + figure, "--output", "1")
    assert (result.code, reason in result.err, result.err.count("\n")) == (2, True, 1)


def test_a_price_that_was_never_used_can_be_deleted(installed: Typed) -> None:
    installed("price", "set", "m", "--input", "1", "--output", "2")
    installed("price", "set", "m", "--input", "1", "--output", "3", "--valid-from", "2030-01-01")
    assert "say which with --valid-from" in installed("price", "delete", "m").err
    assert installed("price", "delete", "m", "--valid-from", "2030-01-01 00:00 UTC").out == "deleted the price of m from 2030-01-01 00:00 UTC\n"
    assert installed("price", "delete", "m").code == 0
    assert (installed("price", "delete", "m").code, installed("price", "delete", "echo", "--valid-from", "always").code) == (3, 0)


def test_rates_of_service_tiers_are_set_and_a_list_of_some_is_short(installed: Typed) -> None:
    words = ("--input", "1", "--output", "2", "--flex-input", "0.5", "--flex-output", "1", "--priority-input", "2", "--priority-output", "4")
    made = installed("price", "set", "gpt-9", *words, "--json").json()
    assert set(made["variants"]) == {"flex", "priority"}
    assert made["variants"]["flex"]["usd_per_million_tokens"]["input_uncached"] == "0.50"
    assert "name both --flex-input and --flex-output" in installed("price", "set", "gpt-9", "--input", "1", "--output", "2", "--flex-input", "1").err
    installed("price", "set", "other", "--input", "1", "--output", "2")
    assert [item["model"] for item in installed("price", "list", "gpt-*", "--json").json()] == ["gpt-9"]
