"""The ends of streams that are relayed raw."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import CODECS, sse
from gateway.dialects.openai_rest import TERMINAL_TYPES

REST = CODECS["openai_rest"]
ENDS = sorted(TERMINAL_TYPES)


def is_terminal(raw: bytes) -> bool:
    return REST.is_terminal(sse.parse(raw))


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("named", [False, True])
def test_terminal_event_is_told_by_its_type(kind: str, named: bool) -> None:
    raw = sse.encode(json.dumps({"type": kind, "response": {"usage": None}}).encode(), kind if named else "")
    assert is_terminal(raw)
    assert REST.terminal_candidate.search(raw)


@pytest.mark.parametrize("kind", ENDS)
def test_terminal_event_is_told_by_its_name_alone(kind: str) -> None:
    raw = sse.encode(b'{"usage":{}}', kind)
    assert is_terminal(raw)
    assert REST.terminal_candidate.search(raw)


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("named", [False, True])
def test_only_one_type_of_terminal_event_says_that_the_answer_failed(kind: str, named: bool) -> None:
    event = sse.parse(sse.encode(json.dumps({"type": kind}).encode(), kind if named else ""))
    assert REST.is_failure(event) is (kind == "response.failed")


def test_done_is_terminal() -> None:
    assert is_terminal(b"data: [DONE]\n\n")
    assert REST.terminal_candidate.search(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "raw",
    [
        b"event: response.completed\n\n",
        b": response.completed\n\n",
        b'data: {"type":"response.output_text.delta","delta":"response.completed [DONE]"}\n\n',
        b'data: {"delta":"\\"type\\":\\"response.completed\\""}\n\n',
        b'data: {"response":{"type":"response.completed"}}\n\n',
        b'data: {"type":["response.completed"]}\n\n',
        b'data: {"type":{"response.completed":1}}\n\n',
        b'data: {"type":null}\n\n',
        b'data: ["response.completed"]\n\n',
        b"data: response.completed\n\n",
        b"data: response.completed \xff\xfe\n\n",
        b"data: " + b"[" * 100_000 + b'"response.completed"\n\n',
    ],
    ids=range(12),
)
def test_11_event_that_only_mentions_an_end_is_not_terminal(raw: bytes) -> None:
    assert not is_terminal(raw)


@pytest.mark.parametrize("dialect", ["openai_chat", "openai_completions"])
@pytest.mark.parametrize(
    ("raw", "terminal"), [(b"data: [DONE]\n\n", True), (b"data:[DONE] \r\n\r\n", True), (b'data: "[DONE]"\n\n', False), (b"[DONE]\n\n", False)]
)
def test_chat_ends_with_done(dialect: str, raw: bytes, terminal: bool) -> None:
    assert CODECS[dialect].is_terminal(sse.parse(raw)) is terminal
    assert not terminal or CODECS[dialect].terminal_candidate.search(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(ENDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "usage", "response", "prompt_tokens", "input_tokens"]), inner, max_size=4)
    ),
    max_leaves=10,
)


@pytest.mark.parametrize("dialect", sorted(CODECS))
@settings(max_examples=300, deadline=None)
@given(document=JSON, garbage=st.binary(max_size=30))
def test_11_no_event_makes_a_codec_fail(dialect: str, document: Any, garbage: bytes) -> None:
    codec = CODECS[dialect]
    codec.is_terminal(sse.parse(b"data: " + garbage + b"\n\n"))
    codec.is_terminal(sse.parse(sse.encode(json.dumps(document).encode())))
    if isinstance(document, dict):
        codec.usage(document)
