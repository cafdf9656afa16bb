"""Which workers stay, over an arbiter that only notes what it is told."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.errors import HaltServer

from gateway.succession import Succession


@dataclass
class Arbiter:
    """`WORKERS` by process id. The reload itself is shown by tests/faults/test_27_reload.py. A worker serves once `serve` was called for it."""

    num_workers: int = 1
    WORKERS: dict[int, Any] = field(default_factory=dict)
    told: list[tuple[int, int]] = field(default_factory=list)
    dying: list[HaltServer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    spawned: int = 0
    heard: bool = False
    """Whether a signal would have reached a worker while it was started."""

    @property
    def log(self) -> Any:
        return SimpleNamespace(error=lambda text, *values: self.errors.append(text % values))

    def spawn_worker(self) -> int:
        self.heard |= not {signal.SIGTERM, signal.SIGQUIT} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.spawned += 1
        pid, made = 100 + self.spawned, time.time()
        self.WORKERS[pid] = SimpleNamespace(pid=pid, age=self.spawned, tmp=SimpleNamespace(last_update=lambda: made))
        return pid

    def serve(self, *pids: int) -> None:
        now = time.monotonic()
        for pid in pids:
            self.WORKERS[pid].tmp.last_update = lambda: now

    def kill_worker(self, pid: int, number: int) -> None:
        self.told.append((pid, number))

    def kill_workers(self, number: int) -> None:
        self.told += [(pid, number) for pid in self.WORKERS]

    def manage_workers(self) -> None:
        raise AssertionError("replaced")

    def reap_workers(self) -> None:
        if self.dying:
            raise self.dying.pop()


@pytest.fixture
def arbiter() -> Arbiter:
    arbiter = Arbiter()
    Succession(arbiter).install()
    arbiter.manage_workers()
    arbiter.serve(101)
    return arbiter


def test_missing_workers_are_started(arbiter: Arbiter) -> None:
    arbiter.num_workers = 3
    arbiter.manage_workers()
    assert sorted(arbiter.WORKERS) == [101, 102, 103]
    assert arbiter.told == []


def test_worker_that_starts_hears_a_signal_later_and_the_arbiter_at_once(arbiter: Arbiter) -> None:
    arbiter.spawn_worker()
    assert not arbiter.heard
    assert not {signal.SIGTERM, signal.SIGQUIT} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_old_worker_leaves_when_the_new_one_serves_and_is_told_once(arbiter: Arbiter) -> None:
    arbiter.spawn_worker()
    arbiter.manage_workers()
    assert arbiter.told == []
    arbiter.serve(102)
    arbiter.manage_workers()
    arbiter.manage_workers()
    assert arbiter.told == [(101, signal.SIGTERM)]


def test_worker_that_dies_while_another_leaves_is_replaced(arbiter: Arbiter) -> None:
    arbiter.spawn_worker()
    arbiter.serve(102)
    arbiter.manage_workers()
    del arbiter.WORKERS[102]
    arbiter.manage_workers()
    assert sorted(arbiter.WORKERS) == [101, 103]


def test_surplus_of_workers_leaves_the_oldest_first(arbiter: Arbiter) -> None:
    arbiter.num_workers = 3
    arbiter.manage_workers()
    arbiter.serve(102, 103)
    arbiter.num_workers = 1
    arbiter.manage_workers()
    assert arbiter.told == [(101, signal.SIGTERM), (102, signal.SIGTERM)]


def test_worker_that_cannot_start_does_not_end_a_server_that_serves(arbiter: Arbiter) -> None:
    arbiter.dying.append(HaltServer("Worker failed to boot.", 3))
    arbiter.reap_workers()
    assert arbiter.errors == ["a new worker did not start (Worker failed to boot.); the others go on"]


def test_worker_that_cannot_start_ends_a_server_where_none_serves(arbiter: Arbiter) -> None:
    arbiter.WORKERS.clear()
    arbiter.dying.append(HaltServer("Worker failed to boot.", 3))
    with pytest.raises(HaltServer):
        arbiter.reap_workers()


def test_end_tells_the_workers_that_nobody_follows(arbiter: Arbiter) -> None:
    with pytest.raises(StopIteration):
        arbiter.handle_term()  # type: ignore[attr-defined]
    assert arbiter.told == [(101, signal.SIGQUIT)]
