"""What happens to credentials and deployments, on its way to the store and to other hosts: a restart forgets nothing, and nobody's call waits for that.

Within a host every worker sees a change at once (state/conditions.py). Here it becomes durable, with its evidence; and what other hosts and
operators changed is taken over, by one worker of the host, within a second.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from gateway.concurrency import spawn
from gateway.errors import GatewayError
from gateway.presence import Presence
from gateway.state.base import StateUnavailable
from gateway.state.conditions import COOLING, FOREVER, PROBING, Condition, Conditions
from gateway.store import conditions as store
from gateway.store.conditions import StoredCondition, Transition
from gateway.store.database import Database

log = logging.getLogger(__name__)
MOST_WAITING = 10_000
AT_ONCE = 200
RETRY_S = 1.0
LOOK_BACK_MS = 600_000
OVERLAP = 200
"""Ids are given before their transactions end, so that a lower one may be seen after a higher one."""


class Transitions:
    """Of one worker. `tell` takes what happened; `seed` and `follow` bring what others know."""

    def __init__(
        self,
        database: Database,
        conditions: Conditions,
        presence: Presence,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._database, self._conditions, self._presence, self._clock, self._wall_ms = database, conditions, presence, clock, wall_ms
        self._waiting: collections.deque[Transition] = collections.deque()
        self._lock = threading.Lock()
        self._is_writing = False
        self._last: int | None = None
        self._seen: set[int] = set()
        self.lost = 0
        """Transitions that were never stored: the database was away for too long. What is in force is in the shared state all the same."""

    def tell(self, transition: Transition) -> None:
        """Store it soon. Never raises, and waits for nothing."""
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append(transition)
            if self._is_writing:
                return
            self._is_writing = True
        spawn(self._write, "transitions")

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything told is stored; whether it is."""
        until = self._clock() + timeout_s
        while self._is_writing and self._clock() < until:
            time.sleep(0.01)
        return not self._is_writing

    def _write(self) -> None:
        while True:
            with self._lock:
                batch = [self._waiting[number] for number in range(min(len(self._waiting), AT_ONCE))]
                if not batch:
                    self._is_writing = False
                    return
            try:
                self._database.write(lambda batch=batch: store.record(batch))  # type: ignore[misc]
            except GatewayError as error:
                log.debug("transitions wait: %s", error)
                time.sleep(RETRY_S)
                continue
            except Exception as error:  # the loop's outermost edge: what cannot be stored must not block what comes after it
                log.error("%d transitions cannot be stored: %s", len(batch), type(error).__name__, exc_info=error)
            with self._lock:
                for _ in batch:
                    if self._waiting:
                        self._waiting.popleft()

    def seed(self) -> None:
        """Give a shared state that is new what the store knows. Never raises: it is asked again with every tick."""
        try:
            if self._conditions.seed(self._stored, self._clock()):
                log.info("the conditions of credentials and deployments were taken from the store")
        except (StateUnavailable, GatewayError) as error:
            log.debug("conditions are not seeded: %s", error)

    def _stored(self) -> Mapping[str, Condition]:
        rows = self._database.read(store.conditions)
        return {row.subject: self._due(self._live(row)) for row in rows}

    def _due(self, condition: Condition) -> Condition:
        """Whoever was probing did so before this state was made."""
        return replace(condition, state=COOLING, until=self._clock()) if condition.state == PROBING else condition

    def _live(self, row: StoredCondition) -> Condition:
        """Times of the store become this boot's."""
        until = FOREVER if row.until_at is None else self._clock() + (row.until_at - self._wall_ms()) / 1000
        return Condition(row.state, until, row.reason, row.rest_s, row.named)

    def follow(self) -> None:
        """A task of housekeeping: take over what other hosts and operators changed since the last look. Never raises."""
        try:
            self.seed()
            if self._last is None:  # whoever followed before may have ended before its last look
                earlier = self._wall_ms() - LOOK_BACK_MS
                self._last = self._database.read(lambda: store.last_transition(earlier))
            since = max(self._last - OVERLAP, 0)
            found = [each for each in self._database.read(lambda: store.transitions_after(since)) if each.id not in self._seen]
            if found:
                self._take_over({each.subject for each in found if not self._presence.local(each.host)})
                self._last = max(self._last, found[-1].id)
                self._seen = {each for each in (*self._seen, *(one.id for one in found)) if each > self._last - OVERLAP}
        except (StateUnavailable, GatewayError) as error:
            log.debug("transitions are not followed: %s", error)
        except Exception as error:  # a task's outermost edge
            log.error("transitions are not followed: %s", type(error).__name__, exc_info=error)

    def _take_over(self, subjects: set[str]) -> None:
        if not subjects:
            return
        kept = {row.subject: self._live(row) for row in self._database.read(lambda: store.conditions(subjects))}
        for subject in subjects:
            self._conditions.change(subject, lambda _, subject=subject: kept.get(subject))  # type: ignore[misc]
