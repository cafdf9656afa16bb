"""Providers' exports in every shape that they have, and files that have none."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from gateway.errors import BadRequest
from gateway.operations import bills, bills_anthropic, bills_openai
from gateway.operations.bills import Bill, BillLine
from tests.unit.operations.exports import ANTHROPIC_COSTS, ANTHROPIC_USAGE, OPENAI_COSTS

DAY = 20_758
BEGIN = DAY * 86_400


def openai(text: str | bytes) -> Bill:
    return bills.read("openai", bills_openai.SHAPES, "file", text.encode() if isinstance(text, str) else text)


def anthropic(text: str) -> Bill:
    return bills.read("anthropic", bills_anthropic.SHAPES, "file", text.encode())


def page(*results: Any, begin: Any = BEGIN, end: Any = BEGIN + 86_400, **members: Any) -> str:
    return json.dumps({"object": "page", "data": [{"object": "bucket", "start_time": begin, "end_time": end, "results": list(results)}], **members})


def anthropic_page(*results: Any) -> str:
    bucket = {"starting_at": "2026-11-01T00:00:00Z", "ending_at": "2026-11-02T00:00:00Z", "results": list(results)}
    return json.dumps({"data": [bucket], "has_more": False, "next_page": None})


USAGE = {"object": "organization.usage.completions.result", "input_tokens": 100, "output_tokens": 20, "num_model_requests": 3, "model": "gpt-4o"}


def test_openai_s_usage_in_json() -> None:
    bill = openai(page(USAGE | {"input_cached_tokens": 40, "input_audio_tokens": 7}))
    assert bill.lines == (BillLine(DAY, "gpt-4o", {"input": 60, "cache_read": 40, "cache_write": 0, "output": 20}, 3),)
    assert (bill.shape, bill.days, bill.counters) == ("usage, JSON", {DAY}, bills_openai.WITHOUT_WRITES)


def test_openai_s_usage_with_what_was_written_to_the_cache() -> None:
    bill = openai(page(USAGE | {"input_cached_tokens": 40, "input_cache_write_tokens": 50}))
    assert bill.lines[0].tokens == {"input": 10, "cache_read": 40, "cache_write": 50, "output": 20}
    assert bill.counters == bills_openai.COUNTERS


def test_openai_s_usage_of_embeddings_is_input() -> None:
    (line,) = openai(page({"object": "organization.usage.embeddings.result", "input_tokens": 16, "num_model_requests": 2, "model": "e"})).lines
    assert (line.tokens, line.calls) == ({"input": 16, "cache_read": 0, "cache_write": 0, "output": 0}, 2)


def test_openai_s_costs_in_json_are_exact_to_the_last_digit() -> None:
    text = page({"object": "organization.costs.result", "amount": {"value": 0, "currency": "usd"}, "line_item": "gpt-4o-2024-08-06, cached input"})
    (line,) = openai(text.replace('"value": 0', '"value": 1.29e-05')).lines
    assert (line.model, line.cost, line.tokens) == ("gpt-4o-2024-08-06", Decimal("0.0000129"), None)
    (whole,) = openai(text.replace('"value": 0', '"value": 0.1234567890123456789012345678')).lines
    assert whole.cost == Decimal("0.1234567890123456789012345678")


def test_openai_s_csv_files() -> None:
    used = "start_time,end_time,model,input_tokens,output_tokens,num_model_requests,input_cached_tokens\n"
    bill = openai("\ufeff" + used + f"{BEGIN},{BEGIN + 86400},,,,,\n{BEGIN + 86400},,gpt-4o,100,20,3,40\n")
    assert (bill.days, [line.day for line in bill.lines], bill.lines[0].calls) == ({DAY, DAY + 1}, [DAY + 1], 3)
    costs = OPENAI_COSTS + f'{BEGIN},,,,0.003835980000000000000000000000,usd,,,"gpt-5-nano, input_tokens",,,,,,,,\n'
    assert [(line.model, line.cost) for line in openai(costs).lines] == [("gpt-5-nano", Decimal("0.00383598"))]


def test_anthropic_s_usage_in_json_and_csv_is_the_same() -> None:
    written = {"ephemeral_5m_input_tokens": 500, "ephemeral_1h_input_tokens": 1000}
    told = {"uncached_input_tokens": 1500, "cache_creation": written, "cache_read_input_tokens": 200, "output_tokens": 500, "model": "claude-opus-4-5"}
    csv = ANTHROPIC_USAGE + "2026-11-01 07:00,claude-opus-4-5,k,Default,standard,,1500,500,1000,200,500,0,,\n"
    assert anthropic(anthropic_page(told)).lines == anthropic(csv).lines
    assert anthropic(csv).lines[0].tokens == {"input": 1500, "cache_read": 200, "cache_write_5m": 500, "cache_write_1h": 1000, "output": 500}


def test_anthropic_s_costs_are_cents_in_json_and_dollars_in_csv() -> None:
    told = {"amount": "123.45", "currency": "USD", "cost_type": "tokens", "description": "Claude Opus 4.5 Usage - Input", "model": "claude-opus-4-5"}
    (line,) = anthropic(anthropic_page(told)).lines
    assert (line.cost, line.step, line.model) == (Decimal("1.2345"), Decimal("0.00005"), "claude-opus-4-5")
    rows = "2026-11-01,Claude Opus 4.5,D,k,message,,input_no_cache,1.2345,1.2,token,,\n2026-11-01,,D,k,message,,,0.5,0.5,web_search,,\n"
    assert [(line.model, line.cost) for line in anthropic(ANTHROPIC_COSTS + rows).lines] == [
        ("Claude Opus 4.5", Decimal("1.2345")),
        ("web_search", Decimal("0.5")),
    ]


def test_pages_in_one_list_are_one_bill_and_a_page_that_has_followers_says_so() -> None:
    second = page(USAGE, begin=BEGIN + 86_400, end=BEGIN + 172_800, has_more=True)
    bill = openai(f"[{page(USAGE)}, {second}]")
    assert (sorted(bill.days), len(bill.remarks)) == ([DAY, DAY + 1], 1)


def test_hours_of_a_day_are_that_day() -> None:
    assert openai(page(USAGE, begin=BEGIN + 3_600, end=BEGIN + 7_200)).lines[0].day == DAY


WRONG = [
    (b"", "an empty file"),
    (b"date,total\n2026-11-01,5\n", "CSV with the columns date, total"),
    (b"\x89PNG\r\n\x1a\n\x00\xff", "not text"),
    (b'{"error": {"message": "You have insufficient permissions"}}', "an object with the members error"),
    (b"{", "begins like JSON"),
    (b"[" * 100_000, "begins like JSON"),
    (b"[1, 2]", "JSON of another kind"),
    (page().encode(), "no results in any bucket"),
    (page({"object": "organization.usage.images.result", "images": 3}).encode(), "results with the members images, object"),
    (anthropic_page({"amount": "5", "currency": "USD"}).encode(), "results with the members amount, currency"),
]


@pytest.mark.parametrize(("raw", "found"), WRONG, ids=[found for _, found in WRONG])
def test_another_file_is_refused_in_one_line_with_what_is_taken_and_what_it_is(raw: bytes, found: str) -> None:
    with pytest.raises(BadRequest) as caught:
        openai(raw)
    assert found in str(caught.value)
    assert "/v1/organization/usage/completions" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000


BROKEN = [
    (page(USAGE | {"input_tokens": -1}), "input_tokens is '-1'"),
    (page(USAGE | {"input_tokens": 1.5}), "no count of tokens"),
    (page(USAGE | {"input_tokens": True}), "no count of tokens"),
    (page(USAGE | {"input_tokens": "9" * 40}), "no count of tokens"),
    (page(USAGE | {"input_cached_tokens": 101}), "more cached tokens"),
    (page(USAGE, end=BEGIN + 86_401), "bucket width of 1d"),
    (page(USAGE, begin="yesterday"), "is no time"),
    (page({"object": "o", "amount": {"value": 5, "currency": "eur"}}), "not in USD"),
    (page({"object": "o", "amount": {"value": "1e999999999", "currency": "usd"}}), "is no amount"),
    (page({"object": "o", "amount": {"value": "1e-99999999", "currency": "usd"}}), "is no amount"),
    (page({"object": "o", "amount": {"value": "ten", "currency": "usd"}}), "is no amount"),
    (page({"object": "o", "amount": {"value": [1], "currency": "usd"}}), "is no amount"),
    (page(USAGE).replace("100", "NaN"), "NaN is no number"),
    (json.dumps({"data": [{"start_time": 1, "results": [5]}]}), "no list of results"),
    (OPENAI_COSTS + f'{BEGIN},,,,1,usd,,,"gpt', "unexpected end of data"),
    (OPENAI_COSTS + f"{BEGIN},,,,1", "line 2 has fewer fields"),
    (OPENAI_COSTS + f"{BEGIN},,,,1" + "," * 30, "line 2 has more fields"),
]


@pytest.mark.parametrize(("text", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_a_figure_that_is_none_is_named_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(BadRequest) as caught:
        openai(text)
    assert problem in str(caught.value)
    assert "file" in str(caught.value)
