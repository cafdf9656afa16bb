from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.bus.socket_channel import SocketChannel
from gateway.core.agent_frames import PROTOCOL_ERROR, Hello, Refused, Update
from gateway.core.agent_session import ENDED_REMEMBERED, LEAVING, PING_S, TIMED_OUT, TOO_MUCH, SessionV2, SocketClosed, Welcome
from gateway.frames import GRACE_S, MAX_FRAME_BYTES, ChannelLost
from tests.fakes.line import Line, Running, channels, said, wait


@pytest.fixture
def line() -> Iterator[Line]:
    with Line() as line:
        yield line


@pytest.fixture
def running(line: Line) -> Iterator[Running]:
    with Running(SessionV2(line.near)) as running:
        yield running


def asked(id: str = "r1", credit: int = 2, **members: Any) -> bytes:
    return json.dumps({"id": id, "type": "request", "model": "m", "credit": credit, "body": {"messages": []}, **members}).encode()


def begun(running: Running, line: Line, id: str = "r1", credit: int = 2) -> SocketChannel:
    """A client's channel, whose request is at the agent."""
    channel = running.open()
    channel.send(asked(id, credit))
    assert line.hear()["id"] == id
    return channel


def delta(id: str = "r1", seq: int = 1, text: str = "x") -> dict[str, Any]:
    return {"type": "delta", "id": id, "seq": seq, "text": text}


def done(id: str = "r1", seq: int = 1) -> dict[str, Any]:
    return {"type": "done", "id": id, "seq": seq, "reason": "stop"}


# who it is


def test_a_hello_is_read(line: Line) -> None:
    line.say(
        {
            "type": "hello",
            "token": "gw_agent_x",
            "agent": "laptop",
            "models": ["a", "b", "a"],
            "concurrency": 4,
            "resumes": True,
            "session": "s",
            "software": "ref/1",
            "unknown": [1],
        }
    )
    assert SessionV2(line.near).hello() == Hello("laptop", "gw_agent_x", ("a", "b"), 4, "s", True, "ref/1")


def test_a_hello_that_says_nothing_has_the_defaults(line: Line) -> None:
    line.say({"type": "hello"})
    assert SessionV2(line.near).hello() == Hello(models=())


def test_who_has_no_session_of_its_own_resumes_nothing(line: Line) -> None:
    line.say({"type": "hello", "resumes": True})
    assert not SessionV2(line.near).hello().resumes


def test_a_token_is_in_no_representation_of_a_hello() -> None:
    assert "gw_agent_x" not in repr(Hello(token="gw_agent_x"))


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "request"},
        {"type": 7},
        {},
        "",
        "[]",
        "hello",
        "[" * 100_000,
        {"type": "hello", "models": "m"},
        {"type": "hello", "models": [1]},
        {"type": "hello", "models": [""]},
        {"type": "hello", "models": ["x" * 257]},
        {"type": "hello", "models": ["m"] * 1001},
        {"type": "hello", "models": None},
        {"type": "hello", "concurrency": 0},
        {"type": "hello", "concurrency": 1025},
        {"type": "hello", "concurrency": True},
        {"type": "hello", "concurrency": 1.5},
        {"type": "hello", "concurrency": "1"},
        {"type": "hello", "agent": "x" * 129},
        {"type": "hello", "agent": "caf\xe9"},
        {"type": "hello", "agent": "a\nb"},
        {"type": "hello", "agent": 7},
        {"type": "hello", "agent": "\ud800"},
        {"type": "hello", "token": ["x"]},
        {"type": "hello", "token": "x" * 129},
        {"type": "hello", "session": "\0"},
        {"type": "hello", "software": {"a": 1}},
    ],
)
def test_a_hello_that_is_none_is_refused(line: Line, frame: dict[str, Any] | str) -> None:
    line.say(frame)
    with pytest.raises(Refused) as caught:
        SessionV2(line.near).hello()
    assert caught.value.code == PROTOCOL_ERROR
    assert len(caught.value.reason.encode()) <= 123  # a close frame holds no more


