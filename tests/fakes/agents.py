"""An agent of the protocol v2 (docs/agents.md) on a real websocket, in threads; it misbehaves where a test says so. What it answers is a script: one answer
for each request, then `always`. The older protocol's agent: old_agents.py."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes.connecting import Connecting
from tests.fakes.websocket import Closed, Refused, WebSocketClient

SUBPROTOCOL = "chat-gateway.agent.v2"
FINAL = frozenset({1002, 1003, 1007, 1009, 4400, 4401, 4403, 4409})
"""Close codes after which an agent does not connect again."""

Hits = Callable[[int], bool]
Answer = Callable[["Serving"], None]


class GivenUp(Exception):
    """Raised within an answer whose request nobody waits for: cancelled, or its connection was lost for too long."""


def never(_: int) -> bool:
    return False


def at(*numbers: int) -> Hits:
    """Hits the frames of these numbers (`seq`) of each request."""
    return lambda number: number in numbers


def sometimes(share: float, dice: random.Random) -> Hits:
    """Hits this share of all frames."""
    return lambda _: dice.random() < share


@dataclass(slots=True)
class Misbehaviour:
    """What an agent does wrong, by the number (`seq`) of a frame; may be changed while it runs.

    `drops`: never sent. `doubles`: sent twice. `swaps`: sent after the next one. `stalls`: from that one on nothing is sent. `breaks`: the connection
    is reset before it. `ignores_credit`, `pongs` as they say. Anything else, such as garbage or a wrong id: `agent.socket.send` and `agent.say`.
    """

    drops: Hits = never
    doubles: Hits = never
    swaps: Hits = never
    stalls: Hits = never
    breaks: Hits = never
    ignores_credit: bool = False
    pongs: bool = True


class Serving:
    """One request at an agent: what its answer writes to. `frame` is the request's; `asked`: the text of its last message. Raises GivenUp."""

    def __init__(self, agent: Agent, frame: dict[str, Any]) -> None:
        self.agent, self.frame, self.id = agent, frame, str(frame["id"])
        self.body: dict[str, Any] = frame["body"]
        self.allowed = int(frame["credit"])
        self.seq = self.sent = self.received = self.resumed = 0
        self.is_over = False
        self.given_up: str | None = None
        self.until: float | None = None
        """Where its connection was lost: how long it waits for a resume."""
        self._kept: dict[int, dict[str, Any]] = {}
        self._swapped: dict[str, Any] | None = None

    @property
    def asked(self) -> str:
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)

    def delta(self, text: str) -> None:
        self._put({"type": "delta", "text": text})

    def tool_call(self, index: int, arguments: str, **first: str) -> None:
        """`first`: `id` and `name`, with a call's first piece."""
        self._put({"type": "delta", "tool_call": {"index": index, "arguments": arguments, **first}})

    def done(self, reason: str = "stop", usage: dict[str, Any] | None = None, conversation: dict[str, Any] | None = None) -> None:
        more = {"usage": usage, "conversation": conversation}
        self._put({"type": "done", "reason": reason, **{name: value for name, value in more.items() if value is not None}}, is_last=True)

    def error(self, cause: str, message: str = "", **more: Any) -> None:
        self._put({"type": "error", "cause": cause, "message": message, **more}, is_last=True)

    def pause(self, seconds: float) -> None:
        """Wait, unless it is given up meanwhile."""
        with self.agent.changed:
            self.agent.changed.wait_for(self._is_given_up, seconds)
            self._check()

    def _is_given_up(self) -> bool:
        if self.given_up is None and self.until is not None and time.monotonic() > self.until:
            self.given_up = "lost"
        return self.given_up is not None

    def _check(self) -> None:
        if self._is_given_up():
            raise GivenUp(self.given_up)

    def _put(self, frame: dict[str, Any], *, is_last: bool = False) -> None:
        with self.agent.changed:
            while not (self.seq < self.allowed or self.agent.wrong.ignores_credit):
                self._check()
                self.agent.changed.wait(0.5)
            self._check()
            self.seq += 1
            self._kept[self.seq] = {**frame, "id": self.id, "seq": self.seq}
            self.is_over = is_last
            self._pump()

    def credit(self, n: int, received: int) -> None:
        with self.agent.changed:
            self.allowed += n
            self._arrived(received)
            self._pump()

    def resume(self, received: int, credit: int) -> None:
        with self.agent.changed:
            self._arrived(received)
            self.sent, self.allowed, self.until = received, received + credit, None
            self.resumed += 1
            self._pump()

    def _arrived(self, received: int) -> None:
        self.received = max(self.received, received)
        for number in [number for number in self._kept if number <= received]:
            del self._kept[number]
        self.agent.changed.notify_all()

    def _pump(self) -> None:
        """Send what may be sent now."""
        while self.until is None and self.sent < self.seq and (self.sent < self.allowed or self.agent.wrong.ignores_credit):
            self.sent += 1
            self._send(self.sent, self._kept[self.sent])
            if not self.agent.resumes:
                del self._kept[self.sent]

    def _send(self, number: int, frame: dict[str, Any]) -> None:
        wrong = self.agent.wrong
        if wrong.breaks(number) and not self.resumed:
            self.agent.drop()
            return
        if wrong.stalls(number) or self.given_up == "stalled":
            self.given_up = "stalled"
            return
        if wrong.swaps(number) and self._swapped is None and not self.is_over:
            self._swapped = frame
            return
        if not wrong.drops(number):
            self.agent.say(frame)
        if wrong.doubles(number):
            self.agent.say(frame)
        if self._swapped is not None:
            self.agent.say(self._swapped)
            self._swapped = None


