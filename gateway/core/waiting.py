"""The waiting room: calls for a model that is busy, where the operator gave it a queue. Keys take turns, over all workers.

A call waits in its own greenlet, and nothing is sent to its client. In each worker one more looks after a queue: every 50 ms, or when
a call of this worker ends, it asks for who is first, if that is one of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.backend import Cancellation
from gateway.concurrency import spawn
from gateway.errors import Cancelled
from gateway.state.base import QUEUE, Full, Limits, Standing, StateUnavailable

log = logging.getLogger(__name__)
POLL_S = 0.05
Outcome = Full | tuple[Standing, ...]


@dataclass(eq=False, slots=True)
class _Waiter:
    attempt: Callable[[], Outcome]
    outcome: Outcome | None = None
    gone: bool = False
    told: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, queue: str) -> Outcome | None:
        """Attempt; None where it left meanwhile, or goes on waiting."""
        with self.lock:
            outcome = None if self.gone else self.attempt()
            if outcome is None or (isinstance(outcome, Full) and outcome.subject == queue):
                return None
            return self.tell(outcome)

    def tell(self, outcome: Outcome) -> Outcome:
        self.outcome = outcome
        self.told.set()
        return outcome

    def go(self) -> Outcome | None:
        """Wait no longer: its outcome, if there is one by now."""
        with self.lock:
            self.gone = True
            return self.outcome


class WaitingRoom:
    """Of one worker. `count` calls wait now."""

    def __init__(self, state: Limits) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._waiters: dict[str, dict[str, _Waiter]] = {}
        self._wakers: dict[str, threading.Event] = {}
        self._leaving: dict[str, set[str]] = {}
        """Who could not be taken from the queue: whoever stands in it blocks those behind."""

    @property
    def count(self) -> int:
        return sum(map(len, self._waiters.values()))

    def wait(self, queue: str, call: str, key: int, size: int, seconds: float, attempt: Callable[[], Outcome], cancel: Cancellation) -> Outcome:
        """Until `attempt` succeeds in this call's turn, at most so many seconds. Raises Cancelled, StateUnavailable."""
        if not self._state.join(queue, call, key, size):
            return Full(queue, QUEUE, size, self._state.wait_s(queue))
        waiter = _Waiter(attempt)
        self._look_after(queue, call, waiter)
        forget = cancel.on_cancel(waiter.told.set)
        try:
            waiter.told.wait(seconds)
        finally:
            forget()
            outcome = waiter.go()
            if outcome is None:
                self._leave(queue, call)
            self._forget(queue, call)
        if outcome is not None:
            return outcome
        if cancel.reason is not None:
            raise Cancelled(cancel.reason)
        return Full(queue, QUEUE, size, self._state.wait_s(queue))

    def wake(self, queue: str) -> None:
        """There may be room."""
        if (waker := self._wakers.get(queue)) is not None:
            waker.set()

    def _look_after(self, queue: str, call: str, waiter: _Waiter) -> None:
        with self._lock:
            self._waiters.setdefault(queue, {})[call] = waiter
            if queue in self._wakers:
                return
            self._wakers[queue] = waker = threading.Event()
        spawn(lambda: self._serve(queue, waker), "waiting-room")

    def _leave(self, queue: str, call: str) -> None:
        """Now, or as soon as the state can be used."""
        try:
            self._state.leave(queue, call)
        except StateUnavailable:
            with self._lock:
                self._leaving.setdefault(queue, set()).add(call)

    def _leave_late(self, queue: str) -> None:
        for call in tuple(self._leaving.get(queue, ())):
            self._state.leave(queue, call)
            self._leaving[queue].discard(call)

    def _forget(self, queue: str, call: str) -> None:
        with self._lock:
            self._waiters[queue].pop(call, None)

    def _serve(self, queue: str, waker: threading.Event) -> None:
        while self._is_needed(queue):
            waker.clear()
            try:
                self._leave_late(queue)
                while self._serve_first(queue):
                    pass
            except StateUnavailable:  # who waits is told when its time is up
                pass
            except Exception as error:  # the loop's outermost edge: the others still wait
                log.error("the waiting room failed: %s", type(error).__name__, exc_info=error)
            waker.wait(POLL_S)

    def _is_needed(self, queue: str) -> bool:
        with self._lock:
            if not self._waiters[queue] and not self._leaving.get(queue):
                del self._wakers[queue]
                return False
            return True

    def _serve_first(self, queue: str) -> bool:
        """Whether somebody was served, so that the next may be as well."""
        with self._lock:
            waiters = dict(self._waiters[queue])
        line = self._state.line(queue)
        for call, waiter in waiters.items():
            if call not in line.own and waiter.outcome is None:  # the place of the key with the most calls in a full queue
                waiter.tell(Full(queue, QUEUE, 0, self._state.wait_s(queue)))
        first = waiters.get(line.first or "")
        outcome = first.ask(queue) if first is not None and first.outcome is None else None
        if isinstance(outcome, Full):  # another limit refuses it: the others need not wait for that
            self._leave(queue, line.first or "")
        return outcome is not None
