from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends.agent import CREDIT, MOST_WHOLE_BYTES, Agent
from gateway.backend import Cancellation, Deadlines, Secret, Services, Target
from gateway.dialects.events import ChatEvent, ChatRequest, Finished, Message, TextDelta, ToolCallDelta
from gateway.errors import (
    AgentFailed,
    AgentLost,
    Blame,
    Cancelled,
    UpstreamError,
    UpstreamInterrupted,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
)
from gateway.frames import GRACE_S
from tests.fakes.hosting import Hosting, Script, Talk, answers, breaks_off, fails, keeps_silent

SHORT_S = 0.2
CLOSE = Deadlines(first_byte_s=5.0, idle_s=5.0)


@pytest.fixture
def hosting(tmp_path: Path) -> Iterator[Hosting]:
    with Hosting(tmp_path) as made:
        yield made


def request(text: str = "hi", *, stream: bool = True, **members: Any) -> ChatRequest:
    document = {"model": "asked", "stream": stream, "messages": [{"role": "user", "content": text}], **members}
    return ChatRequest("asked", (Message("user", text),), stream=stream, include_usage=False, max_tokens=None, document=document)


class Asked:
    """What a call of the agent "a" gives: its events, and the error at their end."""

    def __init__(self, hosting: Hosting, *, deadline_s: float = 30.0, deadlines: Deadlines = CLOSE, cancel: Cancellation | None = None) -> None:
        self.hosting, self.cancel = hosting, cancel or Cancellation()
        self.backend = Agent(None, Services())
        self.backend.attach(hosting)
        self.target = Target(Agent.default_base_url, "own-name", Secret(""), deadlines, credential="a")
        self.deadline = time.monotonic() + deadline_s
        self.got: list[ChatEvent] = []

    def events(self, asked: ChatRequest | None = None) -> Iterator[ChatEvent]:
        return self.backend.answer(asked or request(), self.target, self.deadline, self.cancel)

    def all(self, asked: ChatRequest | None = None) -> list[ChatEvent]:
        for event in self.events(asked):
            self.got.append(event)
        return self.got

    def until_error(self, asked: ChatRequest | None = None) -> tuple[list[ChatEvent], Exception]:
        try:
            self.all(asked)
        except Exception as error:  # what the test is about
            return self.got, error
        raise AssertionError(f"it ended well, with {self.got}")

    def wait(self, count: int) -> None:
        """Until so many events are here: what an agent sends while it connects again may not count."""
        self.hosting.wait(lambda: len(self.got) >= count)