def test_who_says_no_hello_is_waited_for_10_s() -> None:
    began = time.monotonic()
    with Line(speed=100) as line, pytest.raises(Refused) as caught:
        SessionV2(line.near, line.clock).hello()
    assert caught.value.code == TIMED_OUT
    assert 0.09 < time.monotonic() - began < 2


def test_who_leaves_before_its_hello_is_gone(line: Line) -> None:
    line.drop()
    with pytest.raises(SocketClosed):
        SessionV2(line.near).hello()


def test_a_welcome_tells_what_the_agent_has_to_know(line: Line) -> None:
    SessionV2(line.near).welcome(Welcome("laptop", "s", ("a", "b")))
    assert line.near.max_bytes == MAX_FRAME_BYTES, "before, it may say no more than a hello"
    told = {"agent": "laptop", "session": "s", "models": ["a", "b"]}
    assert line.hear() == {"type": "welcome", "ping_s": PING_S, "grace_s": GRACE_S, "max_bytes": MAX_FRAME_BYTES, **told}


# requests


def test_frames_pass_both_ways_as_they_are(running: Running, line: Line) -> None:
    channel = running.open()
    request = asked(credit=3, extra=1.5)
    channel.send(request)
    assert line.hear_raw() == request
    answers = [b'{"type":"delta", "id":"r1","seq":1,"text":"\\ud83d"}', b'{"id":"r1","type":"delta","seq":2,"text":"\xc3\xbc","n":1e999}']
    for answer in answers:
        line.say(answer)
        assert channel.receive(5) == answer
    credit = b'{"id":"r1","type":"credit","n":1,"received":2}'
    channel.send(credit)
    assert line.hear_raw() == credit


def test_a_request_with_half_a_surrogate_pair_reaches_the_agent(running: Running, line: Line) -> None:
    channel = running.open()
    raw = asked(body={"messages": [{"content": "\ud83d"}]})
    channel.send(raw)
    assert line.hear_raw() == raw
    line.say(delta())
    assert said(channel)["text"] == "x"


def test_requests_are_not_confused(running: Running, line: Line) -> None:
    one, other = begun(running, line, "r1"), begun(running, line, "r2")
    line.say(delta("r2", text="other"))
    line.say(delta("r1", text="one"))
    assert (said(one)["text"], said(other)["text"]) == ("one", "other")
    assert running.session.in_flight == 2


def test_a_request_that_has_ended_is_not_in_flight_and_its_late_frames_are_ignored(running: Running, line: Line) -> None:
    channel = begun(running, line)
    line.say(done())
    assert said(channel)["type"] == "done"
    wait(lambda: running.session.in_flight == 0)
    for frame in (delta(), done(), {"type": "error", "id": "r1"}):
        line.say(frame)
    channel.send(b'{"id":"r1","type":"credit","n":0,"received":1}')
    assert line.hear()["type"] == "credit"  # the client's last word
    channel.close()
    assert line.is_silent()  # nothing is left to be cancelled
    assert running.ended == []


@pytest.mark.parametrize("kind", ["done", "error"])
def test_a_good_answer_is_a_heartbeat(running: Running, line: Line, kind: str) -> None:
    channel = begun(running, line)
    line.say({**done(), "type": kind})
    assert said(channel)["type"] == kind
    wait(lambda: running.session.in_flight == 0)
    assert running.session.used_at == pytest.approx(time.time(), abs=5)
    assert (running.session.heard_at is None) == (kind == "error")


def test_a_client_that_leaves_cancels_its_request(running: Running, line: Line) -> None:
    begun(running, line).close()
    assert line.hear() == {"type": "cancel", "id": "r1"}
    line.say(delta())
    assert line.is_silent()
    assert (running.session.in_flight, running.ended) == (0, [])


def test_a_client_that_never_says_what_it_wants_is_nobody(running: Running, line: Line) -> None:
    for raw in (b"", b"no JSON", b"[]", b"{}", b'{"id":7,"credit":1}', b'{"id":"x"}', b'{"id":"x","credit":"1"}', b"[" * 100_000):
        channel = running.open()
        channel.send(raw)
        with pytest.raises(ChannelLost):
            channel.receive(5)
    running.open().close()
    assert line.is_silent()
    assert running.session.in_flight == 0


