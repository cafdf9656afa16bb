from __future__ import annotations

import multiprocessing
import sqlite3
import time
from pathlib import Path

import pytest

from gateway.state.base import CONCURRENCY, QUEUE, REQUESTS, TOKENS, Full, Limit, StateUnavailable
from gateway.state.sqlite import SqliteLimits

SECOND = 1_000_000_000


class State(SqliteLimits):
    """Under the test's clock; `dead` are the owners that are gone."""

    def __init__(self, directory: Path, owner: str = "me") -> None:
        self.now, self.dead = 10**15, set[str]()
        super().__init__(directory, owner, lambda owner: owner not in self.dead, lambda: self.now)
        self.calls = 0

    def ask(self, *limits: Limit, tokens: int = 0, call: str = "") -> bool:
        self.calls += 1
        return not isinstance(self.take(call or f"call-{self.calls}", limits, tokens), Full)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


def test_a_minutes_worth_of_requests_passes_at_once_and_no_more(state: State) -> None:
    assert [state.ask(Limit("key:1", rpm=7)) for _ in range(9)] == [True] * 7 + [False] * 2


def test_the_bucket_drains_evenly(state: State) -> None:
    limit = Limit("key:1", rpm=6)
    assert all(state.ask(limit) for _ in range(6))
    full = state.take("x", [limit], 0)
    assert isinstance(full, Full)
    assert (full.resource, full.limit, full.retry_after_s) == (REQUESTS, 6, 10.0)
    state.now += 10 * SECOND
    assert [state.ask(limit), state.ask(limit)] == [True, False]


def test_a_refused_call_consumes_nothing_of_any_limit(state: State) -> None:
    user, key = Limit("user:1", rpm=100, tpm=1000, concurrency=9), Limit("key:1", rpm=1)
    assert state.ask(user, key, tokens=10)
    assert not state.ask(user, key, tokens=10)
    assert {(each.resource, each.remaining) for each in state.standings([user])} == {(REQUESTS, 99), (TOKENS, 990), (CONCURRENCY, 8)}


def test_tokens_are_put_right_at_the_end(state: State) -> None:
    limit = Limit("key:1", tpm=1000)
    assert state.ask(limit, tokens=600, call="a")
    assert not state.ask(limit, tokens=600)
    state.finish("a", [limit], 600, 100)
    assert state.standings([limit])[0].remaining == 900
    assert state.ask(limit, tokens=600, call="b")
    state.finish("b", [limit], 600, 2000)  # it went beyond: the others wait for it
    (standing,) = state.standings([limit])
    assert (standing.remaining, standing.reset_s) == (0, 126.0)


def test_a_call_of_more_than_a_minutes_tokens_may_begin_where_nothing_is_used(state: State) -> None:
    limit = Limit("key:1", tpm=1000)
    assert [state.ask(limit, tokens=5000), state.ask(limit, tokens=1)] == [True, False]


def test_a_call_that_never_began_gives_back_all_it_took(state: State) -> None:
    limit = Limit("key:1", rpm=2, tpm=100, concurrency=1)
    assert state.ask(limit, tokens=100, call="a")
    state.give_back("a", [limit], 100)
    assert {each.remaining for each in state.standings([limit])} == {2, 100, 1}


def test_places_are_free_when_calls_end_and_only_once(state: State) -> None:
    limit = Limit("model:1", concurrency=2)
    assert [state.ask(limit, call=call) for call in "abc"] == [True, True, False]
    state.finish("a", [limit], 0, 0)
    state.finish("a", [limit], 0, 0)
    assert [state.ask(limit, call=call) for call in "de"] == [True, False]


def test_places_of_a_worker_that_died_are_free(state: State, tmp_path: Path) -> None:
    limit, other = Limit("model:1", concurrency=2), State(tmp_path, "other")
    assert [other.ask(limit), other.ask(limit), other.ask(limit)] == [True, True, False]
    assert not state.ask(limit)
    state.dead.add("other")
    assert state.standings([limit])[0].remaining == 2
    assert state.ask(limit)


def test_standings_say_when_all_of_a_limit_is_back(state: State) -> None:
    limit = Limit("key:1", rpm=60)
    found = state.take("a", [limit], 0)
    assert not isinstance(found, Full)
    assert [(each.limit, each.remaining, each.reset_s) for each in found] == [(60, 59, 1.0)]


def test_keys_take_turns_in_a_queue(state: State) -> None:
    limit = Limit("model:1", concurrency=1)
    state.take("running", [limit], 0, "model:1")
    for number in range(5):
        assert state.join("model:1", f"greedy-{number}", 1, 100)
    assert state.join("model:1", "modest", 2, 100)
    served = []
    previous = "running"
    for _ in range(6):
        state.finish(previous, [limit], 0, 0)
        first = state.line("model:1").first
        assert first is not None
        assert not isinstance(state.take(first, [limit], 0, "model:1"), Full)
        served.append(first)
        previous = first
    assert served == ["greedy-0", "modest", *(f"greedy-{number}" for number in range(1, 5))]


