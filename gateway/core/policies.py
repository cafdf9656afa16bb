"""Selection policies: which of several equal candidates is tried next. A policy is one method; plugins of the group `gateway.policies`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.core.routing import Candidate
from gateway.core.standing import Standings
from gateway.dialects.events import BUCKETS

log = logging.getLogger(__name__)
FORGET_AT = 10_000
_SAME = 1e-9
"""Sums of fractions that should be equal are not, quite."""
PROBABLE_INPUT, PROBABLE_OUTPUT = 3, 1
"""What a call is taken to use, in proportion, where prices are compared."""


class SelectionPolicy(Protocol):
    """Built without arguments, once per worker."""

    def choose(self, candidates: Sequence[Candidate], standings: Standings) -> Candidate:
        """One of `candidates`: all fit, all of the same priority, at least one."""


class Policies:
    """The gateway's own, `gateway`, and those that pools name, each built at its first use. What cannot be built is the gateway's, and told once."""

    def __init__(self, gateway: SelectionPolicy, build: Callable[[str], SelectionPolicy]) -> None:
        self.gateway, self._build = gateway, build
        self._named: dict[str, SelectionPolicy] = {}

    def named(self, name: str) -> SelectionPolicy:
        if name not in self._named:
            try:
                self._named[name] = self._build(name)
            except Exception as error:  # a stranger's: its pool is served all the same
                log.error("the policy %s cannot be built, so the gateway's is used: %s", name, error)
                self._named[name] = self.gateway
        return self._named[name]


class Weighted:
    """Smooth weighted round robin: each in proportion to its weight, the turns of the heavy ones spread among the others'.

    Each turn moves a candidate 1/weight further, and who is least far is next; who comes, or comes back, joins the least far of its model, so that
    nobody has a run of turns. That is kept by candidate, not by position: it stays fair when the set shrinks. A weight of 0 is chosen only where
    all are 0.
    """

    def __init__(self) -> None:
        self._far: dict[str, float] = {}
        self._least: dict[str, float] = {}

    def choose(self, candidates: Sequence[Candidate], standings: Standings) -> Candidate:
        if len(candidates) == 1:
            return candidates[0]
        if len(self._far) + len(self._least) > FORGET_AT:
            self._far.clear()
            self._least.clear()
        weights = [weight_of(candidate) for candidate in candidates]
        if not any(weights):
            weights = [1.0] * len(candidates)
        best, least, step = candidates[0], float("inf"), 0.0
        joins = self._least.get(candidates[0].model, 0.0)
        for candidate, weight in zip(candidates, weights, strict=True):
            far = max(self._far.get(candidate.key, 0.0), joins)
            if weight > 0 and far < least - _SAME:
                best, least, step = candidate, far, 1 / weight
        self._far[best.key], self._least[best.model] = least + step, least
        return best


class LeastBusy:
    """The fewest calls under way in this worker, for its weight; among equals, in turn."""

    def __init__(self) -> None:
        self._turns = Weighted()

    def choose(self, candidates: Sequence[Candidate], standings: Standings) -> Candidate:
        load = [(standings.busy(each) / weight if (weight := weight_of(each)) else float("inf")) for each in candidates]
        least = min(load)
        return self._turns.choose([each for each, its in zip(candidates, load, strict=True) if its == least], standings)


class LongestUnused:
    """Of those with the fewest calls under way in this worker who waits for a call for the longest time; who never had one first. Weights do not count."""

    def choose(self, candidates: Sequence[Candidate], standings: Standings) -> Candidate:
        return min(candidates, key=lambda each: (standings.busy(each), standings.used_at(each)))


class Cheapest:
    """The lowest price, three parts of input to one of output; what has none is free; among equals, in turn."""

    def __init__(self) -> None:
        self._turns = Weighted()

    def choose(self, candidates: Sequence[Candidate], standings: Standings) -> Candidate:
        prices = [price_of(each) for each in candidates]
        least = min(prices)
        return self._turns.choose([each for each, its in zip(candidates, prices, strict=True) if its == least], standings)


class Fastest:
    """The shortest time to the first byte lately, a moving average of this worker's; who has none yet is asked first. One call in ten takes another turn."""

    def __init__(self) -> None:
        self._turns, self._count = Weighted(), 0

    def choose(self, candidates: Sequence[Candidate], standings: Standings) -> Candidate:
        self._count += 1
        if self._count % 10 == 0:  # who was slow once may be quick by now
            return self._turns.choose(candidates, standings)
        return min(candidates, key=standings.first_byte_s)


class FillFirst:
    """Always the first, by name, until it is at its limits or unfit: the others are its reserve."""

    def choose(self, candidates: Sequence[Candidate], standings: Standings) -> Candidate:
        return min(candidates, key=lambda candidate: candidate.deployment.place)


def weight_of(candidate: Candidate) -> float:
    """Of its deployment, in the share that its credential has of its pool."""
    return candidate.deployment.weight * candidate.deployment.share


def price_of(candidate: Candidate) -> int:
    """Of a probable call; 0 where there is no price."""
    if candidate.price is None:
        return 0
    rates = candidate.price.rates
    return PROBABLE_INPUT * rates.get(BUCKETS[0], 0) + PROBABLE_OUTPUT * rates.get("output_text", 0)
