"""A queue in front of one connection whose driver waits cooperatively: PostgreSQL's."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Any

from gateway.concurrency import Job, spawn


class CooperativeWorker:
    """NativeWorker's twin in an ordinary thread: a greenlet where patched. `run([])` is the last call, after `close`."""

    def __init__(self, run: Callable[[list[Job]], None], name: str, limit: int) -> None:
        self._run, self._name, self._limit = run, name, limit
        self._jobs: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._started = self._closed = False

    def submit(self, item: Any, timeout_s: float | None = None) -> Any:
        """The result of `item`. Raises its error, OffloadTimeout, or RuntimeError after `close`."""
        job = Job(item)
        with self._changed:
            if self._closed:
                raise RuntimeError(f"{self._name} is closed")
            if not self._started:
                self._started = True
                spawn(self._loop, self._name)
            self._jobs.append(job)
            self._changed.notify()
        return job.wait(timeout_s)

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _loop(self) -> None:
        while batch := self._next():
            self._run_batch(batch)
        self._run_batch([])

    def _next(self) -> list[Job]:
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            return [self._jobs.popleft() for _ in range(min(len(self._jobs), self._limit))]

    def _run_batch(self, batch: list[Job]) -> None:
        try:
            self._run(batch)
        except BaseException as error:  # the thread's outermost edge: every waiting caller gets it
            for job in batch:
                job.error = job.error or error
        for job in batch:
            job.done()
