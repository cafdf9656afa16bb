"""A provider's bill beside ours: a month with faults that were put into it, each of which must be named."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from gateway.dialects.events import Usage
from gateway.errors import BadRequest
from gateway.operations import reconcile
from gateway.operations.reconcile import Reconciliation
from gateway.store import catalog
from gateway.store.database import Database
from gateway.store.ledger import Entry
from tests.unit.operations.booked import book
from tests.unit.operations.exports import ANTHROPIC_COSTS, ANTHROPIC_USAGE, OPENAI_COSTS, OpenAIMonth

FIRST = 20_758
"""2026-11-01, in days since 1970."""
DAYS = range(FIRST, FIRST + 30)
DAY_MS = 86_400_000
DATED = "gpt-4o-2024-08-06"
COST = 2_500 * 60 + 1_250 * 40 + 10_000 * 20


def entry(name: str, day: int, model: str = "gpt-4o", **members: Any) -> Entry:
    plain: dict[str, Any] = {"kind": "usage", "attempt": 1, "api_key": 1, "user": 1, "amount": 2 * COST, "cost": COST, "price": 1}
    words = {"ending": "complete", "usage_source": "provider", "model_asked": model, "model_served": model, "deployment": "main", "total_ms": 1_000}
    usage = Usage(input_uncached=60, cache_read=40, output_text=15, reasoning=5)
    return Entry(name, at=day * DAY_MS + 3_600_000, **(plain | words | {"usage": usage} | members))


def a_day(day: int, model: str = "gpt-4o", calls: int = 3) -> list[Entry]:
    return [entry(f"{day}-{model}-{number}", day, model) for number in range(calls)]


def billed(month: OpenAIMonth, entries: list[Entry], model: str = DATED) -> None:
    for each in entries:
        used = each.usage
        month.add(each.at // DAY_MS, model, 1, used.input_tokens, used.cache_read, used.output_tokens, each.cost)


def compared(database: Database, month: OpenAIMonth, *only: str, costs: bool = True, usage: bool = True) -> Reconciliation:
    files = [("usage.json", month.usage(DAYS))] * usage + [("costs.json", month.costs(DAYS))] * costs
    return reconcile.reconcile(database, "openai", reconcile.read_bills("openai", files), only or ("main",))


def named(found: Reconciliation) -> dict[tuple[int, str], str | None]:
    return {(line.day - FIRST + 1, line.model): line.cause for line in found.lines if line.cause is not None}


def test_a_month_that_agrees_has_no_difference_however_the_provider_names_its_model(database: Database) -> None:
    month, entries = OpenAIMonth(), [each for day in DAYS for each in a_day(day)]
    book(database, *entries)
    billed(month, entries)
    found = compared(database, month)
    assert (len(found.lines), found.differences, named(found)) == (30, [], {})
    assert (found.first, found.last, found.deployments, found.lines[0].billed_as) == ("2026-11-01", "2026-11-30", ("main",), (DATED,))


def test_each_fault_that_was_put_into_a_month_is_named(database: Database) -> None:
    month = OpenAIMonth()
    for day in DAYS:
        entries = a_day(day, calls=10)
        booked = list(entries)
        match day - FIRST + 1:
            case 3:  # somebody used the key elsewhere: the provider has 4 calls more
                billed(month, a_day(day, calls=4))
            case 6:  # the provider lost calls, or they went to another account
                entries = entries[:5]
            case 9:  # the provider charges more for the same tokens
                month.add(day, DATED, 0, 0, 0, 0, 1_000_000)
            case 12:  # what was cached for the provider was not for us
                booked = [replace(each, usage=Usage(input_uncached=100, output_text=20)) for each in booked]
            case 15:  # two calls failed here and were billed there, after which they were tried again
                booked[0], booked[1] = replace(booked[0], attempt=2), replace(booked[1], attempt=2)
                billed(month, a_day(day, calls=2))
            case 18:  # a call was cut, and its usage is our estimate
                booked[0] = replace(booked[0], usage=Usage(input_uncached=90, output_text=5), usage_source="estimated", ending="client_gone")
            case 21:  # no price was set
                booked = [replace(each, cost=0, amount=0, price=None, flags=("unpriced",)) for each in booked]
            case 24:  # begun before midnight, counted after it
                late = replace(entries.pop(), at=(day + 1) * DAY_MS + 5)
                billed(month, [late])
            case 27:  # a fee that is no model's
                month.add(day, "web_search", 0, 0, 0, 0, 30_000_000)
            case 29:  # rounded to the next nano-dollar
                month.add(day, DATED, 0, 0, 0, 0, -7)
        book(database, *booked)
        billed(month, entries)
    found = compared(database, month)
    assert named(found) == {
        (3, "gpt-4o"): "missing_here",
        (6, "gpt-4o"): "missing_there",
        (9, "gpt-4o"): "price",
        (12, "gpt-4o"): "cache_bucket",
        (15, "gpt-4o"): "retries",
        (18, "gpt-4o"): "estimated",
        (21, "gpt-4o"): "unpriced",
        (24, "gpt-4o"): "late_day",
        (25, "gpt-4o"): "late_day",
        (27, "web_search"): "fee",
        (29, "gpt-4o"): "rounding",
    }
    assert {line.cause for line in found.differences} == {"missing_here", "missing_there", "price", "cache_bucket", "retries", "estimated", "unpriced", "fee"}
    line = next(line for line in found.lines if line.cause == "cache_bucket")
    assert line.compared.token_deltas() == {"input": -400, "cache_read": 400, "output": 0}


def test_what_corrects_an_entry_counts_on_the_day_of_its_call(database: Database) -> None:
    month, (one,) = OpenAIMonth(), a_day(FIRST, calls=1)
    book(database, one)
    book(database, replace(one, kind="rerate", corrects=1, cost=50, amount=50, usage=Usage(), at=(FIRST + 20) * DAY_MS))
    month.add(FIRST, DATED, 1, 100, 40, 20, COST + 50)
    assert compared(database, month).differences == []


def test_without_tokens_costs_alone_are_compared(database: Database) -> None:
    month, entries = OpenAIMonth(), [each for day in DAYS for each in a_day(day)]
    book(database, *entries)
    billed(month, entries)
    month.add(FIRST + 4, DATED, 0, 0, 0, 0, 900_000)
    assert named(compared(database, month, usage=False)) == {(5, "gpt-4o"): "unclear"}


def test_costs_of_all_models_together_are_held_against_the_whole_day(database: Database) -> None:
    entries = [*a_day(FIRST), *a_day(FIRST, "o3")]
    book(database, *entries)
    cost = Decimal(6 * COST).scaleb(-9)
    text = OPENAI_COSTS + "".join(
        f"{day * 86_400},{(day + 1) * 86_400},,,{amount},usd,,,,,,,,,,,\n" for day, amount in ((FIRST, cost), (FIRST + 1, "0.25"), (FIRST + 2, ""))
    )
    found = reconcile.reconcile(database, "openai", reconcile.read_bills("openai", [("costs.csv", text.encode())]), ("main",))
    assert named(found) == {(2, ""): "missing_here"}
    assert [(line.day - FIRST, line.model, line.compared.theirs.cost) for line in found.lines if line.model == ""] == [(0, "", 6 * COST), (1, "", 250_000_000)]


def test_a_console_s_names_of_models_are_known_and_its_two_files_go_together(database: Database) -> None:
    model = "claude-sonnet-4-5-20250929"
    usage = Usage(input_uncached=10, cache_read=20, cache_write_5m=30, cache_write_1h=40, output_text=50)
    book(database, entry("x", FIRST, "claude-sonnet-4-5", usage=usage, cost=123_456_789))
    used = ANTHROPIC_USAGE + f"2026-11-01,{model},key,Default,standard,\u2264 200k,10,30,40,20,50,0,,\n"
    costs = ANTHROPIC_COSTS + "2026-11-01,Claude Sonnet 4.5,Default,key,message,,input_no_cache,0.1,0.1,token,,\n"
    costs += "2026-11-01,Claude Sonnet 4.5,Default,key,message,,output,0.023456789,0.02,token,,\n2026-11-01,,Default,key,message,,,0.01,0.01,web_search,,\n"
    files = [("usage.csv", used.encode()), ("costs.csv", costs.encode())]
    found = reconcile.reconcile(database, "anthropic", reconcile.read_bills("anthropic", files), ("main",))
    assert [(line.model, line.cause, line.compared.cost_delta) for line in found.lines] == [("claude-sonnet-4-5", None, 0), ("web_search", "fee", 10_000_000)]
    assert found.lines[0].billed_as == ("Claude Sonnet 4.5", model)


def test_the_deployments_that_lead_to_the_provider_count_and_one_that_is_gone_where_its_model_is_billed(database: Database) -> None:
    gone, elsewhere = entry("x", FIRST), entry("y", FIRST, "llama")
    environment = entry("z", FIRST, "o3", deployment="environment")
    book(database, gone, elsewhere, environment)
    month = OpenAIMonth()
    billed(month, [gone])
    given = reconcile.read_bills("openai", [("usage.json", month.usage(DAYS))])
    found = reconcile.reconcile(database, "openai", given, environment_url="https://eu.api.openai.com/v1")
    assert [(line.model, line.cause) for line in found.lines] == [("gpt-4o", None), ("o3", "missing_there")]
    assert [line.model for line in reconcile.reconcile(database, "openai", given, environment_url="http://127.0.0.1/v1").lines] == ["gpt-4o"]
    assert [line.model for line in reconcile.reconcile(database, "openai", given, ("main", "env*")).lines] == ["gpt-4o", "llama", "o3"]


def test_a_file_that_is_given_twice_and_one_of_another_provider_are_refused(database: Database) -> None:
    month = OpenAIMonth()
    billed(month, a_day(FIRST))
    with pytest.raises(BadRequest, match="count twice"):
        reconcile.read_bills("openai", [("a.json", month.usage(DAYS)), ("b.json", month.usage(DAYS))])
    with pytest.raises(BadRequest, match="gateway reconcile import anthropic"):
        reconcile.read_bills("openai", [("u.csv", ANTHROPIC_USAGE.encode())])


def test_rows_for_other_programs_have_both_sides_and_the_cause(database: Database) -> None:
    month = OpenAIMonth()
    billed(month, a_day(FIRST))
    with pytest.raises(BadRequest, match="there is no deployment main"):
        compared(database, month)
    database.write(lambda: catalog.create_deployment("main", catalog.create_model("m", 1).id, "openai", 1))
    (row,) = reconcile.rows(compared(database, month).lines)
    assert tuple(row) == reconcile.COLUMNS
    assert (row["day"], row["cause"], row["input_theirs"], row["input_delta"], row["cache_write_ours"]) == ("2026-11-01", "missing_here", 180, 180, None)
    assert (row["cost_nano_usd_delta"], row["cost_usd_delta"], row["calls_ours"]) == (3 * COST, Decimal(3 * COST).scaleb(-9), 0)
    json.dumps({name: str(value) for name, value in row.items()})
