"""Limits of calls: requests and tokens a minute, and calls at once, of the key, its user, its team, everybody, and the model.

A refused call consumes nothing. A call on whose path nobody has a limit pays nothing for the feature.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gateway.concurrency import spawn
from gateway.core.catalog import Catalog, Deployment
from gateway.core.exchange import Exchange
from gateway.core.holds import choices_bound, input_bound, output_bound
from gateway.core.rests import Rest
from gateway.core.waiting import WaitingRoom
from gateway.errors import Cancelled, RateLimited
from gateway.state.base import CONCURRENCY, QUEUE, REQUESTS, TOKENS, Full, Limit, Limits, Standing, StateUnavailable
from gateway.store.budgets import AccountLimits
from gateway.store.catalog import Model

log = logging.getLogger(__name__)
REMINDER_S = 60.0
BROKEN_S = 1.0
"""How long nobody looks at a shared state that could not be used: no call shall wait for it in vain after another."""
QUEUE_S = 30.0
"""How long a call waits where the model's queue has no time of its own."""
MOST_TOKENS = 1_000_000_000
"""More than any limit has; a client may write any number as its `max_tokens`, of more digits than could be told."""
_WHOSE: Mapping[str, str] = {"key": "Your key's", "user": "Your user's", "team": "Your team's", "global": "The gateway's", "model": "The model's"}
_WHAT: Mapping[str, str] = {REQUESTS: "request{s} a minute", TOKENS: "token{s} a minute", CONCURRENCY: "call{s} at once"}


class Taken:
    """What a call took of its limits."""

    def __init__(self, give: Callable[[], None]) -> None:
        self._give: Callable[[], None] | None = give

    def close(self) -> None:
        """Give back what a call holds while it runs, and put its tokens right. Idempotent."""
        if self._give is not None:
            give, self._give = self._give, None
            give()


