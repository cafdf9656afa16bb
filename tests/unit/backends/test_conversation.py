"""A conversation over scripted responses: its parts, its end, and what it does with an upstream that does not keep to either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from backends.conversation import LINE_BYTES, TICK, Conversation
from backends.http import Response
from gateway.backend import Cancellation, Secret
from gateway.errors import Cancelled, UpstreamInterrupted, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from tests.factories import Chunks
from tests.fakes.chatgpt_web import DONE, error_event, event, line

CUT: Mapping[str, Any] = {"status": "finished_successfully", "metadata": {"finish_details": {"type": "max_tokens"}}}


class Upstream:
    """Answers each request with the next stream, or raises it."""

    def __init__(self, *answers: Iterable[bytes | Exception] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Mapping[str, Any]] = []
        self.streams: list[Chunks] = []
        self.cancels: list[Cancellation] = []

    def __call__(self, asked: Mapping[str, Any], cancel: Cancellation) -> Response:
        self.asked.append(asked)
        self.cancels.append(cancel)
        if cancel.reason is not None:
            raise Cancelled(cancel.reason)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self.streams.append(Chunks(answer))
        return Response(200, (), self.streams[-1], self.streams[-1].close)

    def conversation(self, *, limit: int = 2, relays: bool = False, cancel: Cancellation | None = None) -> Conversation:
        return Conversation(self, {"action": "next"}, cancel or Cancellation(), limit=limit, relays=relays, hidden=(Secret("s3cret"), Secret("")))


def text(lines: Conversation) -> str:
    return "".join(each.text for each in lines)


def said(words: str, **members: Any) -> bytes:
    return line(event(words, **members))


def test_parts_are_one_answer_and_each_is_closed() -> None:
    upstream = Upstream([said("one, "), said("one, ", **CUT), DONE], [said("two"), DONE])
    lines = upstream.conversation()
    assert text(lines) == "one, two"
    assert (lines.reason, len(upstream.asked)) == ("stop", 2)
    assert all(stream.closed for stream in upstream.streams)
    lines.close()
    lines.close()
    with pytest.raises(StopIteration):
        next(lines)


def test_text_that_was_held_back_comes_before_the_next_part() -> None:
    upstream = Upstream([said("one\ufffd"), said("one\ufffd", **{**CUT, "status": "in_progress"}), DONE], [said("two"), DONE])
    assert text(upstream.conversation()) == "one\ufffdtwo"


def test_relayed_part_is_continued_only_where_the_message_says_that_it_came_to_its_end() -> None:
    events = [said("one", **{**CUT, "status": "in_progress"}), DONE]
    for relays, requests in ((True, 1), (False, 2)):
        upstream = Upstream(events, [said("two"), DONE])
        list(upstream.conversation(relays=relays))
        assert len(upstream.asked) == requests


def test_part_that_names_no_message_cannot_be_continued() -> None:
    lines = Upstream([said("one", **CUT, id=None), DONE]).conversation()
    assert text(lines) == "one"
    assert lines.reason == "length"


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_of_none_continues_nothing(limit: int) -> None:
    upstream = Upstream([said("one", **CUT), DONE])
    assert text(upstream.conversation(limit=limit)) == "one"


def test_ticks_are_passed_on() -> None:
    lines = list(Upstream([b"", said("a"), b"", DONE]).conversation())
    assert [each is TICK for each in lines] == [True, False, True]


def test_what_follows_the_end_is_read_but_is_nobodys() -> None:
    upstream = Upstream([said("a") + DONE + said("ab"), said("abc"), UpstreamInterrupted("broke")])
    assert [each.text for each in upstream.conversation()] == ["a"]


def test_flood_behind_the_end_is_given_up() -> None:
    def flood() -> Iterable[bytes]:
        yield said("a") + DONE
        for _ in range(1000):
            yield b"x" * 1000
        raise AssertionError("all of it was read")

    assert text(Upstream(flood()).conversation()) == "a"


def test_line_without_end_is_given_up() -> None:
    def endless() -> Iterable[bytes]:
        yield said("a")
        while True:
            yield b"x" * (LINE_BYTES // 4)

    with pytest.raises(UpstreamInterrupted, match="too long"):
        text(Upstream(endless()).conversation())


def test_last_line_needs_no_line_end() -> None:
    assert text(Upstream([said("a"), b"data: [DONE]"]).conversation()) == "a"


@pytest.mark.parametrize("answer", [[], [b"<html>"], [said("a")], [said("a"), DONE[:-4]], [said("a", **CUT)[:-9]]])
def test_34_stream_that_ends_early_is_an_interruption(answer: list[bytes]) -> None:
    with pytest.raises(UpstreamInterrupted, match="before it was complete"):
        text(Upstream(answer).conversation())


def test_first_refusal_is_raised_when_it_is_built_and_hears_of_no_cancellation_any_more() -> None:
    cancel = Cancellation()
    upstream = Upstream(UpstreamUnreachable("nobody there"))
    with pytest.raises(UpstreamUnreachable):
        upstream.conversation(cancel=cancel)
    cancel.fire("client_gone")
    assert upstream.cancels[0].reason is None


def test_cancellation_reaches_the_part_under_way() -> None:
    cancel = Cancellation()
    upstream = Upstream([said("a"), said("a", **CUT), DONE], [said("b"), DONE])
    lines = upstream.conversation(cancel=cancel)
    next(lines)
    cancel.fire("draining")
    assert upstream.cancels[0].reason == "draining"
    with pytest.raises(Cancelled):
        text(lines)


def test_failure_before_anything_was_told_is_what_it_is() -> None:
    refused = UpstreamRefused(429, (), b"")
    with pytest.raises(UpstreamRefused):
        text(Upstream([said("a", **CUT), DONE], refused).conversation())
    with pytest.raises(UpstreamRefused) as raised:
        text(Upstream([said("a"), line(error_event("Too many requests"))]).conversation())
    assert raised.value.upstream_status == 429


@pytest.mark.parametrize("error", [UpstreamUnreachable("nobody there"), UpstreamRefused(429, (), b""), UpstreamTimeout("late", phase="idle")])
def test_failure_behind_what_was_told_is_an_interruption_or_a_passed_deadline(error: Exception) -> None:
    lines = Upstream([said("a", **CUT), DONE], error).conversation()
    lines.begun = True
    with pytest.raises((UpstreamInterrupted, UpstreamTimeout)) as raised:
        text(lines)
    assert len(str(raised.value).splitlines()) == 1


def test_error_that_repeats_a_secret_is_told_without_it() -> None:
    lines = Upstream([line(error_event("bad s3cret\nhere"))]).conversation()
    lines.begun = True
    with pytest.raises(UpstreamInterrupted, match=r"^The upstream broke its answer off: bad \*\*\* here$"):
        next(lines)


def test_error_without_words_says_so() -> None:
    lines = Upstream([line(error_event({"code": 7}))]).conversation()
    lines.begun = True
    with pytest.raises(UpstreamInterrupted, match="it gave no reason"):
        next(lines)
