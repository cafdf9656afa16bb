"""Threads and waiting, the same in plain processes and under gevent: the last test runs this whole file again in a patched process."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.concurrency import Job, NativeWorker, OffloadTimeout, after, every, offload, patched, spawn, watch_readable

PATCHED_RUN = "GATEWAY_TEST_PATCHED"
GRACE_S = 0.1
"""Long enough that what must not happen would have happened."""


def stall() -> str:
    """Half a second or so in C code that releases the GIL but knows nothing of greenlets."""
    return hashlib.pbkdf2_hmac("sha256", b"x", b"y", 500_000).hex()


class Ticks:
    """Counts as long as other threads (greenlets) get to run."""

    def __init__(self) -> None:
        self.count, self._stopped = 0, threading.Event()
        self._thread = spawn(self._run, "ticks")

    def _run(self) -> None:
        while not self._stopped.wait(0.005):
            self.count += 1

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return self.count


def test_process_is_patched_only_where_it_was_patched() -> None:
    assert patched() is (PATCHED_RUN in os.environ)


# offload


def test_offloaded_function_runs_in_another_native_thread() -> None:
    assert offload(threading.get_native_id) != threading.get_native_id()


def test_offloaded_function_stalls_nobody_else() -> None:
    ticks = Ticks()
    assert len(offload(stall)) == 64
    assert ticks.stop() > 5


@pytest.mark.parametrize("error", [ValueError("bad"), TimeoutError("its own"), OffloadTimeout("its own"), KeyError(1)])
@pytest.mark.parametrize("timeout_s", [None, 5.0])
def test_error_of_an_offloaded_function_is_raised_as_it_is(error: Exception, timeout_s: float | None) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        offload(fail, timeout_s)
    assert raised.value is error


def test_offload_gives_up_waiting_but_the_function_goes_on() -> None:
    read, write = os.pipe()
    finished: list[bytes] = []
    with pytest.raises(OffloadTimeout):
        offload(lambda: finished.append(os.read(read, 1)), 0.05)
    assert finished == []
    os.write(write, b"x")
    eventually(lambda: finished == [b"x"])
    os.close(read)
    os.close(write)


def eventually(met: Callable[[], bool], within_s: float = 5.0) -> None:
    until = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < until
        time.sleep(0.005)


# NativeWorker


def doubled(jobs: list[Job]) -> None:
    for job in jobs:
        if isinstance(job.item, int):
            job.result = job.item * 2
        else:
            job.error = TypeError(f"no number: {job.item}")


@pytest.fixture
def worker() -> Iterator[NativeWorker]:
    worker = NativeWorker(doubled, "doubler")
    yield worker
    worker.close()


def test_each_caller_gets_the_outcome_of_its_item(worker: NativeWorker) -> None:
    outcomes: dict[Any, Any] = {}

    def call(item: Any) -> None:
        try:
            outcomes[item] = worker.submit(item)
        except TypeError as error:
            outcomes[item] = str(error)

    threads = [threading.Thread(target=call, args=(item,)) for item in [*range(50), "x", "y"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {number: number * 2 for number in range(50)} | {"x": "no number: x", "y": "no number: y"}


def test_what_arrives_while_a_batch_runs_makes_the_next_batch_within_the_limit() -> None:
    batches: list[list[Any]] = []
    read, write = os.pipe()

    def run(jobs: list[Job]) -> None:
        batches.append([job.item for job in jobs])
        if jobs and jobs[0].item == "first":
            os.read(read, 1)

    worker = NativeWorker(run, "batches", limit=3)
    threads = [spawn(lambda: worker.submit("first"), "first")]
    eventually(lambda: bool(batches))
    for number in range(5):
        threads.append(spawn(lambda number=number: worker.submit(number), "later"))  # type: ignore[misc]
        time.sleep(0.02)
    os.write(write, b"x")
    for thread in threads:
        thread.join()
    assert batches == [["first"], [0, 1, 2], [3, 4]]
    worker.close()
    os.close(read)
    os.close(write)


def test_worker_stalls_nobody_else_and_keeps_to_one_native_thread() -> None:
    seen: set[int] = set()

    def run(jobs: list[Job]) -> None:
        seen.add(threading.get_native_id())
        for job in jobs:
            job.result = stall()

    worker, ticks = NativeWorker(run, "staller"), Ticks()
    assert len(worker.submit(1)) == len(worker.submit(2)) == 64
    assert ticks.stop() > 10
    assert len(seen) == 1
    assert threading.get_native_id() not in seen
    worker.close()


def test_failed_batch_fails_every_caller_of_it_and_the_worker_goes_on() -> None:
    def run(jobs: list[Job]) -> None:
        if any(job.item == "bad" for job in jobs):
            raise ConnectionError("lost")
        doubled(jobs)

    worker = NativeWorker(run, "failing")
    with pytest.raises(ConnectionError, match="lost"):
        worker.submit("bad")
    assert worker.submit(4) == 8
    worker.close()


def test_caller_that_gives_up_leaves_the_worker_in_order() -> None:
    read, write = os.pipe()

    def run(jobs: list[Job]) -> None:
        for job in jobs:
            job.result = os.read(read, 1) if job.item == "wait" else job.item

    worker = NativeWorker(run, "patient")
    with pytest.raises(OffloadTimeout):
        worker.submit("wait", 0.05)
    os.write(write, b"x")
    assert worker.submit("next", 5.0) == "next"
    worker.close()
    os.close(read)
    os.close(write)


def test_closed_worker_finishes_what_is_queued_runs_an_empty_batch_and_takes_no_more() -> None:
    batches: list[int] = []
    read, write = os.pipe()

    def run(jobs: list[Job]) -> None:
        batches.append(len(jobs))
        if len(batches) == 1:
            os.read(read, 1)

    worker = NativeWorker(run, "closing")
    first = spawn(lambda: worker.submit(1), "first")
    eventually(lambda: batches == [1])
    second = spawn(lambda: worker.submit(2), "second")
    time.sleep(0.05)
    worker.close()
    with pytest.raises(RuntimeError, match="closing is closed"):
        worker.submit(3)
    os.write(write, b"x")
    first.join()
    second.join()
    eventually(lambda: batches == [1, 1, 0])
    worker.close()
    os.close(read)
    os.close(write)


def test_worker_that_was_never_used_closes() -> None:
    worker = NativeWorker(doubled, "idle")
    worker.close()
    with pytest.raises(RuntimeError):
        worker.submit(1)


if PATCHED_RUN in os.environ:  # what it looks at is there only then; the last test runs it

    def test_closed_worker_leaves_nothing_in_the_loop() -> None:
        import gevent  # only in a patched process

        def active() -> int:
            return int(gevent.get_hub().loop.activecnt)

        time.sleep(GRACE_S)
        before = active()
        for number in range(20):
            worker = NativeWorker(doubled, "brief")
            assert worker.submit(number) == 2 * number
            worker.close()
        eventually(lambda: active() <= before)


# after, every


def test_timer_fires_once_also_when_nobody_keeps_it() -> None:
    fired: list[float] = []
    begun = time.monotonic()
    after(0.05, lambda: fired.append(time.monotonic() - begun))
    eventually(lambda: len(fired) == 1)
    time.sleep(GRACE_S)
    assert len(fired) == 1
    assert fired[0] >= 0.045


def test_cancelled_timer_does_not_fire() -> None:
    fired: list[bool] = []
    cancel = after(0.05, lambda: fired.append(True))
    cancel()
    cancel()
    time.sleep(GRACE_S)
    assert fired == []


def test_timer_can_be_cancelled_after_it_fired() -> None:
    fired = threading.Event()
    cancel = after(0.0, fired.set)
    assert fired.wait(5)
    cancel()
    cancel()


def test_timer_may_wait_in_its_callback() -> None:
    done = threading.Event()

    def callback() -> None:
        time.sleep(0.01)
        done.set()

    after(0.01, callback)
    assert done.wait(5)


def test_repeated_call_may_begin_at_once() -> None:
    called = threading.Event()
    stop = every(3600, called.set, "repeated", at_once=True)
    assert called.wait(5)
    stop()


def test_repeated_call_goes_on_until_it_is_stopped() -> None:
    calls: list[int] = []
    stop = every(0.01, lambda: calls.append(1), "repeated")
    eventually(lambda: len(calls) >= 3)
    stop()
    time.sleep(0.05)
    count = len(calls)
    time.sleep(GRACE_S)
    assert len(calls) == count
    stop()


def test_spawned_thread_does_not_keep_the_process() -> None:
    assert spawn(lambda: None, "short").daemon


# watch_readable


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with peer, ours:
        yield ours, peer


Pair = tuple[socket.socket, socket.socket]


class Watch:
    def __init__(self, sock: socket.socket) -> None:
        self.calls, self.called = 0, threading.Event()
        self.disarm = watch_readable(sock, self._call)

    def _call(self) -> None:
        self.calls += 1
        self.called.set()

    def is_quiet(self) -> bool:
        return not self.called.wait(GRACE_S)


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
def test_peer_that_goes_away_is_noticed_once(pair: Pair, how: str) -> None:
    ours, peer = pair
    watch = Watch(ours)
    assert watch.is_quiet()
    if how == "half-close":
        peer.shutdown(socket.SHUT_WR)
    else:
        if how == "reset":
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    assert watch.called.wait(5)
    time.sleep(GRACE_S)
    assert watch.calls == 1
    watch.disarm()
    watch.disarm()


def test_peer_that_was_gone_already_is_noticed(pair: Pair) -> None:
    ours, peer = pair
    peer.close()
    time.sleep(0.02)
    assert Watch(ours).called.wait(5)


def test_bytes_end_the_watch_unheard_and_stay_for_their_reader(pair: Pair) -> None:
    ours, peer = pair
    watch = Watch(ours)
    peer.sendall(b"next request")
    assert watch.is_quiet()
    peer.close()
    assert watch.is_quiet()
    assert ours.recv(100) == b"next request"
    watch.disarm()


def test_disarmed_watch_is_silent(pair: Pair) -> None:
    ours, peer = pair
    watch = Watch(ours)
    watch.disarm()
    watch.disarm()
    peer.close()
    assert watch.is_quiet()


def test_watched_socket_can_be_watched_again(pair: Pair) -> None:
    ours, peer = pair
    Watch(ours).disarm()
    second = Watch(ours)
    peer.close()
    assert second.called.wait(5)


def test_callback_may_disarm_its_own_watch_and_wait(pair: Pair) -> None:
    ours, peer = pair
    done = threading.Event()

    def callback() -> None:
        disarm()
        time.sleep(0.01)
        done.set()

    disarm = watch_readable(ours, callback)
    peer.close()
    assert done.wait(5)


def test_all_of_this_holds_under_gevent() -> None:
    script = "import sys; from gevent import monkey; monkey.patch_all(); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    arguments = ["-q", "--no-header", str(Path(__file__)), "-k", "not under_gevent"]
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", script, *arguments], cwd=root, env=os.environ | {PATCHED_RUN: "1"}, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
