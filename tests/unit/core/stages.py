"""What the tests of the core share: an attempt loop and a ledger on a clock that stands still, a relay before a book."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.backend import Call, Headers
from gateway.core.affinity import Affinity
from gateway.core.agent_queue import AgentQueue
from gateway.core.dispatch import Dispatcher
from gateway.core.drains import Drains
from gateway.core.exchange import Attempt, Ending, Exchange, Reservation
from gateway.core.head import Answer, read_head
from gateway.core.ledger import Ledger
from gateway.core.metering import Metered, Source
from gateway.core.policies import Policies, Weighted
from gateway.core.relay import Relay
from gateway.core.rests import Hosts
from gateway.core.routing import Candidate
from gateway.dialects.events import Usage
from gateway.errors import SettleFailed, UpstreamRefused
from gateway.logs import JsonFormatter, Redactor
from gateway.metrics import Metrics
from gateway.store import exchanges, ledger
from gateway.store.catalog import Price
from gateway.store.database import Database
from gateway.store.exchanges import ExchangeRow
from gateway.store.ledger import Entry
from tests.factories import SSE, Books, Clock, Pooled, Scripted, Step, StillClient, call, candidate, exchange, principal, reply

OK = [b'{"id":1}']
STREAM = b'{"model":"m","stream":true}'


class NoBindings:
    """A store in which no conversation is bound."""

    def read(self, work: Any) -> Any:
        return None

    def write(self, work: Any) -> Any:
        raise AssertionError("nothing is bound here")


class Attempts(Pooled):
    """A dispatcher on a clock, and what it needs."""

    def __init__(self, hosts: Hosts | None = None, queue: AgentQueue | None = None) -> None:
        super().__init__(hosts=hosts)
        affinity = Affinity(NoBindings())  # type: ignore[arg-type]
        self.dispatcher = Dispatcher(self.pool, Policies(Weighted(), lambda name: Weighted()), affinity, Metrics(), self.clock, queue)

    def send(self, *candidates: Candidate, made: Call | None = None, user: int = 1) -> tuple[Answer, Exchange]:
        ex = self.exchange(made, user)
        return self.dispatcher.send(ex, candidates), ex

    def exchange(self, made: Call | None = None, user: int = 1) -> Exchange:
        ex = exchange(made, clock=self.clock)
        ex.principal = principal(user, user)
        return ex


def served(name: str, *steps: Step, **fields: Any) -> tuple[Candidate, Scripted]:
    backend = Scripted().play(*steps)
    backend.answer = OK[0]
    return candidate(name, backend=backend, **fields), backend


def refused(status: int, code: str | None = None, reset_s: float | None = None) -> UpstreamRefused:
    return UpstreamRefused(
        status, (("content-type", "application/json"), ("x-request-id", "up")), b'{"error":{"message":"no"}}', upstream_code=code, reset_s=reset_s
    )


class Book:
    """Stands for the ledger: remembers what was settled, and after how many delivered bytes."""

    def __init__(self, fails: bool = False) -> None:
        self.settled: list[tuple[Ending, Metered]] = []
        self.delivered_at_settle = -1
        self.delivered = b""
        self.fails = fails

    def settle(self, exchange: Exchange, ending: Ending, metered: Metered) -> None:
        if exchange.ending is not None:
            return
        exchange.ending = ending
        self.delivered_at_settle = len(self.delivered)
        self.settled.append((ending, metered))
        exchange.release()
        if self.fails:
            raise SettleFailed("not booked")


def relayed(
    items: Sequence[bytes | Exception],
    book: Book,
    *,
    headers: Headers = SSE,
    raw: bytes = STREAM,
    hides: bool = False,
    dialect: str = "openai_chat",
    ex: Exchange | None = None,
) -> Relay:
    answer = read_head(reply(items, headers))
    answer.hides_usage = hides
    return Relay(answer, ex or exchange(call(raw, dialect)), book, Drains())  # type: ignore[arg-type]


def drained(relay: Relay, book: Book) -> bytes:
    for block in relay:
        book.delivered += block
    relay.close()
    return book.delivered


def chunk(text: str, **more: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}], **more}).encode() + b"\n\n"


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'
DONE = b"data: [DONE]\n\n"


USED = Metered(Usage(input_uncached=10, cache_read=20, output_text=30, raw={"prompt_tokens": 30}), Source.PROVIDER)


class Ended(BaseException):
    """As a greenlet is ended from outside."""


class Failing:
    """A database whose every write fails in one way."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def write(self, work: Any) -> Any:
        raise self.error


class Fickle(Failing):
    """Fails until `back` is the database."""

    back: Any = None

    def write(self, work: Any) -> Any:
        return super().write(work) if self.back is None else self.back.write(work)


class Bookkeeping:
    """A ledger over a real database."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database, self.clock, self.metrics = database, Clock(), Metrics()
        self.books = Books(database, directory, self.metrics, self.clock)
        self.ledger = self.books.ledger

    def failing(self, error: BaseException) -> Ledger:
        """Neither the database nor the journal takes anything."""
        return Books(Failing(error), Path("/dev/null"), self.metrics, self.clock).ledger

    def answered(self, priced: Price | None = None, attempts: int = 1) -> Exchange:
        """An exchange whose last attempt was answered."""
        made = self.begun()
        made.reservation = Reservation({"d": priced})
        made.attempts = [Attempt("other", "other-key", "m", self.clock.now, "upstream_timeout")] * (attempts - 1)
        made.attempts.append(Attempt("d", "d-key", "real", self.clock.now, "answered", 200, self.clock.now))
        made.status = 200
        return made

    def begun(self, key_id: int = 7) -> Exchange:
        made = exchange(client=StillClient(), clock=self.clock)
        made.principal = principal(key_id, user_id=3)
        return made

    def entries(self) -> list[Entry]:
        return self.database.read(lambda: ledger.entries(0, 2**62, 0, 1000))

    def row(self, made: Exchange) -> ExchangeRow | None:
        return self.database.read(lambda: exchanges.find_exchange(made.id))

    def count(self, name: str, **labels: str) -> float:
        for line in self.metrics.exposition().decode().splitlines():
            if line.startswith(name) and all(f'{label}="{value}"' in line for label, value in labels.items()):
                return float(line.rpartition(" ")[2])
        return 0.0


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    """What the log says, as it would be written."""
    formatter = JsonFormatter(Redactor())
    return [json.loads(formatter.format(record)) for record in caplog.records if record.getMessage().startswith(message)]