def test_a_second_channel_for_a_request_takes_the_place_of_the_first(running: Running, line: Line) -> None:
    first = begun(running, line)
    second = begun(running, line)
    first.close()
    assert line.is_silent()
    line.say(delta())
    assert said(second)["type"] == "delta"


# credit


def test_who_sends_more_than_it_has_credit_for_is_closed(running: Running, line: Line) -> None:
    channel = begun(running, line, credit=2)
    for number in (1, 2, 3):
        line.say(delta(seq=number))
    assert running.refusal() == TOO_MUCH
    assert [said(channel)["type"] for _ in range(3)] == ["delta", "delta", "lost"]


def test_credit_is_of_one_request(running: Running, line: Line) -> None:
    begun(running, line, "r1", credit=5)
    begun(running, line, "r2", credit=0)
    line.say(delta("r2"))
    assert running.refusal() == TOO_MUCH


def test_credit_that_is_given_may_be_used(running: Running, line: Line) -> None:
    channel = begun(running, line, credit=1)
    for number in range(1, 50):
        line.say(delta(seq=number))
        assert said(channel)["seq"] == number
        channel.send(b'{"id":"r1","type":"credit","n":1,"received":%d}' % number)
        assert line.hear()["n"] == 1
    assert running.ended == []


def test_credit_adds_up_while_frames_come(running: Running, line: Line) -> None:
    """From two threads at once: none of it is lost, and none is invented."""
    count = 2000
    channel = begun(running, line, credit=count)
    giver = threading.Thread(target=lambda: [channel.send(b'{"id":"r1","type":"credit","n":1}') for _ in range(count)], daemon=True)
    taker = threading.Thread(target=lambda: [line.hear() for _ in range(count)], daemon=True)
    for thread in (giver, taker):
        thread.start()
    for number in range(count):
        line.say(delta(seq=number))
        said(channel)
    for thread in (giver, taker):
        thread.join(10)
    for number in range(count):
        line.say(delta(seq=number))
        said(channel)
    assert running.ended == []
    line.say(delta())
    assert running.refusal() == TOO_MUCH


# what breaks the protocol


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "no JSON",
        "[]",
        '"x"',
        "7",
        {},
        {"type": 7},
        {"type": "lost", "id": "r1"},
        {"type": "request", "id": "r1"},
        {"type": "cancel", "id": "r1"},
        {"type": "hello"},
        {"type": "\ud800"},
        delta("r2"),
        delta(""),
        {"type": "delta"},
        {"type": "delta", "id": 7},
        {"type": "done", "id": ["r1"]},
        {"type": "error", "id": "\ud800"},
        "[" * 100_000,
        '{"x":' + "[" * 100_000 + "]" * 100_000 + ',"type":"pong"}',
        '{"type":"ping","at":' + "[" * 100_000,
    ],
)
def test_a_frame_that_breaks_the_protocol_closes_the_connection(running: Running, line: Line, frame: dict[str, Any] | str) -> None:
    channel = begun(running, line)
    line.say(frame)
    assert running.refusal() == PROTOCOL_ERROR
    assert said(channel) == {"id": "r1", "type": "lost", "cause": "gone"}
    with pytest.raises(ChannelLost):
        channel.receive(5)


@pytest.mark.parametrize("frame", [{"type": "pong"}, {"type": "pong", "at": {"x": []}}, {"type": "leaving", "more": 1}, '{"type":"pong","at":1e999}'])
def test_what_is_unknown_in_a_frame_is_ignored(running: Running, line: Line, frame: dict[str, Any] | str) -> None:
    line.say(frame)
    line.say({"type": "ping", "at": 1})
    assert line.hear() == {"type": "pong", "at": 1}


# what it serves


