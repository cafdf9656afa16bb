from __future__ import annotations

import itertools
import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import CHAT_CODECS, CODECS, sse
from gateway.dialects.chatgpt_web import Complaint, Lines, Reader, continuation, conversation, relayed, web_model
from gateway.dialects.events import ChatRequest, Message
from gateway.errors import BadRequest
from tests.fakes.chatgpt_web import DATE_STAMP, cumulative, error_event, event, line, moderation

CODEC = CODECS["chatgpt_web"]
DONE = b"data: [DONE]"


def chat(*messages: tuple[str, str], **document: Any) -> ChatRequest:
    return ChatRequest("asked-for", tuple(itertools.starmap(Message, messages)), True, False, None, document)


def fed(*events: Any) -> tuple[list[str], Reader]:
    """What each event adds, and the reader afterwards."""
    reader = Reader()
    return [reader.feed(each if isinstance(each, bytes) else line(each).strip()) for each in events], reader


def ended(text: str, **members: Any) -> dict[str, Any]:
    metadata = {"finish_details": {"type": members.pop("finish", "stop")}, **members.pop("metadata", {})}
    return event(text, status="finished_successfully", metadata=metadata, **{"end_turn": True, **members})


# the codec


def test_dialect_is_relayed_and_not_translated() -> None:
    assert "chatgpt_web" not in CHAT_CODECS
    assert CODEC.usage({"usage": {"prompt_tokens": 1}}) is None
    assert CODEC.heartbeat == b""
    assert not CODEC.reports_usage_on_request


@pytest.mark.parametrize("raw", [b"data: [DONE]\n\n", b"data:[DONE]\n\n", b"data:  [DONE] \r\n\r\n"])
def test_done_is_the_terminal_event(raw: bytes) -> None:
    assert CODEC.terminal_candidate.search(raw)
    assert CODEC.is_terminal(sse.parse(raw))
    assert not CODEC.is_failure(sse.parse(raw))


def test_text_that_speaks_of_the_end_is_not_the_end() -> None:
    assert not CODEC.is_terminal(sse.parse(line(event("data: [DONE]"))))


def test_error_event_is_one_that_old_clients_read() -> None:
    raw = CODEC.error_event({"message": "cut \u2028 \ud800", "type": "server_error", "param": None, "code": "upstream_interrupted"})
    assert len(list(sse.split(raw))) == 1
    assert raw.startswith(b"data: ")
    assert json.loads(sse.parse(raw).data or b"") == {"message": None, "conversation_id": None, "error": "cut \u2028 \ud800"}


# requests


def test_chat_becomes_a_conversation() -> None:
    asked = conversation(chat(("system", "Be brief."), ("user", "hi"), ("assistant", "Hello."), ("user", "")), "gpt-3.5-turbo", history=True)
    assert asked.keys() == {"action", "messages", "parent_message_id", "model", "history_and_training_disabled"}
    assert (asked["action"], asked["model"], asked["history_and_training_disabled"]) == ("next", "text-davinci-002-render-sha", False)
    assert [message["author"]["role"] for message in asked["messages"]] == ["critic", "user", "assistant", "user"]
    assert [message["content"] for message in asked["messages"]] == [{"content_type": "text", "parts": [text]} for text in ("Be brief.", "hi", "Hello.", "")]
    ids = [asked["parent_message_id"], *(message["id"] for message in asked["messages"])]
    assert len({uuid.UUID(each) for each in ids if uuid.UUID(each).version == 4}) == 5