def says(*words: str, reason: str = "stop", pause_s: float = 0.0, **end: Any) -> Answer:
    """These pieces, and the end; `end`: `usage`, `conversation`."""

    def answer(serving: Serving) -> None:
        for word in words:
            serving.delta(word)
            serving.pause(pause_s) if pause_s else None
        serving.done(reason, **end)

    return answer


def echoes(pieces: int = 1) -> Answer:
    """What was asked, in so many pieces."""

    def answer(serving: Serving) -> None:
        size = -(-len(serving.asked) // pieces) or 1
        for start in range(0, len(serving.asked), size):
            serving.delta(serving.asked[start : start + size])
        serving.done()

    return answer


def fails(cause: str, message: str = "as scripted", *, after: Sequence[str] = (), **more: Any) -> Answer:
    """An `error`, after these pieces."""

    def answer(serving: Serving) -> None:
        for word in after:
            serving.delta(word)
        serving.error(cause, message, **more)

    return answer


def keeps_silent(*words: str) -> Answer:
    """Nothing, or nothing after these pieces, until it is given up."""

    def answer(serving: Serving) -> None:
        for word in words:
            serving.delta(word)
        serving.pause(3600)

    return answer


def hangs_up(*words: str) -> Answer:
    """The connection is lost, after these pieces."""

    def answer(serving: Serving) -> None:
        for word in words:
            serving.delta(word)
        serving.agent.drop()

    return answer


class Agent(Connecting):
    """Use as a context manager, or call `connect`, which raises Refused or Closed where it is not let in. `requests`: what it was asked, in order.

    `token_in`: "header", "hello" or "path". `stays`: it connects again by itself, as the documentation says, after `again_s` at first (times a random
    number, then longer). `wrong` is what it does wrong.
    """

    def __init__(
        self,
        port: int,
        *answers: Answer,
        token: str = "",
        name: str = "",
        models: Sequence[str] = ("m",),
        concurrency: int = 1,
        resumes: bool = True,
        always: Answer | None = None,
        wrong: Misbehaviour | None = None,
        token_in: str = "header",
        stays: bool = False,
        again_s: float = 0.5,
        origin: str | None = None,
        hello: dict[str, Any] | None = None,
    ) -> None:
        """`hello`: members of that frame, in place of those that would be sent."""
        super().__init__(port)
        self.token, self.name, self.models, self.concurrency, self.resumes = token, name, list(models), concurrency, resumes
        self.wrong, self.session = wrong or Misbehaviour(), uuid.uuid4().hex
        self.welcome: dict[str, Any] = {}
        self.requests: list[Serving] = []
        self.pongs: list[Any] = []
        self.connections = 0
        self._answers, self.always = list(answers), always or says("hello")
        self._token_in, self.stays, self._again_s, self._origin, self._hello = token_in, stays, again_s, origin, hello or {}

    def __enter__(self) -> Agent:
        self.connect()
        return self

    @property
    def under_way(self) -> list[Serving]:
        return [serving for serving in self.requests if not serving.is_over and not serving._is_given_up()]

    def connect(self) -> None:
        """Also again, after the connection was lost: with the same session."""
        self.wait(lambda: not self.is_connected)
        prefix = f"/{self.token}" if self._token_in == "path" else ""
        headers = {"authorization": f"Bearer {self.token}"} if self.token and self._token_in == "header" else {}
        socket = WebSocketClient(self.port, f"{prefix}/client/register", headers=headers, subprotocols=(SUBPROTOCOL,), origin=self._origin)
        try:
            assert socket.subprotocol == SUBPROTOCOL
            socket.send_json(self._greeting())
            self.welcome = socket.receive_json()
        except BaseException:
            socket.sock.close()
            raise
        assert self.welcome["type"] == "welcome", self.welcome
        self.socket, self.connections = socket, self.connections + 1
        self._begin(f"agent-{self.name}")

    def forget(self) -> None:
        """As an agent that was started anew: another session, no requests."""
        self.session = uuid.uuid4().hex
        for serving in self.under_way:
            serving.given_up = "forgotten"

    def ping(self, mark: Any) -> None:
        self.say({"type": "ping", "at": mark})

    def _greeting(self) -> dict[str, Any]:
        own: dict[str, Any] = {"models": self.models, "concurrency": self.concurrency, "resumes": self.resumes, "session": self.session}
        own |= {"agent": self.name} if self.name else {}
        own |= {"token": self.token} if self._token_in == "hello" else {}
        return {"type": "hello", "software": "scripted/1", **own, **self._hello}

    def _take(self, frame: dict[str, Any]) -> None:
        kind = frame["type"]
        if kind == "ping":
            with self.changed:
                self.pings += 1
                self.changed.notify_all()
            if self.wrong.pongs:
                self.say({"type": "pong", "at": frame.get("at")})
        elif kind == "pong":
            with self.changed:
                self.pongs.append(frame.get("at"))
                self.changed.notify_all()
        elif kind == "request":
            self._start(frame)
        else:
            self._about(frame, next((serving for serving in self.requests if serving.id == frame.get("id")), None))

    def _start(self, frame: dict[str, Any]) -> None:
        with self.changed:
            is_busy = len(self.under_way) >= self.concurrency
            serving = Serving(self, frame)
            self.requests.append(serving)
            answer = self._answers.pop(0) if self._answers else self.always
            self.changed.notify_all()
        if frame["model"] not in self.models:
            answer = fails("model_not_served")
        elif is_busy:
            answer = fails("busy")
        threading.Thread(target=self._serve, args=(serving, answer), daemon=True).start()

    def _serve(self, serving: Serving, answer: Answer) -> None:
        with contextlib.suppress(GivenUp):
            answer(serving)

    def _about(self, frame: dict[str, Any], serving: Serving | None) -> None:
        kind, received = frame["type"], int(frame.get("received", 0))
        if kind == "resume" and (serving is None or frame.get("session") != self.session or serving._is_given_up()):
            self.say({"type": "error", "id": frame["id"], "seq": received + 1, "cause": "unknown_request", "message": "it was forgotten"})
        elif serving is None:
            pass
        elif kind == "resume":
            serving.resume(received, int(frame["credit"]))
        elif kind == "credit":
            serving.credit(int(frame["n"]), received)
        elif kind == "cancel":
            with self.changed:
                serving.given_up = serving.given_up or "cancelled"
                self.changed.notify_all()

    def _detach(self) -> None:
        for serving in self.requests:
            if serving.until is None:  # what nothing was sent of is somebody else's by now
                serving.until = time.monotonic() + (float(self.welcome.get("grace_s", 5)) if self.resumes and serving.sent else -1)

    def _ended(self, closed: Closed) -> None:
        pause_s = self._again_s
        while self.stays and not self._is_leaving and closed.code not in FINAL:
            time.sleep(pause_s * random.random())
            pause_s = min(2 * pause_s, 30)
            with contextlib.suppress(OSError, Refused):
                try:
                    self.connect()
                    return
                except Closed as refused:
                    closed = refused