def test_what_is_announced_anew_is_told(running: Running, line: Line) -> None:
    told: list[Update] = []
    running.session.announced = told.append
    line.say({"type": "update", "models": ["a"]})
    wait(lambda: told)
    assert told == [Update(models=("a",), concurrency=None)]


def test_an_update_that_is_none_breaks_the_protocol(running: Running, line: Line) -> None:
    line.say({"type": "update", "models": 7})
    assert running.refusal() == PROTOCOL_ERROR


def test_an_update_is_taken_once_a_second(running: Running, line: Line) -> None:
    told: list[Hello] = []
    running.session.announced = told.append
    for _ in range(2):
        line.say({"type": "update", "models": ["a"]})
    assert running.refusal() == TOO_MUCH
    assert len(told) == 1


def test_a_refused_update_ends_the_connection(running: Running, line: Line) -> None:
    def refuse(hello: Hello) -> None:
        raise Refused(4403, "the token covers none of its models")

    running.session.announced = refuse
    line.say({"type": "update", "models": ["a"]})
    assert running.refusal() == 4403


def test_an_agent_that_leaves_goes_on_with_what_is_under_way(running: Running, line: Line) -> None:
    channel = begun(running, line)
    line.say({"type": "leaving"})
    wait(lambda: running.session.leaving)
    line.say(delta())
    assert said(channel)["type"] == "delta"


# whether it is there


@pytest.mark.parametrize("mark", [0, 1.5, "x", None, {"a": [1]}, "\ud800"])
def test_a_ping_is_answered_with_its_mark_also_while_a_request_is_under_way(running: Running, line: Line, mark: Any) -> None:
    begun(running, line)
    line.say({"type": "ping", "at": mark})
    assert line.hear() == {"type": "pong", "at": mark}


def test_an_agent_is_pinged_every_20_s_and_its_way_measured() -> None:
    with Line(speed=100) as line, Running(SessionV2(line.near, line.clock)) as running:
        for _ in range(4):
            began = time.monotonic()
            ping = line.hear()
            assert ping["type"] == "ping"
            assert time.monotonic() - began > 0.1
            assert line.is_silent()
            line.say({"type": "pong", "at": ping["at"]})
        wait(lambda: running.session.rtt_ms is not None)
        assert running.session.rtt_ms is not None
        assert 4000 < running.session.rtt_ms < 100_000
        assert running.ended == []


def test_who_does_not_pong_twice_is_closed_within_45_s() -> None:
    began = time.monotonic()
    with Line(speed=100) as line, Running(SessionV2(line.near, line.clock)) as running:
        channel = begun(running, line)
        assert running.refusal() == TIMED_OUT
        assert 0.4 < time.monotonic() - began < 2
        assert [line.hear()["type"], line.hear()["type"]] == ["ping", "ping"]
        assert said(channel)["type"] == "lost"


def test_who_only_talks_is_there_but_must_pong_all_the_same() -> None:
    with Line(speed=100) as line, Running(SessionV2(line.near, line.clock)) as running:
        with contextlib.suppress(ChannelLost):
            while not running.ended:
                line.say({"type": "leaving"})
                time.sleep(0.01)
        assert running.refusal() == TIMED_OUT


# the end


def test_an_end_tells_every_client_and_is_the_same_twice(running: Running, line: Line) -> None:
    clients = [begun(running, line, f"r{number}") for number in range(20)]
    running.session.end(LEAVING, "the worker leaves")
    running.session.end(1000, "again")
    assert [said(client)["type"] for client in clients] == ["lost"] * 20
    with pytest.raises(SocketClosed) as caught:
        line.hear()
    assert (caught.value.code, caught.value.reason) == (LEAVING, "the worker leaves")
    assert isinstance(running.ending(), SocketClosed)
    assert running.session.in_flight == 0


def test_a_connection_that_is_lost_is_the_end_for_every_client(running: Running, line: Line) -> None:
    client = begun(running, line)
    line.drop()
    assert isinstance(running.ending(), SocketClosed)
    assert said(client)["type"] == "lost"


