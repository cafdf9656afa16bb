"""The protocol of ChatGPT-API-server's Firefox agent, translated to the frames of v2: one request at a time, answered whole.

CONTRACTS: frames are `{"id", "message", "data"}`, `data` is a text, with JSON in it where it holds structure. The agent cannot be changed.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from gateway.concurrency import spawn
from gateway.core.agent_frames import NAME_CHARACTERS, PROTOCOL_ERROR, Hello, Refused, Update
from gateway.core.agent_session import ENDED_REMEMBERED, FIRST_FRAME_S, HELLO_S, PING_S, PONG_S, TIMED_OUT, Socket, SocketClosed, Welcome
from gateway.dialects.openai_chat import dumps, plain_text
from gateway.frames import MAX_FRAME_BYTES, Channel, ChannelLost, decoded

PING_REPLY_S = 5.0
ANSWER_S = 120.0
DETAIL = 2000


@dataclass(eq=False, slots=True)
class _Waited:
    """A frame that somebody waits for, by its id; None once the connection is lost."""

    id: str
    frame: Mapping[str, Any] | None = None
    came: threading.Event = field(default_factory=threading.Event)

    def give(self, frame: Mapping[str, Any] | None) -> None:
        self.frame = frame
        self.came.set()


class OlderSession:
    """Of one connection."""

    protocol = 1

    def __init__(self, socket: Socket, clock: Callable[[], float] = time.monotonic) -> None:
        self._socket, self._clock = socket, clock
        self._turn = threading.Lock()
        """Of the request that the agent works on."""
        self._pong: _Waited | None = None
        self._answer: _Waited | None = None
        self._given: OrderedDict[str, None] = OrderedDict()
        self._waited: dict[str, _Waited] = {}
        self._closed = False
        self._pinged_at, self._unanswered = clock(), 0
        self.rtt_ms: float | None = None
        self.used_at: float | None = None
        self.heard_at: float | None = time.time()
        self.leaving = False
        self.announced: Callable[[Update], None] = lambda update: None

    @property
    def in_flight(self) -> int:
        return len(self._waited)

    def hello(self) -> Hello:
        """Its `id` is the one that it was offered, or one that it has from before."""
        offered = str(uuid4())
        self._send(offered, "Connection id", "")
        raw = self._socket.receive(HELLO_S)
        if raw is None:
            raise Refused(TIMED_OUT, f"no connection id within {HELLO_S:.0f} s")
        name = _frame(raw).get("id")
        if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS or not (name.isascii() and name.isprintable()):
            raise Refused(PROTOCOL_ERROR, "the connection id is none")
        return Hello(name=name, software="ChatGPT-API-server agent")

    def welcome(self, welcome: Welcome) -> None:
        self._socket.allow(MAX_FRAME_BYTES)
        self._pinged_at = self._clock()

    def run(self) -> None:
        while True:
            wait_s = PONG_S if self._unanswered > 1 else PING_S
            raw = self._socket.receive(max(self._pinged_at + wait_s - self._clock(), 0.0))
            if raw is not None:
                self._take(_frame(raw))
            elif self._unanswered > 1:
                raise Refused(TIMED_OUT, "two pings without a pong")
            else:
                self._ping(str(uuid4()))

    def attend(self, channel: Channel) -> None:
        """Reads the channel to its end, by which a client says that it waits no longer, while the agent is asked."""
        try:
            asked = decoded(channel.receive(FIRST_FRAME_S) or b"")
        except ChannelLost:
            return
        if asked is None or asked.get("type") != "request":  # it resumes nothing
            return
        waited = _Waited(str(uuid4()))
        spawn(lambda: self._serve(channel, asked, waited), "older-agent-request")
        try:
            while not self._closed:
                channel.receive(FIRST_FRAME_S)
        except ChannelLost:
            waited.give(None)

    def end(self, code: int, reason: str) -> None:
        self._closed = True
        for waited in (self._pong, *self._waited.values()):
            if waited is not None:
                waited.give(None)
        self._socket.close(code, reason)

    # one request

    def _serve(self, channel: Channel, asked: Mapping[str, Any], waited: _Waited) -> None:
        self._waited[waited.id] = waited
        try:
            with self._turn:
                answer = self._asked(asked, waited)
            for number, frame in enumerate(answer, 1):
                channel.send(dumps({"id": asked["id"], "seq": number, **frame}))
        except ChannelLost:
            return
        finally:
            del self._waited[waited.id]
            if self._closed:
                channel.close()

    def _asked(self, asked: Mapping[str, Any], waited: _Waited) -> list[dict[str, Any]]:
        """The frames that answer it; none where nobody waits any more."""
        if waited.came.is_set() and not self._closed:
            return []
        if not self._is_there():
            self.end(TIMED_OUT, "no pong")
            return [_failed("ping_failed", "Ping failed")]
        self._answer = waited
        self._remember(waited.id)
        try:
            self._send(waited.id, "ChatGptRequest", json.dumps(_request(asked)))
        except SocketClosed:
            return [_failed("send_failed", "Failed to send request to the client")]
        self.used_at = time.time()
        came = waited.came.wait(ANSWER_S)
        self._answer = None
        if waited.frame is None:
            return [_failed("read_failed", "Failed to read response from the client", "the connection was lost" if came else "i/o timeout")]
        if waited.frame.get("id") != waited.id:
            return [_failed("wrong_id", "Failed to find response from the client")]
        frames = _answered(waited.frame)
        if frames[-1]["type"] == "done":
            self.heard_at = time.time()
        return frames

    def _is_there(self) -> bool:
        self._pong = waited = _Waited(str(uuid4()))
        try:
            self._ping(waited.id)
            return waited.came.wait(PING_REPLY_S) and waited.frame is not None
        except SocketClosed:
            return False
        finally:
            self._pong = None

    # frames

    def _take(self, frame: Mapping[str, Any]) -> None:
        if frame.get("message") == "pong":
            self._ponged(frame)
        elif (waited := self._answer) is not None and (frame.get("id") == waited.id or not self._is_late(frame)):
            waited.give(frame)

    def _is_late(self, frame: Mapping[str, Any]) -> bool:
        """Whether it is of a request before: nobody's answer."""
        id = frame.get("id")
        return isinstance(id, str) and id in self._given

    def _ponged(self, frame: Mapping[str, Any]) -> None:
        if self._unanswered:
            self._unanswered = 0
            self.rtt_ms = round((self._clock() - self._pinged_at) * 1000, 1)
        if (waited := self._pong) is not None and frame.get("id") == waited.id:
            waited.give(frame)

    def _ping(self, id: str) -> None:
        self._pinged_at = self._clock()
        self._unanswered += 1
        self._send(id, "ping", "")

    def _remember(self, id: str) -> None:
        self._given[id] = None
        while len(self._given) > ENDED_REMEMBERED:
            self._given.popitem(last=False)

    def _send(self, id: str, message: str, data: str) -> None:
        self._socket.send(dumps({"id": id, "message": message, "data": data}))


