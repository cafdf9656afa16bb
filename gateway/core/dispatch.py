"""The attempt loop: choose, lease, send, read the head; on a failure blame, and try another where that is safe."""

from __future__ import annotations

import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from gateway.backend import Backend, Call, Reply, Secret
from gateway.core.affinity import Affinity
from gateway.core.agent_queue import AgentQueue, queue_of
from gateway.core.caller import CALLER
from gateway.core.catalog import Deployment
from gateway.core.exchange import Attempt, Exchange
from gateway.core.head import Answer, Framing, read_head
from gateway.core.metering import whole
from gateway.core.policies import Policies
from gateway.core.pool import Lease, Pool
from gateway.core.rests import RECONNECTING, Rest
from gateway.core.routing import Candidate
from gateway.dialects import CODECS
from gateway.dialects.document import with_member
from gateway.errors import (
    AgentLost,
    Blame,
    Cancelled,
    GatewayError,
    NoDeploymentAvailable,
    RateLimited,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.metrics import Metrics
from gateway.state.base import CONCURRENCY, DAY, QUEUE, REQUESTS, TOKENS
from gateway.state.conditions import FOREVER, PROBING

log = logging.getLogger(__name__)
EXTRA_ATTEMPTS = 2
RETRY_WINDOW_S = 10.0
RETRY_FLOOR, RETRY_SHARE = 10, 0.2
REDACTED = "[redacted]"
LIMITED = frozenset({"rate_limited", REQUESTS, TOKENS, CONCURRENCY, DAY, QUEUE})
"""Reasons that are a limit: the upstream's, or one that the operator gave the credential."""
UNANSWERED = 500
"""What a client with a credential of its own is told where its upstream gave no answer."""


class RetryBudget:
    """Bounds extra attempts to max(10, 20 % of calls) of this worker in any 10 s, so that an outage is not multiplied."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: collections.deque[float] = collections.deque()
        self._retries: collections.deque[float] = collections.deque()

    def note_call(self) -> None:
        self._calls.append(self._clock())
        self._forget(self._calls)

    def take(self) -> bool:
        """Whether one more extra attempt may be made; counts it if so."""
        self._forget(self._calls)
        self._forget(self._retries)
        if len(self._retries) >= max(RETRY_FLOOR, RETRY_SHARE * len(self._calls)):
            return False
        self._retries.append(self._clock())
        return True

    def _forget(self, moments: collections.deque[float]) -> None:
        oldest = self._clock() - RETRY_WINDOW_S
        while moments and moments[0] < oldest:
            moments.popleft()


class Dispatcher:
    """Sends a call to one candidate after the other until one answers."""

    def __init__(
        self,
        pool: Pool,
        policies: Policies,
        affinity: Affinity,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        queue: AgentQueue | None = None,
    ) -> None:
        self._pool, self._policies, self._affinity, self._metrics, self._clock, self._queue = pool, policies, affinity, metrics, clock, queue
        self._budget = RetryBudget(clock)

    def send(self, exchange: Exchange, candidates: Sequence[Candidate]) -> Answer:
        """The first answer that the client should see. `candidates` are in order of priority.

        Raises NoDeploymentAvailable or RateLimited where nothing was fit, the mapped UpstreamError where all attempts
        failed, Cancelled where the call was given up.
        """
        if candidates and candidates[0].deployment.owner == CALLER:
            return self._for_caller(exchange, candidates[0])
        self._budget.note_call()
        errors: list[UpstreamError] = []
        untried = self._affinity.kept(exchange, candidates)
        while True:
            exchange.queue = queue_of(exchange, untried, candidates)
            candidate = self._leased_in_time(exchange, untried, candidates)
            if candidate is None:
                raise self._verdict(exchange, candidates, errors)
            untried.remove(candidate)
            try:
                return self._attempt(exchange, candidate)
            except UpstreamError as error:
                if (reason := exchange.call.cancel.reason) is not None:  # a backend may put its own words to an abort: nobody's failure
                    raise Cancelled(reason) from error
                errors.append(error)
                self._blame(exchange, candidate, error, candidates)
                if error.blame is Blame.CLIENT and isinstance(error, UpstreamRefused):
                    return relayed_refusal(error, (candidate.deployment.secret, *candidate.deployment.extras.values()))
                untried = self._worth_trying(exchange, untried, errors, candidate)
                if not untried or not self._may_retry():
                    raise self._verdict(exchange, candidates, errors) from error

    def _blame(self, exchange: Exchange, candidate: Candidate, error: UpstreamError, candidates: Sequence[Candidate]) -> None:
        last_fit = not any(self._pool.rest(other) is None for other in candidates if other is not candidate)
        lease = exchange.lease
        self._pool.failed(candidate, error, exchange, lease if isinstance(lease, Lease) else None, last_fit)
        if lease is not None:
            lease.close()

    def _for_caller(self, exchange: Exchange, candidate: Candidate) -> Answer:
        """The one attempt with a credential of the client's own: nobody is blamed and nothing rests. Raises what the upstream says, for
        the client to read: with its own status, or with the one that the families of such clients give where it says nothing."""
        try:
            return self._attempt(exchange, candidate)
        except UpstreamError as error:
            if (reason := exchange.call.cancel.reason) is not None:
                raise Cancelled(reason) from error
            error.status = error.upstream_status if isinstance(error, UpstreamRefused) else UNANSWERED
            raise

    def _may_retry(self) -> bool:
        allowed = self._budget.take()
        if not allowed:
            self._metrics.retry_denied()
        return allowed

    def resting(self, deployments: Iterable[Deployment]) -> list[tuple[Deployment, Rest]]:
        """Those of them that rest in this worker now, for their own model."""
        return self._pool.resting(deployments)

    def _leased_in_time(self, exchange: Exchange, untried: Sequence[Candidate], candidates: Sequence[Candidate]) -> Candidate | None:
        """The one to try next, also where the call has to wait for an agent."""
        candidate = self._leased(exchange, untried, candidates)
        if candidate is None and self._queue is not None:
            candidate = self._queue.wait(exchange, untried, lambda: self._leased(exchange, untried, candidates))
        if candidate is not None:
            exchange.excluded.pop(candidate.deployment.place, None)
        return candidate

    def _leased(self, exchange: Exchange, untried: Sequence[Candidate], candidates: Sequence[Candidate]) -> Candidate | None:
        """The one to try next, held by the exchange; None where nothing is fit, or has a place left."""
        left = list(untried)
        while fit := self._pool.with_room(exchange, self._fit(exchange, left)):
            while fit:
                candidate = self._chosen(exchange, fit, candidates)
                lease = self._pool.lease(candidate, exchange)
                if isinstance(lease, Lease):
                    exchange.lease = lease
                    return candidate
                exchange.excluded[candidate.deployment.place] = lease.reason
                exchange.full[candidate.deployment.place] = lease.until
                if lease.reason == QUEUE:  # others wait for the same agents: it is their turn
                    return None
                fit.remove(candidate)
                left.remove(candidate)
        for candidate in untried:  # one that another call is finding out about, rather than nothing
            rest = self._pool.rest(candidate)
            shared = self._pool.lease(candidate, exchange, last=True) if rest is not None and rest.reason == PROBING else None
            if isinstance(shared, Lease):
                exchange.lease = shared
                return candidate
        return None

    def _fit(self, exchange: Exchange, untried: Sequence[Candidate]) -> list[Candidate]:
        """Those that may be called now, of the first priority that has any."""
        fit: list[Candidate] = []
        for candidate in untried:
            rest = self._pool.rest(candidate)
            if rest is None and candidate.deployment.draining:
                rest = self._drained(exchange, candidate)
            if rest is None:
                fit.append(candidate)
            else:
                exchange.excluded[candidate.deployment.place] = rest.reason
        return [candidate for candidate in fit if candidate.deployment.priority == fit[0].deployment.priority]

    def _drained(self, exchange: Exchange, candidate: Candidate) -> Rest | None:
        return None if self._affinity.is_bound(exchange, candidate) else Rest("draining", FOREVER)

    def _chosen(self, exchange: Exchange, fit: Sequence[Candidate], candidates: Sequence[Candidate]) -> Candidate:
        """The gateway's policy chooses; among the credentials of a pool that has its own policy, that; a bound conversation goes before both."""
        standings = self._pool.standings
        chosen = self._policies.gateway.choose(fit, standings)
        pool = chosen.deployment.pool
        if pool is None:
            return chosen
        siblings = [candidate for candidate in fit if candidate.deployment.subject == chosen.deployment.subject]
        if pool.policy is not None and len(siblings) > 1:
            chosen = self._policies.named(pool.policy).choose(siblings, standings)
        return self._affinity.preferred(exchange, chosen, siblings, candidates)

    def _worth_trying(self, exchange: Exchange, untried: Sequence[Candidate], errors: Sequence[UpstreamError], failed: Candidate) -> list[Candidate]:
        """Among whom a further attempt may be made; empty where there must not be one, or all of them rest."""
        error = errors[-1]
        if not error.retryable or exchange.left or len(errors) > EXTRA_ATTEMPTS or not exchange.call.body.replayable:
            return []
        if isinstance(error, AgentLost) and (not untried or self._may_be_back(failed)):
            untried = [*untried, failed]
        if isinstance(error, UpstreamUnreachable):  # another credential on the same way would meet the same
            untried = [other for other in untried if other.way != failed.way]
        if isinstance(error, UpstreamTimeout):
            untried = [other for other in untried if other.deployment.subject != failed.deployment.subject]
            if error.phase == "total" or sum(isinstance(earlier, UpstreamTimeout) for earlier in errors) > 1:
                return []
            now = self._clock()  # one other deployment, if a full first-byte period is left
            untried = [other for other in untried if exchange.started + other.deployment.deadlines.total_s - now >= other.deployment.deadlines.first_byte_s]
        return list(untried) if any(self._may_answer(other) for other in untried) else []

    def _may_answer(self, candidate: Candidate) -> bool:
        """Now, or in a moment."""
        return self._pool.rest(candidate) is None or self._may_be_back(candidate)

    def _may_be_back(self, candidate: Candidate) -> bool:
        rest = self._pool.rest(candidate)
        return rest is not None and rest.reason == RECONNECTING

    def _attempt(self, exchange: Exchange, candidate: Candidate) -> Answer:
        deployment = candidate.deployment
        attempt = Attempt(deployment.name, deployment.credential, candidate.model, self._clock())
        exchange.attempts.append(attempt)
        reply: Reply | None = None
        try:
            call, hides_usage = prepared(exchange, candidate)
            reply = _backend(candidate).send(call, deployment.target(candidate.model))
            answer = read_head(reply)
            answer.hides_usage = hides_usage
            self._affinity.answered(exchange, candidate)
        except BaseException as error:
            self._failed(exchange, attempt, reply, error)
            raise
        attempt.ended = exchange.first_byte = self._clock()
        attempt.outcome, attempt.status = "answered", reply.status
        self._metrics.attempted(deployment.name, "answered", attempt.ended - exchange.started)
        if isinstance(exchange.lease, Lease):
            self._pool.succeeded(candidate, exchange.lease)
        if exchange.doubted:
            self._pool.acquit(exchange, candidate)
        self._pool.standings.answered(candidate, attempt.ended - attempt.started)
        return answer

    def _failed(self, exchange: Exchange, attempt: Attempt, reply: Reply | None, error: BaseException) -> None:
        if reply is not None:
            reply.close()
        if exchange.lease is not None and not isinstance(error, UpstreamError):  # else once the blame is told
            exchange.lease.close()
        attempt.ended = self._clock()
        attempt.outcome = error.code if isinstance(error, GatewayError) else "internal_error"
        attempt.status = error.upstream_status if isinstance(error, UpstreamRefused) else None
        if isinstance(error, UpstreamRefused) and b'"usage"' in error.body:
            attempt.usage = whole(exchange.call.dialect, error.body)
        mistaken = isinstance(error, UpstreamRefused) and error.blame is Blame.CLIENT  # no failure of the upstream's
        self._metrics.attempted(attempt.deployment, "client_error" if mistaken else attempt.outcome)
        log.debug("attempt failed: %s", error, extra={"exchange": exchange.id, "fields": {"deployment": attempt.deployment, "outcome": attempt.outcome}})

    def _verdict(self, exchange: Exchange, candidates: Sequence[Candidate], errors: Sequence[UpstreamError]) -> GatewayError:
        """What the client is told when no attempt gave an answer."""
        if exchange.call.cancel.reason is not None:
            return Cancelled(exchange.call.cancel.reason)
        rests = [rest for candidate in candidates if (rest := self._told_rest(exchange, candidate)) is not None]
        wait_s = max(1.0, min((rest.until for rest in rests), default=0.0) - self._clock())
        limited = all(isinstance(error, UpstreamRefused) and error.upstream_status == 429 and error.blame is Blame.CREDENTIAL_MODEL for error in errors)
        at_limits = {rest.reason for rest in rests} - {PROBING}
        if limited and (errors or (at_limits and at_limits <= LIMITED)):
            if all(candidate.deployment.hosted for candidate in candidates):
                return RateLimited("Every agent that serves this model is busy.", code="agents_busy", retry_after_s=wait_s)
            return RateLimited("Every deployment of this model is at its upstream's rate limit.", code="upstream_rate_limited", retry_after_s=min(wait_s, 3600))
        if not errors:
            return _none_fit(exchange, rests, wait_s)
        return _told(errors[-1])

    def _told_rest(self, exchange: Exchange, candidate: Candidate) -> Rest | None:
        """Why it did not answer: it rests, or was at its own limits when it was asked for a place."""
        rest = self._pool.rest(candidate)
        if rest is None and candidate.deployment.place in exchange.full:
            return Rest(exchange.excluded[candidate.deployment.place], exchange.full[candidate.deployment.place])
        if rest is None and exchange.excluded.get(candidate.deployment.place) in ("draining", "bound_elsewhere"):
            return Rest(exchange.excluded[candidate.deployment.place], FOREVER)
        return rest


def _none_fit(exchange: Exchange, rests: Sequence[Rest], wait_s: float) -> NoDeploymentAvailable:
    waits = None if all(rest.until == float("inf") for rest in rests) else min(wait_s, 3600)
    reasons = ", ".join(sorted({rest.reason for rest in rests}))
    return NoDeploymentAvailable(f"No deployment of the model '{exchange.model_asked}' is available now ({reasons}).", retry_after_s=waits)


def _told(error: UpstreamError) -> UpstreamError:
    """The last attempt's error as the client may see it: never an upstream's 401, 402, 403 or 429."""
    if not isinstance(error, UpstreamRefused):
        return error
    if error.upstream_status in (401, 402, 403) or error.blame is Blame.CREDENTIAL_SPENT:
        return UpstreamError("The upstream refused the gateway's credential.", code="upstream_refused_credential")
    return UpstreamError(f"The upstream failed with status {error.upstream_status}.", code="upstream_error")


def _backend(candidate: Candidate) -> Backend:
    backend = candidate.deployment.backend
    if backend is None:  # routing excludes these
        raise NoDeploymentAvailable(f"The deployment {candidate.deployment.name} has no backend.")
    return backend


def prepared(exchange: Exchange, candidate: Candidate) -> tuple[Call, bool]:
    """The call as this candidate gets it, and whether a usage event must be hidden from the client because we asked for it."""
    call, deployment = exchange.call, candidate.deployment
    call = dataclasses.replace(call, deadline=exchange.started + deployment.deadlines.total_s)
    edits: dict[str, object] = {}
    if candidate.model != exchange.model_asked:
        edits["model"] = candidate.model
    asked = isinstance(call.fields.stream_options, dict) and call.fields.stream_options.get("include_usage") is True
    adds_usage = call.stream and not asked and deployment.include_usage and CODECS[call.dialect].reports_usage_on_request
    if adds_usage:
        options = call.body.member("stream_options") if call.body.member is not None else None
        edits["stream_options"] = with_member(options, "include_usage", True)
    return call.edited(**edits), adds_usage


def relayed_refusal(error: UpstreamRefused, secrets: Iterable[Secret]) -> Answer:
    """The client's own mistake, told in the upstream's own words, but for our secrets: some upstreams repeat what they were sent."""
    headers, body = [field for field in error.headers if field[0] not in ("content-length", "transfer-encoding")], error.body
    for shown in [secret.reveal() for secret in secrets if secret]:
        headers = [(name, value.replace(shown, REDACTED)) for name, value in headers]
        body = body.replace(shown.encode(), REDACTED.encode())
    return Answer(Reply(error.upstream_status, tuple(headers), iter(()), lambda: None), Framing.WHOLE, body)