def test_a_channel_to_a_connection_that_has_ended_ends(running: Running, line: Line) -> None:
    running.session.end(1000, "")
    channel = running.open()
    channel.send(asked())
    with pytest.raises(ChannelLost):
        channel.receive(5)
    assert running.session.in_flight == 0


def test_what_ended_is_remembered_within_bounds(line: Line) -> None:
    session = SessionV2(line.near)
    for number in range(ENDED_REMEMBERED + 50):
        near, far = channels()
        near.send(asked(f"r{number}"))
        near.close()
        session.attend(far)
        far.close()
        line.hear()
    assert session.in_flight == 0
    assert len(session._ended) == ENDED_REMEMBERED


def test_a_thousand_requests_leave_no_thread_and_nothing_under_way(running: Running, line: Line) -> None:
    before = threading.active_count()
    for number in range(1000):
        channel = begun(running, line, f"r{number}")
        if number % 2:
            line.say(done(f"r{number}"))
            assert said(channel)["type"] == "done"
            channel.close()
        else:
            channel.close()
            assert line.hear()["type"] == "cancel"
    wait(lambda: threading.active_count() <= before)
    assert running.session.in_flight == 0


@pytest.mark.parametrize("seed", range(20))
def test_whenever_it_ends_each_client_learns_the_end_of_its_request(line: Line, running: Running, seed: int) -> None:
    dice = random.Random(seed)

    def agent() -> None:
        try:
            while True:
                frame = line.hear()
                if frame["type"] == "request" and dice.random() < 0.7:
                    line.say(delta(frame["id"]))
                    line.say(done(frame["id"], 2))
        except (SocketClosed, ChannelLost):
            return

    endings: list[str] = []

    def client(number: int, pause_s: float) -> None:
        time.sleep(pause_s)
        channel = running.open()
        last = "never"
        try:
            channel.send(asked(f"r{number}"))
            while last not in ("done", "lost"):
                last = said(channel)["type"]
        except ChannelLost:
            last = "gone"
        channel.close()
        endings.append(last)

    threads = [threading.Thread(target=client, args=(number, dice.random() * 0.03), daemon=True) for number in range(30)]
    threads.append(threading.Thread(target=agent, daemon=True))
    for thread in threads:
        thread.start()
    time.sleep(dice.random() * 0.03)
    running.session.end(1012, "")
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(endings) == 30
    assert set(endings) <= {"done", "lost", "gone"}
    assert running.session.in_flight == 0


# whatever an agent sends

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=3), inner, max_size=3),
    max_leaves=5,
)
TYPES = st.sampled_from(["delta", "done", "error", "ping", "pong", "update", "leaving", "hello", "lost", "request", ""])
FRAMES = st.fixed_dictionaries(
    {},
    optional={
        "type": TYPES | ANYTHING,
        "id": st.sampled_from(["r1", "r2", ""]) | ANYTHING,
        "at": ANYTHING,
        "seq": ANYTHING,
        "models": st.lists(st.text(st.characters(), max_size=3), max_size=2) | ANYTHING,
        "concurrency": ANYTHING,
        "agent": ANYTHING,
        "text": ANYTHING,
    },
)


@settings(max_examples=200, deadline=None)
@given(st.lists(FRAMES.map(json.dumps) | st.text(max_size=20), max_size=6))
def test_whatever_an_agent_sends_it_is_taken_or_refused(frames: list[str]) -> None:
    with Line() as line:
        session = SessionV2(line.near)
        near, far = channels()
        near.send(asked(credit=2))
        attending = threading.Thread(target=session.attend, args=(far,), daemon=True)
        attending.start()
        line.hear()
        refusals = list[Refused]()
        for frame in frames:
            try:
                session._take(frame)
            except Refused as refused:
                refusals.append(refused)
        session.end(1000, "")
        near.close()
        attending.join(5)
        assert not attending.is_alive()
        far.close()
    assert {refused.code for refused in refusals} <= {PROTOCOL_ERROR, TOO_MUCH}
    assert all(refused.reason.isascii() and len(refused.reason) <= 123 for refused in refusals)
