"""Row 46: a request is sent again with its Idempotency-Key, while its call runs, after it ended, was cut or lost its worker. One call, one charge.

`make kill-test` runs the storm with 10,000 calls and 20 kills for each database; the suite with fewer.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.operations import ledger as books
from gateway.store import holds, ledger
from gateway.store.ledger import Entry
from gateway.store.models import database
from tests.fakes.answers import CloseAt, Default, Delay, Json, Slow
from tests.fakes.gateway import Answer, Broken, RunningGateway
from tests.fakes.postgres import Postgres
from tests.fakes.processes import children
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, DONE
from tests.faults.conftest import Measured

CALLS, KILLS = int(os.environ.get("KILL_TEST_CALLS", "160")), int(os.environ.get("KILL_TEST_KILLS", "2"))
CLIENTS = 16
PRICE = 1_000_000
REQUEST = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}
STREAMED = REQUEST | {"stream": True}


@dataclass
class Place:
    """A gateway on one of the databases, with so many workers."""

    name: str
    gateway: RunningGateway
    provider: Provider
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def key(self) -> str:
        return f"key {next(self.numbers)}"

    def ask(self, key: str, body: Any = REQUEST) -> Answer:
        """Raises Broken and OSError, as a network does."""
        with self.gateway.client() as client:
            client.ask(CHAT, body, headers={"idempotency-key": key})
            return client.answer()

    def answered(self, key: str, body: Any = REQUEST) -> Answer:
        """As a client asks that comes again until it has an answer, or is told that there will be none."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, Broken, ValueError, IndexError):
                answer = self.ask(key, body)
                if answer.status == 200 or code(answer) == "idempotency_answer_not_kept":
                    return answer
                assert answer.status in (409, 500, 502, 503), answer.body
            time.sleep(0.02)
        raise AssertionError(f"{key!r} was not answered in time")

    def charged(self) -> dict[str, Entry]:
        """What was charged, by exchange. Raises AssertionError where one was charged twice."""
        entries = self.gateway.read(lambda: ledger.entries(0, 2**62, 0, 10 * CALLS + 1000))
        found = [entry for entry in entries if entry.amount]
        assert len({entry.exchange for entry in found}) == len(found)
        return {entry.exchange: entry for entry in found}

    def deadlocks(self) -> int:
        """That PostgreSQL had to end so far."""
        if self.gateway.database_url is None:
            return 0
        return int(self.gateway.read(lambda: database.execute_sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()[0]))

    def kill(self, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def workers(self) -> list[int]:
        assert self.gateway.process is not None
        return children(self.gateway.process.pid)


@pytest.fixture(scope="module", params=["sqlite-1", "postgres-3"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    engine, _, workers = request.param.partition("-")
    directory = tmp_path_factory.mktemp("idempotency")
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(Postgres(directory / "postgres")).emptied("gateway") if engine == "postgres" else None
        provider = stack.enter_context(Provider())
        gateway = stack.enter_context(RunningGateway(directory / "gateway", {"WEB_CONCURRENCY": workers, "GATEWAY_LOG_LEVEL": "warning"}, url))
        gateway.deploy("m", provider.url, price=PRICE)
        gateway.budget(10**15, "user", 1, "total")
        time.sleep(1.2)  # every worker follows within a second
        yield Place(request.param, gateway, provider)


def code(answer: Answer) -> str:
    return str(answer.json()["error"]["code"]) if answer.status >= 400 else ""


def named(answer: Answer) -> str:
    """The exchange that an answer is of."""
    if answer.status == 200:
        return answer.headers["x-request-id"]
    found = re.search(r"/v1/requests/(\w{26})", answer.json()["error"]["message"])
    assert found is not None
    return found[1]


@pytest.mark.parametrize("body", [REQUEST, STREAMED], ids=["whole", "stream"])
def test_an_answer_is_given_again_by_every_worker_and_charged_once(place: Place, body: dict[str, Any]) -> None:
    key, before, asked = place.key(), len(place.charged()), len(place.provider.requests)
    answers = [place.ask(key, body) for _ in range(6)]
    assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, *["true"] * 5]
    assert {answer.headers["x-request-id"] for answer in answers} == {answers[0].headers["x-request-id"]}
    assert (len(place.charged()) - before, len(place.provider.requests) - asked) == (1, 1)


def test_another_request_is_refused(place: Place) -> None:
    key = place.key()
    place.ask(key)
    answer = place.ask(key, STREAMED)
    assert (answer.status, code(answer)) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("ending", ["large", "cut"])
def test_what_cannot_be_given_again_is_not_paid_again(place: Place, ending: str) -> None:
    step = Json({"choices": [], "x": "x" * 300_000, "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})
    place.provider.script(CHAT, step if ending == "large" else CloseAt(900))
    key, asked = place.key(), len(place.provider.requests)
    body = REQUEST if ending == "large" else STREAMED
    first = place.ask(key, body)
    assert first.status == 200
    again = place.ask(key, body)
    assert (again.status, code(again), again.headers["x-should-retry"]) == (409, "idempotency_answer_not_kept", "false")
    assert named(again) == first.headers["x-request-id"]
    assert place.gateway.get(f"/v1/requests/{named(again)}").json()["booked"]["amount_nano_usd"] == place.charged()[named(again)].amount
    assert len(place.provider.requests) - asked == 1


def test_fifty_at_once_are_one_call(place: Place, measured: Measured) -> None:
    place.provider.script(CHAT, Delay(0.3))
    key, before, asked = place.key(), len(place.charged()), len(place.provider.requests)
    with ThreadPoolExecutor(50) as pool:
        first = list(pool.map(lambda _: place.ask(key), range(50)))
        answers = list(pool.map(lambda _: place.answered(key), range(50)))
    statuses = collections.Counter(answer.status for answer in first)
    measured(46, f"{place.name}: 50 at once with one key: {dict(statuses)}, then 50 equal answers; 1 upstream call, 1 charge")
    assert set(statuses) <= {200, 409}
    assert all(answer.headers["retry-after"] == "1" for answer in first if answer.status == 409)
    assert {answer.body for answer in answers} == {answer.body for answer in first if answer.status == 200}
    assert (len(place.charged()) - before, len(place.provider.requests) - asked) == (1, 1)


def test_the_call_of_a_dead_worker_is_taken_over_and_charged_once(place: Place) -> None:
    place.provider.script(CHAT, Slow(0.5), Default())
    key, before, asked = place.key(), set(place.charged()), len(place.provider.requests)
    with place.gateway.client() as client:
        client.ask(CHAT, STREAMED, headers={"idempotency-key": key})
        assert client.head().status == 200
        place.kill(place.workers)
        with pytest.raises((Broken, OSError)):
            client.rest()
    answer = place.answered(key, STREAMED)
    assert answer.body.endswith(DONE)
    assert set(place.charged()) - before == {answer.headers["x-request-id"]}
    assert len(place.provider.requests) - asked == 2
    assert place.ask(key, STREAMED).body == answer.body


def left_early(place: Place, key: str, body: Any, seconds: float) -> None:
    with contextlib.suppress(OSError), place.gateway.client() as client:
        client.ask(CHAT, body, headers={"idempotency-key": key})
        time.sleep(seconds)


def insisting(place: Place, draw: random.Random) -> tuple[str, int]:
    """One request of a client that sometimes leaves and always comes back: which exchange it is charged for in the end, and the last status."""
    key, body = place.key(), draw.choice([REQUEST, STREAMED])
    if draw.random() < 0.3:
        left_early(place, key, body, draw.random() / 30)
    answer = place.answered(key, body)
    assert answer.status == 409 or body is REQUEST or answer.body.endswith(DONE)
    return named(answer), answer.status


def killing(place: Place, done: list[Any], stop: threading.Event) -> None:
    draw = random.Random(46)
    for number in range(KILLS):
        while len(done) < (number + 1) * CALLS // (KILLS + 1) and not stop.is_set():
            time.sleep(0.005)
        place.kill([draw.choice(place.workers or [0])] if not stop.is_set() else [])


@pytest.mark.timeout(900)
def test_a_storm_of_retries_under_kills_charges_each_key_once(place: Place, measured: Measured) -> None:
    place.provider.always(CHAT, Slow(0.002))
    before, asked = set(place.charged()), len(place.provider.requests)
    done: list[tuple[str, int]] = []
    stop = threading.Event()
    killer = threading.Thread(target=killing, args=(place, done, stop))
    killer.start()
    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            for outcome in pool.map(lambda number: insisting(place, random.Random(number)), range(CALLS)):
                done.append(outcome)
    finally:
        stop.set()
        killer.join()
    deadline = time.monotonic() + 20
    while place.gateway.read(holds.owners) and time.monotonic() < deadline:
        time.sleep(0.1)
    charged = [exchange for exchange in place.charged() if exchange not in before]
    audit = books.verify(place.gateway.database_url or f"sqlite://{place.gateway.directory / 'data' / 'gateway.db'}", place.gateway.secrets.hasher.hash)
    statuses = collections.Counter(status for _, status in done)
    measured(
        46,
        f"{place.name}: {CALLS} keys, {KILLS} kills, {len(place.provider.requests) - asked} upstream calls: {len(charged)} charges, {statuses[200]} answered,"
        f" {statuses[409]} told that their answer was not kept; verify: {len(audit.differences)} differences",
    )
    assert sorted(charged) == sorted(exchange for exchange, _ in done)
    assert (audit.differences, audit.holds, place.deadlocks()) == ((), 0, 0)
    assert statuses[200] > CALLS // 2
