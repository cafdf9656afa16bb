from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.backend import Call
from gateway.core.metering import NOTHING, Metered, Source, from_events, is_error, metered, whole
from gateway.dialects.events import Usage
from tests.factories import call, form_call

CHAT, REST = "openai_chat", "openai_rest"


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def estimated(made: Call, delivered_bytes: int = 0, delivered_events: int = 0) -> tuple[int, int]:
    """Tokens in and out."""
    found = metered(None, made, delivered_bytes, delivered_events)
    assert found.source is Source.ESTIMATED
    return found.usage.input_tokens, found.usage.output_tokens


# the provider's figures


def test_providers_figures_are_taken_as_they_are() -> None:
    usage = Usage(input_uncached=3, output_text=4, flags=("inconsistent",), raw={"prompt_tokens": 3})
    found = metered(usage, call(), 10**6, 10**6)
    assert found == Metered(usage, Source.PROVIDER)
    assert found.usage is usage


def test_providers_explicit_zeros_are_kept() -> None:
    usage = whole(CHAT, b'{"usage":{"prompt_tokens":0,"completion_tokens":0}}')
    assert metered(usage, call(), 10**6, 10**6) == Metered(Usage(), Source.PROVIDER)


@pytest.mark.parametrize("count", [-1, -(10**30), 10**30, 1.5, 0.0, True, None, "7"])
def test_impossible_count_of_a_backend_is_put_right_and_flagged(count: Any) -> None:
    found = metered(Usage(input_uncached=5, output_text=count), call(), 0, 0)
    assert found.usage.input_uncached == 5
    assert type(found.usage.output_text) is int
    assert 0 <= found.usage.output_text <= 10**9
    assert found.usage.flags == ("clamped",)


def test_usage_of_a_whole_answer_is_read() -> None:
    usage = whole(CHAT, b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}')
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (3, 4)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b'{"usage":null}', b'{"usage":[]}', b"\xff\xfe", b"nonsense", b"[" * 5000, b'{"x":' + b"1" * 5000 + b"}"]
)
def test_answer_that_holds_no_usage_has_none(body: bytes) -> None:
    assert whole(CHAT, body) is None


def test_last_event_with_a_usage_counts() -> None:
    events = [
        event({"usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
        event({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
        event({"x_extra": {"usage": {"prompt_tokens": 9, "completion_tokens": 9}}}),
        b'data: {"usage": {"prompt_tokens": broken\n\n',
        b"data: [DONE]\n\n",
    ]
    usage = from_events(CHAT, b"".join(events))
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (3, 4)


def test_stream_without_a_usage_has_none() -> None:
    assert from_events(CHAT, b'data: {"choices":[]}\n\ndata: [DONE]\n\n') is None
    assert from_events(CHAT, b"") is None


@pytest.mark.parametrize(
    ("body", "is_one"),
    [
        (b'{"error":{"message":"no"}}', True),
        (b'{"error":"no"}', True),
        (b'{"error":null,"choices":[]}', False),
        (b'{"choices":[]}', False),
        (b'["error"]', False),
        (b"error", False),
    ],
)
def test_error_object_is_told_from_an_answer(body: bytes, is_one: bool) -> None:
    assert is_error(body) is is_one


# estimates


def test_chat_without_a_usage_is_estimated_by_its_bytes() -> None:
    raw = b'{"model":"m","messages":[{"role":"user","content":"' + b"word " * 800 + b'"}]}'
    told, answered = estimated(call(raw), delivered_bytes=400)
    assert told == len(raw) // 4
    assert answered == 100


def test_stream_without_a_usage_is_estimated_by_its_events_but_for_the_first_and_the_last() -> None:
    stream = call(b'{"model":"m","stream":true}')
    assert estimated(stream, delivered_events=12)[1] == 10
    assert estimated(stream, delivered_events=1)[1] == 0
    assert estimated(stream, delivered_events=0)[1] == 0


def test_answer_in_another_form_than_was_asked_for_is_estimated_all_the_same() -> None:
    assert estimated(call(b'{"model":"m","stream":true}'), delivered_bytes=400)[1] == 100
    assert estimated(call(b'{"model":"m"}'), delivered_events=12)[1] == 10


@pytest.mark.parametrize(
    "content",
    [
        '{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"}}',
        '{"type":"input_audio","input_audio":{"data":"%s","format":"wav"}}',
        '{"type":"file","file":{"file_data":"data:application/pdf;base64,%s"}}',
    ],
)
def test_images_and_sounds_within_json_are_not_counted_as_text(content: str) -> None:
    picture = base64.b64encode(bytes(range(256)) * 400).decode()
    raw = '{"model":"m","messages":[{"role":"user","content":[%s]}]}' % (content % picture)
    assert estimated(call(raw.encode()))[0] < 60


def test_long_words_are_text() -> None:
    raw = b'{"model":"m","messages":[{"role":"user","content":"' + b"a" * 400 + b'"}]}'
    assert estimated(call(raw))[0] == len(raw) // 4


@pytest.mark.parametrize("text", ["data: " + "say a word. " * 400, "say_a_word_" * 400, "data:text/plain;base64," + "Say/a/word/" * 400])
def test_words_that_look_like_a_picture_are_text_where_words_stand(text: str) -> None:
    """Who writes so could else leave before the end of each answer, and pay nothing for what was read."""
    for raw in ('{"model":"m","messages":[{"role":"user","content":"%s"}]}', '{"model":"m","messages":[{"content":[{"type":"text","text": "%s"}]}]}'):
        asked = (raw % text).encode()
        assert estimated(call(asked))[0] == len(asked) // 4


def test_upload_is_not_counted_as_text() -> None:
    streamed = form_call({"model": "m", "stream": "true"}, b"\0" * 400_000)
    assert streamed.stream
    assert estimated(streamed, delivered_events=12) == (0, 10)


def test_bytes_that_are_no_chat_are_not_counted_as_words() -> None:
    assert estimated(call(b'{"model":"m","stream":true}', REST), delivered_bytes=10**6)[1] == 0


def test_what_is_neither_chat_nor_stream_is_not_estimated() -> None:
    assert metered(None, call(b'{"model":"m","input":"text"}', REST), 10**6, 0) is NOTHING


def test_conversation_is_estimated_by_its_events_though_no_request_asks_for_a_stream() -> None:
    raw = b'{"action":"next","model":"m","messages":[{"content":{"parts":["word word word"]}}]}'
    assert estimated(call(raw, "chatgpt_web"), delivered_bytes=10**6, delivered_events=12) == (len(raw) // 4, 10)
    assert metered(None, call(raw, "chatgpt_web"), 10**6, 0) is NOTHING
