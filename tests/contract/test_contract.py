"""The contract's tests can fail: each of these backends breaks one promise, and the test of that promise says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from backends.echo import Echo
from gateway.backend import Backend, Call, Deadlines, Reply, Secret, Services, Target
from gateway.dialects.events import Usage
from gateway.testing import BackendContract, UpstreamContract, check_discreet

DONE = b"data: [DONE]\n\n"
TYPE = ("content-type", "text/event-stream")


class Answers(Backend):
    """A bare backend that keeps the contract as far as the others need it."""

    dialects = frozenset({"openai_chat"})

    def send(self, call: Call, target: Target) -> Reply:
        return self.reply(call)

    def reply(self, call: Call, **changes: Any) -> Reply:
        chunks = iter((b'data: {"choices":[]}\n\n', DONE) if call.stream else (b"{}",))
        return replace(Reply(200, (TYPE,), chunks, lambda: None), **changes)


class UnknownDialect(Answers):
    dialects = frozenset({"esperanto"})


class NoDialect(Answers):
    dialects = frozenset()


class DemandingOptions(Answers):
    @dataclass(frozen=True)
    class Options:
        region: str


class LooseOptions(Answers):
    Options = dict


class SlashAtTheEnd(Answers):
    default_base_url = "https://api.example/"


class CapitalHeader(Answers):
    def send(self, call: Call, target: Target) -> Reply:
        return self.reply(call, headers=(TYPE, ("X-Request-Id", "1")))


class BrokenHeader(Answers):
    def send(self, call: Call, target: Target) -> Reply:
        return self.reply(call, headers=(TYPE, ("x-request-id", "1\r\nset-cookie: a=b")))


class UntypedAnswer(Answers):
    def send(self, call: Call, target: Target) -> Reply:
        return self.reply(call, headers=())


class ErrorAsAnswer(Answers):
    def send(self, call: Call, target: Target) -> Reply:
        return self.reply(call, status=500)


class CutStream(Answers):
    def send(self, call: Call, target: Target) -> Reply:
        return self.reply(call, chunks=iter((b'data: {"choices":[]}\n\n',) if call.stream else (b"{}",)))


class NoObject(Answers):
    def send(self, call: Call, target: Target) -> Reply:
        return self.reply(call, chunks=iter((DONE,) if call.stream else (b"[]",)))


class TextChunks(Answers):
    def send(self, call: Call, target: Target) -> Reply:
        return self.reply(call, chunks=iter(("text",)))


class NegativeUsage(Answers):
    def send(self, call: Call, target: Target) -> Reply:
        return self.reply(call, usage=lambda: Usage(output_text=-1))


class CloseOnce(Answers):
    def send(self, call: Call, target: Target) -> Reply:
        closes = iter((None,))
        return self.reply(call, close=lambda: next(closes))


class OneAtATime(Answers):
    def __init__(self, options: Any, services: Services) -> None:
        super().__init__(options, services)
        self.busy, self.wait = False, threading.Event()

    def send(self, call: Call, target: Target) -> Reply:
        assert not self.busy
        self.busy = True
        self.wait.wait(0.05)
        self.busy = False
        return self.reply(call)


class StrangeModels(Answers):
    def models(self, target: Target, deadline: float) -> Any:
        return {"a": 1}


class ShownSecret(Answers):
    def send(self, call: Call, target: Target) -> Reply:
        return self.reply(call, headers=(TYPE, ("x-key", target.secret.reveal())))


def contract(broken: type[Backend]) -> BackendContract:
    made: type[BackendContract] = type("Contract", (BackendContract,), {"backend_class": broken})
    return made()


PROMISES: list[tuple[type[Backend], Callable[..., None]]] = [
    (UnknownDialect, BackendContract.test_backend_names_dialects_that_the_gateway_speaks),
    (NoDialect, BackendContract.test_backend_names_dialects_that_the_gateway_speaks),
    (LooseOptions, BackendContract.test_options_are_a_dataclass_that_needs_no_argument),
    (SlashAtTheEnd, BackendContract.test_default_base_url_ends_without_a_slash),
    (CapitalHeader, BackendContract.test_answer_has_a_status_and_headers_that_can_be_sent_on),
    (BrokenHeader, BackendContract.test_answer_has_a_status_and_headers_that_can_be_sent_on),
    (UntypedAnswer, BackendContract.test_answer_has_a_status_and_headers_that_can_be_sent_on),
    (ErrorAsAnswer, BackendContract.test_answer_has_a_status_and_headers_that_can_be_sent_on),
    (CutStream, BackendContract.test_answer_ends_as_its_dialect_says),
    (NoObject, BackendContract.test_answer_ends_as_its_dialect_says),
    (TextChunks, BackendContract.test_answer_ends_as_its_dialect_says),
    (NegativeUsage, BackendContract.test_usage_is_known_after_the_last_chunk_or_left_to_the_gateway),
    (OneAtATime, BackendContract.test_many_calls_at_once_do_not_disturb_each_other),
    (Answers, BackendContract.test_call_that_was_given_up_before_it_began_is_cancelled),
    (StrangeModels, BackendContract.test_models_are_names_where_the_backend_lists_them),
    (ShownSecret, BackendContract.test_secret_does_not_show),
]


@pytest.mark.parametrize(("broken", "promise"), PROMISES, ids=[broken.__name__ for broken, _ in PROMISES])
def test_broken_promise_is_found(broken: type[Backend], promise: Callable[..., None]) -> None:
    tested = contract(broken)
    arguments = (tested.backend(),) if promise.__code__.co_argcount == 2 else ()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        promise(tested, *arguments)


def test_options_that_need_an_argument_are_found() -> None:
    with pytest.raises(TypeError, match="region"):
        contract(DemandingOptions).test_options_are_a_dataclass_that_needs_no_argument()


def test_close_that_may_be_called_once_only_is_found() -> None:
    tested = contract(CloseOnce)
    with pytest.raises(StopIteration):
        tested.test_close_may_come_early_and_often(tested.backend())


class Wordy(UpstreamContract):
    backend_class = Echo


def test_upstream_contract_asks_for_its_upstreams() -> None:
    with pytest.raises(TypeError, match="broken, refusing, silent, stalled"):
        Wordy()  # type: ignore[abstract]


@pytest.mark.parametrize("text", ["key sk-1 is bad", "http://10.0.0.1:80/v1 is down", "two\nlines"])
def test_error_that_tells_too_much_is_found(text: str) -> None:
    with pytest.raises(AssertionError):
        check_discreet(ValueError(text), Target("http://10.0.0.1:80/v1", "m", Secret("sk-1"), Deadlines()))


def test_answers_keep_the_rest_of_the_contract() -> None:
    tested = contract(Answers)
    for broken, promise in PROMISES:
        if broken is not Answers:
            promise(tested, *((tested.backend(),) if promise.__code__.co_argcount == 2 else ()))
