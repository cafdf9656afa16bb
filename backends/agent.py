"""An agent answers, which connected in: its websocket may be in any worker. docs/agents.md has the frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from gateway.backend import Call, Cancellation, ChatBackend, Reply, Services, Target
from gateway.dialects.events import ChatEvent, ChatRequest, Finished, TextDelta, ToolCallDelta
from gateway.dialects.openai_chat import dumps
from gateway.dialects.openai_usage import usage
from gateway.errors import (
    AgentFailed,
    AgentLost,
    BadRequest,
    Cancelled,
    UpstreamError,
    UpstreamInterrupted,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
)
from gateway.frames import GRACE_S, Channel, ChannelLost, Connected, Frames, decoded

CREDIT = 64
"""How many frames of an answer may be under way."""
LOOK_S = 0.05
TOGETHER_BYTES = 16_384
MOST_WHOLE_BYTES = 32_000_000
"""Of an answer that leaves at its end: until then it is in memory."""
WORD = 200
HUNG_UP = "hung_up"
"""Of a channel that was lost: the agent itself closed its connection, or broke the protocol."""
CAUSES = frozenset({"busy", "internal", "ping_failed", "send_failed", "read_failed", "wrong_id", "bad_data"})
"""Of what an agent says, and of what an older one shows, those that are not an upstream's status; others are "internal"."""
REASONS = frozenset({"stop", "length", "tool_calls", "content_filter"})
_STATUSES: Mapping[str, int] = MappingProxyType({"unauthorised": 403, "model_not_served": 403, "rate_limited": 429, "upstream_failed": 502})


class Agent(ChatBackend):
    """Speaks with the agent that `target.credential` names. Its models are what it says they are: the base URL means nothing."""

    default_base_url = "agent://connects-in"

    def __init__(self, options: Any, services: Services) -> None:
        super().__init__(options, services)
        self._frames: Frames | None = None

    def attach(self, frames: Frames) -> None:
        self._frames = frames

    def send(self, call: Call, target: Target) -> Reply:
        return _Chat(self, call).send(call, target)

    def chat(self, request: ChatRequest, target: Target) -> Iterator[ChatEvent]:
        return self.answer(request, target, self.services.clock() + target.deadlines.total_s, Cancellation())

    def answer(self, request: ChatRequest, target: Target, deadline: float, cancel: Cancellation) -> Iterator[ChatEvent]:
        """The events of `chat`, given up at `deadline` (monotonic) or when `cancel` fires, also while the agent is silent."""
        return _events(self.asked(request, target, deadline, cancel))

    def asked(self, request: ChatRequest, target: Target, deadline: float, cancel: Cancellation) -> Callable[[], _Request]:
        """What asks the agent when the first event is wanted."""
        if self._frames is None:
            raise AgentLost("This process hosts no agents.")
        if request.document.get("n") not in (None, 1):
            raise BadRequest("This model gives one choice: 'n' must be 1.", param="n")
        return partial(_Request, self._frames, request, target, deadline, cancel, self.services.clock)


