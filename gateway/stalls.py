"""The stall monitor: notices when something keeps every greenlet of this process waiting, and logs what it was.

A timer of the hub, the beat, measures how late the hub is; a native thread looks at the beat and, where it is overdue, notes the
stack of the main thread. gevent's own monitor traces each switch of greenlets, which costs at every one; this, nothing between beats.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import gevent
from gevent import monkey

log = logging.getLogger(__name__)
BEAT_S = 0.05
STALL_S = 0.1
"""A beat that is late by more is a stall."""
LINE_S = 10.0
"""At most one line in so long; what comes between is counted in the next."""
_DEEPEST = 40


@dataclass(frozen=True, slots=True)
class Stack:
    """`late`: the noting thread itself was kept waiting, by C code that held the interpreter: the stack is of the moment after."""

    calls: tuple[str, ...]
    late: bool


class StallMonitor:
    """Watches the hub of the thread that calls `start`. `observe(seconds)` is called for every stall, and must not raise."""

    def __init__(self, observe: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._observe, self._clock = observe, clock
        self._native_sleep = monkey.get_original("time", "sleep")
        self._watched = 0
        self._beat, self._cpu = 0.0, 0.0
        self._noted: Stack | None = None
        self._told, self._untold = -LINE_S, 0
        self._timer: Any = None

    def start(self) -> None:
        """Begin to watch. Called once, after the fork."""
        self._watched = monkey.get_original("_thread", "get_ident")()
        self._beat, self._cpu = self._clock(), time.thread_time()
        self._timer = gevent.get_hub().loop.timer(BEAT_S, BEAT_S)
        self._timer.start(self._beats, update=False)
        monkey.get_original("_thread", "start_new_thread")(self._watch, ())

    def close(self) -> None:
        """End both. Idempotent."""
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _watch(self) -> None:
        """The native thread: no patched lock, no logging, nothing that could wait for the hub."""
        while self._timer is not None:
            due = self._clock() + BEAT_S
            self._native_sleep(BEAT_S)
            now = self._clock()
            if self._noted is None and now - self._beat > STALL_S:  # a beat and a half before it counts: the stall is still on
                # Not kept in a local: it would hold the stack's values, bodies and keys among them, until the next stall.
                self._noted = Stack(_calls(sys._current_frames().get(self._watched)), now - due > BEAT_S / 2)

    def _beats(self) -> None:
        now, cpu = self._clock(), time.thread_time()
        late, busy, noted = now - self._beat - BEAT_S, cpu - self._cpu, self._noted
        self._beat, self._cpu, self._noted = now, cpu, None
        if late > STALL_S:
            gevent.spawn(self._tell, now, late, busy, noted)  # a timer must not wait, and writing a line may

    def _tell(self, now: float, late: float, busy: float, noted: Stack | None) -> None:
        self._observe(late)
        if now - self._told < LINE_S:
            self._untold += 1
            return
        untold, self._told, self._untold = self._untold, now, 0
        fields = {
            "seconds": round(late, 3),
            "cpu_seconds": round(busy, 3),
            "since_last_line": untold,
            "stack": list(noted.calls) if noted else [],
            "stack_of": "the moment after: C code held the interpreter" if noted and noted.late else "the stall",
        }
        log.warning("the hub stood still: no call went on for %.0f ms", late * 1000, extra={"fields": fields})


def _calls(frame: FrameType | None) -> tuple[str, ...]:
    """Where the code was, the innermost call first: places and names only, no values."""
    calls: list[str] = []
    while frame is not None and len(calls) < _DEEPEST:
        calls.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return tuple(calls)
