from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.bus.socket_channel import SocketChannel
from gateway.core.agent_frames import PROTOCOL_ERROR, Hello, Refused
from gateway.core.agent_older import OlderSession
from gateway.core.agent_session import TIMED_OUT, SocketClosed
from gateway.frames import ChannelLost
from tests.fakes.line import Line, Running, said, wait

ANSWER = {"response_id": "r", "conversation_id": "c", "content": "hello"}


@pytest.fixture
def line() -> Iterator[Line]:
    with Line() as line:
        yield line


@pytest.fixture
def running(line: Line) -> Iterator[Running]:
    with Running(OlderSession(line.near)) as running:
        yield running


def asked(*messages: tuple[str, Any], **members: Any) -> bytes:
    body = {"messages": [{"role": role, "content": content} for role, content in messages or [("user", "hi")]]}
    return json.dumps({"id": "r1", "type": "request", "model": "m", "credit": 64, "body": body, **members}).encode()


def begun(running: Running, line: Line, raw: bytes | None = None) -> tuple[SocketChannel, dict[str, Any]]:
    """A client's channel, and the agent's frame of its request: the ping before it is answered."""
    channel = running.open()
    channel.send(raw or asked())
    pong(line)
    return channel, line.hear()


def pong(line: Line) -> None:
    ping = line.hear()
    assert (ping["message"], ping["data"]) == ("ping", "")
    line.say({"id": ping["id"], "message": "pong", "data": ""})


def answer(line: Line, id: str, data: Any = ANSWER) -> None:
    line.say({"id": id, "message": "ChatGptResponse", "data": json.dumps(data)})


# who it is


@pytest.mark.parametrize("name", ["offered", "an-id-from-before"])
def test_its_id_is_the_one_offered_or_one_from_before(line: Line, name: str) -> None:
    told: list[Hello] = []
    thread = threading.Thread(target=lambda: told.append(OlderSession(line.near).hello()), daemon=True)
    thread.start()
    offer = line.hear()
    assert (offer["message"], offer["data"], len(offer["id"])) == ("Connection id", "", 36)
    own = offer["id"] if name == "offered" else name
    line.say({"id": own, "message": "Connection id", "data": ""})
    thread.join(5)
    assert told == [Hello(name=own, software="ChatGPT-API-server agent")]


@pytest.mark.parametrize(
    "frame", ["", "[]", "x", "[" * 100_000, {}, {"id": ""}, {"id": 7}, {"id": "x" * 129}, {"id": "caf\xe9"}, {"id": "a\nb"}, {"id": "\ud800"}]
)
def test_an_id_that_is_none_is_refused(line: Line, frame: dict[str, Any] | str) -> None:
    line.say(frame)
    with pytest.raises(Refused) as caught:
        OlderSession(line.near).hello()
    assert caught.value.code == PROTOCOL_ERROR


def test_who_says_nothing_is_waited_for_10_s() -> None:
    with Line(speed=100) as line, pytest.raises(Refused) as caught:
        OlderSession(line.near, line.clock).hello()
    assert caught.value.code == TIMED_OUT


# a request


def test_a_request_is_asked_after_a_ping_and_its_answer_translated(running: Running, line: Line) -> None:
    conversation = {"id": "c", "parent_id": "p", "message_id": "m"}
    channel, frame = begun(running, line, asked(conversation=conversation))
    assert frame["message"] == "ChatGptRequest"
    assert json.loads(frame["data"]) == {"message_id": "m", "conversation_id": "c", "parent_id": "p", "content": "hi"}
    answer(line, frame["id"], {**ANSWER, "id": "own", "error": "", "content": "\u00fc\U0001f600"})
    assert said(channel) == {"id": "r1", "seq": 1, "type": "delta", "text": "\u00fc\U0001f600"}
    told = {"id": "c", "message_id": "r", "own_id": "own", "error": ""}
    assert said(channel) == {"id": "r1", "seq": 2, "type": "done", "reason": "stop", "conversation": told}
    assert (running.session.in_flight, running.session.heard_at) == (0, pytest.approx(time.time(), abs=5))


