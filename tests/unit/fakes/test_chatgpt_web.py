"""The fake web upstream speaks as the real one was seen to speak: what stands on it would prove nothing otherwise."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.answers import CloseAt
from tests.fakes.chatgpt_web import (
    DATE_STAMP,
    DONE,
    TEXT,
    Blocked,
    Conversation,
    CutByTokens,
    Expired,
    Limited,
    Models,
    Said,
    Stream,
    cumulative,
    error_event,
    words,
)
from tests.fakes.provider import Provider

NEXT = {"action": "next", "messages": [{"id": "1", "author": {"role": "user"}, "content": {"content_type": "text", "parts": ["hi"]}}]}


@pytest.fixture
def web() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


def ask(web: Provider, body: Any = NEXT, path: str = "/conversation", method: str = "POST") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=5)
    try:
        connection.request(method, path, json.dumps(body) if method == "POST" else None)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def told(body: bytes) -> list[dict[str, Any]]:
    """The events that are objects."""
    lines = [line.removeprefix(b"data: ") for line in body.splitlines()]
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def test_conversation_streams_cumulative_texts_and_ends_with_done(web: Provider) -> None:
    web.always("/conversation", Conversation())
    status, headers, body = ask(web)
    events = told(body)
    texts = [event["message"]["content"]["parts"][0] for event in events[:-1]]
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert texts == ["", *cumulative(words(TEXT)), TEXT]
    assert (events[-2]["message"]["status"], events[-2]["message"]["end_turn"]) == ("finished_successfully", True)
    assert [event["message"]["end_turn"] for event in events[:-2]] == [None] * (len(events) - 2)
    assert "moderation_response" in events[-1]
    assert body.endswith(DONE)
    assert body.count(DONE) == 1


def test_pieces_are_joined_bit_by_bit(web: Provider) -> None:
    web.always("/conversation", Said("ha", "ha", "ha"))
    texts = [event["message"]["content"]["parts"][0] for event in told(ask(web)[2])[:-1]]
    assert texts == ["", "ha", "haha", "hahaha", "hahaha"]


def test_answer_cut_by_tokens_waits_to_be_continued_in_its_conversation(web: Provider) -> None:
    web.script("/conversation", CutByTokens("one, "), Said("two"))
    first = told(ask(web)[2])[-1]
    assert (first["message"]["status"], first["message"]["end_turn"]) == ("finished_successfully", None)
    assert first["message"]["metadata"]["finish_details"] == {"type": "max_tokens"}
    asked = {"action": "continue", "conversation_id": "conversation-7", "parent_message_id": first["message"]["id"]}
    second = told(ask(web, asked)[2])[0]
    assert (second["conversation_id"], second["message"]["metadata"]["message_type"]) == ("conversation-7", "continue")
    assert [received.json()["action"] for received in web.requests] == ["next", "continue"]


def test_error_takes_the_place_of_the_end(web: Provider) -> None:
    web.always("/conversation", Said("so far", error="It broke."))
    events = told(ask(web)[2])
    assert events[-1] == error_event("It broke.")
    assert "finished_successfully" not in json.dumps(events)


def test_noise_stands_between_the_events(web: Provider) -> None:
    web.always("/conversation", Said("a", "b", noise=True))
    body = ask(web)[2]
    assert DATE_STAMP in body
    assert b"event: message\n" in body
    assert b"\ndata\n" in body
    assert b"no JSON" in body
    assert {event["message"]["author"]["role"] for event in told(body) if "message" in event} == {"system", "user", "assistant", "tool"}


def test_stream_can_be_cut_at_a_byte(web: Provider) -> None:
    web.always("/conversation", CloseAt(400, Conversation()))
    with pytest.raises(http.client.IncompleteRead):
        ask(web)


@pytest.mark.parametrize("body", [{}, [], {"action": "variant"}])
def test_body_that_asks_for_no_conversation_is_refused(web: Provider, body: Any) -> None:
    web.always("/conversation", Conversation())
    status, _, refused = ask(web, body)
    assert status == 400
    assert "detail" in json.loads(refused)


def test_refusals_have_a_detail_or_are_a_page(web: Provider) -> None:
    web.script("/conversation", Expired(), Limited(), Limited(clears_in=90), Limited(retry_after=7), Blocked())
    answers = [ask(web) for _ in range(5)]
    assert [status for status, _, _ in answers] == [401, 429, 429, 429, 403]
    assert json.loads(answers[0][2])["detail"]["code"] == "token_expired"
    assert json.loads(answers[2][2])["detail"]["clears_in"] == 90
    assert answers[3][1]["retry-after"] == "7"
    assert answers[4][2].startswith(b"<html>")


def test_models_are_slugs_and_streams_are_exactly_what_was_said(web: Provider) -> None:
    web.always("/models", Models("a", "b"))
    web.always("/conversation", Stream(b"data: x\n", done=False))
    assert [model["slug"] for model in json.loads(ask(web, path="/models", method="GET")[2])["models"]] == ["a", "b"]
    assert ask(web)[2] == b"data: x\n"
