"""Requests of both chat dialects become chat requests, chat events become answers that the official SDK's models accept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.dialects import CHAT_CODECS, CODECS, sse
from gateway.dialects.codec import Encoder
from gateway.dialects.events import ChatEvent, ChatRequest, Finished, Message, TextDelta, ToolCallDelta, Usage
from gateway.dialects.openai_chat import dumps, plain_text
from gateway.errors import BadRequest

USAGE = Usage(input_uncached=3, cache_read=2, output_text=4, reasoning=1)
TEXT_ANSWER: list[ChatEvent] = [TextDelta("Gr\u00fc\u00dfe, "), TextDelta("\U0001f600\n"), Finished("stop", USAGE)]
TOOL_ANSWER: list[ChatEvent] = [
    ToolCallDelta(0, "", id="call_1", name="weather"),
    ToolCallDelta(1, '{"city":', id="call_2", name="time"),
    ToolCallDelta(0, '{"city":"Bonn"}'),
    ToolCallDelta(1, '"Rome"}'),
    Finished("tool_calls", USAGE),
]


def encoder(dialect: str, *, include_usage: bool = False) -> Encoder:
    request = ChatRequest("model-1", (Message("user", "hi"),), True, include_usage, None, {})
    return CHAT_CODECS[dialect].encoder("model-1", 1_700_000_000, request)


def streamed(dialect: str, events: list[ChatEvent], *, include_usage: bool = False) -> list[Any]:
    """The parsed data of every event; the last must be the terminal one, and no other."""
    raw = b"".join(encoder(dialect, include_usage=include_usage).stream(iter(events)))
    parsed = [sse.parse(event) for event in sse.split(raw)]
    codec = CODECS[dialect]
    assert [codec.is_terminal(event) for event in parsed] == [False] * (len(parsed) - 1) + [True]
    assert all(codec.terminal_candidate.search(event) for event in list(sse.split(raw))[-1:])
    return [json.loads(event.data or b"") for event in parsed[:-1]]


def whole(dialect: str, events: list[ChatEvent]) -> Any:
    return json.loads(encoder(dialect).whole(iter(events)))


def strict(model: Any, value: Any) -> Any:
    """Validated, which the SDK's own `construct` does not do."""
    return model.model_validate(value, strict=False, extra="forbid")


def test_streamed_chat_is_what_the_sdk_expects() -> None:
    chunks = [strict(ChatCompletionChunk, chunk) for chunk in streamed("openai_chat", TEXT_ANSWER)]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Gr\u00fc\u00dfe, \U0001f600\n"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert {(chunk.id, chunk.model, chunk.created) for chunk in chunks} == {(chunks[0].id, "model-1", 1_700_000_000)}
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_event_comes_last_and_only_where_it_was_asked_for() -> None:
    *chunks, last = [strict(ChatCompletionChunk, chunk) for chunk in streamed("openai_chat", TEXT_ANSWER, include_usage=True)]
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (5, 5, 10)
    assert all(chunk.usage is None for chunk in chunks)


def test_backend_that_knows_no_usage_sends_no_usage_event() -> None:
    assert all(chunk["choices"] for chunk in streamed("openai_chat", [Finished("stop", None)], include_usage=True))
    assert "usage" not in whole("openai_chat", [Finished("stop", None)])


def test_streamed_tool_calls_are_what_the_sdk_expects() -> None:
    chunks = [strict(ChatCompletionChunk, chunk) for chunk in streamed("openai_chat", TOOL_ANSWER)]
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [(call.index, call.id, call.type) for call in calls] == [(0, "call_1", "function"), (1, "call_2", "function"), (0, None, None), (1, None, None)]
    assert [call.function.name for call in calls if call.function] == ["weather", "time", None, None]
    assert "".join(call.function.arguments or "" for call in calls if call.function and call.index == 1) == '{"city":"Rome"}'
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_whole_chat_is_what_the_sdk_expects() -> None:
    answer = strict(ChatCompletion, whole("openai_chat", TEXT_ANSWER))
    assert answer.choices[0].message.content == "Gr\u00fc\u00dfe, \U0001f600\n"
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 5, 10)


def test_whole_tool_calls_are_what_the_sdk_expects() -> None:
    message = strict(ChatCompletion, whole("openai_chat", TOOL_ANSWER)).choices[0].message
    assert message.content is None
    calls = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or [] if call.type == "function"]
    assert calls == [("call_1", "weather", '{"city":"Bonn"}'), ("call_2", "time", '{"city":"Rome"}')]


def test_empty_answer_has_empty_content() -> None:
    assert whole("openai_chat", [Finished("stop", None)])["choices"][0]["message"]["content"] == ""


def test_completions_are_what_the_sdk_expects() -> None:
    answer = strict(Completion, whole("openai_completions", TEXT_ANSWER))
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Gr\u00fc\u00dfe, \U0001f600\n", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10


def test_streamed_completions_are_what_the_sdk_expects() -> None:
    chunks = streamed("openai_completions", TEXT_ANSWER, include_usage=True)
    for chunk in chunks:  # the SDK's type of a chunk is the whole one's, which insists on a finish_reason
        finished = [choice | {"finish_reason": choice["finish_reason"] or "stop"} for choice in chunk["choices"]]
        strict(Completion, chunk | {"choices": finished})
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "Gr\u00fc\u00dfe, \U0001f600\n"
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]] == [None, None, "stop"]
    assert chunks[-1]["usage"]["total_tokens"] == 10