@pytest.mark.parametrize(
    ("asked_for", "sent"),
    [
        ("gpt-3.5-turbo", "text-davinci-002-render-sha"),
        ("gpt-3.5-turbo-0301", "text-davinci-002-render-sha"),
        ("gpt-4", "gpt-4"),
        ("gpt-4-32k", "gpt-4"),
        ("gpt-4-0613", "gpt-4"),
        ("gpt-4-browsing", "gpt-4-browsing"),
        ("gpt-4-", "gpt-4-"),
        ("gpt-4o", "gpt-4o"),
        ("llama", "text-davinci-002-render-sha"),
        ("", "text-davinci-002-render-sha"),
    ],
)
def test_model_gets_the_name_that_the_interface_knows(asked_for: str, sent: str) -> None:
    assert web_model(asked_for) == sent
    assert conversation(chat(("user", "hi")), asked_for, history=True)["model"] == sent
    assert conversation(chat(("user", "hi")), asked_for, history=True, exact_model=True)["model"] == asked_for


def test_plugins_choose_their_model_and_are_passed_on() -> None:
    asked = conversation(chat(("user", "hi"), plugin_ids=["plugin-1"]), "gpt-3.5-turbo", history=True)
    assert (asked["model"], asked["plugin_ids"]) == ("gpt-4-plugins", ["plugin-1"])
    for none in ([], None):
        assert "plugin_ids" not in conversation(chat(("user", "hi"), plugin_ids=none), "gpt-4", history=True)


@pytest.mark.parametrize("wrong", ["plugin-1", [1], {}, 0, False])
def test_plugins_that_are_no_list_of_texts_are_refused(wrong: Any) -> None:
    with pytest.raises(BadRequest, match="plugin_ids"):
        conversation(chat(("user", "hi"), plugin_ids=wrong), "gpt-4", history=True)


def test_21_arkose_token_is_the_callers_own_or_absent() -> None:
    assert conversation(chat(("user", "hi"), arkose_token="given"), "gpt-4", history=True)["arkose_token"] == "given"
    for none in (None, "", 7):
        assert "arkose_token" not in conversation(chat(("user", "hi"), arkose_token=none), "gpt-4", history=True)


def test_history_is_switched_off_on_request() -> None:
    assert conversation(chat(("user", "hi")), "gpt-4", history=False)["history_and_training_disabled"] is True


def test_continuation_asks_for_more_of_the_same() -> None:
    asked = conversation(chat(("user", "hi"), arkose_token="given", plugin_ids=["p"]), "gpt-4", history=False)
    more = continuation(asked, "c-1", "m-1")
    changed = {"action": "continue", "messages": None, "parent_message_id": "m-1", "conversation_id": "c-1"}
    assert more == asked | changed


# lines


def test_lines_are_trimmed_and_never_empty() -> None:
    lines = Lines()
    assert lines.feed(b" a \r\n\r\n\n b") == [b"a"]
    assert lines.size == 2
    assert lines.feed(b"c") == []
    assert lines.feed(b"\nd") == [b"bc"]
    assert lines.rest() == b"d"


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=8))
def test_lines_are_the_same_however_they_are_cut(stream: bytes, cuts: list[int]) -> None:
    marks = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    lines = Lines()
    found = [each for start, end in itertools.pairwise(marks) for each in lines.feed(stream[start:end])]
    assert [*found, *filter(None, [lines.rest()])] == [each.strip() for each in stream.split(b"\n") if each.strip()]


def test_lines_that_old_clients_never_got_are_dropped() -> None:
    assert [relayed(each) for each in (b"", b"event: message", b"event", DATE_STAMP.strip(), b"data: 20")] == [b""] * 5
    assert [relayed(each) for each in (b"data: {}", b"data: 19", b"other")] == [b"data: {}\n\n", b"data: 19\n\n", b"other\n\n"]


# answers


def test_30_what_is_new_in_a_cumulative_text_is_given() -> None:
    added, reader = fed(event(""), event("ha"), event("haha"), event("haha"), event("hahaha"), ended("hahaha"), DONE)
    assert added == ["", "ha", "ha", "", "ha", "", ""]
    assert (reader.done, reader.finished, reader.cut, reader.reason) == (True, True, False, "stop")


@given(st.lists(st.text(max_size=8), max_size=12))
def test_pieces_of_any_text_come_back_exactly(pieces: list[str]) -> None:
    texts = cumulative(pieces)
    added, reader = fed(*map(event, texts))
    assert "".join(added) + reader.rest() == "".join(pieces)


