"""Values for tests, each with the least that must be said."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gateway.api.body import json_body
from gateway.backend import Body, Call, Cancellation, Deadlines, Headers, Reply, Secret
from gateway.core.catalog import Deployment
from gateway.core.exchange import Exchange, OpenExchanges
from gateway.core.identity import Principal
from gateway.core.routing import Candidate
from gateway.dialects import document
from gateway.store.catalog import Price


class Clock:
    """Monotonic seconds under the test's hand."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class StillClient:
    """A client that leaves when the test says so."""

    def __init__(self) -> None:
        self.leave: Callable[[], None] = lambda: None
        self.disarmed = 0

    def on_leave(self, callback: Callable[[], None]) -> None:
        self.leave = callback

    def disarm(self) -> None:
        self.disarmed += 1


def call(raw: bytes = b'{"model":"m"}', dialect: str = "openai_chat", path: str = "/chat/completions") -> Call:
    read = document.read(raw)
    return Call(
        dialect=dialect,
        method="POST",
        path=path,
        query="",
        headers=(),
        body=json_body(read, {}),
        fields=read.fields,
        document=read.parsed,
        stream=read.fields.stream is True,
        deadline=math.inf,
        cancel=Cancellation(),
    )


def sent(body: Body) -> bytes:
    return b"".join(body.open())


def principal(key_id: int = 1, user_id: int = 1, models: tuple[str, ...] = ()) -> Principal:
    return Principal(key_id, "key", user_id, models)


def exchange(made: Call | None = None, client: Any = None, clock: Callable[[], float] | None = None, model: str = "m") -> Exchange:
    exchanges = OpenExchanges("owner", clock) if clock else OpenExchanges("owner")
    return exchanges.begin(made or call(), principal(), client or StillClient(), "/chat/completions", model)


def deployment(name: str = "d", **fields: Any) -> Deployment:
    values: dict[str, Any] = {
        "name": name,
        "model": "m",
        "backend_name": "fake",
        "backend": None,
        "base_url": "",
        "upstream_model": None,
        "credential": f"{name}-key",
        "secret": Secret("sk-secret"),
        "priority": 0,
        "weight": 1,
        "deadlines": Deadlines(),
        "include_usage": True,
        "owner": "database",
        "subject": f"deployment:{name}",
        "credential_subject": f"credential:{name}",
    }
    return Deployment(**(values | fields))


def candidate(name: str = "d", model: str = "m", price: Price | None = None, **fields: Any) -> Candidate:
    return Candidate(deployment(name, **fields), model, price)


class Chunks:
    """An iterator of blocks; an exception among them is raised in its turn. Counts how often it was closed."""

    def __init__(self, items: Iterable[bytes | Exception]) -> None:
        self._items: Iterator[bytes | Exception] = iter(items)
        self.closed = 0

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> bytes:
        item = next(self._items)
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.closed += 1


SSE: Headers = (("content-type", "text/event-stream"),)


def reply(items: Sequence[bytes | Exception], headers: Headers = SSE, status: int = 200) -> Reply:
    chunks = Chunks(items)
    return Reply(status, headers, chunks, chunks.close)