def test_completions_leave_tool_calls_out() -> None:
    assert len(streamed("openai_completions", TOOL_ANSWER)) == 1
    assert whole("openai_completions", TOOL_ANSWER)["choices"][0]["text"] == ""


@pytest.mark.parametrize("dialect", sorted(CHAT_CODECS.keys() - {"api_server"}))
@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(st.text() | st.sampled_from(["\ud800", "\r\n", "data: [DONE]\n\n", "\u2028", '"', "\0"]), max_size=5))
def test_any_text_survives_both_ways(dialect: str, pieces: list[str]) -> None:
    events: list[ChatEvent] = [*map(TextDelta, pieces), Finished("length", None)]

    def text(choice: Any) -> str:
        message = choice.get("delta") or choice.get("message")
        return str(choice["text"] if message is None and "text" in choice else (message or {}).get("content") or "")

    assert text(whole(dialect, events)["choices"][0]) == "".join(pieces)
    assert "".join(text(chunk["choices"][0]) for chunk in streamed(dialect, events)) == "".join(pieces)


def test_closed_stream_pulls_no_further_event() -> None:
    pulled: list[int] = []

    def events() -> Iterator[ChatEvent]:
        for number in range(9):
            pulled.append(number)
            yield TextDelta(str(number))

    chunks = encoder("openai_chat").stream(events())
    next(chunks)
    next(chunks)
    chunks.close()
    assert pulled == [0]
    assert next(chunks, None) is None


@pytest.mark.parametrize("dialect", sorted(CODECS.keys() - {"chatgpt_web", "api_server"}))
def test_error_event_is_one_that_the_sdk_finds(dialect: str) -> None:
    error = {"message": "cut \u2028 \ud800", "type": "server_error", "param": None, "code": "upstream_interrupted"}
    raw = CODECS[dialect].error_event(error)
    assert len(list(sse.split(raw))) == 1
    event = sse.parse(raw)
    assert json.loads(event.data or b"")["error"] == error
    assert not CODECS[dialect].is_terminal(event)


def test_json_is_compact_and_never_fails_over_a_half_of_a_surrogate_pair() -> None:
    assert dumps({"a": ["\u00e9", 1]}) == '{"a":["\u00e9",1]}'.encode()
    assert json.loads(dumps({"a": "\ud800\u00e9"})) == {"a": "\ud800\u00e9"}


# requests


def chat(**members: Any) -> ChatRequest:
    return CHAT_CODECS["openai_chat"].request({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | members)


def completion(**members: Any) -> ChatRequest:
    return CHAT_CODECS["openai_completions"].request({"model": "m", **members})


def test_chat_request_is_read() -> None:
    request = chat(
        messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"text": "b"}]}]
    )
    assert request.messages == (Message("system", "be brief"), Message("user", "ab"))
    assert (request.model, request.stream, request.include_usage, request.max_tokens) == ("m", False, False, None)
    assert request.document["model"] == "m"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
        ({"max_tokens": True}, None),
        ({"max_tokens": 1.5}, None),
        ({"max_tokens": float("inf")}, None),
        ({"max_tokens": "5"}, None),
    ],
)
def test_limit_of_tokens_is_read(members: dict[str, Any], expected: int | None) -> None:
    assert chat(**members).max_tokens == expected
    assert completion(**members).max_tokens == expected


@pytest.mark.parametrize(
    ("options", "expected"), [({"include_usage": True}, True), ({"include_usage": False}, False), ({"include_usage": 1}, False), ({}, False), (None, False)]
)
def test_wish_for_usage_is_read(options: Any, expected: bool) -> None:
    request = chat(stream=True, stream_options=options)
    assert (request.stream, request.include_usage) == (True, expected)


@pytest.mark.parametrize("messages", [None, [], "hi", {}, ["hi"], [{}], [{"role": 7}], [None], [{"role": "user"}, "x"]])
def test_messages_that_are_none_are_refused(messages: Any) -> None:
    with pytest.raises(BadRequest) as refusal:
        chat(messages=messages)
    assert refusal.value.param == "messages"


@pytest.mark.parametrize(("content", "text"), [("a", "a"), (None, ""), (7, ""), ({}, ""), (["a", None, {"text": 7}, {"text": "b"}], "b")])
def test_text_of_a_content_is_found(content: Any, text: str) -> None:
    assert plain_text(content) == text


@pytest.mark.parametrize(("prompt", "text"), [("a", "a"), (["a", "b"], "a\n\nb"), ([], ""), ("", "")])
def test_prompt_becomes_one_message(prompt: Any, text: str) -> None:
    assert completion(prompt=prompt).messages == (Message("user", text),)
    assert completion().messages == (Message("user", ""),)


@pytest.mark.parametrize("prompt", [None, 7, [1, 2], [[1], [2]], {"a": 1}, ["a", 7]])
def test_prompt_of_tokens_is_refused(prompt: Any) -> None:
    with pytest.raises(BadRequest) as refusal:
        completion(prompt=prompt)
    assert refusal.value.param == "prompt"
