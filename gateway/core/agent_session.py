"""What an agent's websocket is to the gateway: protocol v2 of docs/agents.md on the holder's side. agent_older.py has the protocol before it.

A session belongs to one connection. One greenlet runs it and reads; each request has one more, which serves the channel of its client.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.concurrency import spawn
from gateway.core.agent_frames import PROTOCOL_ERROR, Head, Hello, Refused, Update, head_of, object_of, opening_of, read_hello, read_update
from gateway.dialects.openai_chat import dumps
from gateway.frames import GRACE_S, MAX_FRAME_BYTES, Channel, ChannelLost, decoded

HELLO_S = 10.0
SMALL_BYTES = 65_536
"""The most of a frame that is no part of an answer, and of any before the agent is let in: a `hello` with a thousand names."""
AT_BYTES = 200
PING_S, PONG_S = 20.0, 4.0
"""How often an agent is asked whether it is there, and how long its second silence is waited for: 44 s at most until one that hangs is found out."""
UPDATE_S = 1.0
"""How often an agent may say anew what it serves: the catalog follows."""
FIRST_FRAME_S = 10.0
ENDED_REMEMBERED = 4096
UNKNOWN, FORBIDDEN, TIMED_OUT, REPLACED, TOO_MUCH, UNAVAILABLE = 4401, 4403, 4408, 4409, 4429, 4503
LEAVING = 1012
_OF_REQUESTS = frozenset({"delta", "done", "error"})


class SocketClosed(Exception):
    """The websocket's end, as `Socket` raises it. `code` is the peer's, or 1006 where it said none."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"the websocket is closed ({code})")
        self.code, self.reason = code, reason


class Socket(Protocol):
    """A websocket. One greenlet receives; any may send or close."""

    def send(self, text: str | bytes) -> None:
        """Raises SocketClosed, also where the peer takes nothing for too long."""

    def receive(self, timeout_s: float | None) -> str | None:
        """None when the time is up. Raises SocketClosed."""

    def allow(self, max_bytes: int) -> None:
        """How large a message may be from now on."""

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Idempotent; wakes who receives."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """What it is told: its name here, the session that was taken note of, and what it may serve."""

    agent: str
    session: str
    models: tuple[str, ...]


class Session(Protocol):
    """`announced` is called with what an agent says anew that it serves; `rtt_ms` is of the last ping, `heard_at` of the last good answer (Unix seconds)."""

    protocol: int
    rtt_ms: float | None
    used_at: float | None
    heard_at: float | None
    leaving: bool
    announced: Callable[[Update], None]

    @property
    def in_flight(self) -> int: ...

    def hello(self) -> Hello:
        """Wait for the agent's introduction. Raises Refused, SocketClosed."""
        ...

    def welcome(self, welcome: Welcome) -> None:
        """Raises SocketClosed."""

    def run(self) -> None:
        """Read until the end. Raises SocketClosed, or Refused where the agent broke the protocol."""

    def attend(self, channel: Channel) -> None:
        """Serve a client's channel until it closes. Never raises."""

    def end(self, code: int, reason: str) -> None:
        """Close the websocket; whoever waits for an answer over it learns that it is lost. Idempotent."""


@dataclass(eq=False, slots=True)
class _Request:
    id: str
    channel: Channel
    credit: int


