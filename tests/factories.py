"""Values for tests, each with the least that must be said."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import math
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.api.body import json_body, read_body
from gateway.backend import Backend, Body, Call, Cancellation, Deadlines, Headers, Reply, Secret, Services, Target
from gateway.bus.unix import UnixBus
from gateway.core.agents import Agents
from gateway.core.catalog import Catalog, Deployment
from gateway.core.enrolments import Enrolments
from gateway.core.exchange import Exchange, OpenExchanges
from gateway.core.holds import Holds
from gateway.core.identity import Principal
from gateway.core.ledger import Ledger
from gateway.core.limits import CallLimits, Taken
from gateway.core.pool import Pool
from gateway.core.rests import Hosts, Rest
from gateway.core.routing import Candidate
from gateway.core.waiting import WaitingRoom
from gateway.dialects import document
from gateway.dialects.events import BUCKETS
from gateway.frames import Frames
from gateway.metrics import Metrics
from gateway.operations.agents import ensure_open_enrolment
from gateway.presence import Presence
from gateway.secrets import KeyHasher, Secrets, Vault
from gateway.settings import Settings
from gateway.state.agents_sqlite import SqliteAgents
from gateway.state.base import Limit
from gateway.state.conditions import COOLING, Condition, Conditions
from gateway.state.sqlite import SqliteLimits
from gateway.store import ledger
from gateway.store.catalog import Price
from gateway.store.conditions import Transition
from gateway.store.database import Database
from gateway.store.exchanges import ExchangeRow
from gateway.store.journal import Journal
from gateway.store.ledger import Booking, Entry


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


def form(fields: Mapping[str, str], file: bytes) -> tuple[bytes, str]:
    """A form with these fields and one file, and its content type."""
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    parts += [b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n', file, b"\r\n--b--\r\n"]
    return b"".join(parts), "multipart/form-data; boundary=b"


def form_call(fields: Mapping[str, str], file: bytes, path: str = "/audio/transcriptions") -> Call:
    """A form as an upload endpoint takes it."""
    raw, kind = form(fields, file)
    environ = {"CONTENT_LENGTH": str(len(raw)), "wsgi.input": io.BytesIO(raw)}
    received = read_body(environ, "form", kind, Settings())
    made = call(dialect="openai_rest", path=path)
    return dataclasses.replace(made, body=received.body, fields=received.fields, stream=received.fields.stream is True)


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


JSON: Headers = (("content-type", "application/json"),)
Step = Exception | Callable[[Call, Target], Reply] | None


class Scripted(Backend):
    """Plays its steps, one per attempt; None, and the end of the script, answer with `answer`. Remembers what it was sent.

    As the backend "tests.factories:Scripted" it is built by the gateway itself.
    """

    dialects = frozenset({"openai_chat", "openai_completions", "openai_rest"})
    needs_secret = False

    def __init__(self, options: Any = None, services: Services | None = None) -> None:
        super().__init__(options, services or Services())
        self.steps: list[Step] = []
        self.answer = b'{"id":1,"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'
        self.calls: list[Call] = []
        self.targets: list[Target] = []
        self.closed = 0

    def play(self, *steps: Step) -> Scripted:
        self.steps += steps
        return self

    def send(self, call: Call, target: Target) -> Reply:
        self.calls.append(call)
        self.targets.append(target)
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, Exception):
            raise step
        return step(call, target) if step else reply([self.answer], JSON)

    def close(self) -> None:
        self.closed += 1


class Hosting(Scripted):
    """The same, where the upstreams are agents. `attached`: the way to them."""

    needs_secret = True
    attached: Frames | None = None

    def attach(self, frames: Frames) -> None:
        self.attached = frames


class Hosted:
    """What is known of agents: by their deployment's name why one rests, and what it takes at once."""

    def __init__(self) -> None:
        self.rests: dict[str, Rest] = {}
        self.limits: dict[str, Limit] = {}

    def rest(self, candidate: Candidate) -> Rest | None:
        return self.rests.get(candidate.deployment.name)

    def limit(self, place: str, own: Limit | None) -> Limit | None:
        return self.limits.get(place, own)


