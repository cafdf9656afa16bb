"""Frames that lead to agents of the test's own, over a real bus: what stands for an agent's connection is a script that serves one channel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.bus.base import Opening
from gateway.bus.unix import UnixBus
from gateway.dialects.openai_chat import dumps
from gateway.frames import Channel, ChannelLost, Connected, decoded

ME = "0123abcd-me"
WAIT_S = 10.0


class Talk:
    """One channel, as who holds the agent's socket has it. `first`: the frame that it began with; `heard`: those after it."""

    def __init__(self, channel: Channel, epoch: int) -> None:
        self.channel, self.epoch = channel, epoch
        self.first = self.hear()
        self.heard: list[dict[str, Any]] = []
        self.lost = threading.Event()

    @property
    def asked(self) -> str:
        """The text of its last message."""
        return str(self.first["body"]["messages"][-1]["content"])

    def hear(self) -> dict[str, Any]:
        """The next frame. Raises ChannelLost."""
        raw = self.channel.receive(WAIT_S)
        assert raw is not None, "nothing came"
        frame = decoded(raw)
        assert frame is not None
        return frame

    def say(self, type: str, seq: int | None = None, **members: Any) -> None:
        own = {} if seq is None else {"seq": seq}
        self.channel.send(dumps({"id": self.first["id"], "type": type, **own, **members}))

    def deltas(self, begin: int, *texts: str) -> None:
        for number, text in enumerate(texts, begin):
            self.say("delta", number, text=text)

    def listen(self) -> None:
        """Hear whatever comes, until the other side closes."""
        try:
            while True:
                self.heard.append(self.hear())
        except ChannelLost:
            self.lost.set()


Script = Callable[[Talk], None]


@dataclass(slots=True)
class _Agent:
    connection: Connected
    script: Script


class Hosting:
    """A context manager: the Frames of one worker. `talks`: every channel that was opened, in order. An agent is connected or lost as the test says."""

    def __init__(self, directory: Path) -> None:
        self.bus = UnixBus(directory, ME)
        self.talks: list[Talk] = []
        self.changed = threading.Condition()
        self._agents: dict[str, _Agent] = {}
        self._epochs = 0

    def __enter__(self) -> Hosting:
        self.bus.start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.bus.close()

    def connect(self, agent: str, script: Script, *, session: str = "s", resumes: bool = True) -> None:
        """Also again: the connection before is replaced."""
        self._epochs += 1
        self._agents[agent] = _Agent(Connected(agent, self._epochs, session, resumes, ("model",)), script)

    def disconnect(self, agent: str) -> None:
        self._agents.pop(agent, None)

    def connected(self, agent: str) -> Connected | None:
        found = self._agents.get(agent)
        return None if found is None else found.connection

    def open(self, connection: Connected) -> Channel:
        found = self._agents.get(connection.agent)
        if found is None or found.connection.epoch != connection.epoch:
            raise ChannelLost("gone")
        return self.bus.open(ME, Opening(connection.agent, connection.epoch, ME))

    def wait(self, condition: Callable[[], Any]) -> None:
        """Until it holds. Raises AssertionError."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.005)

    def _accept(self, opening: Opening, channel: Channel) -> None:
        found = self._agents.get(opening.agent)
        if found is None or found.connection.epoch != opening.epoch:
            return
        try:
            talk = Talk(channel, opening.epoch)
        except ChannelLost:
            return
        self.talks.append(talk)
        try:
            found.script(talk)
        except ChannelLost:
            talk.lost.set()


def answers(*texts: str, **done: Any) -> Script:
    """These pieces, then the end."""

    def script(talk: Talk) -> None:
        talk.deltas(1, *texts)
        talk.say("done", len(texts) + 1, **({"reason": "stop"} | done))
        talk.listen()

    return script


def fails(cause: str, *texts: str, **members: Any) -> Script:
    """An error, after these pieces."""

    def script(talk: Talk) -> None:
        talk.deltas(1, *texts)
        talk.say("error", len(texts) + 1, cause=cause, **members)
        talk.listen()

    return script


def keeps_silent(*texts: str) -> Script:
    """Nothing more, after these pieces."""

    def script(talk: Talk) -> None:
        talk.deltas(1, *texts)
        talk.listen()

    return script


def breaks_off(*texts: str) -> Script:
    """The connection is lost, after these pieces."""

    def script(talk: Talk) -> None:
        talk.deltas(1, *texts)
        talk.say("lost", cause="gone")

    return script