def test_a_key_that_asks_again_and_again_waits_behind_those_who_have_had_no_turn(state: State) -> None:
    limit = Limit("model:1", concurrency=1)
    state.take("running", [limit], 0, "model:1")
    for call, key in (("y-0", 1), ("y-1", 1), ("x-0", 2)):
        state.join("model:1", call, key, 100)
    served, previous = [], "running"
    for number in range(1, 5):
        state.finish(previous, [limit], 0, 0)
        previous = state.line("model:1").first or ""
        assert not isinstance(state.take(previous, [limit], 0, "model:1"), Full)
        served.append(previous)
        if previous.startswith("x"):
            assert state.join("model:1", f"x-{number}", 2, 100)
    assert served == ["y-0", "x-0", "y-1", "x-2"]


def test_nobody_goes_before_those_who_wait(state: State) -> None:
    limit = Limit("model:1", concurrency=5)
    assert state.join("model:1", "first", 1, 10)
    full = state.take("newcomer", [limit], 0, "model:1")
    assert isinstance(full, Full)
    assert (full.subject, full.resource) == ("model:1", QUEUE)


def test_a_full_queue_makes_room_for_a_key_that_has_less_of_it(state: State) -> None:
    assert all(state.join("model:1", f"greedy-{number}", 1, 3) for number in range(3))
    assert not state.join("model:1", "greedy-3", 1, 3)
    assert state.join("model:1", "modest", 2, 3)
    assert state.line("model:1").own == {"greedy-0", "greedy-1", "modest"}


def test_a_queue_forgets_who_leaves_and_whose_worker_died(state: State, tmp_path: Path) -> None:
    for call, worker in (("a", State(tmp_path, "other")), ("b", state), ("c", state)):
        worker.join("model:1", call, 1, 10)
    state.dead.add("other")
    state.leave("model:1", "b")
    line = state.line("model:1")
    assert (line.first, line.own) == ("c", {"c"})


def test_places_in_a_queue_of_a_worker_that_died_are_free_also_behind_others(state: State, tmp_path: Path) -> None:
    other = State(tmp_path, "other")
    state.join("model:1", "first", 1, 3)
    assert [other.join("model:1", call, 1, 3) for call in "ab"] == [True, True]
    assert not state.join("model:1", "late", 1, 3)
    state.dead.add("other")
    assert state.join("model:1", "later", 1, 3)
    assert state.line("model:1").own == {"first", "later"}


def test_the_pace_of_a_queue_says_how_long_it_takes(state: State) -> None:
    for number in range(8):
        state.join("model:1", f"c{number}", 1, 10)
    for number in range(4):
        state.take(f"c{number}", [], 0, "model:1")
        state.now += 2 * SECOND
    assert state.wait_s("model:1") == pytest.approx(2 * 5)
    assert state.wait_s("model:2") == 1.0


def test_a_file_that_is_no_database_is_replaced(state: State, tmp_path: Path) -> None:
    limit = Limit("key:1", rpm=1)
    assert state.ask(limit)
    (path,) = tmp_path.glob("state-*.db")
    for file in tmp_path.glob("state-*.db*"):
        file.write_bytes(b"x" * 8192)
    state.close()
    assert [state.ask(limit), state.ask(limit)] == [True, False]
    assert path.exists()


def test_every_worker_follows_when_the_file_was_replaced(state: State, tmp_path: Path) -> None:
    limit, other = Limit("key:1", rpm=2), State(tmp_path)
    assert state.ask(limit)
    for file in tmp_path.glob("state-*.db*"):
        file.unlink()
    assert [other.ask(limit), state.ask(limit), other.ask(limit)] == [True, True, False]


def test_files_of_other_boots_are_removed(state: State, tmp_path: Path) -> None:
    (tmp_path / "state-yesterday.db").write_bytes(b"x")
    state.ask(Limit("key:1", rpm=1))
    assert [path.name for path in tmp_path.glob("state-y*")] == []


def test_a_state_that_somebody_else_keeps_locked_is_unavailable_after_a_while(state: State, tmp_path: Path) -> None:
    state.ask(Limit("key:1", rpm=1))
    (path,) = tmp_path.glob("state-*.db")
    rival = sqlite3.connect(path)
    rival.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(StateUnavailable, match="locked"):
        state.ask(Limit("key:1", rpm=1))
    assert time.monotonic() - began < 2
    rival.close()
    assert state.ask(Limit("key:2", rpm=1))


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnavailable):
        State(tmp_path / "file" / "run").ask(Limit("key:1", rpm=1))


def test_where_one_cannot_look_there_is_nothing_to_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.stat", forbidden)
    assert not SqliteLimits(tmp_path, "", lambda owner: True).exists


def _hammer(directory: Path, asks: int) -> int:
    state = SqliteLimits(directory, "me", lambda owner: True, lambda: 10**15)
    limit = Limit("key:1", rpm=1500)
    return sum(not isinstance(state.take(f"{id(state)}-{number}", [limit], 0), Full) for number in range(asks))


def test_a_limit_is_exact_over_processes(tmp_path: Path) -> None:
    """Row 47: 6,000 race for 1,500."""
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        granted = pool.starmap(_hammer, [(tmp_path, 2000)] * 3)
    assert sum(granted) == 1500
