"""Agents of a gateway that runs: their tokens, and which of its workers has a connection."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gateway.operations.agents import enrol
from tests.fakes.agents import Agent
from tests.fakes.gateway import Answer, Broken, RawClient, RunningGateway, now
from tests.fakes.processes import accepted_by, children

CHAT = "/v1/chat/completions"
PATIENCE_S = 10.0


def enrolled(gateway: RunningGateway, name: str, *models: str, **options: Any) -> str:
    """A token that covers these models, over a pool of its own."""
    gateway.database.bind()
    return enrol(gateway.database, gateway.secrets.hasher, name, models, now(), **({"pool": name} | options)).token.reveal()


def workers(gateway: RunningGateway) -> list[int]:
    assert gateway.process is not None
    return children(gateway.process.pid)


def worker_of(gateway: RunningGateway, sock: socket.socket) -> int | None:
    """The process that has the other end of a connection to the gateway; None where nobody accepted it yet."""
    return workers_of(gateway, [sock])[0]


def workers_of(gateway: RunningGateway, socks: Sequence[socket.socket]) -> list[int | None]:
    """The same of many."""
    return accepted_by(gateway.port, workers(gateway), socks)


def client_where(gateway: RunningGateway, fits: Callable[[int], bool]) -> RawClient:
    """A connection, kept open, to a worker that fits. Raises AssertionError where there is none."""
    others: list[RawClient] = []
    deadline = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < deadline:
            client = gateway.client()
            client.ask("/healthz", method="GET")
            client.answer()
            worker = worker_of(gateway, client.sock)
            if worker is not None and fits(worker):
                return client
            others.append(client)
    finally:
        for other in others:
            other.sock.close()
    raise AssertionError("no such worker answers")


def connected_where(gateway: RunningGateway, agent: Agent, fits: Callable[[int], bool]) -> int:
    """Connect the agent until its worker fits; that one's process. Raises AssertionError."""
    deadline, stays, agent.stays = time.monotonic() + PATIENCE_S, agent.stays, False
    while time.monotonic() < deadline:
        agent.connect()
        worker = worker_of(gateway, agent.socket.sock)
        if worker is not None and fits(worker):
            agent.stays = stays
            return worker
        agent.drop()
        agent.wait_closed()
    raise AssertionError("no such worker lets it in")


def kill(gateway: RunningGateway, worker: int) -> float:
    """kill -9; when (monotonic)."""
    assert worker in workers(gateway)
    at = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    return at


def wait_served(gateway: RunningGateway, *models: str) -> None:
    """Every worker follows the catalog by itself."""
    for pid in workers(gateway):
        with client_where(gateway, pid.__eq__) as client:
            eventually(lambda client=client: set(models) <= _served(client), f"worker {pid} does not serve {models}")


def _served(client: RawClient) -> set[str]:
    client.ask("/v1/models", method="GET")
    return {model["id"] for model in client.answer().json()["data"]}


def eventually(holds: Callable[[], Any], otherwise: str = "it never happened", timeout_s: float = PATIENCE_S) -> float:
    """After how many seconds it held. Raises AssertionError."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout_s, otherwise
        time.sleep(0.01)
    return time.monotonic() - began


def asking(model: str, content: str, **members: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **members}


class Streaming:
    """A call that streams, read in a thread of its own: `pieces` of text, and when each came (monotonic). `error`: the error event's, or the body's."""

    def __init__(self, client: RawClient, model: str, content: str = "Hello") -> None:
        self._client, self.content = client, content
        self.pieces: list[str] = []
        self.times: list[float] = []
        self.status, self.error, self.reason, self.whole = 0, "", "", False
        self.over_at = 0.0
        client.ask(CHAT, asking(model, content, stream=True))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def wait_pieces(self, count: int) -> None:
        eventually(lambda: len(self.pieces) >= count, f"{self.pieces} {self.error}")

    def join(self, timeout_s: float = 20.0) -> Streaming:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the stream does not end"
        self._client.sock.close()
        return self

    def _read(self) -> None:
        head = self._client.head()
        self.status = head.status
        inbox = b""
        with contextlib.suppress(Broken, OSError):
            while block := self._client.block():
                *events, inbox = (inbox + block).split(b"\n\n")
                for event in events:
                    self._take(event)
            self._ended(head, inbox)
        self.over_at = self.over_at or time.monotonic()

    def _take(self, event: bytes) -> None:
        if event == b"data: [DONE]":
            self.whole, self.over_at = not self.error, time.monotonic()
        elif event.startswith(b"data: "):
            document = json.loads(event[6:])
            if "error" in document:
                self.error, self.over_at = str(document["error"]["message"]), time.monotonic()
                return
            for choice in document.get("choices", ()):
                self.reason = choice.get("finish_reason") or self.reason
                if text := choice["delta"].get("content"):
                    self.pieces.append(text)
                    self.times.append(time.monotonic())

    def _ended(self, head: Answer, rest: bytes) -> None:
        if head.status != 200:
            self.error = json.loads(rest)["error"]["message"]