def text_of(events: Sequence[ChatEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# a request and its answer


def test_a_request_goes_out_whole_under_the_upstreams_name_with_credit_and_a_deadline(hosting: Hosting) -> None:
    hosting.connect("a", answers("hello"))
    Asked(hosting).all(request(temperature=0.5, conversation={"id": "c", "parent_id": "p"}))
    first = hosting.talks[0].first
    assert (first["type"], first["model"], first["stream"], first["credit"]) == ("request", "own-name", True, CREDIT)
    assert first["body"] == {"model": "own-name", "stream": True, "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}
    assert "conversation" not in first, "whose it is, the gateway knows of the dialects' own conversations only"
    assert 0 < first["deadline_s"] <= 30


def test_the_conversation_that_a_dialect_goes_on_with_is_told(hosting: Hosting) -> None:
    hosting.connect("a", answers("hello"))
    Asked(hosting).all(dataclasses.replace(request(), conversation={"id": "c", "parent_id": "p"}))
    assert hosting.talks[0].first["conversation"] == {"id": "c", "parent_id": "p"}


def test_a_call_without_a_deadline_of_its_own_has_the_targets(hosting: Hosting) -> None:
    hosting.connect("a", answers("hello"))
    asked = Asked(hosting)
    asked.deadline = math.inf
    asked.all()
    assert hosting.talks[0].first["deadline_s"] == CLOSE.total_s


def test_an_answer_is_its_pieces_its_reason_its_usage_and_its_conversation(hosting: Hosting) -> None:
    def script(talk: Talk) -> None:
        talk.say("delta", 1, text="one")
        talk.say("delta", 2, tool_call={"index": 0, "arguments": "{", "id": "call_1", "name": "f"})
        talk.say("delta", 3, tool_call={"index": 0, "arguments": "}"})
        talk.say("done", 4, reason="tool_calls", usage={"prompt_tokens": 7, "completion_tokens": 2}, conversation={"id": "c", "message_id": "m", "n": 1})

    hosting.connect("a", script)
    *pieces, finished = Asked(hosting).all()
    assert pieces == [TextDelta("one"), ToolCallDelta(0, "{", "call_1", "f"), ToolCallDelta(0, "}", None, None)]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.conversation) == ("tool_calls", {"id": "c", "message_id": "m"})
    assert finished.usage is not None
    assert (finished.usage.input_tokens, finished.usage.output_tokens) == (7, 2)


def test_half_of_a_surrogate_pair_passes_both_ways(hosting: Hosting) -> None:
    def script(talk: Talk) -> None:
        talk.channel.send(b'{"id":"%s","type":"delta","seq":1,"text":"\\ud83d"}' % talk.first["id"].encode())
        talk.say("done", 2, reason="stop")

    hosting.connect("a", script)
    assert text_of(Asked(hosting).all(request("\ud83d"))) == "\ud83d"
    assert hosting.talks[0].asked == "\ud83d"


def test_nothing_is_asked_of_an_agent_before_the_first_event_is_wanted(hosting: Hosting) -> None:
    hosting.connect("a", answers("hello"))
    Asked(hosting).events()
    assert hosting.talks == []


def test_an_iterator_that_is_closed_early_gives_the_request_up(hosting: Hosting) -> None:
    hosting.connect("a", keeps_silent("one"))
    events = Asked(hosting).events()
    assert next(events) == TextDelta("one")
    events.close()  # type: ignore[attr-defined]
    hosting.wait(lambda: hosting.talks[0].lost.is_set())


def test_a_process_that_hosts_no_agents_has_lost_them() -> None:
    target = Target("", "m", Secret(""), Deadlines(), credential="a")
    with pytest.raises(AgentLost):
        list(Agent(None, Services()).chat(request(), target))


# credit and numbers


def test_an_agent_gets_credit_as_its_pieces_are_taken(hosting: Hosting) -> None:
    count = 3 * CREDIT

    def script(talk: Talk) -> None:
        listener = threading.Thread(target=talk.listen, daemon=True)
        listener.start()
        for number in range(1, count + 1):
            while sum(frame["n"] for frame in list(talk.heard) if frame["type"] == "credit") + CREDIT < number:
                time.sleep(0.002)
            talk.say("delta", number, text=f"{number} ")
        talk.say("done", count + 1, reason="stop")
        listener.join()

    hosting.connect("a", script)
    events = Asked(hosting).events()
    for _ in range(CREDIT // 2 - 1):
        next(events)
    hosting.wait(lambda: len(hosting.talks) == 1)
    assert hosting.talks[0].heard == []  # half of it is still to come
    rest = list(events)
    assert len(rest) == count - CREDIT // 2 + 2
    hosting.wait(lambda: hosting.talks[0].lost.is_set())
    credits = hosting.talks[0].heard
    assert [frame["received"] for frame in credits] == [*range(CREDIT // 2, count + 1, CREDIT // 2), count + 1]
    assert [frame["n"] for frame in credits] == [CREDIT // 2] * (2 * 3) + [0]


def test_the_last_frame_is_acknowledged_so_that_the_agent_forgets_the_request(hosting: Hosting) -> None:
    hosting.connect("a", answers("one"))
    Asked(hosting).all()
    hosting.wait(lambda: hosting.talks[0].lost.is_set())
    assert hosting.talks[0].heard == [{"id": hosting.talks[0].first["id"], "type": "credit", "n": 0, "received": 2}]


def test_a_frame_that_came_before_is_ignored(hosting: Hosting) -> None:
    def script(talk: Talk) -> None:
        for number, text in ((1, "a"), (1, "A"), (2, "b"), (1, "A"), (2, "B"), (3, "c")):
            talk.say("delta", number, text=text)
        talk.say("done", 4, reason="stop")

    hosting.connect("a", script)
    assert text_of(Asked(hosting).all()) == "abc"


@pytest.mark.parametrize("number", [3, 0.5, "2", None, -(2**70) + 2**71])
def test_a_gap_fails_the_request(hosting: Hosting, number: Any) -> None:
    def script(talk: Talk) -> None:
        talk.say("delta", 1, text="a")
        talk.say("delta", number, text="c")
        talk.listen()

    hosting.connect("a", script)
    got, error = Asked(hosting).until_error()
    assert (text_of(got), type(error)) == ("a", UpstreamInterrupted)
    hosting.wait(lambda: hosting.talks[0].lost.is_set())


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"no JSON",
        b"[]",
        b"[" * 100_000,
        b'{"seq":1}',
        b'{"seq":1,"type":"request"}',
        b'{"seq":1,"type":"delta"}',
        b'{"seq":1,"type":"delta","text":7}',
        b'{"seq":1,"type":"delta","tool_call":{"index":"0","arguments":""}}',
        b'{"seq":1,"type":"delta","tool_call":{"index":0}}',
        b'{"seq":1,"type":"delta","tool_call":[]}',
        b'\xff{"seq":1}',
    ],
)
def test_what_is_no_part_of_an_answer_is_the_agents_mistake(hosting: Hosting, frame: bytes) -> None:
    hosting.connect("a", lambda talk: talk.channel.send(frame))
    _, error = Asked(hosting).until_error()
    assert isinstance(error, UpstreamProtocolError)
    assert len(str(error).splitlines()) == 1


def test_an_answer_that_leaves_at_its_end_is_bounded(hosting: Hosting) -> None:
    def script(talk: Talk) -> None:
        for number in range(1, 2 + MOST_WHOLE_BYTES // 2_000_000):
            talk.say("delta", number, text="x" * 2_000_000)
            time.sleep(0.02)  # the channel itself is bounded as well
        talk.listen()

    hosting.connect("a", script)
    _, error = Asked(hosting).until_error(request(stream=False))
    assert isinstance(error, UpstreamProtocolError)
    assert "too large" in str(error)


# a connection that is lost


@pytest.mark.parametrize("resumes", [True, False])
def test_lost_before_the_first_piece_another_may_answer(hosting: Hosting, resumes: bool) -> None:
    hosting.connect("a", breaks_off(), resumes=resumes)
    began = time.monotonic()
    got, error = Asked(hosting).until_error()
    assert (got, type(error)) == ([], AgentLost)
    assert time.monotonic() - began < 2  # nothing is waited for


def test_lost_after_the_first_piece_an_agent_that_keeps_nothing_has_interrupted(hosting: Hosting) -> None:
    hosting.connect("a", breaks_off("one"), resumes=False)
    got, error = Asked(hosting).until_error()
    assert (text_of(got), type(error)) == ("one", UpstreamInterrupted)


def test_a_whole_answer_that_is_lost_may_be_asked_for_elsewhere(hosting: Hosting) -> None:
    """Nothing of it has left."""
    hosting.connect("a", breaks_off("one"), resumes=False)
    _, error = Asked(hosting).until_error(request(stream=False))
    assert isinstance(error, AgentLost)


@pytest.mark.parametrize("kind", ["not connected", "cannot be reached"])
def test_an_agent_that_is_not_there_is_lost(hosting: Hosting, kind: str) -> None:
    if kind == "cannot be reached":
        hosting.connect("a", answers("one"))
        hosting.bus.close()
    _, error = Asked(hosting).until_error()
    assert isinstance(error, AgentLost)


def test_an_answer_over_several_connections_has_every_piece_once(hosting: Hosting) -> None:
    texts = [f"{number} " for number in range(40)]

    def script(talk: Talk) -> None:
        """Five pieces, then the connection is lost; the next one begins two pieces before what was received."""
        received = talk.first.get("received", 0)
        begin = max(received - 1, 1)
        talk.deltas(begin, *texts[begin - 1 : received + 5])
        if received + 5 >= len(texts):
            talk.say("done", len(texts) + 1, reason="stop")
            return
        asked.wait(received + 5)
        hosting.connect("a", script)
        talk.say("lost", cause="gone")

    asked = Asked(hosting)
    hosting.connect("a", script)
    assert text_of(asked.all()) == "".join(texts)
    resumes = [talk.first for talk in hosting.talks[1:]]
    assert len(resumes) == 7
    assert {(frame["type"], frame["session"], frame["credit"]) for frame in resumes} == {("resume", "s", CREDIT)}
    assert [frame["received"] for frame in resumes] == [5, 10, 15, 20, 25, 30, 35]
    assert len({talk.first["id"] for talk in hosting.talks}) == 1


def test_a_resumption_waits_for_the_agent_to_come_back(hosting: Hosting) -> None:
    def begins(talk: Talk) -> None:
        hosting.disconnect("a")
        talk.deltas(1, "one ")

    def goes_on(talk: Talk) -> None:
        talk.deltas(2, "two")
        talk.say("done", 3, reason="stop")

    hosting.connect("a", begins)
    timer = threading.Timer(0.2, lambda: hosting.connect("a", goes_on))
    timer.start()
    assert text_of(Asked(hosting).all()) == "one two"
    timer.join()


def test_an_agent_that_forgot_its_requests_has_interrupted_at_once(hosting: Hosting) -> None:
    def script(talk: Talk) -> None:
        talk.deltas(1, "one")
        asked.wait(1)
        hosting.connect("a", answers("again"), session="another")

    asked = Asked(hosting)
    hosting.connect("a", script)
    began = time.monotonic()
    got, error = asked.until_error()
    assert (text_of(got), type(error)) == ("one", UpstreamInterrupted)
    assert time.monotonic() - began < GRACE_S / 2
    assert len(hosting.talks) == 1


def test_an_agent_that_says_that_it_forgot_the_request_has_interrupted(hosting: Hosting) -> None:
    def script(talk: Talk) -> None:
        talk.deltas(1, "one")
        asked.wait(1)
        hosting.connect("a", lambda talk: talk.say("error", talk.first["received"] + 1, cause="unknown_request"))

    asked = Asked(hosting)
    hosting.connect("a", script)
    got, error = asked.until_error()
    assert (text_of(got), type(error)) == ("one", UpstreamInterrupted)


def test_what_a_replaced_connection_still_says_does_not_count(hosting: Hosting) -> None:
    go_on = threading.Event()

    def replaced(talk: Talk) -> None:
        talk.deltas(1, "one ")
        go_on.wait(5)
        talk.deltas(2, "of the old one ")

    def newest(talk: Talk) -> None:
        talk.deltas(2, "two")
        talk.say("done", 3, reason="stop")

    hosting.connect("a", replaced)
    events = Asked(hosting).events()
    got = [next(events)]
    hosting.connect("a", newest)
    go_on.set()
    assert text_of([*got, *events]) == "one two"


def test_a_connection_that_cannot_be_opened_is_tried_again_and_leaves_nothing_open(hosting: Hosting) -> None:
    """It hangs up as soon as a channel to it is opened, three times."""
    hung_up: list[int] = []

    def begins(talk: Talk) -> None:
        talk.deltas(1, "one ")
        asked.wait(1)
        hosting.connect("a", hangs_up)

    def hangs_up(talk: Talk) -> None:
        hung_up.append(talk.epoch)
        hosting.connect("a", hangs_up if len(hung_up) < 3 else goes_on)

    def goes_on(talk: Talk) -> None:
        talk.deltas(2, "two")
        talk.say("done", 3, reason="stop")

    asked = Asked(hosting)
    hosting.connect("a", begins)
    assert text_of(asked.all()) == "one two"
    assert len(hung_up) == 3
    hosting.wait(lambda: not hosting.bus._channels)


# causes


@pytest.mark.parametrize(
    ("cause", "kind", "blame"),
    [
        ("unauthorised", UpstreamRefused, Blame.CREDENTIAL_MODEL),
        ("model_not_served", UpstreamRefused, Blame.CREDENTIAL_MODEL),
        ("rate_limited", UpstreamRefused, Blame.CREDENTIAL_MODEL),
        ("upstream_failed", UpstreamRefused, Blame.DEPLOYMENT),
        ("timeout", UpstreamTimeout, Blame.DEPLOYMENT),
        ("busy", AgentFailed, Blame.NOBODY),
        ("internal", AgentFailed, Blame.DEPLOYMENT),
        ("unknown_request", AgentLost, Blame.NOBODY),
        ("never heard of", AgentFailed, Blame.DEPLOYMENT),
        (7, AgentFailed, Blame.DEPLOYMENT),
        (None, AgentFailed, Blame.DEPLOYMENT),
    ],
)
def test_a_cause_is_told_and_blamed(hosting: Hosting, cause: Any, kind: type[UpstreamError], blame: Blame) -> None:
    hosting.connect("a", fails(cause, message="a\nsecret of the agent's"))
    _, error = Asked(hosting).until_error()
    assert type(error) is kind
    assert isinstance(error, UpstreamError)
    assert error.blame is blame
    assert error.retryable
    assert "secret" not in str(error)


@pytest.mark.parametrize(("said", "wait_s"), [(7, 7.0), (0.5, 0.5), (-1, None), (True, None), ("7", None), (10**9, None), (None, None)])
def test_a_rate_limit_is_waited_for_as_long_as_the_agent_says(hosting: Hosting, said: Any, wait_s: float | None) -> None:
    hosting.connect("a", fails("rate_limited", retry_after_s=said))
    _, error = Asked(hosting).until_error()
    assert isinstance(error, UpstreamRefused)
    assert (error.upstream_status, error.reset_s) == (429, wait_s)


@pytest.mark.parametrize(("said", "told"), [(422, 422), (400, 400), (200, 400), (500, 400), (429, 400), (401, 400), ("422", 400), (None, 400), (True, 400)])
def test_a_clients_own_mistake_is_told_in_the_upstreams_words(hosting: Hosting, said: Any, told: int) -> None:
    body = {"error": {"message": "temperature must be at most 2"}}
    hosting.connect("a", fails("bad_request", status=said, body=body))
    _, error = Asked(hosting).until_error()
    assert isinstance(error, UpstreamRefused)
    assert (error.upstream_status, json.loads(error.body), error.blame) == (told, body, Blame.CLIENT)


@pytest.mark.parametrize(
    ("members", "shown"), [({"message": "too long"}, "too long"), ({}, "The agent refused the request."), ({"message": 7, "body": "x"}, None)]
)
def test_a_mistake_without_a_body_gets_one(hosting: Hosting, members: dict[str, Any], shown: str | None) -> None:
    hosting.connect("a", fails("bad_request", **members))
    _, error = Asked(hosting).until_error()
    assert isinstance(error, UpstreamRefused)
    assert json.loads(error.body)["error"]["message"] == (shown or "The agent refused the request.")


@pytest.mark.parametrize(("cause", "kind"), [("rate_limited", UpstreamInterrupted), ("internal", UpstreamInterrupted), ("timeout", UpstreamTimeout)])
def test_a_failure_after_the_first_piece_interrupts(hosting: Hosting, cause: str, kind: type[UpstreamError]) -> None:
    hosting.connect("a", fails(cause, "one"))
    got, error = Asked(hosting).until_error()
    assert (text_of(got), type(error)) == ("one", kind)


# how long, and until when


def test_a_silent_agent_is_given_up_and_told_so(hosting: Hosting) -> None:
    hosting.connect("a", keeps_silent())
    _, error = Asked(hosting, deadlines=Deadlines(first_byte_s=SHORT_S)).until_error()
    assert isinstance(error, UpstreamTimeout)
    assert error.phase == "first_byte"
    hosting.wait(lambda: hosting.talks[0].lost.is_set())


def test_an_agent_that_is_slow_but_never_silent_for_long_is_waited_for(hosting: Hosting) -> None:
    def script(talk: Talk) -> None:
        for number in range(1, 6):
            time.sleep(0.1)
            talk.say("delta", number, text=".")
        talk.say("done", 6, reason="stop")

    hosting.connect("a", script)
    assert text_of(Asked(hosting, deadlines=Deadlines(first_byte_s=0.3, idle_s=0.3)).all()) == "....."


def test_an_agent_that_does_not_come_back_is_waited_for_no_longer_than_the_call_may_take(hosting: Hosting) -> None:
    def script(talk: Talk) -> None:
        hosting.disconnect("a")
        talk.deltas(1, "one")

    hosting.connect("a", script)
    began = time.monotonic()
    got, error = Asked(hosting, deadline_s=0.4).until_error()
    assert (text_of(got), type(error)) == ("one", UpstreamInterrupted)
    assert time.monotonic() - began < GRACE_S / 2


@pytest.mark.parametrize("script", [keeps_silent(), keeps_silent("one")])
def test_a_cancelled_call_ends_at_once_and_is_given_up(hosting: Hosting, script: Script) -> None:
    hosting.connect("a", script)
    asked = Asked(hosting)
    timer = threading.Timer(0.1, asked.cancel.fire, ("client_gone",))
    timer.start()
    _, error = asked.until_error()
    assert isinstance(error, Cancelled)
    hosting.wait(lambda: hosting.talks[0].lost.is_set())
    timer.join()


def test_a_cancelled_call_ends_also_while_its_agent_is_waited_for(hosting: Hosting) -> None:
    def script(talk: Talk) -> None:
        hosting.disconnect("a")
        talk.deltas(1, "one")

    hosting.connect("a", script)
    asked = Asked(hosting)
    timer = threading.Timer(0.2, asked.cancel.fire, ("client_gone",))
    timer.start()
    began = time.monotonic()
    _, error = asked.until_error()
    assert isinstance(error, Cancelled)
    assert time.monotonic() - began < GRACE_S / 2
    timer.join()


# what is left


def test_a_thousand_calls_leave_no_channel_no_thread_and_no_callback(hosting: Hosting) -> None:
    scripts = [answers("one", "two"), fails("busy"), breaks_off("one"), breaks_off(), fails("bad_request")]
    before = threading.active_count()
    cancel = Cancellation()
    for number in range(1000):
        hosting.connect("a", scripts[number % len(scripts)], resumes=False)
        events = Asked(hosting, cancel=cancel).events()
        try:
            next(events)
            if number % 2:
                list(events)
        except UpstreamError:
            continue
        finally:
            events.close()  # type: ignore[attr-defined]
    assert cancel._callbacks == {}
    hosting.wait(lambda: not hosting.bus._channels)
    hosting.wait(lambda: threading.active_count() <= before)
