"""The Firefox agent of ChatGPT-API-server (CONTRACTS.md, 1.4) on a real websocket, in threads. What it answers is a script: one answer for each request,
then `always`."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from tests.fakes.connecting import Connecting
from tests.fakes.websocket import WebSocketClient

OldAnswer = Callable[["OldAgent", dict[str, Any]], None]


def answers(content: str, conversation_id: str = "", response_id: str = "", *, after_s: float = 0.0) -> OldAnswer:
    """Frame 6. A conversation without an id gets a new one; one that goes on keeps its own."""

    def answer(agent: OldAgent, frame: dict[str, Any]) -> None:
        time.sleep(after_s)
        asked = json.loads(frame["data"])
        conversation = conversation_id or asked.get("conversation_id") or str(uuid.uuid4())
        data = {"response_id": response_id or str(uuid.uuid4()), "conversation_id": conversation, "content": content}
        agent.answer(frame["id"], json.dumps(data))

    return answer


def answers_error() -> OldAnswer:
    """Frame 6'."""
    return lambda agent, frame: agent.say({"id": frame["id"], "message": "error", "data": "Unknown error", "error": {}})


def answers_data(data: str) -> OldAnswer:
    """Frame 6 with whatever this is in place of its data."""
    return lambda agent, frame: agent.answer(frame["id"], data)


def answers_as(id: str, content: str = "not yours") -> OldAnswer:
    """Frame 6 under another id."""
    return lambda agent, frame: answers(content)(agent, {**frame, "id": id})


def answers_nothing() -> OldAnswer:
    return lambda agent, frame: None


def drops() -> OldAnswer:
    """The tab is closed in the middle of the request."""
    return lambda agent, frame: agent.drop()


class OldAgent(Connecting):
    """Use as a context manager, or call `connect`. `id`: what it is registered under; `kept_id`: from before, in its cookie. `asked`: the data of each
    request. It pongs at once, also while it answers; it never pings, never connects again, and serves however many requests at once."""

    def __init__(
        self,
        port: int,
        *script: OldAnswer,
        always: OldAnswer | None = None,
        kept_id: str | None = None,
        prefix: str = "",
        origin: str | None = "https://chat.openai.com",
        pongs: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`headers`: what a proxy on its way adds."""
        super().__init__(port)
        self.kept_id, self.pongs, self.offered_id = kept_id, pongs, ""
        self.on_ping: Callable[[], None] | None = None
        """What it does in place of a pong."""
        self.asked: list[dict[str, Any]] = []
        self.ids: list[str] = []
        """Of the requests' frames."""
        self._script, self._always, self._prefix, self._origin = list(script), always or answers("hello"), prefix, origin
        self._headers = headers

    def __enter__(self) -> OldAgent:
        self.connect()
        return self

    @property
    def id(self) -> str:
        return self.kept_id or ""

    def connect(self) -> None:
        """Also again, as a tab that is loaded again: the cookie is still there."""
        self.wait(lambda: not self.is_connected)
        self.offered_id = ""
        self.socket = WebSocketClient(self.port, f"{self._prefix}/client/register", origin=self._origin, headers=self._headers)
        self._begin("old-agent")
        self.wait(lambda: self.offered_id or not self.is_connected)

    def answer(self, id: str, data: str) -> None:
        self.say({"id": id, "message": "ChatGptResponse", "data": data})

    def _take(self, frame: dict[str, Any]) -> None:
        message = frame["message"]
        if message == "Connection id":
            self.kept_id = self.kept_id or frame["id"]
            self.say({"id": self.kept_id, "message": "Connection id", "data": ""})
            with self.changed:
                self.offered_id = frame["id"]
                self.changed.notify_all()
        elif message == "ping":
            with self.changed:
                self.pings += 1
                self.changed.notify_all()
            if self.on_ping is not None:
                self.on_ping()
            elif self.pongs:
                self.say({"id": frame["id"], "message": "pong", "data": ""})
        elif message == "ChatGptRequest":
            with self.changed:
                self.asked.append(json.loads(frame["data"]))
                self.ids.append(frame["id"])
                answer = self._script.pop(0) if self._script else self._always
                self.changed.notify_all()
            threading.Thread(target=answer, args=(self, frame), daemon=True).start()
