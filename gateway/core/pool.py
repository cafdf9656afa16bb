"""Fitness: which deployments and credentials may be called now, and what an upstream's failure does to that.

Available = Healthy and not Full. In this version a pool has one credential and no slots to fill; health is per worker, in memory.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.core.routing import Candidate
from gateway.errors import Blame, UpstreamError, UpstreamRefused
from gateway.state.base import Cooldowns

WINDOW_S = 60.0
THRESHOLD = 3
"""Failures in the window before a deployment cools, a success in between starts anew."""
BACKOFF_S = (2.0, 60.0)
"""The first and the longest rest where the upstream names no time."""
FOREVER = float("inf")


class MemoryCooldowns:
    """Cooldowns of this worker only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._resting: dict[str, tuple[float, str]] = {}

    def cool(self, subject: str, until: float, reason: str) -> None:
        if until > self.until(subject):
            self._resting[subject] = (until, reason)

    def until(self, subject: str) -> float:
        until, _ = self._resting.get(subject, (0.0, ""))
        if until and until <= self._clock():
            self._resting.pop(subject, None)
            return 0.0
        return until

    def reason(self, subject: str) -> str:
        return self._resting[subject][1] if self.until(subject) else ""

    def clear(self, subject: str) -> None:
        self._resting.pop(subject, None)


@dataclass(slots=True)
class _Record:
    """What this worker saw of a deployment lately: who called it when, and who saw it fail when."""

    callers: dict[int, float] = field(default_factory=dict)
    failures: list[tuple[float, int]] = field(default_factory=list)
    rests: int = 0


@dataclass(slots=True)
class Lease:
    """A credential held for an attempt. `close` is idempotent."""

    in_flight: dict[str, int]
    subject: str
    closed: bool = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.in_flight[self.subject] -= 1


@dataclass(frozen=True, slots=True)
class Rest:
    """Why a candidate is not fit, and until when (monotonic)."""

    reason: str
    until: float


class Pool:
    """Leases, and the blame table's consequences."""

    def __init__(self, cooldowns: Cooldowns, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random) -> None:
        self._cooldowns, self._clock, self._jitter = cooldowns, clock, jitter
        self._records: dict[str, _Record] = {}
        self.in_flight: dict[str, int] = {}

    def rest(self, candidate: Candidate) -> Rest | None:
        """None where the candidate is fit; else the longest of the rests that keep it."""
        rests = [Rest(self._cooldowns.reason(subject), until) for subject in _subjects(candidate) if (until := self._cooldowns.until(subject))]
        return max(rests, key=lambda rest: rest.until, default=None)

    def lease(self, candidate: Candidate, principal: int) -> Lease:
        """Hold the candidate for one attempt, and remember who called."""
        record = self._records.setdefault(candidate.deployment.subject, _Record())
        record.callers[principal] = self._clock()
        subject = candidate.deployment.subject
        self.in_flight[subject] = self.in_flight.get(subject, 0) + 1
        return Lease(self.in_flight, subject)

    def succeeded(self, candidate: Candidate) -> None:
        record = self._records.get(candidate.deployment.subject)
        if record is not None and (record.failures or record.rests):
            record.failures.clear()
            record.rests = 0

    def failed(self, candidate: Candidate, error: UpstreamError, principal: int, last_fit: bool) -> None:
        """Apply the blame. `last_fit`: no other deployment of the model is fit, so that this one is not cooled."""
        now, deployment = self._clock(), candidate.deployment
        if error.blame is Blame.CREDENTIAL_INVALID:
            self._cooldowns.cool(deployment.credential_subject, FOREVER, "quarantined")
        elif error.blame is Blame.CREDENTIAL_SPENT:
            self._cooldowns.cool(deployment.credential_subject, now + _reset(error, BACKOFF_S[1]), "quota_spent")
        elif error.blame is Blame.CREDENTIAL_MODEL:
            limited = isinstance(error, UpstreamRefused) and error.upstream_status == 429
            subject = f"{deployment.credential_subject}:{candidate.model}"
            self._cooldowns.cool(subject, now + _reset(error, BACKOFF_S[0] if limited else BACKOFF_S[1]), "rate_limited" if limited else "forbidden")
        elif error.blame is Blame.DEPLOYMENT_AT_ONCE and not last_fit:
            self._cool(deployment.subject, now, "unreachable")
        elif error.blame is Blame.DEPLOYMENT and self._counts(deployment.subject, principal, now) and not last_fit:
            self._cool(deployment.subject, now, "failing")

    def _counts(self, subject: str, principal: int, now: float) -> bool:
        """Note the failure; true once the window holds enough, seen by two principals or by the only one that called."""
        record = self._records.setdefault(subject, _Record())
        record.failures = [(at, who) for at, who in record.failures if at > now - WINDOW_S] + [(now, principal)]
        record.callers = {who: at for who, at in record.callers.items() if at > now - WINDOW_S}
        witnesses = {who for _, who in record.failures}
        return len(record.failures) >= THRESHOLD and (len(witnesses) >= 2 or set(record.callers) <= {principal})

    def _cool(self, subject: str, now: float, reason: str) -> None:
        record = self._records.setdefault(subject, _Record())
        longest = min(BACKOFF_S[0] * 2**record.rests, BACKOFF_S[1])
        record.rests = min(record.rests + 1, 10)
        record.failures.clear()
        self._cooldowns.cool(subject, now + longest * (0.5 + self._jitter() / 2), reason)


def _reset(error: UpstreamError, default: float) -> float:
    reset = error.reset_s if isinstance(error, UpstreamRefused) else None
    return default if reset is None else max(reset, 0.0)


def _subjects(candidate: Candidate) -> tuple[str, ...]:
    deployment = candidate.deployment
    if not deployment.credential_subject:
        return (deployment.subject,)
    return (deployment.subject, deployment.credential_subject, f"{deployment.credential_subject}:{candidate.model}")