@pytest.mark.parametrize(
    "uncounted",
    [
        event("x", role="user"),
        event("x", role="system"),
        event("x", role="tool"),
        event("x", metadata={"message_type": "variant"}),
        event("x", metadata={"message_type": None}),
        event("x", end_turn=False),
        event("x", end_turn=True, status="finished_successfully"),
        event(None),
        event("x", content={"content_type": "text", "parts": []}),
        event("x", content={"content_type": "multimodal_text", "parts": [{"text": "x"}]}),
        event("x", content={"content_type": "code", "text": "x"}),
        event("x", content="x"),
        event("x", author=None),
        {"message": {**event("x")["message"], "metadata": None}},
        {"message": "x"},
        {"message": None},
        moderation(),
        b"data: [1]",
        b"data: 7",
        b"data: x",
        b"data: \xff",
        b"data: " + b"[" * 100_000,
        b'data: {"message": ' + b"1" * 5000 + b"}",
        b"data:",
        b"data",
        b"",
        b": note",
        DATE_STAMP.strip(),
    ],
)
def test_event_that_does_not_count_adds_nothing(uncounted: Any) -> None:
    added, reader = fed(event("al"), uncounted, event("all"))
    assert added == ["al", "", "l"]
    assert reader.complaint is None


def test_40_absent_members_are_not_those_of_the_event_before() -> None:
    said = event("all")
    bare = {"message": {"author": {"role": "assistant"}, "content": {"parts": ["all is well"]}}}
    assert fed(said, bare)[0] == ["all", ""]
    assert fed(ended("all", finish="max_tokens", end_turn=None), event("all"))[1].finished is False


def test_end_of_the_turn_counts_where_it_goes_on_with_the_text() -> None:
    assert fed(event("al"), ended("all"))[0] == ["al", "l"]
    assert fed(ended("all"))[0] == ["all"]
    assert fed(event("al"), ended("other"))[0] == ["al", ""]


@pytest.mark.parametrize(
    ("texts", "added"),
    [
        (["Hello wrold", "Hello world and"], ["Hello wrold", "orld and"]),
        (["Hello", "Hell", "Hello"], ["Hello", "", ""]),
        (["Hello", "Hell", "Hello you"], ["Hello", "", " you"]),
        (["abc", "xyz", "xyzz"], ["abc", "xyz", "z"]),
    ],
)
def test_text_that_was_rewritten_is_given_from_where_it_differs(texts: list[str], added: list[str]) -> None:
    assert fed(*map(event, texts))[0] == added


def test_another_message_is_given_in_full() -> None:
    assert fed(event("Hello", id="1"), event("", id="2"), event("He", id="2"), event("Hey", id="2"))[0] == ["Hello", "", "He", "y"]
    assert fed(event("Hello", id="1"), event("Help", id="2"))[0] == ["Hello", "Help"]


def test_text_that_goes_on_under_another_id_is_given_once() -> None:
    assert fed(event("ha", id="1"), event("haha", id="2"), event("hahaha", id="3"))[0] == ["ha", "ha", "ha"]


@pytest.mark.parametrize("more", [event("b", id="2"), event("x", role="tool", id="2")])
def test_answer_that_goes_on_behind_its_end_is_not_finished(more: Any) -> None:
    assert fed(ended("a"))[1].finished
    assert not fed(ended("a"), more)[1].finished


@pytest.mark.parametrize("half", ["\ufffd", chr(0xD83D), "\ufffd\ufffd"])
def test_half_a_character_is_held_back_until_it_is_whole(half: str) -> None:
    assert fed(b"data: " + json.dumps(event("Hi " + half)).encode(), event("Hi 👋"))[0] == ["Hi ", "👋"]
    added, reader = fed(b"data: " + json.dumps(event("Hi " + half)).encode())
    assert (added, reader.rest(), reader.rest()) == (["Hi "], half, "")
    assert fed(event("Hi"), ended("Hi \ufffd"))[0] == ["Hi", " \ufffd"]


