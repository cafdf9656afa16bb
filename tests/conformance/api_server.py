"""A gateway as ChatGPT-API-server's clients and agents meet it: what its tests share."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.operations.api_server import add_user
from gateway.store import catalog
from tests.conformance.families import CORS
from tests.fakes.gateway import Answer, RunningGateway, now
from tests.fakes.old_agents import OldAgent, OldAnswer

ADMIN = "admin-key-of-the-tests"
NO_CLIENTS = {"error": "No available clients"}
ELSEWHERE = {"x-forwarded-for": "203.0.113.7"}
"""A request that a proxy on this host passed on."""


@dataclass
class Family:
    """`agent` connects one; all of them are gone when the test is over."""

    running: RunningGateway
    agents: ExitStack = field(default_factory=ExitStack)

    @property
    def port(self) -> int:
        return self.running.port

    def ask(self, content: Any = "hi", conversation: str | None = None, key: str | None = ADMIN, *, prefix: str = "", **more: Any) -> Answer:
        """A prompt, as `curl -d` sends it: with a form's content type."""
        document = {"content": content} | ({} if conversation is None else {"conversation_id": conversation}) | more
        return self.post("/api/ask", document, key, prefix=prefix)

    def post(self, path: str, body: Any, key: str | None = None, *, prefix: str = "", **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        shown = {} if key is None else {"authorization": key}
        answer = self.running.request("POST", prefix + path, raw, None, {"content-type": "application/x-www-form-urlencoded"} | shown | headers)
        assert {name: answer.headers.get(name) for name in CORS} == CORS
        return answer

    def get(self, path: str, **headers: str) -> Answer:
        answer = self.running.get(path, None, headers)
        assert {name: answer.headers.get(name) for name in CORS} == CORS
        return answer

    def connections(self, **headers: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/api/connections", **headers).json()["connections"]
        return found

    def connected(self) -> set[str]:
        return {entry["Id"] for entry in self.connections()}

    def agent(self, *script: OldAnswer, port: int | None = None, **options: Any) -> OldAgent:
        """One that every worker may ask."""
        agent = self.agents.enter_context(OldAgent(port or self.port, *script, **options))
        self.wait(lambda: agent.id in self.connected())
        self.wait_catalog()
        return agent

    def gone(self, agent: OldAgent) -> None:
        """The agent closes its connection, and the gateway knows it."""
        agent.close()
        self.wait(lambda: agent.id not in self.connected())

    def reconnected(self, agent: OldAgent) -> None:
        agent.connect()
        self.wait(lambda: agent.id in self.connected())

    def wait_catalog(self) -> None:
        """Until each worker knows what the database holds: they answer in turn, or as it comes."""
        generation = self.running.read(catalog.generation)
        alike = 0
        deadline = time.monotonic() + 5
        while alike < (1 if "WEB_CONCURRENCY" not in self.running.environment else 12):
            alike = alike + 1 if self.running.get("/readyz", key=None).json()["generation"] >= generation else 0
            assert time.monotonic() < deadline, "the catalog does not follow the database"
            time.sleep(0.01)

    def patience(self, seconds: float) -> None:
        """How long a prompt may wait for an agent."""
        self.running.limit_model("api-server", queue_s=seconds)
        self.wait_catalog()

    def user(self) -> tuple[str, str]:
        """A user's id and token."""
        made = add_user(self.running.database, self.running.secrets, now())
        return made.user_id, made.token.reveal()

    @staticmethod
    def wait(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.02)


def told(answer: Answer) -> tuple[int, Any]:
    return answer.status, answer.json()


def is_uuid4(text: str) -> bool:
    return str(uuid.UUID(text)) == text and uuid.UUID(text).version == 4


class Asking:
    """A prompt under way, in a thread."""

    def __init__(self, family: Family, *arguments: Any, **options: Any) -> None:
        self._answer: list[Answer] = []
        self.began = time.monotonic()
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._ask, args=(family, arguments, options), daemon=True)
        self._thread.start()

    def _ask(self, family: Family, arguments: Any, options: Any) -> None:
        self._answer.append(family.ask(*arguments, **options))
        self.seconds = time.monotonic() - self.began

    @property
    def is_answered(self) -> bool:
        return bool(self._answer)

    def answer(self, timeout_s: float = 20.0) -> Answer:
        self._thread.join(timeout_s)
        assert self._answer, "no answer"
        return self._answer[0]


@contextmanager
def family_in(directory: Path, **environment: str) -> Iterator[Family]:
    """A gateway of its own, at which no agent was yet."""
    with RunningGateway(directory, {"GATEWAY_ADMIN_KEY": ADMIN} | environment) as running:
        family = Family(running)
        with family.agents:
            yield family


@contextmanager
def left(family: Family) -> Iterator[Family]:
    """The same gateway for each test, with the agents of none before."""
    with ExitStack() as family.agents:
        yield family
    family.wait(lambda: not family.connections())
