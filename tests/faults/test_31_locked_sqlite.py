"""Row 31: another process holds SQLite's write lock. Calls wait for it without stalling the hub, up to a bound; then the journal books them.

The row's 503 is what a call with a budget is told before an upstream is asked: the hold cannot be made (the last test here). What becomes of
a call that neither takes: tests/integration/test_end_of_call.py.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fakes.answers import Events
from tests.fakes.gateway import Answer, RunningGateway
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT
from tests.faults.conftest import Measured

PACE_S, EVENTS = 0.01, 450
LOCK_S = 5.0
"""What a caller of the database waits."""


@contextlib.contextmanager
def rival(gateway: RunningGateway) -> Iterator[None]:
    """Holds the write lock of the gateway's database: to the gateway, another process."""
    with contextlib.closing(sqlite3.connect(gateway.directory / "data" / "gateway.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def paced(gateway: RunningGateway, events: int) -> list[float]:
    """When each of the first blocks of a stream paced at PACE_S arrived."""
    with gateway.client() as client:
        client.ask(CHAT, {"model": "paced", "messages": [{"role": "user", "content": "x"}], "stream": True})
        assert client.head().status == 200
        moments = []
        while len(moments) < events and client.block():
            moments.append(time.monotonic())
        return moments


def timed(gateway: RunningGateway) -> tuple[Answer, float]:
    began = time.monotonic()
    answer = gateway.post(CHAT, {"model": "echo", "messages": [{"role": "user", "content": "x"}]})
    return answer, time.monotonic() - began


def test_a_lock_that_ends_in_time_costs_only_waiting(tmp_path: Path) -> None:
    with RunningGateway(tmp_path) as gateway, ThreadPoolExecutor(20) as pool:
        with rival(gateway):
            waiting = [pool.submit(timed, gateway) for _ in range(20)]
            time.sleep(1)
            assert not any(each.done() for each in waiting)
            assert gateway.get("/v1/models").status == 200  # who only reads does not wait
        assert all(each.result()[0].status == 200 for each in waiting)
        assert len(gateway.wait_entries(20)) == 20


def test_a_lock_that_stays_is_passed_by_after_five_seconds_and_stalls_no_stream(tmp_path: Path, measured: Measured) -> None:
    event = {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
    with Provider() as provider, RunningGateway(tmp_path) as gateway, ThreadPoolExecutor(20) as pool:
        gateway.deploy("paced", provider.url)
        gateway.wait_catalog()
        provider.always("/v1/chat/completions", Events(*[event] * EVENTS, pause_s=PACE_S))
        undisturbed = gaps(paced(gateway, 100))
        with rival(gateway):
            stream = pool.submit(paced, gateway, EVENTS)
            told = [pool.submit(timed, gateway) for _ in range(10)]
            answers = [each.result() for each in told]
            locked = gaps(stream.result())
        assert timed(gateway)[0].status == 200
        booked = [entry.exchange for entry in gateway.wait_entries(12)]
    worst, usual = max(locked), max(undisturbed)
    waits = [seconds for _, seconds in answers]
    late = f"{worst * 1000:.0f} ms, {usual * 1000:.0f} ms without the lock"
    measured(31, f"booked in the journal after {min(waits):.2f} to {max(waits):.2f} s; a block of a paced stream is late by at most {late}")
    assert {answer.status for answer, _ in answers} == {200}
    assert all(booked.count(answer.headers["x-request-id"]) == 1 for answer, _ in answers)
    assert min(waits) > LOCK_S / 2
    assert max(waits) < 10 * LOCK_S
    assert worst < 10 * 0.02 + usual


def test_a_call_with_a_budget_is_told_before_an_upstream_is_asked(tmp_path: Path, measured: Measured) -> None:
    with RunningGateway(tmp_path) as gateway:
        gateway.budget(1_000_000_000)
        gateway.wait_catalog()
        with rival(gateway):
            answer, seconds = timed(gateway)
        assert timed(gateway)[0].status == 200
        measured(31, f"with a budget: told after {seconds:.2f} s (5), nothing was sent")
        assert (answer.status, answer.json()["error"]["code"], answer.headers["retry-after"]) == (503, "store_unavailable", "2")
        assert 'attempts=""' in answer.headers["x-gateway-receipt"]
        assert seconds < 10 * LOCK_S


def gaps(moments: list[float]) -> list[float]:
    """How much later than paced each block came after the one before."""
    return [later - earlier - PACE_S for earlier, later in itertools.pairwise(moments)]
