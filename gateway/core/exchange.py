"""Exchange: one call's record and the owner of everything that the call acquired. OpenExchanges: those of this worker."""

from __future__ import annotations

import enum
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from gateway.backend import Call
from gateway.core.claim import Claim
from gateway.core.identity import Principal
from gateway.dialects.events import Usage
from gateway.errors import UpstreamTimeout
from gateway.state.base import Standing
from gateway.store.catalog import Price

TOLD_EXCLUDED = 50
"""Of those that were passed over, how many a receipt names: a pool may have a thousand."""
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = tuple(first + second for first in _CROCKFORD for second in _CROCKFORD)


class Ending(enum.StrEnum):
    """How a call ended; docs/operator.md says who pays for which."""

    COMPLETE = "complete"
    CLIENT_GONE = "client_gone"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    WORKER_LOST = "worker_lost"


class Client(Protocol):
    """The side that asked. `on_leave` has `callback()` called once when the client goes away; `disarm` ends the watch, and may be called twice."""

    def on_leave(self, callback: Callable[[], None]) -> None: ...
    def disarm(self) -> None: ...


class Held(Protocol):
    """What a call or an attempt holds; `close` gives it back, and is idempotent."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Reservation:
    """What admission agreed when the call began: the price of each candidate by deployment name, whatever changes while it runs.

    `held`: budgets hold an amount for it, which its settlement takes back.
    """

    prices: Mapping[str, Price | None]
    held: bool = False


@dataclass(slots=True)
class Attempt:
    """One send. `outcome` is "answered", or the code of the error; times are monotonic seconds.

    `usage`: what the provider says that it used, though the client got nothing of it.
    """

    deployment: str
    credential: str | None
    model: str
    started: float
    outcome: str = "pending"
    status: int | None = None
    ended: float | None = None
    usage: Usage | None = None


def new_id(now_ms: int) -> str:
    """26 characters that sort by time: 48 bits of milliseconds and 80 random bits (the ULID's form)."""
    number = (now_ms << 80) | random.getrandbits(80)  # no secret: who knows an id must still own it
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])


def began_ms(id: str) -> int:
    """When this id was made."""
    number = 0
    for sign in id[:10]:
        number = 32 * number + max(_CROCKFORD.find(sign), 0)
    return number