def test_a_new_conversation_has_an_empty_id_and_ids_of_its_own(running: Running, line: Line) -> None:
    _, frame = begun(running, line)
    data = json.loads(frame["data"])
    assert data["conversation_id"] == ""
    assert len(data["message_id"]) == len(data["parent_id"]) == 36


def test_what_was_said_before_is_told_at_once(running: Running, line: Line) -> None:
    _, frame = begun(running, line, asked(("system", "be brief"), ("user", [{"type": "text", "text": "one"}, {"type": "image_url"}]), ("assistant", None)))
    assert json.loads(frame["data"])["content"] == "system: be brief\n\nuser: one\n\nassistant: "


@pytest.mark.parametrize("body", [{}, {"messages": None}, {"messages": 7}, {"messages": {"a": 1}}, {"messages": [7, None]}, None])
def test_whatever_the_messages_are_something_is_asked(running: Running, line: Line, body: Any) -> None:
    channel = running.open()
    channel.send(json.dumps({"id": "r1", "type": "request", "credit": 1, "body": body}).encode())
    pong(line)
    assert json.loads(line.hear()["data"])["content"] == ""


def test_half_a_surrogate_pair_passes_both_ways(running: Running, line: Line) -> None:
    channel, frame = begun(running, line, asked(("user", "\ud83d")))
    assert json.loads(frame["data"])["content"] == "\ud83d"
    answer(line, frame["id"], {**ANSWER, "content": "\ude00"})
    assert said(channel)["text"] == "\ude00"


def test_one_request_is_asked_at_a_time(running: Running, line: Line) -> None:
    first, frame = begun(running, line)
    second = running.open()
    second.send(asked(("user", "second")))
    wait(lambda: running.session.in_flight == 2)
    assert line.is_silent()
    answer(line, frame["id"])
    assert said(first)["type"] == "delta"
    pong(line)
    frame = line.hear()
    assert json.loads(frame["data"])["content"] == "second"
    answer(line, frame["id"])
    assert said(second)["type"] == "delta"


def test_a_client_that_left_while_it_waited_for_its_turn_is_not_asked_for(running: Running, line: Line) -> None:
    first, frame = begun(running, line)
    second, third = running.open(), running.open()
    second.send(asked(("user", "second")))
    wait(lambda: running.session.in_flight == 2)
    second.close()
    third.send(asked(("user", "third")))
    wait(lambda: running.session.in_flight == 3)
    time.sleep(0.02)
    answer(line, frame["id"])
    assert said(first)["type"] == "delta"
    pong(line)
    assert json.loads(line.hear()["data"])["content"] == "third"


def test_an_answer_that_comes_after_its_client_left_is_nobody_elses(running: Running, line: Line) -> None:
    first, late = begun(running, line)
    first.close()
    wait(lambda: running.session.in_flight == 0)
    second, frame = begun(running, line, asked(("user", "second")))
    answer(line, late["id"], {**ANSWER, "content": "late"})
    answer(line, frame["id"], {**ANSWER, "content": "of the second"})
    assert said(second)["text"] == "of the second"


def test_who_resumes_is_not_answered(running: Running, line: Line) -> None:
    for raw in (b'{"id":"r1","type":"resume"}', b"", b"no JSON", b"[]", b"[" * 100_000):
        channel = running.open()
        channel.send(raw)
        with pytest.raises(ChannelLost):
            channel.receive(5)
    assert line.is_silent()


# what goes wrong, in the old program's words


def failure(channel: SocketChannel) -> tuple[str, str, Any]:
    frame = said(channel)
    assert (frame["type"], frame["seq"]) == ("error", 1)
    return frame["cause"], frame["message"], frame["detail"]


