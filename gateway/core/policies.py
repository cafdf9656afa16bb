"""Selection policies: which of several equal candidates is tried next. A policy is one method; plugins of the group `gateway.policies`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.core.routing import Candidate


class SelectionPolicy(Protocol):
    """Built without arguments, once per worker."""

    def choose(self, candidates: Sequence[Candidate]) -> Candidate:
        """One of `candidates`: all fit, all of the same priority, at least one."""


class Weighted:
    """At random, in proportion to the weights. A weight of 0 is chosen only where every weight is 0."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw

    def choose(self, candidates: Sequence[Candidate]) -> Candidate:
        if len(candidates) == 1:
            return candidates[0]
        weights = [candidate.deployment.weight for candidate in candidates]
        total = sum(weights)
        if total == 0:
            return candidates[int(self._draw() * len(candidates))]
        mark = self._draw() * total
        for candidate, weight in zip(candidates, weights, strict=True):
            mark -= weight
            if mark < 0:
                return candidate
        return candidates[-1]