class SessionV2:
    """Frames pass as they are; what is looked at is whose they are, and whether there was credit for them."""

    protocol = 2

    def __init__(self, socket: Socket, clock: Callable[[], float] = time.monotonic) -> None:
        self._socket, self._clock = socket, clock
        self._requests: dict[str, _Request] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._pinged_at = clock()
        self._unanswered = 0
        self._announced_at = float("-inf")
        self.rtt_ms: float | None = None
        self.used_at: float | None = None
        self.heard_at: float | None = None
        self.leaving = False
        self.announced: Callable[[Update], None] = lambda update: None

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    def hello(self) -> Hello:
        raw = self._socket.receive(HELLO_S)
        if raw is None:
            raise Refused(TIMED_OUT, f"no hello within {HELLO_S:.0f} s")
        document = object_of(raw)
        if document.get("type") != "hello":
            raise Refused(PROTOCOL_ERROR, "the first frame must be a hello")
        return read_hello(document)

    def welcome(self, welcome: Welcome) -> None:
        told = {"agent": welcome.agent, "session": welcome.session, "models": welcome.models}
        self._socket.allow(MAX_FRAME_BYTES)
        self._tell(type="welcome", ping_s=PING_S, grace_s=GRACE_S, max_bytes=MAX_FRAME_BYTES, **told)
        self._ping()

    def run(self) -> None:
        while True:
            raw = self._socket.receive(self._until_next_ping_s())
            if raw is None:
                self._ping()
            else:
                self._take(raw)

    def attend(self, channel: Channel) -> None:
        request: _Request | None = None
        try:
            raw = channel.receive(FIRST_FRAME_S)
            if raw is None:
                return
            request = self._begun(channel, raw)
            self._socket.send(raw)
            while True:
                raw = channel.receive(3600.0)
                if raw is not None:
                    self._pass_on(request, raw)
        except ChannelLost:
            if request is not None:
                self._give_up(request)
        except SocketClosed:  # `run` hears of it as well, and says so to all
            channel.close()
        finally:
            if request is not None:
                self._end(request)

    def end(self, code: int, reason: str) -> None:
        with self._lock:
            self._closed = True
            left = list(self._requests.values())
        for request in left:
            self._end(request)
            tell_lost(request.channel, request.id, "moved" if code in (LEAVING, REPLACED) else "gone")
        self._socket.close(code, reason)  # the last: a peer that hangs takes a second

    # from the agent

    def _take(self, raw: str) -> None:
        head = head_of(raw)
        if head.type in _OF_REQUESTS:
            self._answer(head, raw)
        elif len(raw) > SMALL_BYTES or len(head.at) > AT_BYTES:
            raise Refused(PROTOCOL_ERROR, "a frame that is too large for its type")
        elif head.type == "pong":
            self._ponged()
        elif head.type == "ping":
            self._socket.send(b'{"type":"pong","at":%b}' % bytes(head.at))
        elif head.type == "update":
            self._announce(raw)
        elif head.type == "leaving":
            self.leaving = True
        else:
            raise Refused(PROTOCOL_ERROR, "a frame of an unknown type")

    def _announce(self, raw: str) -> None:
        now = self._clock()
        if now - self._announced_at < UPDATE_S:
            raise Refused(TOO_MUCH, f"more than one update in {UPDATE_S:.0f} s")
        self._announced_at = now
        said = object_of(raw)
        self.announced(read_update(said))

    def _answer(self, head: Head, raw: str) -> None:
        request = self._requests.get(head.id)
        if request is None:
            if head.id in self._ended:
                return
            raise Refused(PROTOCOL_ERROR, "a frame of a request that was never given to this agent")
        with self._lock:
            request.credit -= 1
        if request.credit < 0:
            raise Refused(TOO_MUCH, "more frames than there was credit for")
        try:
            request.channel.send(raw.encode("utf-8", "surrogatepass"))
        except ChannelLost:
            self._give_up(request)
            return
        if head.type != "delta":
            if head.type == "done":
                self.heard_at = time.time()
            self._end(request)

    # from a client

    def _begun(self, channel: Channel, raw: bytes) -> _Request:
        """The request that the channel begins with. Raises ChannelLost."""
        opening = opening_of(raw)
        request = _Request(opening.id, channel, opening.credit)
        with self._lock:
            if self._closed:
                raise ChannelLost("gone")
            self._requests[request.id] = request
            self._ended.pop(request.id, None)
        self.used_at = time.time()
        return request

    def _pass_on(self, request: _Request, raw: bytes) -> None:
        if b'"credit"' in raw:
            more = (decoded(raw) or {}).get("n")
            with self._lock:
                request.credit += more if isinstance(more, int) else 0
        self._socket.send(raw)

    def _give_up(self, request: _Request) -> None:
        """Nobody waits for it."""
        if self._end(request):
            try:
                self._tell(type="cancel", id=request.id)
            except SocketClosed:
                return

    def _end(self, request: _Request) -> bool:
        """Whether it was under way. Late frames of it are passed over; its channel stays, for the client's last word."""
        with self._lock:
            if self._requests.get(request.id) is not request:
                return False
            del self._requests[request.id]
            self._ended[request.id] = None
            while len(self._ended) > ENDED_REMEMBERED:
                self._ended.popitem(last=False)
            return True

    # whether it is there

    def _until_next_ping_s(self) -> float:
        wait_s = PONG_S if self._unanswered > 1 else PING_S
        return max(self._pinged_at + wait_s - self._clock(), 0.0)

    def _ping(self) -> None:
        if self._unanswered > 1:
            raise Refused(TIMED_OUT, "two pings without a pong")
        self._pinged_at = self._clock()
        self._unanswered += 1
        spawn(self._tell_ping, "agent-ping")  # where the agent takes nothing it waits, and who counts its silence must not

    def _tell_ping(self) -> None:
        try:
            self._tell(type="ping", at=round(self._pinged_at * 1000))
        except SocketClosed:  # `run` hears of it as well
            return

    def _ponged(self) -> None:
        if self._unanswered:
            self._unanswered = 0
            self.rtt_ms = round((self._clock() - self._pinged_at) * 1000, 1)

    def _tell(self, **members: Any) -> None:
        self._socket.send(dumps(members))


def tell_lost(channel: Channel, id: str, cause: str) -> None:
    """The client's worker learns that the agent's socket is gone."""
    try:
        channel.send(dumps({"id": id, "type": "lost", "cause": cause}))
    except ChannelLost:
        return
    finally:
        channel.close()
