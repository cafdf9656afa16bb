"""How candidates fare in this worker: how many calls each has under way, how soon it answers, who called. What policies and the pool read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.core.routing import Candidate

NEVER = float("-inf")
WEIGHT = 0.2
"""Of the newest answer, in the moving average of the times to the first byte."""


@dataclass(slots=True)
class _Latest:
    """The latest moment, and the latest of anybody else: enough to tell whether a principal is the only one."""

    who: int | None = None
    at: float = NEVER
    others_at: float = NEVER

    def note(self, who: int, at: float) -> None:
        if who != self.who:
            self.who, self.others_at = who, self.at
        self.at = at

    def besides(self, who: int) -> float:
        return self.others_at if who == self.who else self.at


@dataclass(slots=True)
class _Told:
    """Whom the other workers were told of, and since when."""

    since: float = NEVER
    who: set[int] = field(default_factory=set)


class Standings:
    """Of one worker. Of a fixed size for each deployment and credential, whoever calls."""

    def __init__(self, clock: Callable[[], float], used: Callable[[Candidate, float], float] = lambda candidate, own: own) -> None:
        """`used`: when a candidate was last used, by what all workers know and this one's own moment."""
        self._clock, self._used = clock, used
        self._began: dict[str, float] = {}
        self._callers: dict[str, _Latest] = {}
        self._told: dict[str, _Told] = {}
        self._first_byte_s: dict[str, float] = {}
        self.in_flight: dict[str, int] = {}

    def began(self, candidate: Candidate) -> None:
        self.in_flight[candidate.key] = self.in_flight.get(candidate.key, 0) + 1
        self._began[candidate.key] = self._clock()

    def ended(self, candidate: Candidate) -> None:
        self.in_flight[candidate.key] -= 1

    def answered(self, candidate: Candidate, first_byte_s: float) -> None:
        before = self._first_byte_s.get(candidate.key)
        self._first_byte_s[candidate.key] = first_byte_s if before is None else before + WEIGHT * (first_byte_s - before)

    def busy(self, candidate: Candidate) -> int:
        """Calls under way."""
        return self.in_flight.get(candidate.key, 0)

    def used_at(self, candidate: Candidate) -> float:
        """When a call last began with it (monotonic); NEVER before the first."""
        return self._used(candidate, self._began.get(candidate.key, NEVER))

    def first_byte_s(self, candidate: Candidate) -> float:
        """A moving average; 0 before the first answer, so that everybody gets a chance."""
        return self._first_byte_s.get(candidate.key, 0.0)

    def publishes(self, subject: str, principal: int, every_s: float) -> bool:
        """Note who calls a deployment; whether the others are to be told: of two principals, once in a while."""
        now = self._clock()
        self._callers.setdefault(subject, _Latest()).note(principal, now)
        told = self._told.setdefault(subject, _Told())
        if now - told.since >= every_s:
            told.since, told.who = now, {principal}
            return True
        if principal in told.who or len(told.who) > 1:
            return False
        told.who.add(principal)
        return True

    def called_besides(self, subject: str, principal: int, since: float) -> bool:
        """Whether anybody else called it since then."""
        return self._callers.get(subject, _Latest()).besides(principal) > since
