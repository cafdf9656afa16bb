from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.backend import Cancellation
from gateway.core.waiting import WaitingRoom
from gateway.errors import Cancelled
from gateway.state.base import QUEUE, REQUESTS, Full, StateUnavailable
from gateway.state.sqlite import SqliteLimits


@pytest.fixture
def state(tmp_path: Path) -> SqliteLimits:
    return SqliteLimits(tmp_path, "me", lambda owner: True)


def test_who_is_first_in_another_worker_is_not_this_ones_business(state: SqliteLimits, tmp_path: Path) -> None:
    SqliteLimits(tmp_path, "other", lambda owner: True).join("q", "theirs", 1, 10)
    asked: list[str] = []

    def attempt() -> tuple[()]:
        asked.append("mine")
        return ()

    room = WaitingRoom(state)
    timer = threading.Timer(0.15, lambda: state.leave("q", "theirs"))
    timer.start()
    assert room.wait("q", "mine", 2, 10, 5.0, attempt, Cancellation()) == ()
    assert (asked, room.count) == (["mine"], 0)


def test_who_is_given_up_before_its_turn_is_told_so_at_once(state: SqliteLimits) -> None:
    cancel = Cancellation()
    cancel.fire("draining")
    with pytest.raises(Cancelled):
        WaitingRoom(state).wait("q", "mine", 1, 10, 5.0, lambda: Full("q", QUEUE, 0, 1.0), cancel)
    assert state.line("q").own == frozenset()


def test_a_state_that_breaks_meanwhile_lets_those_who_wait_time_out(state: SqliteLimits) -> None:
    def attempt() -> tuple[()]:
        raise StateUnavailable("gone")

    outcome = WaitingRoom(state).wait("q", "mine", 1, 10, 0.2, attempt, Cancellation())
    assert isinstance(outcome, Full)


class Faulty(SqliteLimits):
    """Cannot take anybody from a queue while it `fails`."""

    fails = True

    def leave(self, queue: str, call: str) -> None:
        if self.fails:
            raise StateUnavailable("gone")
        super().leave(queue, call)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def busy() -> Full:
    return Full("q", QUEUE, 0, 1.0)


def test_who_could_not_be_taken_from_the_queue_is_taken_from_it_later_and_blocks_nobody(tmp_path: Path) -> None:
    state, room = (faulty := Faulty(tmp_path, "me", lambda owner: True)), WaitingRoom(faulty)
    assert isinstance(room.wait("q", "mine", 1, 10, 0.05, busy, Cancellation()), Full)
    assert state.line("q").first == "mine"
    state.fails = False
    wait_until(lambda: state.line("q").first is None)


def test_who_is_refused_by_another_limit_and_cannot_be_taken_from_the_queue_blocks_nobody(tmp_path: Path) -> None:
    state, room = (faulty := Faulty(tmp_path, "me", lambda owner: True)), WaitingRoom(faulty)
    refused = Full("key:1", REQUESTS, 1, 9.0)
    assert room.wait("q", "mine", 1, 10, 5.0, lambda: refused, Cancellation()) == refused
    state.fails = False
    wait_until(lambda: state.line("q").first is None)


def test_a_call_that_is_given_up_is_told_so_also_where_it_cannot_be_taken_from_the_queue(tmp_path: Path) -> None:
    cancel = Cancellation()
    cancel.fire("client_gone")
    with pytest.raises(Cancelled):
        WaitingRoom(Faulty(tmp_path, "me", lambda owner: True)).wait("q", "mine", 1, 10, 5.0, busy, cancel)


def test_an_attempt_that_fails_as_nobody_thought_ends_no_later_waits(state: SqliteLimits, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Full:
        raise OverflowError("too large")

    room = WaitingRoom(state)
    assert isinstance(room.wait("q", "mine", 1, 10, 0.1, broken, Cancellation()), Full)
    assert room.wait("q", "next", 1, 10, 5.0, lambda: (), Cancellation()) == ()
