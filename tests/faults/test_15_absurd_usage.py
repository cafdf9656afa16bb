"""Row 15: the upstream's usage is missing, negative or absurd. We count ourselves, clamp and flag. Figure: 0 negative ledger rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects.openai_usage import MAX_TOKENS
from gateway.store.ledger import Entry
from tests.fakes.answers import Answer, Json, RawEvents
from tests.faults.calls import CHAT, DONE, Calls
from tests.faults.conftest import Measured

FIRST = b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
WORDS = b'data: {"choices":[{"index":0,"delta":{"content":"One two"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/embeddings": {"input": "x"},
    "/v1/images/generations": {"prompt": "x"},
}
ABSURD: dict[str, Any] = {
    "negative": {"prompt_tokens": -5, "completion_tokens": -7, "total_tokens": -12},
    "negative in one direction": {"prompt_tokens": 10, "completion_tokens": -7, "total_tokens": 3},
    "a negative total": {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": -17},
    "negative parts": {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17, "prompt_tokens_details": {"cached_tokens": -1000}},
    "parts beyond the whole": {"prompt_tokens": 10, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 99, "audio_tokens": 99}},
    "more reasoning than answer": {"prompt_tokens": 10, "completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 8}},
    "more tokens than there are": {"prompt_tokens": 10**15, "completion_tokens": 10**15, "total_tokens": 2 * 10**15},
    "beyond 64 bits": {"prompt_tokens": 10**30, "completion_tokens": -(10**30), "total_tokens": 10**40},
    "fractions": {"prompt_tokens": 10.5, "completion_tokens": 0.1, "total_tokens": 10.6},
    "no numbers": {"prompt_tokens": "ten", "completion_tokens": None, "total_tokens": [17]},
    "truth": {"prompt_tokens": True, "completion_tokens": False},
    "the other interface's words": {"input_tokens": -1, "output_tokens": 10**18, "total_tokens": 0, "input_tokens_details": []},
    "beyond floats": b'{"prompt_tokens": 1e999, "completion_tokens": -1e999}',
    "not a number": b'{"prompt_tokens": NaN, "completion_tokens": Infinity}',
}
MISSING: dict[str, Any] = {
    "none": None,
    "empty": {},
    "another kind": [1, 2],
    "a total alone": {"total_tokens": 99},
    "text": "many",
    "a number that no parser takes": b'{"prompt_tokens": ' + b"9" * 5000 + b', "completion_tokens": 3}',
}


def raw(usage: Any) -> bytes:
    return usage if isinstance(usage, bytes) else json.dumps(usage).encode()


def stream(usage: Any) -> Answer:
    return RawEvents(FIRST + WORDS + WORDS + STOP + b'data: {"choices":[],"usage":' + raw(usage) + b"}\n\n" + DONE)


def whole(usage: Any) -> Answer:
    text = b'{"id":"c","choices":[{"index":0,"message":{"content":"One two"},"finish_reason":"stop"}],"usage":' + raw(usage) + b"}"
    return Answer(200, (("content-type", "application/json"),), (text,))


def booked(calls: Calls, count: int) -> list[Entry]:
    assert calls.gateway.wait_endings(calls.model, count) == {"complete": count}
    return [entry for entry in calls.gateway.entries() if entry.model_asked == calls.model]


def test_15_no_absurd_usage_makes_a_negative_row(calls: Calls, measured: Measured) -> None:
    for usage in (*ABSURD.values(), *MISSING.values()):
        calls.provider.script(CHAT, stream(usage), whole(usage))
        assert calls.outcome(stream=True).done
        assert calls.outcome().status == 200
    entries = booked(calls, 2 * (len(ABSURD) + len(MISSING)))
    negative = [entry for entry in entries if entry.amount < 0 or entry.cost < 0 or min(entry.usage.buckets().values()) < 0]
    measured(15, f"{len(negative)} negative rows (0) of {len(entries)} absurd or missing usages")
    assert negative == []
    assert all(max(entry.usage.buckets().values()) <= MAX_TOKENS for entry in entries)


@pytest.mark.parametrize("name", ABSURD)
def test_15_an_absurd_usage_is_flagged(calls: Calls, name: str) -> None:
    calls.provider.script(CHAT, whole(ABSURD[name]))
    assert calls.outcome().status == 200
    (entry,) = booked(calls, 1)
    assert set(entry.flags) & {"clamped", "inconsistent"}, entry
    assert entry.usage_source == "provider"


@pytest.mark.parametrize("name", MISSING)
def test_15_a_missing_usage_is_counted_by_ourselves(calls: Calls, name: str) -> None:
    calls.provider.script(CHAT, stream(MISSING[name]))
    assert calls.outcome(stream=True).done
    (entry,) = booked(calls, 1)
    assert (entry.usage_source, entry.usage.output_text > 0, entry.amount > 0) == ("estimated", True, True)


def test_15_every_other_endpoint_is_as_strict(calls: Calls) -> None:
    usages = [ABSURD["negative"], ABSURD["the other interface's words"], ABSURD["beyond 64 bits"]]
    for path, members in ENDPOINTS.items():
        for usage in usages:
            calls.provider.script(path, Json({"object": "x", "usage": usage}))
            assert calls.ask(path, **members).status == 200
    for entry in booked(calls, len(ENDPOINTS) * len(usages)):
        assert entry.amount >= 0
        assert set(entry.flags) & {"clamped", "inconsistent"}, entry