def fresh_id() -> str:
    """An id for what never became an exchange."""
    return new_id(time.time_ns() // 1_000_000)


@dataclass(slots=True)
class Exchange:
    """From the moment a call is authenticated until its entry is committed. `at` is Unix milliseconds, `started` monotonic.

    `drains`: once an upstream was asked, its answer is read on to the usage also where the client is gone.
    `served_by`: the model whose deployments answer, where that is not the one that was asked for.
    `full`: until when those that were excluded have no place left. `doubted`: whose failures may have been the caller's, with their deployment.
    `taken`: what it took of its limits, whose `standings` were those when it began, or was refused. `queue`: where it waits for
    agents. `conversation`: what tells it, where a pool asks for that, and `affinity` what came of it; `bound`: the credentials that it goes on with.
    """

    id: str
    at: int
    started: float
    call: Call
    principal: Principal
    client: Client
    endpoint: str
    model_asked: str
    owner: str
    clock: Callable[[], float]
    client_request_id: str | None = None
    candidates: list[str] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)
    full: dict[str, float] = field(default_factory=dict)
    doubted: list[tuple[str, str]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    reservation: Reservation | None = None
    taken: Held | None = None
    standings: Sequence[Standing] = ()
    served_by: str = ""
    claim: Claim | None = None
    lease: Held | None = None
    queue: str | None = None
    conversation: str | None = None
    bound: frozenset[int] = frozenset()
    affinity: dict[str, Any] | None = None
    first_byte: float | None = None
    status: int | None = None
    ending: Ending | None = None
    error: str | None = None
    amount_nano: int | None = None
    usage: Usage | None = None
    bytes_out: int = 0
    heartbeats: int = 0
    left: bool = False
    drains: bool = False
    released: Callable[[], None] | None = None

    def client_left(self) -> None:
        """The watcher's callback: give the call up, also while the upstream is silent, unless it is to be read on to its usage."""
        self.left = True
        if not (self.drains and self.attempts):
            self.call.cancel.fire("client_gone")

    def release(self) -> None:
        """Give back what the call acquired. Idempotent."""
        self.client.disarm()
        if self.lease is not None:
            self.lease.close()
        if self.taken is not None:
            self.taken.close()
        if self.released is not None:
            self.released()
            self.released = None

    def milliseconds(self, moment: float | None) -> int | None:
        """Milliseconds from the start of the call to a monotonic moment."""
        return None if moment is None else round((moment - self.started) * 1000)

    def upstream_s(self) -> float:
        """How long upstreams were waited for, attempt by attempt, until they answered or failed."""
        now = self.clock()
        return sum([(now if attempt.ended is None else attempt.ended) - attempt.started for attempt in self.attempts])

    def own_s(self) -> float | None:
        """Of the time to the answer's head, what the gateway took itself. None where there was no answer."""
        return None if self.first_byte is None else max(self.first_byte - self.started - self.upstream_s(), 0.0)

    def line(self) -> dict[str, Any]:
        """The members of the call's one line in the log; docs/operator.md explains each. No secret, no content."""
        attempt = self.attempts[-1] if self.attempts else None
        own_s = self.own_s()
        return {
            "key": self.principal.key_id,
            "key_label": self.principal.key_label,
            "user": self.principal.user_id,
            "endpoint": self.endpoint,
            "model": self.model_asked,
            "deployment": attempt.deployment if attempt else None,
            "upstream_model": attempt.model if attempt else None,
            "credential": attempt.credential if attempt else None,
            "status": self.status,
            "ending": self.ending,
            "error": self.error,
            "stream": self.call.stream,
            "attempts": len(self.attempts),
            "first_byte_ms": self.milliseconds(self.first_byte),
            "total_ms": self.milliseconds(self.clock()),
            "upstream_ms": round(self.upstream_s() * 1000),
            "gateway_ms": None if own_s is None else round(own_s * 1000, 1),
            "tokens": self.usage.counted() if self.usage is not None else None,
            "amount_nano": self.amount_nano,
            "bytes_in": self.call.body.size,
            "bytes_out": self.bytes_out,
            "client_request_id": self.client_request_id,
        }

    def receipt(self) -> dict[str, Any]:
        """What happened, for the key's owner and the operator: no secret, no amount of money, no content."""
        return {
            "id": self.id,
            "at": self.at,
            "endpoint": self.endpoint,
            "model": self.model_asked,
            "stream": self.call.stream,
            "candidates": self.candidates,
            "excluded": [{"deployment": name, "reason": reason} for name, reason in islice(self.excluded.items(), TOLD_EXCLUDED)],
            **({"excluded_more": len(self.excluded) - TOLD_EXCLUDED} if len(self.excluded) > TOLD_EXCLUDED else {}),
            "attempts": [self._attempt(attempt) for attempt in self.attempts],
            "status": self.status,
            "ending": self.ending,
            "error": self.error,
            "first_byte_ms": self.milliseconds(self.first_byte),
            "total_ms": self.milliseconds(self.clock()),
            "client_request_id": self.client_request_id,
            **({} if self.affinity is None else {"affinity": self.affinity}),
        }

    def _attempt(self, attempt: Attempt) -> dict[str, Any]:
        return {
            "deployment": attempt.deployment,
            "credential": attempt.credential,
            "model": attempt.model,
            "outcome": attempt.outcome,
            "status": attempt.status,
            "ms": None if attempt.ended is None else round((attempt.ended - attempt.started) * 1000),
        }


def attempt_id(exchange: Exchange) -> str:
    """Of the exchange's next attempt."""
    return f"{exchange.id}/{len(exchange.attempts)}"


class OpenExchanges:
    """The calls under way in this worker: for drains, the metric and leak checks."""

    def __init__(self, owner: str, clock: Callable[[], float] = time.monotonic, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._owner, self._clock, self._now_ms = owner, clock, now_ms
        self._open: dict[str, Exchange] = {}

    def begin(self, call: Call, principal: Principal, client: Client, endpoint: str, model: str, client_request_id: str | None = None) -> Exchange:
        """Open an exchange and watch its client."""
        at = self._now_ms()
        exchange = Exchange(new_id(at), at, self._clock(), call, principal, client, endpoint, model, self._owner, self._clock, client_request_id)
        client.on_leave(exchange.client_left)  # may raise: nothing is open yet
        exchange.released = lambda: self._end(exchange)
        self._open[exchange.id] = exchange
        return exchange

    def _end(self, exchange: Exchange) -> None:
        self._open.pop(exchange.id, None)

    def __len__(self) -> int:
        return len(self._open)

    def give_up(self, reason: str) -> None:
        """Cancel every call under way."""
        for exchange in list(self._open.values()):
            exchange.call.cancel.fire(reason)


def ending_of(error: BaseException, exchange: Exchange) -> Ending:
    """The ending of a call that failed before any content reached the client."""
    if exchange.left:
        return Ending.CLIENT_GONE
    if not exchange.attempts:
        return Ending.REFUSED
    if isinstance(error, UpstreamTimeout):
        return Ending.TIMEOUT
    return Ending.UPSTREAM_ERROR