class CallLimits:
    """`default_output`: tokens of output for a call that names no bound of its own, and whose model names none.

    `calls_today`: of a credential, by its label, as the ledger knows them: the shared state begins anew when the host boots.
    """

    def __init__(
        self,
        state: Limits,
        catalog: Catalog,
        room: WaitingRoom,
        default_output: int,
        calls_today: Callable[[str], int] = lambda credential: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state, self._catalog, self._room, self._default_output = state, catalog, room, default_output
        self._calls_today = calls_today
        self._clock = clock
        self._told = self._broken_at = -math.inf
        self._owed = deque[Callable[[], None]]()
        """What ended calls still have to give back."""
        self._is_paying_later = False

    def admit(self, exchange: Exchange) -> None:
        """Take what the call needs of every limit on its path; the exchange gives it back. May wait, where the model has a queue.

        Raises RateLimited, Cancelled. Where the shared state cannot be used, the call is let through: limits are no money.
        """
        model = self._catalog.snapshot.model(exchange.model_asked)
        limits = limits_of(exchange, model)
        if not limits or self._clock() - self._broken_at < BROKEN_S:
            return
        tokens = self._tokens(exchange, model) if any(limit.tpm is not None for limit in limits) else 0
        queue = f"model:{model.id}" if model is not None and model.queue_size else None
        try:
            self._pay()
            found = self._state.take(exchange.id, limits, tokens, queue)
            if isinstance(found, Full) and queue is not None and model is not None and found.subject == queue:
                found = self._wait(exchange, model, limits, tokens, queue)
        except StateUnavailable as error:
            self._tell(error)
            return
        if isinstance(found, Full):
            exchange.standings = found.standings
            raise _refusal(found, tokens)
        exchange.standings = found
        exchange.taken = Taken(lambda: self._give(exchange, limits, tokens, queue))
        if exchange.call.cancel.reason is not None:
            raise Cancelled(exchange.call.cancel.reason)

    def lease(self, exchange: Exchange, deployment: Deployment, attempt: str) -> Taken | Rest:
        """What an attempt takes of a credential's own limits, and gives back; or why, and for how long, there is no place.

        Raises StoreUnavailable where the calls of a day are limited, and nobody knows how many there were.
        """
        limit = deployment.limit
        if limit is None or self._clock() - self._broken_at < BROKEN_S:
            return Taken(lambda: None)
        tokens = self._tokens(exchange, self._catalog.snapshot.model(exchange.model_asked)) if limit.tpm is not None else 0
        queue = exchange.queue if deployment.hosted else None
        try:
            self._pay()
            if limit.per_day is not None and not self._state.is_tallied(limit.subject):
                self._state.tally(limit.subject, self._calls_today(deployment.credential or ""))
            found = self._state.take(attempt, (limit,), tokens, queue)
        except StateUnavailable as error:
            self._tell(error)
            return Taken(lambda: None)
        if isinstance(found, Full):
            return Rest(found.resource, self._clock() + found.retry_after_s)
        number = len(exchange.attempts)

        def give() -> None:
            answered = exchange.usage is not None and len(exchange.attempts) == number + 1
            used = sum(exchange.usage.buckets().values()) if answered and exchange.usage is not None else 0
            self._owe(partial(self._state.finish, attempt, (limit,), tokens, used))
            if queue is not None:
                self._room.wake(queue)

        return Taken(give)

    def crowded(self, limits: Sequence[Limit]) -> frozenset[str]:
        """The subjects of those that have no place for another call at once; none where the shared state cannot be used."""
        try:
            return self._state.crowded(limits)
        except StateUnavailable as error:
            self._tell(error)
            return frozenset()

    def standings(self, limits: Sequence[Limit]) -> tuple[Standing, ...]:
        """How much of them is left now; empty where the shared state cannot be used."""
        try:
            return self._state.standings(limits)
        except StateUnavailable as error:
            self._tell(error)
            return ()

    def _wait(self, exchange: Exchange, model: Model, limits: Sequence[Limit], tokens: int, queue: str) -> Full | tuple[Standing, ...]:
        def attempt() -> Full | tuple[Standing, ...]:
            return self._state.take(exchange.id, limits, tokens, queue)

        seconds = QUEUE_S if model.queue_s is None else model.queue_s
        return self._room.wait(queue, exchange.id, exchange.principal.key_id, model.queue_size or 0, seconds, attempt, exchange.call.cancel)

    def _give(self, exchange: Exchange, limits: Sequence[Limit], tokens: int, queue: str | None) -> None:
        if exchange.attempts:
            used = sum(exchange.usage.buckets().values()) if exchange.usage is not None else 0
            self._owe(partial(self._state.finish, exchange.id, limits, tokens, used))
        else:
            self._owe(partial(self._state.give_back, exchange.id, limits, tokens))
        if queue is not None:
            self._room.wake(queue)

    def _owe(self, debt: Callable[[], None]) -> None:
        """Pay it now, or as soon as the state can be used."""
        self._owed.append(debt)
        try:
            self._pay()
        except StateUnavailable as error:
            self._tell(error)
            if not self._is_paying_later:
                self._is_paying_later = True
                spawn(self._pay_later, "limits")

    def _pay(self) -> None:
        """Raises StateUnavailable; what is left is paid before the next call begins, or by `_pay_later`."""
        while self._owed:
            debt = self._owed.popleft()
            try:
                debt()
            except BaseException as error:
                if isinstance(error, StateUnavailable) or not isinstance(error, Exception):
                    self._owed.append(debt)
                    raise
                log.error("what a call took of its limits cannot be given back: %s", type(error).__name__, exc_info=error)

    def _pay_later(self) -> None:
        """Calls of other workers need what this one's have to give back, whether another begins here or not."""
        while self._owed:
            time.sleep(BROKEN_S)
            with contextlib.suppress(StateUnavailable):
                self._pay()
        self._is_paying_later = False

    def _tokens(self, exchange: Exchange, model: Model | None) -> int:
        """At most what the call may use: the difference is put right at its end."""
        max_output = None if model is None else model.max_output
        return min(input_bound(exchange.call) + choices_bound(exchange.call) * output_bound(exchange.call, max_output, self._default_output), MOST_TOKENS)

    def _tell(self, error: StateUnavailable) -> None:
        self._broken_at = self._clock()
        if self._clock() - self._told >= REMINDER_S:
            self._told = self._clock()
            log.warning("limits are not enforced: %s", error)


def limits_of(exchange: Exchange, model: Model | None) -> tuple[Limit, ...]:
    """Of the accounts on the key's path, and of the model."""
    own = None if model is None else limit_of_model(model)
    return (*map(limit_of_account, exchange.principal.limits), *([own] if own is not None else []))


def limit_of_account(limits: AccountLimits) -> Limit:
    return Limit(f"{limits.kind}:{limits.subject}", limits.rpm, limits.tpm, limits.concurrency)


def limit_of_model(model: Model) -> Limit | None:
    """None where it has none."""
    if (model.rpm, model.tpm, model.concurrency) == (None, None, None):
        return None
    return Limit(f"model:{model.id}", model.rpm, model.tpm, model.concurrency)


def _refusal(full: Full, tokens: int) -> RateLimited:
    retry_after_s = max(1.0, full.retry_after_s)
    again = f"Try again in {math.ceil(retry_after_s)} s."
    if full.resource == QUEUE:
        return RateLimited(f"The model is busy, and too many calls wait for it. {again}", retry_after_s=retry_after_s)
    what = _WHAT[full.resource].format(s="" if full.limit == 1 else "s")
    told = f"{_WHOSE[full.subject.partition(':')[0]]} limit of {full.limit} {what} is reached"
    told += f"; this call may use {tokens}." if full.resource == TOKENS else "."
    return RateLimited(f"{told} {again}", retry_after_s=retry_after_s)
