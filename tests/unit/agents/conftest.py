"""The Python agent between a fake gateway and a fake provider, all on real sockets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from agents.openai_agent import run
from tests.fakes.agent_gateway import AgentGateway
from tests.fakes.provider import Provider
from tests.unit.backends.conftest import Authority, authority

__all__ = ["Authority", "authority"]
TOKEN = "gwa_token-of-the-tests"


@dataclass
class Running:
    """An agent in a thread of its own. `status`: what it came to, once it ended."""

    connect: str
    upstream: str
    options: dict[str, Any]
    stop: threading.Event = field(default_factory=threading.Event)
    status: int | None = None
    thread: threading.Thread | None = None

    def start(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.status = run(self.connect, TOKEN, self.upstream, stop=self.stop, **self.options)

    def wait(self, timeout_s: float = 10.0) -> int | None:
        assert self.thread is not None
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "the agent does not end"
        return self.status


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as serving:
        yield serving


@pytest.fixture
def gateway() -> Iterator[AgentGateway]:
    with AgentGateway() as serving:
        yield serving


class Starter:
    """Starts agents, and ends them with the test."""

    def __init__(self, gateway: AgentGateway, provider: Provider) -> None:
        self._gateway, self._provider = gateway, provider
        self._started: list[Running] = []

    def __call__(self, *, connect: str = "", upstream: str = "", **options: Any) -> Running:
        running = Running(connect or self._gateway.url, upstream or self._provider.url, options)
        self._started.append(running)
        running.start()
        return running

    def end(self) -> None:
        for running in self._started:
            running.stop.set()
        self._gateway.drop()  # or it would wait for what is under way
        for running in self._started:
            running.wait(40)


@pytest.fixture
def start(gateway: AgentGateway, provider: Provider) -> Iterator[Starter]:
    starter = Starter(gateway, provider)
    yield starter
    starter.end()
