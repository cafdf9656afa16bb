"""Fitness: which deployments and credentials may be called now, and what an upstream's failure does to that.

Available = Healthy and not Full. In this version a pool has one credential and no slots to fill; health is per worker, in memory.
"""

from __future__ import annotations

import collections
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.core.catalog import Deployment
from gateway.core.routing import Candidate
from gateway.errors import Blame, UpstreamError, UpstreamRefused
from gateway.state.base import Cooldowns

log = logging.getLogger(__name__)
WINDOW_S = 60.0
THRESHOLD = 3
"""Failures in the window before a deployment cools, a success in between starts anew."""
BACKOFF_S = (2.0, 60.0)
"""The first and the longest rest where the upstream names no time."""
FOREVER = float("inf")
NEVER = -FOREVER
TIDY_AT = 1000


class MemoryCooldowns:
    """Cooldowns of this worker only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._resting: dict[str, tuple[float, str]] = {}
        self._tidy_at = TIDY_AT

    def cool(self, subject: str, until: float, reason: str) -> None:
        if until > self.until(subject):
            self._resting[subject] = (until, reason)
        if len(self._resting) >= self._tidy_at:
            self._tidy()

    def _tidy(self) -> None:
        """Forget what is over: behind a glob the clients choose the names, and nobody may ask for one again."""
        now = self._clock()
        self._resting = {subject: rest for subject, rest in self._resting.items() if rest[0] > now}
        self._tidy_at = max(TIDY_AT, 2 * len(self._resting))

    def __len__(self) -> int:
        return len(self._resting)

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
class _Record:
    """What this worker saw of a deployment lately: who called it when, and who saw it fail when. Of a fixed size, whoever calls."""

    called: _Latest = field(default_factory=_Latest)
    failed: _Latest = field(default_factory=_Latest)
    failures: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=THRESHOLD))
    rests: int = 0

    def forget_failures(self) -> None:
        self.failures.clear()
        self.failed = _Latest()


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

    def resting(self, deployments: Iterable[Deployment]) -> list[tuple[Deployment, Rest]]:
        """Those of them that rest now. Behind a glob, a credential's rest for one asked model is not seen."""
        if not len(self._cooldowns):
            return []
        found = [(deployment, self.rest(Candidate(deployment, deployment.upstream_name(deployment.model), None))) for deployment in deployments]
        return [(deployment, rest) for deployment, rest in found if rest is not None]

    def lease(self, candidate: Candidate, principal: int) -> Lease:
        """Hold the candidate for one attempt, and remember who called."""
        record = self._records.setdefault(candidate.deployment.subject, _Record())
        record.called.note(principal, self._clock())
        subject = candidate.deployment.subject
        self.in_flight[subject] = self.in_flight.get(subject, 0) + 1
        return Lease(self.in_flight, subject)

    def succeeded(self, candidate: Candidate) -> None:
        record = self._records.get(candidate.deployment.subject)
        if record is not None and (record.failures or record.rests):
            record.forget_failures()
            record.rests = 0

    def failed(self, candidate: Candidate, error: UpstreamError, principal: int, last_fit: bool) -> None:
        """Apply the blame. `last_fit`: no other deployment of the model is fit, so that this one is not cooled."""
        now, deployment = self._clock(), candidate.deployment
        if error.blame is Blame.CREDENTIAL_INVALID:
            self._rest(candidate, deployment.credential_subject, FOREVER, "quarantined")
        elif error.blame is Blame.CREDENTIAL_SPENT:
            self._rest(candidate, deployment.credential_subject, _reset(error, BACKOFF_S[1]), "quota_spent")
        elif error.blame is Blame.CREDENTIAL_MODEL:
            limited = isinstance(error, UpstreamRefused) and error.upstream_status == 429
            subject = f"{deployment.credential_subject}:{candidate.model}"
            self._rest(candidate, subject, _reset(error, BACKOFF_S[0] if limited else BACKOFF_S[1]), "rate_limited" if limited else "forbidden")
        elif error.blame is Blame.DEPLOYMENT_AT_ONCE and not last_fit:
            self._cool(candidate, "unreachable")
        elif error.blame is Blame.DEPLOYMENT and self._counts(deployment.subject, principal, now) and not last_fit:
            self._cool(candidate, "failing")

    def _rest(self, candidate: Candidate, subject: str, seconds: float, reason: str) -> None:
        self._cooldowns.cool(subject, self._clock() + seconds, reason)
        fields = {"deployment": candidate.deployment.name, "credential": candidate.deployment.credential, "model": candidate.model, "reason": reason}
        log.warning("%s", "quarantine" if seconds == FOREVER else f"rest of {seconds:.1f} s", extra={"fields": fields})

    def _counts(self, subject: str, principal: int, now: float) -> bool:
        """Note the failure; true once the window holds enough, seen by two principals or by the only one that called."""
        record = self._records.setdefault(subject, _Record())
        record.failures.append(now)
        record.failed.note(principal, now)
        since = now - WINDOW_S
        enough = len(record.failures) == THRESHOLD and record.failures[0] > since
        return enough and (record.failed.besides(principal) > since or record.called.besides(principal) <= since)

    def _cool(self, candidate: Candidate, reason: str) -> None:
        """Each rest doubles the next; what fails while it rests was under way before, and is the same failure."""
        subject = candidate.deployment.subject
        if self._cooldowns.until(subject):
            return
        record = self._records.setdefault(subject, _Record())
        longest = min(BACKOFF_S[0] * 2**record.rests, BACKOFF_S[1])
        record.rests = min(record.rests + 1, 10)
        record.forget_failures()
        self._rest(candidate, subject, longest * (0.5 + self._jitter() / 2), reason)


def _reset(error: UpstreamError, default: float) -> float:
    reset = error.reset_s if isinstance(error, UpstreamRefused) else None
    return default if reset is None else max(reset, 0.0)


def _subjects(candidate: Candidate) -> tuple[str, ...]:
    deployment = candidate.deployment
    return (deployment.subject, deployment.credential_subject, f"{deployment.credential_subject}:{candidate.model}")
