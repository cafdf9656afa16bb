"""The contract's own parts: secrets that do not show, cancellation, edits, and what ChatBackend does for a backend."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from backends.echo import Echo
from gateway.backend import Body, Call, Cancellation, ChatBackend, Deadlines, ListsModels, NoOptions, Reply, Secret, Services, Target
from gateway.dialects import document
from gateway.dialects.events import ChatEvent, ChatRequest, Finished, TextDelta, Usage
from gateway.errors import BadRequest, Cancelled, UpstreamError, UpstreamInterrupted, UpstreamRefused, UpstreamTimeout

USAGE = Usage(input_uncached=1, output_text=2)
TARGET = Target("", "model-1", Secret(""), Deadlines())


class Scripted(ChatBackend):
    """Answers with the events that `script` makes."""

    needs_secret = False

    def __init__(self, script: Callable[[], Iterator[ChatEvent]], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(NoOptions(), Services(clock))
        self.script = script

    def chat(self, request: ChatRequest, target: Target) -> Iterator[ChatEvent]:
        return self.script()


def make_call(stream: bool = True, cancel: Cancellation | None = None, deadline: float = 1e18, **members: Any) -> Call:
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream} | members).encode()
    read = document.read(raw)
    return Call("openai_chat", "POST", "/chat/completions", "", (), Body.of(raw), read.fields, read.parsed, stream, deadline, cancel or Cancellation())


def answer(*events: ChatEvent, closed: list[bool] | None = None) -> Callable[[], Iterator[ChatEvent]]:
    def script() -> Iterator[ChatEvent]:
        try:
            yield from events
        finally:
            if closed is not None:
                closed.append(True)

    return script


WHOLE = (TextDelta("a"), TextDelta("b"), Finished("stop", USAGE))


# secrets


def test_secret_shows_only_when_it_is_asked_to() -> None:
    secret = Secret("sk-very-secret")
    target = Target("http://host", "m", secret, Deadlines(), extras={"puid": secret})
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r:>20}", format(secret), repr(target), repr([secret]), repr({"a": target})):
        assert "very" not in shown
    assert secret.reveal() == "sk-very-secret"
    assert secret
    assert not Secret("")


def test_target_without_extras_has_none_and_can_be_a_key() -> None:
    assert not TARGET.extras
    assert {TARGET: 1}[dataclasses.replace(TARGET)] == 1


# cancellation


def test_callbacks_are_called_once_when_the_call_is_given_up() -> None:
    cancel, called = Cancellation(), []
    cancel.on_cancel(lambda: called.append("a"))
    forget = cancel.on_cancel(lambda: called.append("b"))
    cancel.on_cancel(lambda: called.append("c"))
    forget()
    forget()
    cancel.fire("client_gone")
    cancel.fire("draining")
    forget()
    assert called == ["a", "c"]
    assert cancel.reason == "client_gone"


def test_callback_that_comes_too_late_is_called_at_once() -> None:
    cancel, called = Cancellation(), []
    cancel.fire("draining")
    cancel.on_cancel(lambda: called.append(cancel.reason))()
    assert called == ["draining"]


def test_callback_sees_the_reason_and_may_register_and_forget() -> None:
    cancel, seen = Cancellation(), []

    def callback() -> None:
        seen.append(cancel.reason)
        cancel.on_cancel(lambda: seen.append("again"))
        forget()

    forget = cancel.on_cancel(callback)
    cancel.fire("client_gone")
    assert seen == ["client_gone", "again"]


def test_every_callback_runs_exactly_once_whoever_fires_and_registers_at_once() -> None:
    for _ in range(50):
        cancel, counts, start = Cancellation(), [0] * 20, threading.Barrier(6)

        def register(numbers: range, cancel: Cancellation = cancel, counts: list[int] = counts, start: threading.Barrier = start) -> None:
            def count(number: int) -> None:
                counts[number] += 1

            start.wait()
            for number in numbers:
                cancel.on_cancel(lambda number=number: count(number))  # type: ignore[misc]

        def fire(cancel: Cancellation = cancel, start: threading.Barrier = start) -> None:
            start.wait()
            cancel.fire("client_gone")

        threads = [threading.Thread(target=register, args=(range(first, first + 5),)) for first in range(0, 20, 5)]
        threads += [threading.Thread(target=fire) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [1] * 20


# bodies and edits


def test_body_of_bytes_opens_as_often_as_it_is_asked() -> None:
    body = Body.of(b"abc")
    assert [b"".join(body.open()) for _ in range(2)] == [b"abc", b"abc"]
    assert (body.replayable, body.size, body.edit, body.member) == (True, 3, None, None)


def test_edit_goes_through_the_body_and_keeps_the_rest_of_the_call() -> None:
    asked: list[Mapping[str, Any]] = []

    def edit(members: Mapping[str, Any]) -> Body:
        asked.append(members)
        return Body.of(b"edited")

    call = make_call()
    editable = dataclasses.replace(call, body=Body(call.body.open, True, 1, edit))
    changed = editable.edited(model="other", store=False)
    assert asked == [{"model": "other", "store": False}]
    assert b"".join(changed.body.open()) == b"edited"
    assert changed.cancel is call.cancel
    assert editable.edited() is editable


def test_body_without_members_cannot_be_edited() -> None:
    with pytest.raises(TypeError, match="cannot be edited"):
        make_call().edited(model="other")


# ChatBackend


def test_stream_and_whole_answer_carry_the_events_and_the_usage() -> None:
    streamed = Scripted(answer(*WHOLE)).send(make_call(), TARGET)
    assert (streamed.status, dict(streamed.headers)["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert streamed.usage() is None
    raw = b"".join(streamed.chunks)
    assert raw.endswith(b"data: [DONE]\n\n")
    assert streamed.usage() == USAGE
    whole = Scripted(answer(*WHOLE)).send(make_call(stream=False), TARGET)
    body = b"".join(whole.chunks)
    assert dict(whole.headers) == {"content-type": "application/json", "content-length": str(len(body))}
    assert json.loads(body)["choices"][0]["message"]["content"] == "ab"
    assert whole.usage() == USAGE


@pytest.mark.parametrize("stream", [True, False])
def test_refusal_is_raised_by_send_so_that_another_may_be_tried(stream: bool) -> None:
    def script() -> Iterator[ChatEvent]:
        raise UpstreamRefused(503, (), b"")
        yield

    with pytest.raises(UpstreamRefused):
        Scripted(script).send(make_call(stream), TARGET)


def test_later_failure_is_raised_from_the_chunks() -> None:
    def script() -> Iterator[ChatEvent]:
        yield TextDelta("a")
        raise UpstreamInterrupted("cut")

    reply = Scripted(script).send(make_call(), TARGET)
    assert b'"content":"a"' in next(reply.chunks) + next(reply.chunks)
    with pytest.raises(UpstreamInterrupted, match="cut"):
        next(reply.chunks)


@pytest.mark.parametrize("events", [(), (TextDelta("a"),)])
def test_answer_without_an_end_is_never_taken_for_a_whole_one(events: tuple[ChatEvent, ...]) -> None:
    with pytest.raises(UpstreamInterrupted):
        Scripted(answer(*events)).send(make_call(stream=False), TARGET)
    with pytest.raises(UpstreamInterrupted):
        for _ in Scripted(answer(*events)).send(make_call(), TARGET).chunks:
            pass


def test_nothing_is_taken_after_the_last_event() -> None:
    reply = Scripted(answer(*WHOLE, TextDelta("late"))).send(make_call(), TARGET)
    assert b"late" not in b"".join(reply.chunks)


def started(reply: Reply) -> Reply:
    next(reply.chunks)
    return reply


@pytest.mark.parametrize("pulls", [0, 1, 2, 3])
def test_close_ends_the_backends_generator_once(pulls: int) -> None:
    closed: list[bool] = []
    reply = Scripted(answer(*WHOLE, closed=closed)).send(make_call(), TARGET)
    for _ in range(pulls):
        next(reply.chunks)
    assert closed == []
    reply.close()
    reply.close()
    assert closed == [True]


def test_closed_answer_never_looks_complete() -> None:
    reply = started(Scripted(answer(*WHOLE)).send(make_call(), TARGET))
    reply.close()
    with pytest.raises(UpstreamError):
        b"".join(reply.chunks)


class Pieces:
    """What a backend may return in place of a generator."""

    def __init__(self, *events: ChatEvent) -> None:
        self.events, self.closes = list(events), 0

    def __iter__(self) -> Iterator[ChatEvent]:
        return self

    def __next__(self) -> ChatEvent:
        if not self.events:
            raise StopIteration
        return self.events.pop(0)

    def close(self) -> None:
        self.closes += 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("events", [WHOLE, WHOLE[:1], ()])
def test_object_that_a_backend_returns_is_closed_however_it_ends(stream: bool, events: tuple[ChatEvent, ...]) -> None:
    pieces = Pieces(*events)
    try:
        reply = Scripted(lambda: pieces).send(make_call(stream), TARGET)
    except UpstreamInterrupted:
        pass
    else:
        reply.close()
    assert pieces.closes >= 1


def test_plain_iterator_needs_no_close() -> None:
    reply = Scripted(lambda: iter(WHOLE)).send(make_call(), TARGET)
    assert b"".join(reply.chunks)
    reply.close()


@pytest.mark.parametrize("stream", [True, False])
def test_call_that_was_given_up_before_is_cancelled(stream: bool) -> None:
    cancel, closed = Cancellation(), list[bool]()
    cancel.fire("client_gone")
    with pytest.raises(Cancelled) as error:
        Scripted(answer(*WHOLE, closed=closed)).send(make_call(stream, cancel), TARGET)
    assert str(error.value) == "client_gone"
    assert closed == [True]


def test_call_that_is_given_up_in_the_middle_is_cancelled() -> None:
    cancel = Cancellation()
    reply = started(Scripted(answer(*WHOLE)).send(make_call(cancel=cancel), TARGET))
    cancel.fire("draining")
    with pytest.raises(Cancelled):
        b"".join(reply.chunks)


def test_total_deadline_ends_an_answer_that_goes_on_and_on() -> None:
    now = [0.0]

    def script() -> Iterator[ChatEvent]:
        while True:
            now[0] += 1
            yield TextDelta("a")

    reply = Scripted(script, lambda: now[0]).send(make_call(deadline=5.0), TARGET)
    with pytest.raises(UpstreamTimeout) as error:
        b"".join(reply.chunks)
    assert error.value.phase == "total"
    with pytest.raises(UpstreamTimeout):
        Scripted(script, lambda: now[0]).send(make_call(stream=False, deadline=20.0), TARGET)


def test_request_that_is_none_is_refused() -> None:
    with pytest.raises(BadRequest):
        Scripted(answer(*WHOLE)).send(make_call(messages=[]), TARGET)


def test_backend_keeps_its_options_and_services() -> None:
    services = Services()
    backend = Echo(Echo.Options(pause_s=0.5), services)
    assert (backend.options.pause_s, backend.services) == (0.5, services)
    assert not isinstance(backend, ListsModels)
    backend.close()


# echo


def echoed(content: str, **members: Any) -> Any:
    reply = Echo(Echo.Options(), Services()).send(make_call(stream=False, messages=[{"role": "user", "content": content}], **members), TARGET)
    return json.loads(b"".join(reply.chunks))


@pytest.mark.parametrize("content", ["hello", "  two  words \n", "a\u00a0b\u2028c", "\u4f60\u597d \U0001f600"])
def test_echo_answers_with_every_character(content: str) -> None:
    assert echoed(content)["choices"][0]["message"]["content"] == content


def test_echo_counts_words_and_keeps_the_limit() -> None:
    answered = echoed("one two three", max_tokens=2)
    assert answered["choices"][0]["message"]["content"] == "one two "
    assert answered["choices"][0]["finish_reason"] == "length"
    assert (answered["usage"]["prompt_tokens"], answered["usage"]["completion_tokens"]) == (3, 2)


def test_echo_is_not_stalled_by_long_white_space() -> None:
    assert echoed(" " * 1_000_000 + "x" + "\n" * 1_000_000)["choices"][0]["finish_reason"] == "stop"
    assert echoed(" " * 1_000_000)["choices"][0]["message"]["content"] == ""


def test_echo_pauses_before_each_word() -> None:
    backend = Echo(Echo.Options(pause_s=0.05), Services())
    begun = time.monotonic()
    assert b"".join(backend.send(make_call(messages=[{"role": "user", "content": "a b c"}]), TARGET).chunks)
    assert time.monotonic() - begun >= 0.15
