"""A pool through ten simulated minutes of outages: whom it asks, how often in vain, and how soon it comes back. The same with one worker and with three."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.backend import Backend, Call, Reply, Secret, Services, Target
from gateway.core.affinity import Affinity
from gateway.core.blame import SHORT_S
from gateway.core.dispatch import Dispatcher
from gateway.core.policies import Policies, Weighted
from gateway.core.routing import Candidate
from gateway.errors import UpstreamError, UpstreamRefused
from gateway.metrics import Metrics
from gateway.store.pools import Pool
from tests.factories import JSON, Clock, Pooled, candidate, conditions, exchange, principal, reply
from tests.unit.core.stages import OK, NoBindings

PACE_S, MINUTES = 0.25, 10
MEMBERS = 4


@dataclass
class Outage:
    """Of one credential, from `begins` to `ends`; `named`: it says when that is."""

    credential: str
    begins: float
    ends: float
    status: int
    code: str | None = None
    named: bool = False
    tried: list[float] = field(default_factory=list)
    back: float | None = None
    """When it first answered again."""


class Upstream(Backend):
    """Answers each secret as the outages say. `asked`: when each was asked."""

    dialects = frozenset({"openai_chat"})
    needs_secret = True

    def __init__(self, clock: Clock, outages: Sequence[Outage]) -> None:
        super().__init__(None, Services())
        self._clock, self._outages = clock, outages
        self.asked: dict[str, list[float]] = {}

    def send(self, call: Call, target: Target) -> Reply:
        now, secret = self._clock.now, target.secret.reveal()
        self.asked.setdefault(secret, []).append(now)
        for outage in self._outages:
            if outage.credential == secret and outage.begins <= now < outage.ends:
                outage.tried.append(now)
                reset_s = outage.ends - now if outage.named else None
                raise UpstreamRefused(outage.status, (), b"", upstream_code=outage.code, reset_s=reset_s)
            if outage.credential == secret and now >= outage.ends and outage.back is None:
                outage.back = now
        return reply(OK, JSON)


class World:
    def __init__(self, workers: int, *outages: Outage, seed: int = 1) -> None:
        self.clock, shared = Clock(0.0), conditions()
        self.outages, self.upstream = outages, Upstream(self.clock, outages)
        chance = random.Random(seed)
        self.pools = [Pooled(self.clock, shared=shared, owner=str(number)) for number in range(workers)]
        for pooled in self.pools:
            pooled.pool._chance = chance.random
        policies = Policies(Weighted(), lambda name: Weighted())
        self.dispatchers = [Dispatcher(each.pool, policies, Affinity(NoBindings()), Metrics(), self.clock) for each in self.pools]  # type: ignore[arg-type]
        self.members: list[Candidate] = [self.member(f"c{number}") for number in range(MEMBERS)]
        self.failed = 0

    def member(self, name: str) -> Candidate:
        fields: dict[str, Any] = {"credential": name, "credential_subject": f"credential:{name[1:]}-9.1", "pool": Pool(1, "p"), "share": 1 / MEMBERS}
        made = candidate("d", backend=self.upstream, **fields)
        return Candidate(_with_secret(made, name), "m", None)

    def run(self, minutes: float = MINUTES) -> World:
        turn, until = 0, self.clock.now + 60 * minutes
        while self.clock.now < until:
            self.clock.now += PACE_S
            turn += 1
            ex = exchange(clock=self.clock)
            ex.principal = principal(turn % 3 + 1, turn % 3 + 1)
            try:
                self.dispatchers[turn % len(self.dispatchers)].send(ex, self.members)
            except UpstreamError:
                self.failed += 1
            ex.release()
            if turn % 4 == 0:
                self.pools[0].pool.sweep([each.deployment for each in self.members])
        return self

    def idle_s(self, name: str) -> float:
        """The longest time that a credential was fit and nobody asked it."""
        moments = [0.0, *self.upstream.asked.get(name, []), self.clock.now]
        own = [outage for outage in self.outages if outage.credential == name]
        gaps = itertools.pairwise(moments)
        return max(end - start - sum(max(0.0, min(end, each.ends) - max(start, each.begins)) for each in own) for start, end in gaps)


def _with_secret(made: Candidate, name: str) -> Any:
    return dataclasses.replace(made.deployment, secret=Secret(name))


FAIR_S = PACE_S * MEMBERS


@pytest.mark.parametrize("workers", [1, 3])
def test_a_rest_that_the_upstream_named_costs_one_attempt_and_ends_with_it(workers: int) -> None:
    outages = [Outage("c0", 30, 90, 429, named=True), Outage("c1", 60, 400, 429, named=True), Outage("c0", 200, 260, 402, named=True)]
    world = World(workers, *outages).run()
    assert world.failed == 0
    for outage in outages:
        assert len(outage.tried) == 1
        assert outage.back is not None
        assert outage.back - outage.ends <= 2 * FAIR_S
    assert all(world.idle_s(f"c{number}") <= 3 * FAIR_S for number in range(MEMBERS))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_dead_credential_is_tried_once(workers: int) -> None:
    outage = Outage("c2", 30, 1e9, 401, "invalid_api_key")
    world = World(workers, outage).run()
    assert (world.failed, len(outage.tried)) == (0, 1)
    assert all(world.idle_s(name) <= 2 * FAIR_S for name in ("c0", "c1", "c3"))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_rest_without_a_named_end_is_probed_ever_less_and_ends_within_one_probe(workers: int) -> None:
    outages = [Outage("c0", 30, 150, 429), Outage("c1", 200, 500, 429)]
    world = World(workers, *outages).run()
    assert world.failed == 0
    for outage in outages:
        assert len(outage.tried) <= 3 + (outage.ends - outage.begins) / SHORT_S[1] * 8
        assert outage.back is not None
        assert outage.back - outage.ends <= SHORT_S[1] + FAIR_S
        assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(outage.tried))


@pytest.mark.parametrize("workers", [1, 3])
def test_a_credential_whose_calls_fail_is_out_after_three_and_back_after_one_probe(workers: int) -> None:
    outage = Outage("c3", 30, 210, 500)
    world = World(workers, outage).run()
    assert world.failed == 0
    assert 3 <= len(outage.tried) <= 3 + 30
    assert outage.back is not None
    assert outage.back - outage.ends <= SHORT_S[1] + FAIR_S


@pytest.mark.parametrize("workers", [1, 3])
def test_when_all_are_limited_nobody_is_asked_in_vain_and_all_come_back(workers: int) -> None:
    outages = [Outage(f"c{number}", 60, 120, 429, named=True) for number in range(MEMBERS)]
    world = World(workers, *outages)
    with pytest.raises(Exception, match="rate limit"):
        world.run()
    while world.clock.now < 120 - PACE_S:
        with pytest.raises(Exception, match="rate limit"):
            world.run(minutes=PACE_S / 60)
    assert [len(outage.tried) for outage in outages] == [1] * MEMBERS
    world.run(minutes=1)
    assert all(outage.back is not None and outage.back - outage.ends <= 3 * FAIR_S for outage in outages)


def test_one_worker_and_three_ask_the_same_number_of_times_in_vain() -> None:
    def tried(workers: int) -> list[int]:
        outages = [Outage("c0", 30, 90, 429, named=True), Outage("c1", 100, 1e9, 401, "invalid_api_key"), Outage("c2", 150, 300, 402, named=True)]
        World(workers, *outages).run()
        return [len(outage.tried) for outage in outages]

    assert tried(1) == tried(3) == [1, 1, 1]
