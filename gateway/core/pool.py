"""Pool: which deployments and credentials may be called now, and what an upstream's failure does to that.

A state machine for each credential, credential and model, and deployment: active -> cooling -> probing -> active, or quarantined, or expired. A
cooling ends when the upstream said it would; else one call finds out whether it may, while the others wait. docs/pools.md tells it to operators.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.core.blame import Sentence, evidence_of, sentence
from gateway.core.catalog import Deployment
from gateway.core.exchange import Exchange, Held, attempt_id
from gateway.core.rests import Hosts, NoHosts, Rest
from gateway.core.routing import Candidate
from gateway.core.standing import Standings
from gateway.errors import UpstreamError, UpstreamRefused
from gateway.state.base import CONCURRENCY, Limit, StateUnavailable
from gateway.state.conditions import ACTIVE, COOLING, EXPIRED, FOREVER, PROBING, QUARANTINED, SUSPECT, Condition, Conditions
from gateway.store.conditions import Transition
from gateway.store.pools import Credential

log = logging.getLogger(__name__)
WINDOW_S = 60.0
THRESHOLD = 3
"""Failures in the window before a deployment cools; a success in between starts anew."""
ANYBODY = -1
"""By whom a failure was seen that would have been anybody's."""
PROBE_S = 120.0
"""How long a call may find out whether a rest is over, before another may: it tells as soon as its answer begins."""
MANY = 8
"""Agents that are fit: of so many, those that are busy are found out at once, and not one after the other."""
PUBLISH_S = 5.0
"""How often a worker tells the others who calls a deployment: the window is many times longer."""