def _frame(raw: str) -> Mapping[str, Any]:
    """Raises Refused for what is no JSON object."""
    frame = decoded(raw)
    if frame is None:
        raise Refused(PROTOCOL_ERROR, "a frame that is no JSON object")
    return frame


def _request(asked: Mapping[str, Any]) -> dict[str, str]:
    """What the agent is asked. Where no conversation goes on, all that was said before is told at once."""
    conversation = asked.get("conversation") or {}
    messages = (asked.get("body") or {}).get("messages")
    said = [each for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []
    texts = [(str(each.get("role")), plain_text(each.get("content"))) for each in said]
    content = texts[0][1] if len(texts) == 1 else "\n\n".join(f"{role}: {text}" for role, text in texts)
    return {
        "message_id": conversation.get("message_id") or str(uuid4()),
        "conversation_id": conversation.get("id") or "",
        "parent_id": conversation.get("parent_id") or str(uuid4()),
        "content": content,
    }


def _answered(frame: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An answer's `data` is a JSON object; whatever else it is, an error's words among them, says that there is none."""
    data = frame.get("data")
    answer = decoded(data) if isinstance(data, str) else None
    if answer is None:
        shown = {name: str(frame.get(name, ""))[:DETAIL] for name in ("id", "message", "data")}
        return [_failed("bad_data", "Failed to convert response to ChatGptResponse", shown)]
    told = {"id": _text(answer, "conversation_id"), "message_id": _text(answer, "response_id")}
    told |= {"own_id": _text(answer, "id"), "error": _text(answer, "error")}
    return [{"type": "delta", "text": _text(answer, "content")}, {"type": "done", "reason": "stop", "conversation": told}]


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    return value if isinstance(value, str) else ""


def _failed(cause: str, message: str, detail: object = None) -> dict[str, Any]:
    return {"type": "error", "cause": cause, "message": message, "detail": detail}
