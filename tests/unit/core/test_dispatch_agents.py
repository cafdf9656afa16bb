from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.backend import Call, Reply, Target
from gateway.core.agent_queue import AgentQueue
from gateway.core.dispatch import EXTRA_ATTEMPTS
from gateway.core.limits import Taken
from gateway.core.rests import NOT_CONNECTED, RECONNECTING, Rest
from gateway.core.routing import Candidate
from gateway.core.waiting import WaitingRoom
from gateway.errors import AgentFailed, AgentLost, NoDeploymentAvailable, RateLimited
from gateway.state.base import CONCURRENCY, Limit
from gateway.state.conditions import FOREVER
from gateway.state.sqlite import SqliteLimits
from tests.factories import Hosted, Hosting, Step, candidate
from tests.unit.core.stages import OK, Attempts, served


class Stage(Attempts):
    """Agents, and a queue for them in which a call waits for `queue_s`."""

    def __init__(self, directory: Path, queue_s: float) -> None:
        self.hosts, self.state = Hosted(), SqliteLimits(directory, "me", lambda owner: True)
        model = SimpleNamespace(queue_size=None, queue_s=queue_s)
        catalog: Any = SimpleNamespace(snapshot=SimpleNamespace(model=lambda asked: model))
        super().__init__(self.hosts, AgentQueue(WaitingRoom(self.state), self.state, catalog))

    def away(self, name: str) -> None:
        self.hosts.rests[name] = Rest(RECONNECTING, self.clock.now + 5)

    def loses(self, name: str) -> Step:
        """An attempt in which the agent's connection is lost."""

        def step(call: Call, target: Target) -> Reply:
            self.away(name)
            raise AgentLost("lost")

        return step

    def later(self, seconds: float, work: Any) -> None:
        timer = threading.Timer(seconds, work)
        timer.daemon = True
        timer.start()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path, 2.0)
    yield stage
    stage.state.close()


def hosted(name: str, *steps: Step, **fields: Any) -> tuple[Candidate, Hosting]:
    backend = Hosting()
    backend.play(*steps)
    backend.answer = OK[0]
    return candidate(name, backend=backend, **fields), backend


def test_a_lost_agent_is_asked_again_once_it_is_back(stage: Stage) -> None:
    one, backend = hosted("a", stage.loses("a"))
    stage.later(0.2, stage.hosts.rests.clear)
    began = time.monotonic()
    answer, ex = stage.send(one)
    assert answer.head == OK[0]
    assert time.monotonic() - began > 0.15
    assert [(attempt.deployment, attempt.outcome) for attempt in ex.attempts] == [("a", "agent_lost"), ("a", "answered")]
    assert ex.excluded == {}
    assert len(backend.calls) == 2


def test_another_agent_takes_over_at_once(stage: Stage) -> None:
    one, other = hosted("a", stage.loses("a"))[0], hosted("b", priority=1)[0]
    began = time.monotonic()
    answer, ex = stage.send(one, other)
    assert answer.head == OK[0]
    assert time.monotonic() - began < 0.5
    assert [attempt.deployment for attempt in ex.attempts] == ["a", "b"]
    assert ex.excluded == {"a": RECONNECTING}


def test_an_agent_that_does_not_come_back_has_lost_the_call(stage: Stage) -> None:
    one, _ = hosted("a", stage.loses("a"))
    stage.later(0.2, lambda: stage.hosts.rests.update({"a": Rest(NOT_CONNECTED, FOREVER)}))
    began = time.monotonic()
    with pytest.raises(AgentLost):
        stage.send(one)
    assert time.monotonic() - began < 1.5


def test_an_agent_that_is_lost_again_and_again_is_given_up(stage: Stage) -> None:
    one, backend = hosted("a", *[AgentLost("lost")] * 9)
    with pytest.raises(AgentLost):
        stage.send(one)
    assert len(backend.calls) == 1 + EXTRA_ATTEMPTS


def test_an_agent_that_was_away_when_the_call_came_is_waited_for(stage: Stage) -> None:
    one, _ = hosted("a")
    stage.away("a")
    stage.later(0.2, stage.hosts.rests.clear)
    answer, ex = stage.send(one)
    assert (answer.head, ex.excluded) == (OK[0], {})


def test_where_no_agent_is_connected_nobody_waits(stage: Stage) -> None:
    one, backend = hosted("a")
    stage.hosts.rests["a"] = Rest(NOT_CONNECTED, FOREVER)
    began = time.monotonic()
    with pytest.raises(NoDeploymentAvailable) as caught:
        stage.send(one)
    assert NOT_CONNECTED in str(caught.value)
    assert caught.value.retry_after_s is None
    assert time.monotonic() - began < 0.5
    assert backend.calls == []


def full(stage: Stage, places: int) -> list[int]:
    """Every agent has so many places, which are counted here."""
    left = [places]

    def take(exchange: Any, deployment: Any, attempt: str) -> Taken | Rest:
        if not left[0]:
            return Rest(CONCURRENCY, stage.clock.now + 3)
        left[0] -= 1
        return Taken(lambda: left.__setitem__(0, left[0] + 1))

    stage.pool._take = take
    return left


def test_a_busy_agent_is_waited_for_in_turn(stage: Stage) -> None:
    left = full(stage, 0)
    one, _ = hosted("a", limit=Limit("a", concurrency=1))
    stage.later(0.2, lambda: left.__setitem__(0, 1))
    answer, ex = stage.send(one)
    assert (answer.head, ex.excluded) == (OK[0], {})
    ex.release()
    assert left == [1]


def test_where_all_agents_stay_busy_the_client_is_told_so(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 0.2)
    full(stage, 0)
    agents = [hosted(name, limit=Limit(name, concurrency=1))[0] for name in "ab"]
    with pytest.raises(RateLimited) as caught:
        stage.send(*agents)
    assert (caught.value.code, caught.value.retry_after_s) == ("agents_busy", 3.0)
    stage.state.close()


def test_agents_and_others_at_their_limits_are_a_rate_limit(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 0.1)
    full(stage, 0)
    with pytest.raises(RateLimited) as caught:
        stage.send(hosted("a", limit=Limit("a", concurrency=1))[0], served("b", limit=Limit("b", concurrency=1), priority=1)[0])
    assert caught.value.code == "upstream_rate_limited"
    stage.state.close()


def test_an_agent_that_says_that_it_is_busy_is_passed_over(stage: Stage) -> None:
    one, other = hosted("a", AgentFailed("no", cause="busy"))[0], hosted("b", priority=1)[0]
    answer, ex = stage.send(one, other)
    assert answer.head == OK[0]
    assert [attempt.outcome for attempt in ex.attempts] == ["agent_busy", "answered"]


def test_without_agents_nothing_is_waited_for(stage: Stage) -> None:
    full(stage, 0)
    began = time.monotonic()
    with pytest.raises(RateLimited):
        stage.send(served("b", limit=Limit("b", concurrency=1))[0])
    assert time.monotonic() - began < 1
