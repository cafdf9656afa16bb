"""The contract of gateway/backend.py as tests, for a backend's own test suite. Needs pytest.

`class TestMine(BackendContract): backend_class = Mine` is enough for a backend that answers by itself; one that reaches
an upstream inherits UpstreamContract and says where a refusing, a silent, a stalled and a broken one are; one whose upstreams
are agents brings the `frames` that lead to them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import pytest

from gateway.backend import Backend, Body, Call, Cancellation, Deadlines, ListsModels, Reply, Secret, Services, Target
from gateway.dialects import CHAT_CODECS, CODECS, document, sse
from gateway.dialects.events import BUCKETS, Usage
from gateway.errors import Cancelled, UpstreamError, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from gateway.frames import Frames, HostsAgents

SHORT_S = 0.3
"""A deadline that a test waits for."""
PATIENCE_S = 10.0
"""What should be at once has failed when it takes longer."""
CALLS_AT_ONCE = 16
STREAM_ONLY = frozenset({"chatgpt_web"})
"""Dialects whose answers are streams, though no request asks for one."""
WHOLE_ONLY = frozenset({"api_server"})
"""Chats whose answers are never streams."""
WEB_MESSAGE: Mapping[str, Any] = MappingProxyType(
    {"id": "c7f2a1de-51b0-4b3f-8a57-0d7c1f0f2b11", "author": {"role": "user"}, "content": {"content_type": "text", "parts": ["Say hello to the contract."]}}
)
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


class BackendContract:
    """What every backend must do. Set `backend_class`; override the other members where the defaults do not fit."""

    backend_class: ClassVar[type[Backend]]
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """What `Options` is built from, as a deployment's options are."""

    def backend(self) -> Backend:
        """A new backend, with the way to its agents where it hosts some."""
        made = self.backend_class(self.backend_class.Options(**self.options), Services())
        if isinstance(made, HostsAgents) and (frames := self.frames()) is not None:
            made.attach(frames)
        return made

    def frames(self) -> Frames | None:
        """Of a backend that hosts agents: what leads to those that the targets name by their `credential`."""
        return None

    def target(self) -> Target:
        """A target that answers every request."""
        return Target(self.backend_class.default_base_url, "model", Secret("secret-of-the-contract"), Deadlines())

    def request(self, dialect: str) -> tuple[str, dict[str, Any]]:
        """A path below the base URL, and a document, that `target()` answers. The model is set by `call`."""
        requests: dict[str, tuple[str, dict[str, Any]]] = {
            "openai_chat": ("/chat/completions", {"messages": [{"role": "user", "content": "Say hello to the contract, \u00fc\U0001f600."}]}),
            "openai_completions": ("/completions", {"prompt": "Say hello to the contract, \u00fc\U0001f600."}),
            "api_server": ("/ask", {"content": "Say hello to the contract, \u00fc\U0001f600."}),
            "openai_rest": ("/embeddings", {"input": "hello"}),
            "chatgpt_web": ("/conversation", {"action": "next", "messages": [dict(WEB_MESSAGE)], "parent_message_id": "0b0f1a52-0c5c-4f6e-9d0e-6a1d3f2f7a10"}),
        }
        return requests[dialect]

    def call(self, dialect: str, stream: bool, target: Target, *, cancel: Cancellation | None = None, total_s: float = 60.0) -> Call:
        """A call as the gateway makes it."""
        path, members = self.request(dialect)
        raw = json.dumps({"model": target.model} | members | ({"stream": True} if stream and dialect not in STREAM_ONLY else {})).encode()
        read = document.read(raw)
        return Call(
            dialect=dialect,
            method="POST",
            path=path,
            query="",
            headers=(("content-type", "application/json"),),
            body=Body.of(raw),
            fields=read.fields,
            document=read.parsed,
            stream=stream,
            deadline=time.monotonic() + total_s,
            cancel=cancel or Cancellation(),
        )

    def shapes(self) -> list[tuple[str, bool]]:
        """Every dialect of the backend, whole where it can be, and streamed where it is a chat."""
        streamed, whole = (CHAT_CODECS.keys() | STREAM_ONLY) - WHOLE_ONLY, CODECS.keys() - STREAM_ONLY
        kinds = ((False, whole), (True, streamed))
        return [(dialect, stream) for dialect in sorted(self.backend_class.dialects) for stream, able in kinds if dialect in able]

    @pytest.fixture
    def running(self) -> Iterator[Backend]:
        backend = self.backend()
        yield backend
        backend.close()

    # the class

    def test_backend_names_dialects_that_the_gateway_speaks(self) -> None:
        assert issubclass(self.backend_class, Backend)
        assert self.backend_class.dialects, "a backend without a dialect is never called"
        assert self.backend_class.dialects <= CODECS.keys(), f"the gateway speaks {sorted(CODECS)}"

    def test_options_are_a_dataclass_that_needs_no_argument(self) -> None:
        cls = self.backend_class.Options
        assert dataclasses.is_dataclass(cls), "Options must be a dataclass: its fields are what an operator may set"
        assert dataclasses.is_dataclass(cls())

    def test_default_base_url_ends_without_a_slash(self) -> None:
        assert not self.backend_class.default_base_url.endswith("/"), "a call's path begins with one"

    # answers

    def test_answer_has_a_status_and_headers_that_can_be_sent_on(self, running: Backend) -> None:
        target = self.target()
        for dialect, stream in self.shapes():
            reply = running.send(self.call(dialect, stream, target), target)
            try:
                assert 200 <= reply.status < 400, "an error status is raised as UpstreamRefused"
                check_headers(reply.headers)
                assert any(name == "content-type" for name, _ in reply.headers)
            finally:
                reply.close()

    def test_answer_ends_as_its_dialect_says(self, running: Backend) -> None:
        target = self.target()
        for dialect, stream in self.shapes():
            reply = running.send(self.call(dialect, stream, target), target)
            check_ended(dialect, stream, read(reply))
            reply.close()

    def test_usage_is_known_after_the_last_chunk_or_left_to_the_gateway(self, running: Backend) -> None:
        target = self.target()
        for dialect, stream in self.shapes():
            reply = running.send(self.call(dialect, stream, target), target)
            read(reply)
            check_usage(reply.usage())
            reply.close()

    def test_close_may_come_early_and_often(self, running: Backend) -> None:
        target = self.target()
        for dialect, stream in self.shapes():
            untouched = running.send(self.call(dialect, stream, target), target)
            untouched.close()
            untouched.close()
            begun = running.send(self.call(dialect, stream, target), target)
            next(begun.chunks)
            begun.close()
            begun.close()
            whole = running.send(self.call(dialect, stream, target), target)
            read(whole)
            whole.close()
            whole.close()

    def test_call_that_was_given_up_before_it_began_is_cancelled(self, running: Backend) -> None:
        target = self.target()
        for dialect, stream in self.shapes():
            cancel = Cancellation()
            cancel.fire("client_gone")
            with pytest.raises(Cancelled):
                drain(running, self.call(dialect, stream, target, cancel=cancel), target)

    def test_many_calls_at_once_do_not_disturb_each_other(self, running: Backend) -> None:
        target, shapes = self.target(), self.shapes()
        failures: list[BaseException] = []

        def run(number: int) -> None:
            dialect, stream = shapes[number % len(shapes)]
            try:
                check_ended(dialect, stream, drain(running, self.call(dialect, stream, target), target))
            except BaseException as error:  # carried to the test, which fails with it
                failures.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(CALLS_AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, f"{len(failures)} of {CALLS_AT_ONCE} failed, the first with {failures[0]!r}"

    def test_models_are_names_where_the_backend_lists_them(self, running: Backend) -> None:
        if isinstance(running, ListsModels):
            models = running.models(self.target(), time.monotonic() + PATIENCE_S)
            assert isinstance(models, list)
            assert all(isinstance(model, str) and model for model in models)

    def test_secret_does_not_show(self, running: Backend) -> None:
        target = self.target()
        dialect, stream = self.shapes()[0]
        reply = running.send(self.call(dialect, stream, target), target)
        shown = repr(running) + repr(reply) + repr(reply.headers)
        reply.close()
        assert not target.secret or target.secret.reveal() not in shown


class UpstreamContract(BackendContract, ABC):
    """What a backend must do besides, where it reaches an upstream over a network."""

    @abstractmethod
    def refusing(self) -> Target:
        """An upstream that answers every call with an error status."""

    @abstractmethod
    def silent(self) -> Target:
        """An upstream that takes the call and never answers."""

    @abstractmethod
    def stalled(self) -> Target:
        """An upstream that begins to answer, and says no more."""

    @abstractmethod
    def broken(self) -> Target:
        """An upstream that begins to answer, and breaks off."""

    not_there: ClassVar[type[UpstreamError]] = UpstreamUnreachable
    """What is raised where the upstream is not there; AgentLost where it connects in."""

    def unreachable(self) -> Target:
        """An upstream that is not there: by default a port of this host at which nobody listens."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return dataclasses.replace(self.target(), base_url=f"http://127.0.0.1:{port}/v1")

    def streams(self) -> list[tuple[str, bool]]:
        """One shape of each dialect: streamed where that is possible."""
        return [shape for shape in self.shapes() if shape[1] or shape[0] not in CHAT_CODECS.keys() - WHOLE_ONLY]

    def fails(self, backend: Backend, target: Target, expected: type[Exception], **options: Any) -> list[Any]:
        """The errors of one call for each dialect."""
        errors = []
        for dialect, stream in self.streams():
            begun = time.monotonic()
            with pytest.raises(expected) as raised:
                drain(backend, self.call(dialect, stream, target, **options), target)
            assert time.monotonic() - begun < PATIENCE_S
            errors.append(raised.value)
        for error in errors:
            check_discreet(error, target)
        return errors

    def test_refusal_is_raised_with_what_the_upstream_said(self, running: Backend) -> None:
        for error in self.fails(running, self.refusing(), UpstreamRefused):
            assert error.upstream_status >= 400
            check_headers(error.headers)
            assert isinstance(error.body, bytes)

    def test_upstream_that_is_not_there_is_unreachable(self, running: Backend) -> None:
        self.fails(running, self.unreachable(), self.not_there)

    def test_upstream_that_does_not_begin_is_given_up_after_first_byte_s(self, running: Backend) -> None:
        target = dataclasses.replace(self.silent(), deadlines=Deadlines(first_byte_s=SHORT_S))
        assert {error.phase for error in self.fails(running, target, UpstreamTimeout)} == {"first_byte"}

    def test_upstream_that_falls_silent_is_given_up_after_idle_s(self, running: Backend) -> None:
        target = dataclasses.replace(self.stalled(), deadlines=Deadlines(idle_s=SHORT_S))
        assert {error.phase for error in self.fails(running, target, UpstreamTimeout)} == {"idle"}

    def test_total_deadline_ends_a_call_at_any_moment(self, running: Backend) -> None:
        for target in (self.silent(), self.stalled()):
            assert {error.phase for error in self.fails(running, target, UpstreamTimeout, total_s=SHORT_S)} == {"total"}

    def test_call_is_cancelled_while_the_upstream_is_silent(self, running: Backend) -> None:
        for target in (self.silent(), self.stalled()):
            for dialect, stream in self.streams():
                cancel = Cancellation()
                timer = threading.Timer(SHORT_S, cancel.fire, ("client_gone",))
                timer.start()
                begun = time.monotonic()
                with pytest.raises(Cancelled):
                    drain(running, self.call(dialect, stream, target, cancel=cancel), target)
                timer.join()
                assert time.monotonic() - begun < PATIENCE_S

    def test_answer_that_breaks_off_never_looks_complete(self, running: Backend) -> None:
        self.fails(running, self.broken(), UpstreamError)

    def test_backend_goes_on_after_failures(self, running: Backend) -> None:
        for target, expected in ((self.refusing(), UpstreamRefused), (self.broken(), UpstreamError), (self.unreachable(), self.not_there)):
            self.fails(running, target, expected)
            healthy = self.target()
            for dialect, stream in self.shapes():
                check_ended(dialect, stream, drain(running, self.call(dialect, stream, healthy), healthy))


def read(reply: Reply) -> bytes:
    """The whole body. Checks that every chunk is bytes; an empty one is a tick and means nothing."""
    pieces = []
    for chunk in reply.chunks:
        assert isinstance(chunk, bytes), "chunks are bytes"
        pieces.append(chunk)
    return b"".join(pieces)


def drain(backend: Backend, call: Call, target: Target) -> bytes:
    """Send, read to the end, close."""
    reply = backend.send(call, target)
    try:
        return read(reply)
    finally:
        reply.close()


def check_headers(headers: Any) -> None:
    """Names in lower case, and nothing that could end a header."""
    for name, value in headers:
        assert _NAME.fullmatch(name), f"the header name {name!r} is not a token in lower case"
        assert _VALUE.fullmatch(value), f"the value of the header {name} has control characters"


def check_ended(dialect: str, stream: bool, body: bytes) -> None:
    """A stream ends with its terminal event, a whole chat answer is a JSON object."""
    if stream:
        events = [sse.parse(raw) for raw in sse.split(body)]
        told = [event for event in events if event.data is not None]
        assert told, "the stream has no event"
        assert CODECS[dialect].is_terminal(told[-1]), f"the stream ends with {told[-1].data!r}"
    elif dialect in CHAT_CODECS:
        assert isinstance(json.loads(body), dict), "a whole answer is a JSON object"


def check_usage(usage: Usage | None) -> None:
    """None, or buckets of whole tokens."""
    if usage is not None:
        assert isinstance(usage, Usage)
        assert all(isinstance(getattr(usage, name), int) and getattr(usage, name) >= 0 for name in BUCKETS)


def check_discreet(error: Exception, target: Target) -> None:
    """An error's text may be shown to the client: one line, without the secret and without the upstream's address."""
    address = target.base_url.partition("://")[2].partition("/")[0]
    for hidden in (target.secret.reveal(), address):
        assert not hidden or hidden not in str(error), "the error shows what the client must not see"
    assert len(str(error).splitlines()) <= 1, "the error is more than a line"
