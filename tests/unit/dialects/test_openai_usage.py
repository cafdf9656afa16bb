"""Usage objects as OpenAI documents them, and as nobody should send them, become disjoint buckets that sum to the provider's total."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import openai_usage
from gateway.dialects.events import BUCKETS, Usage
from gateway.dialects.openai_usage import MAX_TOKENS

GOLDEN = sorted((Path(__file__).parent / "golden_usage").glob("*.json"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_usage_falls_into_its_buckets(path: Path) -> None:
    golden = json.loads(path.read_text())
    usage = openai_usage.usage(golden["document"])
    if golden["buckets"] is None:
        assert usage is None
        return
    assert usage == Usage(**golden["buckets"], flags=tuple(golden.get("flags", ())))
    assert openai_usage.service_tier(golden["document"]) == golden.get("service_tier")
    raw = usage.raw or {}
    assert "clamped" in usage.flags or usage.input_tokens + usage.output_tokens == raw["total_tokens"]


def test_there_is_a_golden_usage_of_every_answer_that_has_one() -> None:
    answers = {path.stem.partition("_")[0] for path in GOLDEN}
    assert {"chat", "completions", "responses", "embeddings", "images", "transcription", "speech"} <= answers


def test_the_provider_s_object_is_kept_as_it_came_and_with_it_the_service_tier_that_served() -> None:
    raw = {"prompt_tokens": 1, "completion_tokens": 2}
    plain, flex = openai_usage.usage({"usage": raw, "service_tier": "default"}), openai_usage.usage({"usage": raw, "service_tier": "flex"})
    assert plain is not None
    assert plain.raw is raw
    assert flex is not None
    assert flex.raw == raw | {"service_tier": "flex"}


@pytest.mark.parametrize("named", [None, "", "default", "auto", "standard", 5, ["flex"], {"a": 1}, "x" * 33])
def test_a_service_tier_that_is_none_or_the_plain_one_is_not_told(named: Any) -> None:
    for document in ({"service_tier": named}, {"response": {"service_tier": named}}, {"usage": {"service_tier": named}}):
        assert openai_usage.service_tier(document) is None


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
DETAILS_IN = ("cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "text_tokens")
DETAILS_OUT = ("reasoning_tokens", "audio_tokens", "text_tokens")
PARTS_IN = {"cached_tokens_details": ("audio_tokens", "image_tokens"), "cache_write_tokens_details": ("ttl_30m_tokens", "ttl_12h_tokens")}


@st.composite
def usages(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> dict[str, Any]:
    told, answered, details_in, details_out = draw(st.sampled_from(PROMPTS))
    raw = {told: draw(values), answered: draw(values)}
    if draw(st.booleans()):
        raw["total_tokens"] = draw(values)
    if draw(st.booleans()):
        raw[details_in] = draw(st.dictionaries(st.sampled_from(DETAILS_IN), values) | ODD)
        if isinstance(raw[details_in], dict):
            raw[details_in] |= {name: draw(st.dictionaries(st.sampled_from(parts), values) | ODD) for name, parts in PARTS_IN.items() if draw(st.booleans())}
    if draw(st.booleans()):
        raw[draw(st.sampled_from(("prompt_cache_hit_tokens", "cached_tokens")))] = draw(values)
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
