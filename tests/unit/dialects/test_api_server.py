from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.api_server import ApiServer
from gateway.dialects.events import ChatEvent, Finished, Message, TextDelta
from gateway.dialects.sse import Event
from gateway.errors import BadRequest

TEXT = st.text(st.characters())


def answered(events: list[ChatEvent], **document: Any) -> dict[str, Any]:
    codec = ApiServer()
    answer = json.loads(codec.encoder("m", 0, codec.request({"content": "hi"} | document)).whole(iter(events)))
    assert isinstance(answer, dict)
    return answer


@given(TEXT, TEXT, TEXT, TEXT)
def test_any_prompt_and_any_ids_survive(content: str, conversation: str, parent: str, message: str) -> None:
    document = {"content": content, "conversation_id": conversation, "parent_id": parent, "message_id": message}
    request = ApiServer().request(document)
    assert request.messages == (Message("user", content),)
    assert request.document["messages"] == [{"role": "user", "content": content}]
    asked = request.conversation
    assert asked is not None
    assert asked["id"] == conversation
    assert asked["parent_id"] == parent or (not parent and len(asked["parent_id"]) == 36)
    assert asked["message_id"] == message or (not message and len(asked["message_id"]) == 36)
    assert not request.stream


@given(st.lists(TEXT, max_size=4), st.fixed_dictionaries(dict.fromkeys(("id", "message_id", "own_id", "error"), TEXT)))
def test_any_answer_survives(pieces: list[str], told: dict[str, str]) -> None:
    answer = answered([*map(TextDelta, pieces), Finished("stop", None, told)])
    assert answer["content"] == "".join(pieces)
    assert (answer["id"], answer["error"]) == (told["own_id"], told["error"])
    assert answer["response_id"] == told["message_id"] or (not told["message_id"] and len(answer["response_id"]) == 36)
    assert answer["conversation_id"] == told["id"] or (not told["id"] and len(answer["conversation_id"]) == 36)


def test_an_answer_has_the_old_program_s_members_in_their_order() -> None:
    assert list(answered([TextDelta("x"), Finished("stop", None)])) == ["id", "response_id", "conversation_id", "content", "error"]


def test_an_upstream_without_conversations_goes_on_with_the_one_that_was_asked_for() -> None:
    assert answered([Finished("stop", None)], conversation_id="c")["conversation_id"] == "c"


@pytest.mark.parametrize("name", ["content", "conversation_id", "parent_id", "message_id"])
@pytest.mark.parametrize("value", [7, True, [], {}, ["x"]])
def test_what_is_no_text_is_an_invalid_request(name: str, value: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        ApiServer().request({"content": "hi", name: value})
    assert str(caught.value) == "Invalid request"


@pytest.mark.parametrize("document", [{}, {"content": None}, {"content": "", "conversation_id": None}])
def test_what_is_missing_is_empty(document: dict[str, Any]) -> None:
    request = ApiServer().request(document)
    assert request.conversation is not None
    assert (request.messages[0].content, request.conversation["id"]) == ("", "")


def test_nothing_of_it_is_streamed() -> None:
    codec = ApiServer()
    event = Event("", b"[DONE]")
    assert not codec.is_terminal(event)
    assert not codec.is_failure(event)
    assert codec.terminal_candidate.search(b"anything") is None
    assert (codec.usage({"usage": {}}), codec.error_event({"message": "no"}), codec.heartbeat) == (None, b"", b"")
    with pytest.raises(BadRequest):
        next(codec.encoder("m", 0, codec.request({"content": "hi"})).stream(iter(())))