@pytest.mark.parametrize(
    ("finish", "reason"), [("stop", "stop"), ("max_tokens", "length"), ("length", "length"), ("interrupted", "stop"), ("", "stop"), (7, "stop")]
)
def test_31_reason_is_in_openais_words(finish: Any, reason: str) -> None:
    assert fed(event("a"), ended("a", finish=finish))[1].reason == reason


def test_answer_cut_by_tokens_tells_where_to_go_on() -> None:
    reader = fed(event("a"), ended("a", finish="max_tokens", end_turn=None, id="m-9", conversation_id="c-9"), moderation())[1]
    assert (reader.cut, reader.finished, reader.reason) == (True, True, "length")
    assert (reader.conversation_id, reader.message_id) == ("c-9", "m-9")
    assert not fed(event("a", metadata={"finish_details": {"type": "max_tokens"}}))[1].cut
    assert not fed(ended("a", finish="max_tokens", end_turn=None), ended("ab"))[1].cut


@pytest.mark.parametrize("told", [error_event("no"), {"error": {"message": "no"}}, {"detail": "no"}, {"detail": {"message": "no"}}])
def test_34_error_in_place_of_an_event_is_a_complaint(told: Any) -> None:
    added, reader = fed(event("a"), told)
    assert added == ["a", ""]
    assert reader.complaint is not None
    assert reader.complaint.text == "no"


# complaints


@pytest.mark.parametrize(
    ("value", "status", "code"),
    [
        ("Your authentication token has expired. Please try signing in again.", 401, "invalid_api_key"),
        ("Could not parse your authentication token. Please try signing in again.", 401, "invalid_api_key"),
        ("Invalid access token", 401, "invalid_api_key"),
        ("Signature has expired", 401, "invalid_api_key"),
        ({"code": "token_expired"}, 401, "invalid_api_key"),
        ({"message": "Session invalid", "code": "x"}, 401, "invalid_api_key"),
        ("Invalid arkose token", 500, None),
        ("The arkose token has expired", 500, None),
        ("The maximum of tokens is invalid", 500, None),
        ("Too many requests in 1 hour. Try again later.", 429, None),
        ("Only one message at a time. Please allow any other responses to complete.", 429, None),
        ("You've reached the current usage cap for GPT-4.", 429, None),
        ({"message": "no", "clears_in": 3}, 429, None),
        ({"code": "model_cap_exceeded"}, 429, "model_cap_exceeded"),
        ({"type": "rate_limit_exceeded", "code": None}, 429, "rate_limit_exceeded"),
        ({"code": "message_length_exceeds_limit"}, 413, "message_length_exceeds_limit"),
        ("Something went wrong.", 500, None),
        ("", 500, None),
        (None, 500, None),
        ([{"msg": "field required"}], 500, None),
        ({"message": 7, "code": 7, "clears_in": True}, 500, None),
        ({"clears_in": float("nan")}, 500, None),
        ({"clears_in": -1}, 500, None),
    ],
)
def test_complaint_is_judged_by_its_code_or_its_words(value: Any, status: int, code: str | None) -> None:
    complaint = Complaint.of(value)
    assert complaint.status == status
    assert complaint.upstream_code(status) == code


def test_complaint_of_a_token_counts_only_with_the_status_that_says_so() -> None:
    assert Complaint.of({"code": "token_expired"}).upstream_code(403) == "token_expired"


@given(st.text(max_size=1000))
def test_complaint_is_one_short_line(text: str) -> None:
    shown = Complaint.of(text).text
    assert len(shown) <= 200
    assert len(shown.splitlines()) <= 1
    assert shown.isprintable()


def test_wait_is_at_most_a_day() -> None:
    assert Complaint.of({"clears_in": 90}).clears_in_s == 90.0
    assert Complaint.of({"clears_in": 10**300}).clears_in_s == 86_400.0
