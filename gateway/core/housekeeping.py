"""What keeps the books straight while calls come and go: journals are replayed, holds of dead workers end, what nobody needs is forgotten.

Every worker looks after its own; one of a host, which holds a lock, looks after those that are gone. Each step may be done twice by two hosts at
once: the ledger's guards let it happen once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gateway.concurrency import every
from gateway.core.exchange import Ending
from gateway.core.holds import Holds
from gateway.core.ledger import Ledger
from gateway.errors import GatewayError
from gateway.presence import Presence
from gateway.store import agents, alerts, conditions, conversations, holds, idempotency
from gateway.store.database import Database
from gateway.store.holds import OpenHold
from gateway.store.journal import Journal

log = logging.getLogger(__name__)
TICK_S = 1.0
REAP_AT_ONCE = 500
KEEP_HOLDS_MS = 7 * 86_400_000
KEEP_ALERTS_MS = 90 * 86_400_000
KEEP_TRANSITIONS_MS = 30 * 86_400_000
KEEP_CONVERSATIONS_MS = 90 * 86_400_000
KEEP_AGENTS_MS = 30 * 86_400_000
FORGET_EVERY_S = 60.0
FORGET_S = 0.25
"""How long a tick may forget; what is left then waits for the next one."""


class Housekeeping:
    """`tasks` are called by the one worker of the host that holds the lock, once a tick each; what they raise is logged."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        ledger: Ledger,
        own: Holds,
        presence: Presence,
        lock_path: Path,
        tasks: Sequence[Callable[[], None]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database, self._journal, self._ledger, self._own, self._presence = database, journal, ledger, own, presence
        self._lock_path, self._tasks, self._clock = lock_path, tasks, clock
        self._lock: int | None = None
        self._stop: Callable[[], None] | None = None
        self._forget_at = 0.0

    def start(self) -> None:
        self._stop = every(TICK_S, self.tick, "housekeeping", at_once=True)  # workers that die one after the other may not live for a tick

    def close(self) -> None:
        """Idempotent."""
        if self._stop is not None:
            self._stop()
            self._stop = None
            self._quietly(self._look_after_own)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._journal.close()

    def tick(self) -> None:
        """Never raises: what a database that is away leaves undone is done later."""
        self._quietly(self._look_after_own)
        if self._is_keeper():
            self._quietly(self._look_after_others)
            for task in self._tasks:
                self._quietly(task)

    def _quietly(self, step: Callable[[], None]) -> None:
        try:
            step()
        except GatewayError as error:
            log.debug("housekeeping waits: %s", error)
        except Exception as error:  # the loop's outermost edge: it must go on
            log.error("housekeeping failed: %s", type(error).__name__, exc_info=error)

    def _is_keeper(self) -> bool:
        if self._lock is not None:
            return True
        self._lock_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._lock = file
        return True

    def _look_after_own(self) -> None:
        self._replay(lambda owner: True)
        if late := self._ledger.retry():
            log.warning("%d calls whose end was withheld are booked now", late)
        if doubtful := self._own.release_doubtful(lambda hold: self._end([hold], Ending.REFUSED)):
            log.warning("%d holds of which nobody knew whether they were made have ended", doubtful)
        for leaked in self._own.leaked():
            log.error("a hold outlived its call", extra={"exchange": leaked})
            self._own.closed(leaked)
            found = self._database.read(lambda: holds.open_holds(self._presence.owner, REAP_AT_ONCE))
            self._end([hold for hold in found if hold.id == leaked], Ending.WORKER_LOST)

    def _look_after_others(self) -> None:
        """Journals first: what a worker had booked there is no lost call."""
        self._replay(self._presence.alive)
        if lost := self._database.read(self._lost):
            self._end(lost, Ending.WORKER_LOST)
            log.warning("%d holds of workers that are gone have expired", len(lost))
        if self._clock() >= self._forget_at:
            self._forget()

    def _forget(self) -> None:
        """A transaction for every few rows, so that no call waits for it long; as many as there are, so that a busy gateway does not outgrow it."""
        now, until = time.time_ns() // 1_000_000, self._clock() + FORGET_S
        left = [
            partial(holds.forget, now - KEEP_HOLDS_MS, REAP_AT_ONCE),
            partial(idempotency.forget, REAP_AT_ONCE),
            partial(alerts.forget, now - KEEP_ALERTS_MS, REAP_AT_ONCE),
            partial(conditions.forget_transitions, now - KEEP_TRANSITIONS_MS, REAP_AT_ONCE),
            partial(conversations.forget_conversations, now - KEEP_CONVERSATIONS_MS, REAP_AT_ONCE),
            partial(agents.forget_agents, now - KEEP_AGENTS_MS, REAP_AT_ONCE),
        ]
        while left:
            left = [forget for forget in left if self._database.write(forget) == REAP_AT_ONCE]
            if left and self._clock() >= until:
                return
        self._forget_at = self._clock() + FORGET_EVERY_S

    def _lost(self) -> list[OpenHold]:
        """Whatever the dead workers of this host hold; of other hosts', of whose workers nothing is known here, what is past its deadline."""
        found: list[OpenHold] = []
        for owner in holds.owners():
            if self._database.shared and not self._presence.local(owner):
                held = holds.open_holds(owner, REAP_AT_ONCE)
                late = holds.overdue([hold.id for hold in held])
                found += [hold for hold in held if hold.id in late]
            elif not self._presence.alive(owner):
                found += holds.open_holds(owner, REAP_AT_ONCE)
        return found

    def _replay(self, alive: Callable[[str], bool]) -> None:
        count = self._journal.replay(self._ledger.book, alive)
        if count:
            log.warning("%d bookings of the journal are in the database now", count)

    def _end(self, abandoned: Sequence[OpenHold], ending: Ending) -> None:
        self._ledger.book([self._ledger.abandoned(hold, ending) for hold in abandoned])
