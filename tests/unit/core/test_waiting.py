from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gateway.backend import Cancellation
from gateway.core.waiting import WaitingRoom
from gateway.errors import Cancelled
from gateway.state.base import QUEUE, Full, StateUnavailable
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