def price(model: str = "m", rate: int = 1000, *, per_call_nano: int = 0, valid_from: int = 0, id: int = 1, **rates: int) -> Price:
    """Every bucket at `rate` pico-USD a token but for those that are named."""
    return Price(id, model, valid_from, dict.fromkeys(BUCKETS, rate) | rates, per_call_nano, "test", 0)


@functools.cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "gateway.db"
        with contextlib.closing(Database(f"sqlite://{path}")) as database:
            database.bind()
            database.migrate()
        return path.read_bytes()


def put_database(path: Path) -> None:
    """A SQLite file of the newest schema, made by the migrations once for all tests."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(_empty_database())


@contextlib.contextmanager
def migrated(directory: Path) -> Iterator[Database]:
    """An empty database of the newest schema, in a SQLite file."""
    put_database(directory / "gateway.db")
    database = Database(f"sqlite://{directory / 'gateway.db'}")
    database.bind()
    try:
        yield database
    finally:
        database.close()


def conditions() -> Conditions:
    """Of a host of its own."""
    directory = tempfile.TemporaryDirectory()
    made = Conditions(Path(directory.name))
    weakref.finalize(made, directory.cleanup)
    return made


class Pooled:
    """A pool of one worker on a clock; `told`: its transitions."""

    def __init__(
        self, clock: Clock | None = None, chance: float = 1.0, shared: Conditions | None = None, owner: str = "owner", hosts: Hosts | None = None
    ) -> None:
        self.clock, self.conditions, self.told = clock or Clock(), shared or conditions(), list[Transition]()
        self.wall_ms = 1_000_000_000
        self.pool = Pool(self.conditions, self.told.append, self.take, owner, lambda owner: True, self.clock, lambda: chance, self._wall, hosts)

    def _wall(self) -> int:
        return self.wall_ms + round(self.clock.now * 1000)

    def take(self, exchange: Exchange, deployment: Deployment, attempt: str) -> Taken | Rest:
        """Whatever is asked for."""
        return Taken(lambda: None)

    def cool(self, subject: str, seconds: float, reason: str) -> None:
        """As the upstream named it."""
        until = self.clock.now + seconds
        self.conditions.change(subject, lambda _: Condition(COOLING, until, reason, seconds, named=True))


def seal(text: str) -> str:
    """A seal as the ledger's, under a pepper that everybody knows."""
    return hashlib.sha256(text.encode()).hexdigest()


def booked(database: Database, entry: Entry | None, exchange: ExchangeRow | None = None) -> None:
    """Book a call that had no hold."""
    database.write(lambda: ledger.record([Booking(entry, exchange)], seal))


class Books:
    """A ledger over a database, with all that stands behind it; the journal is a directory beside the database."""

    def __init__(
        self, database: Any, directory: Path, metrics: Metrics | None = None, clock: Callable[[], float] = time.monotonic, owner: str = "owner"
    ) -> None:
        self.database, self.metrics = database, metrics or Metrics()
        self.holds = Holds(database, owner, 100, clock)
        self.journal = Journal(directory / "journal", owner)
        self.ledger = Ledger(database, self.journal, seal, self.holds, self.metrics, clock)


def call_limits(catalog: Catalog, directory: Path) -> CallLimits:
    """Limits of one worker that lives for ever; the state is in the directory `run`."""
    state = SqliteLimits(directory / "run", "owner", lambda owner: True)
    return CallLimits(state, catalog, WaitingRoom(state), 100)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def agents_of(database: Database, run_path: Path, presence: Presence) -> Agents:
    """The agents of a worker, none of which is connected."""
    secrets = Secrets(KeyHasher(bytes(32)), Vault({1: bytes(32)}, 1), ())
    enrolments = Enrolments(database, secrets, lambda enrolment, models: models, lambda: ensure_open_enrolment(database, 0))
    return Agents(UnixBus(run_path, presence.owner), SqliteAgents(run_path, presence.alive), enrolments, presence.owner, lambda: 0)