class Lease:
    """A candidate held for an attempt. `probes`: the subjects of which this attempt finds out whether they are fit again."""

    def __init__(self, pool: Pool, candidate: Candidate, probes: Sequence[str], taken: Held | None) -> None:
        self._pool, self._candidate, self._taken, self._closed = pool, candidate, taken, False
        self.probes = list(probes)

    def close(self) -> None:
        """Give everything back; what it was to find out, another call may. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._pool.standings.ended(self._candidate)
        if self._taken is not None:
            self._taken.close()
        for subject in self.probes:
            self._pool.untold(self._candidate, subject)


Take = Callable[[Exchange, Deployment, str], Held | Rest]
"""Takes an attempt's part of the limits of a deployment's credential; the last argument names the attempt."""


class Pool:
    """`tell` is given every transition; `take` what a credential's own limits allow; `owner` is this worker's id, `alive` whether one's worker runs.

    `hosts` knows which agents are connected; `crowded` which of these limits have no place for another call at once.
    """

    def __init__(
        self,
        conditions: Conditions,
        tell: Callable[[Transition], None],
        take: Take,
        owner: str,
        alive: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        hosts: Hosts | None = None,
        crowded: Callable[[Sequence[Limit]], frozenset[str]] = lambda limits: frozenset(),
    ) -> None:
        self._conditions, self._tell, self._take, self._owner, self._alive = conditions, tell, take, owner, alive
        self._crowded = crowded
        self._hosts: Hosts = NoHosts() if hosts is None else hosts
        self._clock, self._chance, self._wall_ms = clock, chance, wall_ms
        self.standings = Standings(clock, self._used_at)

    def _used_at(self, candidate: Candidate, own: float) -> float:
        return self._hosts.used_at(candidate.deployment.credential_place, own) if candidate.deployment.hosted else own

    # who is fit

    def rest(self, candidate: Candidate) -> Rest | None:
        """None where the candidate may be called, if only to find out; else the longest of the rests that keep it."""
        deployment, now = candidate.deployment, self._clock()
        if deployment.hosted and (absent := self._hosts.rest(candidate)) is not None:
            return absent
        if deployment.expires_at is not None and deployment.expires_at <= self._wall_ms():
            return Rest("expired", FOREVER)
        conditions = self._conditions.current()
        if not conditions:
            return None
        found = [condition for subject in _subjects(candidate) if (condition := conditions.get(subject)) is not None]
        rests = [Rest(each.reason if each.state == COOLING else each.state, each.until) for each in found if not self._is_due(each, now)]
        return max(rests, key=lambda rest: rest.until, default=None)

    def _is_due(self, condition: Condition, now: float) -> bool:
        """A probe of another host has no prober that could be asked after: it has its time."""
        return condition.over(now) or (condition.state == PROBING and condition.prober != "" and not self._alive(condition.prober))

    def resting(self, deployments: Iterable[Deployment]) -> list[tuple[Deployment, Rest]]:
        """Those of them that rest now. Behind a glob, a credential's rest for one asked model is not seen."""
        found = [(deployment, self.rest(Candidate(deployment, deployment.upstream_name(deployment.model), None))) for deployment in deployments]
        return [(deployment, rest) for deployment, rest in found if rest is not None]

    def with_room(self, exchange: Exchange, fit: list[Candidate]) -> list[Candidate]:
        """Without the agents that are at their number of calls, where so many are fit that asking one after the other would take long."""
        hosted = [candidate for candidate in fit if candidate.deployment.hosted]
        if len(hosted) < MANY:
            return fit
        limits = {each.deployment.place: self._hosts.limit(each.deployment.credential_place, each.deployment.limit) for each in hosted}
        full = self._crowded([limit for limit in limits.values() if limit is not None])
        until = self._clock() + 1.0
        for candidate in hosted:
            limit = limits[candidate.deployment.place]
            if limit is not None and limit.subject in full:
                exchange.excluded[candidate.deployment.place], exchange.full[candidate.deployment.place] = CONCURRENCY, until
                fit.remove(candidate)
        return fit

    def lease(self, candidate: Candidate, exchange: Exchange, last: bool = False) -> Lease | Rest:
        """Hold the candidate for one attempt, or learn that somebody else took the last place of it just now.

        `last`: there is no other, so that it may be called while another call finds out whether its upstream is back.
        """
        probes = self._probes(candidate, last)
        if isinstance(probes, Rest):
            return probes
        taken: Held | Rest | None = Rest("", 0.0)
        try:
            deployment = candidate.deployment
            if deployment.hosted:
                deployment = replace(deployment, limit=self._hosts.limit(deployment.credential_place, deployment.limit))
            taken = self._take(exchange, deployment, attempt_id(exchange)) if deployment.limit is not None else None
        finally:
            if isinstance(taken, Rest):
                for subject in probes:
                    self.untold(candidate, subject)
        if isinstance(taken, Rest):
            return taken
        self._called(candidate, exchange.principal.user_id)
        self.standings.began(candidate)
        return Lease(self, candidate, probes, taken)

    def _probes(self, candidate: Candidate, last: bool) -> list[str] | Rest:
        """Take upon us to find out what is due, if nobody did meanwhile."""
        conditions = self._conditions.current()
        if not conditions:
            return []
        now, ours = self._clock(), list[str]()
        for subject in _subjects(candidate):
            condition = conditions.get(subject)
            if condition is None or condition.named or condition.state not in (COOLING, PROBING):
                continue
            if self._claim(subject, candidate, now):
                ours.append(subject)
            elif not last or subject not in (candidate.way, candidate.blamed):
                for each in ours:
                    self.untold(candidate, each)
                return Rest(PROBING, now + 1.0)
        return ours

    def _claim(self, subject: str, candidate: Candidate, now: float) -> bool:
        def decide(condition: Condition | None) -> Condition | None:
            if condition is None or condition.state not in (COOLING, PROBING) or not self._is_due(condition, now):
                return condition
            return replace(condition, state=PROBING, until=now + PROBE_S, prober=self._owner)

        before, after = self._change(subject, decide)
        if after is not None and after != before:
            self._transition(candidate, subject, before, after, {}, None)
            return True
        return after is None

    def _called(self, candidate: Candidate, principal: int) -> None:
        if self.standings.publishes(candidate.blamed, principal, PUBLISH_S):
            try:
                self._conditions.called(candidate.blamed, principal, self._clock())
            except StateUnavailable as error:
                log.debug("who calls is not told: %s", error)

    # what an attempt's end does to that

    def succeeded(self, candidate: Candidate, lease: Lease) -> None:
        """The upstream answered: whatever was suspected or to be found out of it is over."""
        conditions = self._conditions.current()
        if conditions:
            now = self._clock()
            for subject in _subjects(candidate):
                condition = conditions.get(subject)
                if condition is not None and (subject in lease.probes or condition.over(now)):
                    self._heal(candidate, subject, lease, now)
        lease.probes.clear()

    def _heal(self, candidate: Candidate, subject: str, lease: Lease, now: float) -> None:
        ours = subject in lease.probes
        before, after = self._change(subject, lambda condition: None if condition is None or ours or condition.over(now) else condition)
        if before is not None and after is None and before.state != SUSPECT:
            self._transition(candidate, subject, before, None, {}, None)

    def failed(self, candidate: Candidate, error: UpstreamError, exchange: Exchange, lease: Lease | None, last_fit: bool) -> None:
        """Apply the blame. `last_fit`: no other candidate of the model is fit, so that nothing is taken from service on a mere guess."""
        verdict = sentence(error, candidate)
        if lease is not None and verdict is not None and isinstance(error, UpstreamRefused):
            self._answered_for(candidate, lease, verdict)
        if verdict is None:
            if lease is not None and isinstance(error, UpstreamRefused):
                self.succeeded(candidate, lease)  # it answered: the mistake was the caller's, or nobody's
            return
        evidence = evidence_of(error, candidate)
        if verdict.counts:
            exchange.doubted.append((candidate.deployment.subject, verdict.subject))
            if not self._counted(verdict.subject, exchange.principal.user_id):
                return
        if last_fit and (verdict.counts or verdict.at_once or (len(exchange.attempts) > 1 and not verdict.named and verdict.state != QUARANTINED)):
            return
        self._sentence(candidate, verdict, evidence, exchange)
        if lease is not None and verdict.subject in lease.probes:
            lease.probes.remove(verdict.subject)

    def _answered_for(self, candidate: Candidate, lease: Lease, verdict: Sentence) -> None:
        """What the upstream answered with blames one subject: the others that were to be found out are fit."""
        for subject in [each for each in lease.probes if each != verdict.subject]:
            self._heal(candidate, subject, lease, self._clock())
            lease.probes.remove(subject)

    def _sentence(self, candidate: Candidate, verdict: Sentence, evidence: Mapping[str, Any], exchange: Exchange) -> None:
        now = self._clock()

        def decide(condition: Condition | None) -> Condition | None:
            resting = condition is not None and condition.state != SUSPECT
            if condition is not None and condition.state == COOLING and condition.until > now and not verdict.named and verdict.state == COOLING:
                return condition  # it was under way before, and is the same failure
            if condition is not None and condition.state == QUARANTINED:
                return condition
            seconds = verdict.seconds(condition.rest_s if condition is not None and resting and not condition.named else 0.0, self._chance())
            if seconds <= 0:
                return condition
            until = max(now + seconds, condition.until if condition is not None and condition.state == COOLING else 0.0)
            return Condition(verdict.state, until, verdict.reason, 0.0 if seconds == FOREVER else seconds, verdict.named)

        before, after = self._change(verdict.subject, decide)
        if after is not None and after != before:
            self._transition(candidate, verdict.subject, before, after, evidence, exchange)

    def _counted(self, subject: str, principal: int) -> bool:
        """Note a failure; true once the window holds enough of them, seen by two principals or by the only one that called, or while it is probed."""
        now = self._clock()
        since = now - WINDOW_S

        def decide(condition: Condition | None) -> Condition | None:
            if condition is not None and condition.state != SUSPECT:
                return condition
            kept = [each for each in (condition.failures if condition is not None else ()) if each[0] > since]
            witness = [each for each in kept[: -THRESHOLD + 1] if each[1] != principal][-1:]
            return Condition(SUSPECT, failures=(*witness, *kept[-THRESHOLD + 1 :], (now, principal)))

        _, after = self._change(subject, decide)
        if after is None or after.state != SUSPECT:
            return after is not None and after.state in (COOLING, PROBING)
        if len(after.failures) < THRESHOLD:
            return False
        return any(who != principal for _, who in after.failures) or not self._callers_besides(subject, principal, since)

    def acquit(self, exchange: Exchange, answered: Candidate) -> None:
        """Another credential of the same deployment answered the call: that others failed was not the caller's doing, whoever that is.

        An answer of another deployment says nothing: what one upstream chokes on, another may take.
        """
        principal = exchange.principal.user_id

        def decide(condition: Condition | None) -> Condition | None:
            if condition is None or condition.state != SUSPECT:
                return condition
            return replace(condition, failures=tuple([(at, ANYBODY if who == principal else who) for at, who in condition.failures]))

        for deployment, subject in exchange.doubted:
            if answered.deployment.pool is not None and deployment == answered.deployment.subject:
                self._change(subject, decide)

    def _callers_besides(self, subject: str, principal: int, since: float) -> bool:
        try:
            return self.standings.called_besides(subject, principal, since) or self._conditions.callers_besides(subject, principal, since)
        except StateUnavailable:
            return True

    def untold(self, candidate: Candidate, subject: str) -> None:
        """What was to be found out was not: it is due for another."""
        now = self._clock()

        def decide(condition: Condition | None) -> Condition | None:
            if condition is None or condition.state != PROBING or condition.prober != self._owner:
                return condition
            return replace(condition, state=COOLING, until=now, prober="")

        self._move(candidate, subject, decide)

    # what changes by itself

    def sweep(self, deployments: Iterable[Deployment]) -> None:
        """A task of housekeeping: end the rests whose end the upstream named, note what has expired, and forget what nobody asks for any more."""
        now, wall, conditions = self._clock(), self._wall_ms(), self._conditions.current()
        known: dict[str, Candidate] = {}
        for each in deployments:
            known[each.credential_subject] = candidate = Candidate(each, "", None)
            noted = conditions.get(each.credential_subject)
            if each.expires_at is not None and each.expires_at <= wall and (noted is None or noted.state != EXPIRED):
                self._move(candidate, each.credential_subject, lambda _: Condition(EXPIRED, reason=EXPIRED))
        for subject, condition in list(conditions.items()):  # it changes while this waits for the file
            of = known.get(":".join(subject.split(":")[:2]))
            if of is not None and condition.named and condition.state == COOLING and condition.until <= now:
                self._move(of, subject, lambda found: None if found is not None and found.named and found.until <= now else found)
        self._conditions.tidy(now)

    def quarantine(self, credential: Credential, reason: str, evidence: Mapping[str, Any]) -> None:
        """Take a credential out of use until it gets another secret, or an operator clears it. May be told twice."""
        subject = credential.subject
        before, after = self._change(subject, lambda _: Condition(QUARANTINED, reason=reason))
        if before != after:
            self._tell_of(subject, before, after, evidence, None, credential.label, None)

    def _move(self, candidate: Candidate, subject: str, decide: Callable[[Condition | None], Condition | None]) -> None:
        before, after = self._change(subject, decide)
        if before != after:
            self._transition(candidate, subject, before, after, {}, None)

    def _change(self, subject: str, decide: Callable[[Condition | None], Condition | None]) -> tuple[Condition | None, Condition | None]:
        try:
            return self._conditions.change(subject, decide)
        except StateUnavailable as error:
            log.warning("a condition is not kept: %s", error)
            return None, None

    def _transition(
        self, candidate: Candidate, subject: str, before: Condition | None, after: Condition | None, evidence: Mapping[str, Any], exchange: Exchange | None
    ) -> None:
        self._tell_of(subject, before, after, evidence, exchange, candidate.deployment.credential, candidate.deployment.name)

    def _tell_of(
        self,
        subject: str,
        before: Condition | None,
        after: Condition | None,
        evidence: Mapping[str, Any],
        exchange: Exchange | None,
        credential: str | None,
        deployment: str | None,
    ) -> None:
        now, wall = self._clock(), self._wall_ms()
        of_credential = not subject.startswith("deployment:")
        made = Transition(
            at=wall,
            subject=subject,
            credential=credential if of_credential else None,
            deployment=None if of_credential else deployment,
            model=subject.split(":", 2)[2] if of_credential and subject.count(":") > 1 else None,
            before=before.state if before is not None and before.state != SUSPECT else ACTIVE,
            after=after.state if after is not None else ACTIVE,
            until_at=None if after is None or after.until == FOREVER else wall + round((after.until - now) * 1000),
            reason=after.reason if after is not None else "recovered",
            host=self._owner,
            rest_s=after.rest_s if after is not None else 0.0,
            named=after.named if after is not None else False,
            evidence=evidence,
            exchange=exchange.id if exchange is not None else None,
        )
        self._tell(made)
        fields = {"deployment": deployment, "credential": made.credential, "model": made.model, "reason": made.reason, "before": made.before}
        level = logging.WARNING if made.after in (COOLING, QUARANTINED) else logging.INFO
        log.log(level, "%s", _words(made, after, now), extra={"fields": fields} | ({"exchange": made.exchange} if made.exchange else {}))


def _words(made: Transition, after: Condition | None, now: float) -> str:
    if after is None or made.after != COOLING:
        return made.after if made.after != QUARANTINED else "quarantine"
    return f"rest of {after.until - now:.1f} s"


def _subjects(candidate: Candidate) -> tuple[str, ...]:
    deployment = candidate.deployment
    return (candidate.way, deployment.credential_subject, f"{deployment.credential_subject}:{candidate.model}")