@pytest.mark.parametrize("data", ["Unknown error", "[]", "7", "null", "", "{", "[" * 100_000])
def test_an_answer_whose_data_is_no_object_is_shown_as_it_came(running: Running, line: Line, data: str) -> None:
    channel, frame = begun(running, line)
    line.say({"id": frame["id"], "message": "error", "data": data})
    shown = {"id": frame["id"], "message": "error", "data": data[:2000]}
    assert failure(channel) == ("bad_data", "Failed to convert response to ChatGptResponse", shown)


@pytest.mark.parametrize("id", ["another", "", 7, None, [], {"a": 1}, "\ud800"])
def test_an_answer_under_another_id_fails(running: Running, line: Line, id: Any) -> None:
    channel, _ = begun(running, line)
    answer(line, id)
    assert failure(channel) == ("wrong_id", "Failed to find response from the client", None)
    assert running.ended == []


def test_a_connection_that_is_lost_before_the_pong_fails_the_ping() -> None:
    with Line() as line, Running(OlderSession(line.near)) as running:
        channel = running.open()
        channel.send(asked())
        assert line.hear()["message"] == "ping"
        line.say({"id": "of another", "message": "pong", "data": ""})
        line.drop()
        assert failure(channel) == ("ping_failed", "Ping failed", None)


def test_a_connection_that_is_lost_fails_the_request_and_those_behind_it(running: Running, line: Line) -> None:
    first, _ = begun(running, line)
    second = running.open()
    second.send(asked())
    wait(lambda: running.session.in_flight == 2)
    line.drop()
    assert failure(first) == ("read_failed", "Failed to read response from the client", "the connection was lost")
    assert failure(second)[0] == "ping_failed"
    assert isinstance(running.ending(), SocketClosed)
    wait(lambda: running.session.in_flight == 0)


@pytest.mark.parametrize("frame", ["", "no JSON", "[]", "7", "[" * 100_000])
def test_a_frame_that_is_no_object_closes_the_connection(running: Running, line: Line, frame: str) -> None:
    line.say(frame)
    assert running.refusal() == PROTOCOL_ERROR


# whether it is there


def test_it_is_pinged_every_20_s_and_closed_after_two_silent_pings() -> None:
    with Line(speed=100) as line, Running(OlderSession(line.near, line.clock)) as running:
        pong(line)
        wait(lambda: running.session.rtt_ms is not None)
        assert [line.hear()["message"], line.hear()["message"]] == ["ping", "ping"]
        assert running.refusal() == TIMED_OUT


def test_a_ping_is_answered_while_a_request_is_under_way() -> None:
    with Line(speed=100) as line, Running(OlderSession(line.near, line.clock)) as running:
        channel, frame = begun(running, line)
        for _ in range(3):
            pong(line)
        answer(line, frame["id"])
        assert said(channel)["type"] == "delta"


# what is left


def test_a_thousand_requests_leave_no_thread_and_nothing_under_way(running: Running, line: Line) -> None:
    before = threading.active_count()
    for number in range(1000):
        channel, frame = begun(running, line)
        if number % 2:
            answer(line, frame["id"])
            assert said(channel)["type"] == "delta"
            assert said(channel)["type"] == "done"
        channel.close()
    wait(lambda: threading.active_count() <= before)
    assert running.session.in_flight == 0


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=3), inner, max_size=3),
    max_leaves=5,
)
FRAMES = st.fixed_dictionaries({}, optional={"id": ANYTHING, "message": st.sampled_from(["pong", "ChatGptResponse", "error"]) | ANYTHING, "data": ANYTHING})


@settings(max_examples=100, deadline=None)
@given(st.lists(FRAMES, max_size=4), FRAMES)
def test_whatever_an_agent_sends_its_client_is_answered(before: list[dict[str, Any]], last: dict[str, Any]) -> None:
    with Line() as line, Running(OlderSession(line.near)) as running:
        for frame in before:
            line.say(frame)
        channel, request = begun(running, line)
        line.say({**last, "id": request["id"], "message": "ChatGptResponse"})
        assert said(channel)["type"] in ("delta", "error")
        assert running.ended == []
