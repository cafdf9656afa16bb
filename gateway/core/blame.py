"""Blame: what an upstream's failure costs whom. The table of ARCHITECTURE.md, section 3, as code; pool.py carries it out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.core.routing import Candidate
from gateway.errors import Blame, UpstreamError, UpstreamRefused
from gateway.state.conditions import COOLING, FOREVER, QUARANTINED

SHORT_S = (2.0, 60.0)
"""The first and the longest rest where the upstream names no time: of what recovers by itself."""
LONG_S = (60.0, 3600.0)
"""The same of what an account's owner has to do something about."""
EXCERPT = 300
EVIDENT_HEADERS = ("retry-after", "retry-after-ms", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "x-request-id")
_SECRETIVE = re.compile(r"(?:sk-|sess-|eyJ|gw_)[A-Za-z0-9_\-*.]+|[A-Za-z0-9_\-*]{32,}")


@dataclass(frozen=True, slots=True)
class Sentence:
    """What a failure does to `subject`, in one word why. `named`: the upstream said for how long (`reset_s`).

    `counts`: only together with others like it. `at_once`: nothing was reached, so nothing is known of the credential.
    """

    subject: str
    state: str
    reason: str
    bounds: tuple[float, float]
    reset_s: float | None = None
    counts: bool = False
    at_once: bool = False

    @property
    def named(self) -> bool:
        return self.reset_s is not None

    def seconds(self, before_s: float, chance: float) -> float:
        """How long the rest is, after one of `before_s` that did not help: what the upstream named, else backoff with decorrelated jitter."""
        if self.state == QUARANTINED:
            return FOREVER
        if self.reset_s is not None:
            return max(self.reset_s, 0.0)
        first, longest = self.bounds
        return min(longest, first + chance * (3 * max(before_s, first) - first)) if before_s else first * (0.5 + chance / 2)


def sentence(error: UpstreamError, candidate: Candidate) -> Sentence | None:
    """None where nobody is to blame but the caller."""
    deployment, reset_s = candidate.deployment, error.reset_s if isinstance(error, UpstreamRefused) else None
    if error.blame is Blame.CREDENTIAL_INVALID:
        return Sentence(deployment.credential_subject, QUARANTINED, "invalid", SHORT_S)
    if error.blame is Blame.CREDENTIAL_SPENT:
        return Sentence(deployment.credential_subject, COOLING, "quota_spent", LONG_S, reset_s)
    if error.blame is Blame.CREDENTIAL_MODEL:
        limited = isinstance(error, UpstreamRefused) and error.upstream_status == 429
        subject = f"{deployment.credential_subject}:{candidate.model}"
        return Sentence(subject, COOLING, "rate_limited", SHORT_S, reset_s) if limited else Sentence(subject, COOLING, "forbidden", LONG_S, reset_s)
    if error.blame is Blame.DEPLOYMENT_AT_ONCE:
        return Sentence(candidate.way, COOLING, "unreachable", SHORT_S, at_once=True)
    if error.blame is Blame.DEPLOYMENT:
        return Sentence(candidate.blamed, COOLING, "failing", SHORT_S, counts=True)
    return None


def evidence_of(error: UpstreamError, candidate: Candidate) -> dict[str, object]:
    """What an operator needs to believe it, without anything that looks like a secret."""
    if not isinstance(error, UpstreamRefused):
        return {"error": error.code}
    headers = {name: _masked(value, candidate) for name, value in error.headers if name in EVIDENT_HEADERS}
    excerpt = _masked(" ".join(error.body[: 4 * EXCERPT].decode("utf-8", "replace").split()), candidate)[:EXCERPT]
    evidence: dict[str, object] = {"status": error.upstream_status}
    return evidence | ({"headers": headers} if headers else {}) | ({"excerpt": excerpt} if excerpt else {})


def _masked(text: str, candidate: Candidate) -> str:
    for secret in (candidate.deployment.secret, *candidate.deployment.extras.values()):
        if secret:
            text = text.replace(secret.reveal(), "[...]")
    return _SECRETIVE.sub("[...]", text)
