from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.core.agent_queue import SIZE, AgentQueue, queue_of
from gateway.core.exchange import Exchange, attempt_id
from gateway.core.rests import NOT_CONNECTED, NOT_SERVED, RECONNECTING
from gateway.core.routing import Candidate
from gateway.core.waiting import WaitingRoom
from gateway.errors import Cancelled
from gateway.state.base import CONCURRENCY, QUEUE, StateUnavailable
from gateway.state.sqlite import SqliteLimits
from tests.factories import Hosting, Scripted, candidate, exchange


class Breaking(SqliteLimits):
    """Nobody can leave a queue while it `fails`."""

    fails = False

    def leave(self, queue: str, call: str) -> None:
        if self.fails:
            raise StateUnavailable("away")
        super().leave(queue, call)


class Stage:
    """`free` is the candidate that is leased next; None while all are busy. `leases` counts how often one was."""

    def __init__(self, directory: Path) -> None:
        self.state = Breaking(directory, "me", lambda owner: True)
        self.model: Any = None
        self.queue = AgentQueue(WaitingRoom(self.state), self.state, SimpleNamespace(snapshot=self))  # type: ignore[arg-type]
        self.agent = hosted("a")
        self.free: Candidate | None = None
        self.leases = 0

    def configured(self, size: int | None, seconds: float | None) -> None:
        self.model_of_that = SimpleNamespace(queue_size=size, queue_s=seconds)

    model_of_that: Any = None

    def lease(self) -> Candidate | None:
        if self.free is not None:
            self.leases += 1
        return self.free

    def asked(self, reason: str = CONCURRENCY, *others: Candidate) -> Exchange:
        ex = exchange()
        ex.queue = queue_of(ex, [self.agent, *others], [self.agent, *others])
        ex.excluded[self.agent.deployment.place] = reason
        return ex

    def wait(self, ex: Exchange) -> Candidate | None:
        return self.queue.wait(ex, [self.agent], self.lease)


def hosted(name: str, **fields: Any) -> Candidate:
    return candidate(name, backend=Hosting(), **fields)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    stage.model = lambda asked: stage.model_of_that
    yield stage
    stage.state.close()


def test_a_call_waits_with_those_for_its_model_or_for_its_only_agent() -> None:
    ex, one, other = exchange(model="llama3"), hosted("a", credential_subject="credential:1-9.1"), hosted("b")
    served = candidate("c", backend=Scripted())
    assert queue_of(ex, [one, other], [one, other, served]) == "agents:llama3"
    assert queue_of(ex, [one, served], [one, other, served]) == "agent:credential:1-9"
    assert queue_of(ex, [served], [served]) is None
    assert queue_of(ex, [], []) is None
    ex.served_by = "api-server"
    assert queue_of(ex, [one, other], [one, other]) == "agents:api-server"


def test_a_call_that_tried_some_agents_keeps_nobody_from_these() -> None:
    ex, one, other, tried = exchange(model="llama3"), hosted("a"), hosted("b"), hosted("c")
    left = queue_of(ex, [one, other], [one, other, tried])
    assert left != queue_of(ex, [one, other, tried], [one, other, tried])
    assert left == queue_of(ex, [other, one], [tried, other, one])


@pytest.mark.parametrize("reason", [CONCURRENCY, RECONNECTING, QUEUE])
def test_who_is_busy_or_back_in_a_moment_is_waited_for(stage: Stage, reason: str) -> None:
    ex = stage.asked(reason)
    timer = threading.Timer(0.1, setattr, (stage, "free", stage.agent))
    timer.start()
    assert stage.wait(ex) is stage.agent
    timer.join()
    assert stage.leases == 1
    assert ex.queue is not None
    assert stage.state.line(ex.queue).own == frozenset()


@pytest.mark.parametrize("reason", [NOT_CONNECTED, NOT_SERVED, "quarantined", "rate_limited"])
def test_who_will_not_be_there_is_not_waited_for(stage: Stage, reason: str) -> None:
    began = time.monotonic()
    assert stage.wait(stage.asked(reason)) is None
    assert time.monotonic() - began < 0.5


def test_without_agents_nobody_waits(stage: Stage) -> None:
    ex = exchange()
    other = candidate("c", backend=Scripted())
    ex.excluded["c"] = CONCURRENCY
    ex.queue = queue_of(ex, [other], [other])
    assert stage.queue.wait(ex, [other], stage.lease) is None


def test_a_wait_ends_when_nobody_can_come_any_more(stage: Stage) -> None:
    ex = stage.asked(RECONNECTING)
    timer = threading.Timer(0.1, lambda: ex.excluded.update({stage.agent.deployment.place: NOT_CONNECTED}))
    timer.start()
    began = time.monotonic()
    assert stage.wait(ex) is None
    assert time.monotonic() - began < 5
    timer.join()


def test_a_wait_is_as_long_as_the_operator_says(stage: Stage) -> None:
    stage.configured(5, 0.2)
    began = time.monotonic()
    assert stage.wait(stage.asked()) is None
    assert 0.15 < time.monotonic() - began < 5


@pytest.mark.parametrize(("configured", "size"), [(None, SIZE), (3, 3)])
def test_a_queue_that_is_full_takes_nobody(stage: Stage, configured: int | None, size: int) -> None:
    stage.configured(configured, 30)
    ex = stage.asked()
    assert ex.queue is not None
    for number in range(size):
        assert stage.state.join(ex.queue, f"other{number}", number, size)
    began = time.monotonic()
    assert stage.wait(ex) is None
    assert time.monotonic() - began < 5
    assert stage.leases == 0


def test_who_came_first_is_first(stage: Stage) -> None:
    ex = stage.asked()
    assert ex.queue is not None
    stage.state.join(ex.queue, "before", 9, 10)
    stage.free = stage.agent
    timer = threading.Timer(0.2, stage.state.leave, (ex.queue, "before"))
    timer.start()
    began = time.monotonic()
    assert stage.wait(ex) is stage.agent
    assert time.monotonic() - began > 0.15
    timer.join()


def test_a_cancelled_call_waits_no_longer(stage: Stage) -> None:
    ex = stage.asked()
    timer = threading.Timer(0.1, ex.call.cancel.fire, ("client_gone",))
    timer.start()
    with pytest.raises(Cancelled):
        stage.wait(ex)
    timer.join()
    assert ex.queue is not None
    assert attempt_id(ex) not in stage.state.line(ex.queue).own


def test_where_the_state_breaks_after_a_lease_there_is_one_and_it_is_used(stage: Stage) -> None:
    stage.configured(5, 0.5)
    stage.state.fails, stage.free = True, stage.agent
    assert stage.wait(stage.asked()) is stage.agent
    assert stage.leases == 1
