from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.backend import Call, Deadlines, Reply, Secret, Services, Target
from gateway.core.admission import Admission
from gateway.core.affinity import Affinity
from gateway.core.caller import CallersUpstream
from gateway.core.catalog import Backends, Catalog
from gateway.core.dispatch import Dispatcher
from gateway.core.exchange import Exchange, OpenExchanges
from gateway.core.gateway import LAST_WORDS_S, Gateway
from gateway.core.housekeeping import Housekeeping
from gateway.core.policies import Policies, Weighted
from gateway.core.pool import Pool
from gateway.core.routing import Candidate, Router
from gateway.core.transitions import Transitions
from gateway.errors import Cancelled, Draining, GatewayError, ModelNotFound, PermissionDenied, SettleFailed, UpstreamError, UpstreamRefused, UpstreamTimeout
from gateway.metrics import Metrics
from gateway.presence import Presence
from gateway.secrets import Vault
from gateway.settings import Settings
from gateway.state.conditions import Conditions
from gateway.store import catalog as rows
from gateway.store import exchanges, ledger
from gateway.store.database import Database
from gateway.store.exchanges import ExchangeRow
from gateway.store.ledger import Entry
from tests.factories import JSON, SSE, Books, Chunks, Scripted, StillClient, agents_of, call, call_limits, migrated, principal

DONE = b"data: [DONE]\n\n"
CONTENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
STREAM = b'{"model":"m","stream":true}'


class Stage:
    """A gateway over a real database, with one model "m" that a scripted backend serves."""

    def __init__(self, database: Database, run_path: Path) -> None:
        self.database, self.metrics = database, Metrics()
        self.backends = Backends(Services())
        catalog = Catalog(database, Vault({1: b"m" * 32}, 1), self.backends, Settings().deadlines, None, lambda *secrets: None)
        self.presence = Presence(run_path)
        limits, conditions = call_limits(catalog, run_path), Conditions(run_path)
        transitions = Transitions(database, conditions, self.presence)
        self.pool = Pool(conditions, transitions.tell, limits.lease, self.presence.owner, self.presence.alive)
        self.exchanges = OpenExchanges(self.presence.owner)
        books = Books(database, run_path, self.metrics, owner=self.presence.owner)
        self.gateway = Gateway(
            exchanges=self.exchanges,
            router=Router(catalog, "free"),
            admission=Admission(limits, books.holds, catalog, False),
            dispatcher=Dispatcher(self.pool, Policies(Weighted(), lambda name: Weighted()), Affinity(database), self.metrics),
            ledger=books.ledger,
            housekeeping=Housekeeping(database, books.journal, books.ledger, books.holds, self.presence, run_path / "housekeeping.lock"),
            catalog=catalog,
            presence=self.presence,
            metrics=self.metrics,
            transitions=transitions,
            agents=agents_of(database, run_path, self.presence),
        )
        database.write(lambda: rows.create_deployment("d", rows.create_model("m", 0).id, "tests.factories:Scripted", 0))
        catalog.refresh()
        (deployment,) = catalog.snapshot.find("m")
        assert isinstance(deployment.backend, Scripted)
        self.backend = deployment.backend

    def begin(self, raw: bytes = b'{"model":"m"}', model: str = "m", client: Any = None, models: tuple[str, ...] = ()) -> Exchange:
        return self.gateway.begin(call(raw), principal(models=models), client or StillClient(), "/chat/completions", model, "theirs")

    def entry(self, exchange: Exchange) -> Entry | None:
        return self.database.read(lambda: ledger.find_entry(exchange.id))

    def row(self, exchange: Exchange) -> ExchangeRow | None:
        return self.database.read(lambda: exchanges.find_exchange(exchange.id))

    def nothing_is_held(self) -> bool:
        return len(self.exchanges) == 0 and not any(self.pool.standings.in_flight.values())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with migrated(tmp_path) as database:
        made = Stage(database, tmp_path / "run")
        yield made
        made.gateway.close()


def answering(*items: bytes | Exception, headers: Any = SSE) -> tuple[Callable[[Call, Target], Reply], Chunks]:
    chunks = Chunks(items)
    return lambda call, target: Reply(200, headers, chunks, chunks.close), chunks


