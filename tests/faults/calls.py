"""Calls of one model through a running gateway, one at a time or as a crowd."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.fakes.gateway import Answer, Broken, RawClient, RunningGateway
from tests.fakes.provider import Provider

T = TypeVar("T")
CHAT = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Outcome:
    """An answer, and whether it ended as its framing says."""

    status: int
    body: bytes
    clean: bool

    @property
    def done(self) -> bool:
        return self.body.endswith(DONE)

    def error(self) -> dict[str, Any] | None:
        """OpenAI's error object: the whole body, or the data of the last event of a stream."""
        last = self.body.rstrip(b"\n").rpartition(b"\n\n")[2]
        text = last.removeprefix(b"data: ") if last.startswith(b"data: ") else self.body
        try:
            document = json.loads(text)
        except ValueError:
            return None
        return document.get("error") if isinstance(document, dict) else None

    def truncated_silently(self) -> bool:
        """Whether a client could take a part of a stream for the whole."""
        return not self.clean or not (self.done or self.error() or b'"finish_reason": "' in self.body)


@dataclass(frozen=True)
class Calls:
    """What a test asks of `model`."""

    gateway: RunningGateway
    provider: Provider
    model: str

    def body(self, **members: Any) -> dict[str, Any]:
        return {"model": self.model, "messages": [{"role": "user", "content": "Hello"}], **members}

    def ask(self, path: str = CHAT, **members: Any) -> Answer:
        """One call over a connection of its own. Raises Broken."""
        with self.gateway.client() as client:
            client.ask(path, self.body(**members))
            return client.answer()

    def outcome(self, path: str = CHAT, **members: Any) -> Outcome:
        with self.gateway.client() as client:
            return outcome(client, path, self.body(**members))

    def crowd(self, count: int, call: Callable[[RawClient, int], T], clients: int = 16) -> list[T]:
        """`call(client, number)` for each number up to `count`, by so many clients that keep their connections."""
        return crowd(self.gateway, count, call, clients)

    def crowd_of_streams(self, count: int, clients: int = 16, **members: Any) -> list[Outcome]:
        return self.crowd(count, lambda client, _: outcome(client, CHAT, self.body(stream=True, **members)), clients)


def outcome(client: RawClient, path: str, body: Any) -> Outcome:
    client.ask(path, body)
    head = client.head()
    try:
        return Outcome(head.status, client.rest(), clean=True)
    except Broken as error:
        return Outcome(head.status, error.body, clean=False)


def crowd(gateway: RunningGateway, count: int, call: Callable[[RawClient, int], T], clients: int) -> list[T]:
    def one(first: int) -> list[T]:
        with contextlib.closing(_kept(gateway)) as kept:
            return [call(next(kept), number) for number in range(first, count, clients)]

    with ThreadPoolExecutor(clients) as pool:
        return [result for results in pool.map(one, range(min(clients, count))) for result in results]


def _kept(gateway: RunningGateway) -> Generator[RawClient, None, None]:
    """The same connection again and again, until the server closes it."""
    while True:
        with gateway.client() as client:
            yield client
            while client.sock.fileno() >= 0 and client.silent(0):
                yield client


def percentile(values: Sequence[float], share: float) -> float:
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