class _Chat(ChatBackend):
    """One call's chat."""

    def __init__(self, backend: Agent, call: Call) -> None:
        super().__init__(backend.options, backend.services)
        self._backend, self._call = backend, call
        self._request: _Request | None = None

    def send(self, call: Call, target: Target) -> Reply:
        reply = super().send(call, target)
        return replace(reply, chunks=self._together(reply.chunks)) if call.stream else reply

    def chat(self, request: ChatRequest, target: Target) -> Iterator[ChatEvent]:
        ask = self._backend.asked(request, target, self._call.deadline, self._call.cancel)

        def begun() -> _Request:
            self._request = ask()
            return self._request

        return _events(begun)

    def _together(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """What is here already leaves together: a send costs more than all else of a small piece."""
        failure: UpstreamError | Cancelled | None = None
        while failure is None and (block := next(chunks, None)) is not None:
            try:
                while len(block) < TOGETHER_BYTES and self._request is not None and self._request.is_ready():
                    block += next(chunks, b"")
            except (UpstreamError, Cancelled) as error:  # after what came before it
                failure = error
            yield block
        if failure is not None:
            raise failure


def _events(ask: Callable[[], _Request]) -> Iterator[ChatEvent]:
    """Nothing is asked before the first event is wanted: an iterator that nobody reads has nothing to close."""
    asked, begun = ask(), False
    try:
        while True:
            frame = asked.next()
            kind = frame.get("type")
            if kind == "delta":
                event = _delta(frame)
                begun = asked.streams  # a whole answer leaves at its end: until then another agent may be asked
                yield event
            elif kind == "done":
                asked.over()
                yield _finished(frame)
                return
            elif kind == "error":
                asked.over()
                raise _failure(frame)
            else:
                raise UpstreamProtocolError("The agent sent what is no part of an answer.")
    except (UpstreamError, ChannelLost) as error:
        raise _told(error, begun=begun) from error
    finally:
        asked.close()


def _told(error: UpstreamError | ChannelLost, *, begun: bool) -> UpstreamError:
    """What the error is to the client: before the first piece another agent may answer."""
    if begun and not isinstance(error, UpstreamInterrupted | UpstreamTimeout):
        return UpstreamInterrupted("The agent's answer ended before it was complete.")
    return AgentLost("The agent's connection was lost.", hung_up=error.cause == HUNG_UP) if isinstance(error, ChannelLost) else error


class _Request:
    """A request at its agent: frame after frame of the answer, each once, over however many connections."""

    def __init__(self, frames: Frames, request: ChatRequest, target: Target, deadline: float, cancel: Cancellation, clock: Callable[[], float]) -> None:
        self._frames, self._target, self._deadline, self._cancel, self._clock = frames, target, deadline, cancel, clock
        self.id, self.streams = uuid4().hex, request.stream
        self._received = self._unacknowledged = self._bytes = 0
        self._ahead: bytes | None = None
        connection = frames.connected(target.credential)
        if connection is None:
            raise AgentLost("The agent is not connected.")
        self._connection = connection
        self._channel = self._opened(connection)
        self._forget = cancel.on_cancel(lambda: self._channel.close())
        self._send(type="request", model=target.model, stream=request.stream, credit=CREDIT, deadline_s=self._left_s(), **_body(request, target.model))

    def next(self) -> Mapping[str, Any]:
        """Raises UpstreamError, ChannelLost, Cancelled."""
        while True:
            frame = self._receive()
            number = frame.get("seq")
            if not isinstance(number, int) or number > self._received + 1:
                raise UpstreamInterrupted("A part of the agent's answer is missing.")
            if number == self._received + 1:
                self._received = number
                self._acknowledge()
                return frame

    def is_ready(self) -> bool:
        """Whether `next` need not wait."""
        if self._ahead is None:
            try:
                self._ahead = self._channel.receive(0.0)
            except ChannelLost:
                return False
        frame = None if self._ahead is None else decoded(self._ahead)
        return frame is not None and frame.get("seq") == self._received + 1

    def over(self) -> None:
        """The last frame is here; the agent need not keep it."""
        self._tell(type="credit", n=0, received=self._received)

    def close(self) -> None:
        """What is under way is given up: who holds the agent's socket tells it so. Idempotent."""
        self._forget()
        self._channel.close()

    def _receive(self) -> Mapping[str, Any]:
        silent_since = self._clock()
        while True:
            wait_s, phase = self._patience(silent_since)
            if wait_s <= 0:
                raise UpstreamTimeout("The agent did not answer in time.", phase=phase)
            try:
                raw, self._ahead = self._ahead or self._channel.receive(wait_s), None
                frame = None if raw is None else self._read(raw)
                if frame is not None and frame.get("type") == "lost":
                    raise ChannelLost(HUNG_UP if frame.get("cause") == "gone" else "gone")
                if frame is not None and not self._is_current():
                    raise ChannelLost("gone")
            except ChannelLost as lost:
                self._check_cancelled()
                self._resume(lost)
                self._check_cancelled()  # it may have closed the channel before
                continue
            self._check_cancelled()
            if frame is not None:
                return frame

    def _read(self, raw: bytes) -> Mapping[str, Any]:
        self._bytes += len(raw)
        if self._bytes > MOST_WHOLE_BYTES and not self.streams:
            raise UpstreamProtocolError("The agent's answer is too large.")
        frame = decoded(raw)
        if frame is None:
            raise UpstreamProtocolError("The agent sent what is no frame.")
        return frame

    def _is_current(self) -> bool:
        """What a connection still says after another took its place does not count: that one says it again, from what was received on."""
        found = self._frames.connected(self._target.credential)
        return found is None or found.epoch == self._connection.epoch

    def _patience(self, since: float) -> tuple[float, str]:
        now, deadlines = self._clock(), self._target.deadlines
        limit_s, phase = (deadlines.idle_s, "idle") if self._received else (deadlines.first_byte_s, "first_byte")
        return min((since + limit_s - now, phase), (self._deadline - now, "total"))

    def _resume(self, lost: ChannelLost) -> None:
        """Go on over the agent's next connection. Raises ChannelLost where it does not connect again, or has forgotten."""
        until = self._clock() + GRACE_S
        while self._received and self._connection.resumes and self._clock() < min(until, self._deadline):
            self._check_cancelled()
            found = self._frames.connected(self._target.credential)
            if found is not None and found.session != self._connection.session:
                break
            if found is not None and found.epoch != self._connection.epoch and self._resumed(found):
                return
            time.sleep(LOOK_S)
        raise lost

    def _resumed(self, connection: Connected) -> bool:
        try:
            channel = self._frames.open(connection)
        except ChannelLost:
            return False
        try:
            channel.send(self._frame(type="resume", session=connection.session, received=self._received, credit=CREDIT))
        except ChannelLost:
            channel.close()
            return False
        self._channel.close()
        self._channel, self._connection, self._unacknowledged, self._ahead = channel, connection, 0, None
        return True

    def _opened(self, connection: Connected) -> Channel:
        try:
            return self._frames.open(connection)
        except ChannelLost as error:
            raise AgentLost("The agent cannot be reached.") from error

    def _acknowledge(self) -> None:
        self._unacknowledged += 1
        if self._unacknowledged >= CREDIT // 2:
            self._tell(type="credit", n=self._unacknowledged, received=self._received)
            self._unacknowledged = 0

    def _send(self, **members: Any) -> None:
        try:
            self._channel.send(self._frame(**members))
        except ChannelLost as error:
            self.close()
            self._check_cancelled()
            raise AgentLost("The agent cannot be reached.") from error

    def _tell(self, **members: Any) -> None:
        """What need not arrive: a lost channel is noticed where it is read."""
        try:
            self._channel.send(self._frame(**members))
        except ChannelLost:
            return

    def _frame(self, **members: Any) -> bytes:
        return dumps({"id": self.id, **members})

    def _check_cancelled(self) -> None:
        if self._cancel.reason is not None:
            raise Cancelled(self._cancel.reason)

    def _left_s(self) -> float:
        return round(max(self._deadline - self._clock(), 0.0), 3) if self._deadline < 1e12 else self._target.deadlines.total_s


def _body(request: ChatRequest, model: str) -> dict[str, Any]:
    """The request as chat completions have it, and the conversation that it goes on with, where the gateway knows whose that is."""
    body = {name: value for name, value in request.document.items() if name not in ("conversation", "prompt")} | {"model": model}
    if "messages" not in body:
        body["messages"] = [{"role": message.role, "content": message.content} for message in request.messages]
    return {"body": body} | ({} if request.conversation is None else {"conversation": request.conversation})


def _delta(frame: Mapping[str, Any]) -> ChatEvent:
    call, text = frame.get("tool_call"), frame.get("text")
    if isinstance(text, str):
        return TextDelta(text)
    if not isinstance(call, Mapping) or not isinstance(call.get("index"), int) or not isinstance(call.get("arguments"), str):
        raise UpstreamProtocolError("The agent sent a piece of an answer that is none.")
    return ToolCallDelta(call["index"], call["arguments"], _text(call.get("id")), _text(call.get("name")))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _finished(frame: Mapping[str, Any]) -> Finished:
    told, reason = frame.get("conversation"), frame.get("reason")
    conversation = {str(name): value for name, value in told.items() if isinstance(value, str)} if isinstance(told, Mapping) else None
    return Finished(reason if isinstance(reason, str) and reason in REASONS else "stop", usage(frame), conversation)


def _failure(frame: Mapping[str, Any]) -> UpstreamError:
    """An agent's `error`. What it says is shown where a client's own mistake is its cause, and where an old client is to see it."""
    cause = _text(frame.get("cause")) or "internal"
    status, body = frame.get("status"), frame.get("body")
    if cause == "bad_request":
        refused = status if isinstance(status, int) and 400 <= status < 500 and status not in (401, 402, 403, 429) else 400
        document = body if isinstance(body, Mapping) else {"error": {"message": _said(frame), "type": "invalid_request_error", "code": None}}
        return UpstreamRefused(refused, (("content-type", "application/json"),), dumps(document))
    if cause in _STATUSES:
        wait_s = frame.get("retry_after_s")
        reset_s = float(wait_s) if isinstance(wait_s, int | float) and not isinstance(wait_s, bool) and 0 <= wait_s <= 86_400 else None
        return UpstreamRefused(_STATUSES[cause], (), str(frame.get("message") or "").encode("utf-8", "replace")[:WORD], reset_s=reset_s)
    if cause == "timeout":
        return UpstreamTimeout("The agent's upstream did not answer in time.", phase="first_byte")
    if cause == "unknown_request":
        return AgentLost("The agent forgot the request.")
    return AgentFailed("The agent could not answer.", cause=cause if cause in CAUSES else "internal", detail=frame.get("detail"))


def _said(frame: Mapping[str, Any]) -> str:
    return (_text(frame.get("message")) or "The agent refused the request.")[:WORD]
