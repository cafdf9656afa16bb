from __future__ import annotations

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