def test_whole_answer_is_booked_and_everything_given_back_before_it_is_returned(stage: Stage) -> None:
    exchange = stage.begin()
    relay = stage.gateway.handle(exchange)
    assert relay.body == stage.backend.answer
    entry = stage.entry(exchange)
    assert entry is not None
    assert (entry.ending, entry.usage.input_tokens, entry.usage.output_tokens) == ("complete", 3, 4)
    assert stage.nothing_is_held()


def test_stream_is_held_until_its_terminal_event_and_then_given_back(stage: Stage) -> None:
    step, chunks = answering(CONTENT, DONE)
    stage.backend.play(step)
    exchange = stage.begin(STREAM)
    relay = stage.gateway.handle(exchange)
    assert next(relay) == CONTENT
    assert stage.entry(exchange) is None
    assert len(stage.exchanges) == 1
    assert next(relay) == DONE
    assert stage.entry(exchange) is not None
    assert stage.nothing_is_held()
    relay.close()
    assert chunks.closed == 1


@pytest.mark.parametrize(
    ("model", "models", "error"),
    [("other", (), ModelNotFound), ("m", ("n",), PermissionDenied)],
)
def test_refused_call_is_recorded_and_holds_nothing(stage: Stage, model: str, models: tuple[str, ...], error: type[GatewayError]) -> None:
    exchange = stage.begin(model=model, models=models)
    with pytest.raises(error):
        stage.gateway.handle(exchange)
    row = stage.row(exchange)
    assert row is not None
    assert (row.ending, row.status, json.loads(row.receipt)["client_request_id"]) == ("refused", error.status, "theirs")
    assert stage.entry(exchange) is None
    assert stage.nothing_is_held()
    assert stage.backend.calls == []


@pytest.mark.parametrize(
    ("error", "status", "ending"),
    [(UpstreamError("no"), 502, "upstream_error"), (KeyError("a stranger's mistake"), 500, "upstream_error")],
)
def test_failed_call_is_booked_once_and_holds_nothing(stage: Stage, error: Exception, status: int, ending: str) -> None:
    stage.backend.play(error)
    exchange = stage.begin()
    with pytest.raises(type(error)):
        stage.gateway.handle(exchange)
    entry = stage.entry(exchange)
    assert entry is not None
    assert (entry.amount, entry.ending, exchange.status) == (0, ending, status)
    assert stage.nothing_is_held()


def test_client_that_leaves_while_the_upstream_is_silent_ends_the_call(stage: Stage) -> None:
    client = StillClient()

    def silent(call: Call, target: Target) -> Reply:
        client.leave()
        raise Cancelled(str(call.cancel.reason))

    stage.backend.play(silent)
    exchange = stage.begin(client=client)
    with pytest.raises(Cancelled):
        stage.gateway.handle(exchange)
    entry = stage.entry(exchange)
    assert entry is not None
    assert (entry.ending, exchange.status) == ("client_gone", 499)
    assert stage.nothing_is_held()
    assert client.disarmed == 1


def test_call_that_a_drain_gives_up_before_its_answer_may_be_asked_elsewhere(stage: Stage) -> None:
    def given_up(call: Call, target: Target) -> Reply:
        stage.exchanges.give_up("draining")
        raise Cancelled(str(call.cancel.reason))

    stage.backend.play(given_up)
    exchange = stage.begin()
    with pytest.raises(Draining) as caught:
        stage.gateway.handle(exchange)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)
    entry = stage.entry(exchange)
    assert entry is not None
    assert (entry.ending, exchange.status, exchange.error) == ("upstream_error", 503, "draining")


def test_whole_answer_whose_commit_fails_is_withheld_and_its_reply_closed(stage: Stage) -> None:
    step, chunks = answering(b"{}", headers=JSON)
    stage.backend.play(step)
    exchange = stage.begin()
    stage.database.close()
    with pytest.raises(SettleFailed):
        stage.gateway.handle(exchange)
    assert chunks.closed == 1
    assert stage.nothing_is_held()


def test_price_of_the_beginning_holds_though_it_changes_while_the_answer_streams(stage: Stage) -> None:
    stage.database.write(lambda: rows.add_price("m", 0, {"input_uncached": 0, "output_text": 1000}, 0))
    stage.gateway.catalog.refresh()
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":5,"total_tokens":5}}\n\n'
    step, _ = answering(CONTENT, usage, DONE)
    stage.backend.play(step)
    exchange = stage.begin(STREAM)
    relay = stage.gateway.handle(exchange)
    next(relay)
    stage.database.write(lambda: rows.add_price("m", 1, {"input_uncached": 0, "output_text": 9000}, 0))
    stage.gateway.catalog.refresh()
    assert b"".join(relay) == DONE
    entry = stage.entry(exchange)
    assert entry is not None
    assert entry.amount == 5


