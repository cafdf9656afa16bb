"""Usage objects as OpenAI documents them, and as nobody should send them, become disjoint buckets that sum to the provider's total."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import openai_usage
from gateway.dialects.events import BUCKETS, Usage
from gateway.dialects.openai_usage import MAX_TOKENS

GOLDEN: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "chat": (
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 192, "audio_tokens": 0, "accepted_prediction_tokens": 4, "rejected_prediction_tokens": 3},
        },
        {"input_uncached": 86, "cache_read": 1920, "output_text": 108, "reasoning": 192},
    ),
    "chat with audio": (
        {
            "prompt_tokens": 82,
            "completion_tokens": 120,
            "total_tokens": 202,
            "prompt_tokens_details": {"cached_tokens": 0, "text_tokens": 12, "audio_tokens": 40, "image_tokens": 30},
            "completion_tokens_details": {"text_tokens": 20, "audio_tokens": 100, "reasoning_tokens": 0},
        },
        {"input_uncached": 12, "audio_in": 40, "image_in": 30, "output_text": 20, "audio_out": 100},
    ),
    "completions": ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, {"input_uncached": 5, "output_text": 7}),
    "responses": (
        {
            "input_tokens": 328,
            "input_tokens_details": {"cached_tokens": 128},
            "output_tokens": 52,
            "output_tokens_details": {"reasoning_tokens": 50},
            "total_tokens": 380,
        },
        {"input_uncached": 200, "cache_read": 128, "output_text": 2, "reasoning": 50},
    ),
    "embeddings": ({"prompt_tokens": 8, "total_tokens": 8}, {"input_uncached": 8}),
    "images": (
        {"input_tokens": 50, "input_tokens_details": {"text_tokens": 10, "image_tokens": 40}, "output_tokens": 4160, "total_tokens": 4210},
        {"input_uncached": 10, "image_in": 40, "output_text": 4160},
    ),
    "transcription": (
        {"type": "tokens", "input_tokens": 14, "input_token_details": {"text_tokens": 4, "audio_tokens": 10}, "output_tokens": 45, "total_tokens": 59},
        {"input_uncached": 4, "audio_in": 10, "output_text": 45},
    ),
    "speech": ({"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}, {"input_uncached": 14, "output_text": 101}),
    "details that are null": (
        {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12, "prompt_tokens_details": None, "completion_tokens_details": None},
        {"input_uncached": 5, "output_text": 7},
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_documented_usage_falls_into_its_buckets(name: str) -> None:
    raw, buckets = GOLDEN[name]
    usage = openai_usage.usage({"object": "whatever", "usage": raw})
    assert usage == Usage(**buckets)
    assert usage.raw is raw
    assert usage.input_tokens + usage.output_tokens == raw["total_tokens"]


def test_usage_of_a_response_event_is_found() -> None:
    raw = GOLDEN["responses"][0]
    assert openai_usage.usage({"type": "response.completed", "response": {"usage": raw}}) == Usage(**GOLDEN["responses"][1])


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"usage": None},
        {"usage": {}},
        {"usage": []},
        {"usage": "9"},
        {"usage": {"type": "duration", "seconds": 12}},
        {"usage": {"total_tokens": 5}},
        {"response": None},
        {"response": []},
        {"response": {"usage": None}},
    ],
)
def test_document_without_token_usage_has_none(document: dict[str, Any]) -> None:
    assert openai_usage.usage(document) is None


@pytest.mark.parametrize("value", [-1, -(10**30), True, 9.0, 1e300, float("nan"), float("inf"), "9", [9], {"n": 9}])
@pytest.mark.parametrize("member", ["prompt_tokens", "completion_tokens"])
def test_15_count_that_is_no_count_is_taken_as_nothing_and_flagged(member: str, value: Any) -> None:
    usage = openai_usage.usage({"usage": {"prompt_tokens": 3, "completion_tokens": 4} | {member: value}})
    assert usage is not None
    assert usage.input_tokens + usage.output_tokens == (4 if member == "prompt_tokens" else 3)
    assert usage.flags == ("clamped",)


def test_15_absurd_count_is_clamped_and_flagged() -> None:
    usage = openai_usage.usage({"usage": {"prompt_tokens": 10**18, "completion_tokens": 4, "total_tokens": 10**18 + 4}})
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (MAX_TOKENS, 4)
    assert usage.flags == ("clamped", "inconsistent")


@pytest.mark.parametrize(
    ("raw", "buckets"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 6}}, {"input_uncached": 5, "output_text": 1}),
        (
            {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 3}},
            {"input_uncached": 5, "output_text": 1},
        ),
        ({"prompt_tokens": 5, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 2}}, {"input_uncached": 5, "output_text": 1}),
    ],
)
def test_details_beyond_their_sum_are_priced_plainly_and_flagged(raw: dict[str, Any], buckets: dict[str, Any]) -> None:
    usage = openai_usage.usage({"usage": raw})
    assert usage == Usage(**buckets, flags=("inconsistent",))


def test_reasoning_that_only_the_total_contains_is_counted() -> None:
    raw = {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135, "completion_tokens_details": {"reasoning_tokens": 94}}
    assert openai_usage.usage({"usage": raw}) == Usage(input_uncached=32, output_text=9, reasoning=94, flags=("inconsistent",))


@pytest.mark.parametrize("total", [0, -5, 11, True, "12", 12.0 + 1, 10**12, None])
def test_total_that_cannot_be_adds_nothing(total: Any) -> None:
    usage = openai_usage.usage({"usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": total}})
    assert usage is not None
    assert (usage.input_uncached, usage.output_text) == (5, 7)
    assert usage.flags == (() if total is None else ("inconsistent",))


ODD = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=1)
COUNTS = st.integers(0, 10_000)
PROMPTS = [
    ("prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"),
    ("input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details"),
]
DETAILS_IN, DETAILS_OUT = ("cached_tokens", "audio_tokens", "image_tokens", "text_tokens"), ("reasoning_tokens", "audio_tokens", "text_tokens")


@st.composite
def usages(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> dict[str, Any]:
    told, answered, details_in, details_out = draw(st.sampled_from(PROMPTS))
    raw = {told: draw(values), answered: draw(values)}
    if draw(st.booleans()):
        raw["total_tokens"] = draw(values)
    if draw(st.booleans()):
        raw[details_in] = draw(st.dictionaries(st.sampled_from(DETAILS_IN), values) | ODD)
    if draw(st.booleans()):
        raw[details_out] = draw(st.dictionaries(st.sampled_from(DETAILS_OUT), values) | ODD)
    return raw


@settings(max_examples=400, deadline=None)
@given(usages(COUNTS | ODD))
def test_any_usage_gives_counts_within_bounds(raw: dict[str, Any]) -> None:
    usage = openai_usage.usage({"usage": raw})
    assert usage is not None
    assert set(usage.buckets()) == set(BUCKETS)
    assert all(isinstance(count, int) and 0 <= count <= MAX_TOKENS for count in usage.buckets().values())


@settings(max_examples=400, deadline=None)
@given(usages(COUNTS))
def test_buckets_sum_to_the_total_or_the_usage_is_flagged(raw: dict[str, Any]) -> None:
    usage = openai_usage.usage({"usage": raw})
    assert usage is not None
    told, answered = (raw.get("prompt_tokens", raw.get("input_tokens")), raw.get("completion_tokens", raw.get("output_tokens")))
    total = sum(usage.buckets().values())
    assert usage.input_tokens == told
    assert total == max(told + answered, raw.get("total_tokens", 0))
    assert usage.flags or total == raw.get("total_tokens", total)
