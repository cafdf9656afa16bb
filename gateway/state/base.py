"""What workers share that may be lost: limits and queues, as values and a protocol. conditions.py has what else they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

REQUESTS, TOKENS, CONCURRENCY, QUEUE, DAY = "requests", "tokens", "concurrency", "queue", "requests_today"
"""What can be used up. A queue is no limit: who finds others waiting has to wait behind them."""


class StateUnavailable(Exception):
    """The shared state cannot be read or written now. One line."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Requests and tokens a minute, calls at once, and calls of a UTC day, of a subject ("key:3", "model:7", "credential:2"); None: unlimited."""

    subject: str
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How much of a limit is left now; `reset_s` seconds until all of it is (0 for calls at once, whose end nobody knows)."""

    subject: str
    resource: str
    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Full:
    """What refuses a call, and in how many seconds there may be room. `standings`: of every limit that was looked at."""

    subject: str
    resource: str
    limit: int
    retry_after_s: float
    standings: tuple[Standing, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """A queue as one worker sees it: who is first, and which of its own calls still wait."""

    first: str | None
    own: frozenset[str]


class Limits(Protocol):
    """Limits and queues that are exact over all workers. Every verb decides in one step, and raises StateUnavailable."""

    def take(self, call: str, limits: Sequence[Limit], tokens: int, queue: str | None = None) -> Full | tuple[Standing, ...]:
        """Let a call begin that may use so many tokens, if every limit has room; else nothing is consumed.

        With a `queue` only who is first in it may begin, or anybody while nobody waits.
        """
        ...

    def finish(self, call: str, limits: Sequence[Limit], tokens: int, used: int) -> None:
        """A call that took `tokens` ended and had used `used`: its place is free, and the difference is put right."""

    def give_back(self, call: str, limits: Sequence[Limit], tokens: int) -> None:
        """A call that took them never began: as if it had not asked."""

    def standings(self, limits: Sequence[Limit]) -> tuple[Standing, ...]:
        """Of each limit, without taking anything."""
        ...

    def crowded(self, limits: Sequence[Limit]) -> frozenset[str]:
        """The subjects of those that have no place for another call at once."""
        ...

    def is_tallied(self, subject: str) -> bool:
        """Whether its calls of this UTC day are counted yet."""
        ...

    def tally(self, subject: str, count: int) -> None:
        """Count them from here, unless somebody else does already."""

    def join(self, queue: str, call: str, key: int, size: int) -> bool:
        """Wait in a queue of at most `size`, in which keys take turns; False where it is full and this key has the most of it."""
        ...

    def line(self, queue: str) -> Line: ...

    def leave(self, queue: str, call: str) -> None:
        """Wait no longer. Idempotent."""

    def wait_s(self, queue: str) -> float:
        """How long the last in the queue may expect to wait, as fast as it moved lately."""
        ...