# start, drain, close


def test_started_gateway_has_its_catalog_its_presence_and_its_gauge(stage: Stage) -> None:
    stage.gateway.start()
    assert stage.presence.alive(stage.presence.owner)
    assert stage.gateway.catalog.generation > 0
    stage.begin()
    deadline = time.monotonic() + 5
    while b"gateway_open_exchanges 1.0" not in stage.metrics.exposition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"gateway_open_exchanges 1.0" in stage.metrics.exposition()
    stage.gateway.close()
    assert not stage.presence.alive(stage.presence.owner)
    assert stage.backend.closed == 1


def test_drain_waits_for_calls_under_way_and_serves_what_still_arrives(stage: Stage) -> None:
    for _ in range(2):
        step, _ = answering(CONTENT, DONE)
        stage.backend.play(step)
    relay = stage.gateway.handle(stage.begin(STREAM))
    draining = threading.Thread(target=stage.gateway.drain, args=(time.monotonic() + LAST_WORDS_S + 1,))
    draining.start()
    while not stage.gateway.admission.draining:
        time.sleep(0.01)
    late = stage.gateway.handle(stage.begin(STREAM))
    assert b"".join(relay) == b"".join(late) == CONTENT + DONE
    draining.join(10)
    with pytest.raises(Draining):
        stage.gateway.handle(stage.begin())


def test_drain_gives_up_what_does_not_end_and_lets_it_say_so(stage: Stage) -> None:
    waited = threading.Event()

    class Endless(Chunks):
        def __next__(self) -> bytes:
            if not waited.is_set():
                waited.set()
                return CONTENT
            while exchange.call.cancel.reason is None:
                time.sleep(0.01)
            raise Cancelled(exchange.call.cancel.reason)

    chunks = Endless(())
    stage.backend.play(lambda call, target: Reply(200, SSE, chunks, chunks.close))
    exchange = stage.begin(STREAM)
    relay = stage.gateway.handle(exchange)
    draining = threading.Thread(target=stage.gateway.drain, args=(time.monotonic() + LAST_WORDS_S + 0.2,))
    draining.start()
    told = b"".join(relay)
    draining.join(10)
    assert told.startswith(CONTENT)
    assert b"shutting down" in told
    assert DONE not in told
    entry = stage.entry(exchange)
    assert entry is not None
    assert entry.ending == "upstream_truncated"
    assert stage.nothing_is_held()


def own(stage: Stage, secret: str = "callers-own") -> Candidate:
    return CallersUpstream("chatgpt", "scripted", stage.backend, "http://web", Deadlines()).candidate(Secret(secret), "m", None)


def test_candidate_that_the_client_brought_is_the_only_one(stage: Stage) -> None:
    exchange = stage.begin(model="unknown to the catalog")
    relay = stage.gateway.handle(exchange, [own(stage)])
    assert relay.body == stage.backend.answer
    assert stage.backend.targets[0].secret.reveal() == "callers-own"
    row, entry = stage.row(exchange), stage.entry(exchange)
    assert row is not None
    assert entry is not None
    assert (json.loads(row.receipt)["candidates"], entry.deployment, entry.credential) == (["chatgpt"], "chatgpt", None)
    assert stage.nothing_is_held()


@pytest.mark.parametrize(
    ("error", "status", "ending"), [(UpstreamRefused(504, (), b""), 504, "upstream_error"), (UpstreamTimeout("late", phase="total"), 500, "timeout")]
)
def test_what_a_client_with_a_credential_of_its_own_is_told_is_what_is_recorded(stage: Stage, error: UpstreamError, status: int, ending: str) -> None:
    stage.backend.play(error)
    exchange = stage.begin()
    with pytest.raises(type(error)):
        stage.gateway.handle(exchange, [own(stage)])
    row = stage.row(exchange)
    assert row is not None
    assert (row.status, row.ending) == (status, ending)
    assert stage.nothing_is_held()
