"""The directory of agents in the file that the workers of a host share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.state.agents import AgentDirectory
from gateway.state.agents_sqlite import LOOK_S, SqliteAgents
from gateway.state.base import StateUnavailable
from tests.unit.state.agents_directories import AgentDirectoryContract, holder


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., AgentDirectory]]:
    made = list[SqliteAgents]()

    def another(owner: str, dead: Collection[str] = ()) -> SqliteAgents:
        made.append(SqliteAgents(tmp_path, lambda asked: asked not in dead))
        return made[-1]

    yield another
    for directory in made:
        directory.close()


class TestSqliteAgents(AgentDirectoryContract):
    pass


def everybody_lives(owner: str) -> bool:
    return True


def test_epochs_do_not_fall_where_the_file_is_lost_or_the_clock_goes_back(tmp_path: Path) -> None:
    now = 5_000
    directory = SqliteAgents(tmp_path, everybody_lives, lambda: now)
    assert [directory.claim(holder()).epoch for _ in range(2)] == [5_000, 5_001]
    now = 4_000
    assert directory.claim(holder()).epoch == 5_002
    for path in tmp_path.iterdir():
        path.unlink()
    now = 6_000
    assert directory.claim(holder()).epoch == 6_000
    directory.close()


def test_connections_that_are_there_still_outlast_the_file(tmp_path: Path) -> None:
    now = 0.0
    one, other = (SqliteAgents(tmp_path, everybody_lives, clock=lambda: now) for _ in range(2))
    kept, moved, left = (one.claim(holder(f"credential:{number}-AT")) for number in range(3))
    for directory in (one, other):
        directory.tidy(1000.0)
    moved = other.claim(replace(moved, owner="other"))
    one.release(left.agent, left.epoch, 1000.0)
    changed = replace(kept, models=("phi3",))
    assert one.change(changed)
    for path in tmp_path.iterdir():
        path.unlink()
    now = LOOK_S
    for directory in (other, one):
        directory.tidy(1001.0)
    assert one.current() == other.current() == {kept.agent: changed, moved.agent: moved}
    one.close()
    other.close()


def test_a_change_of_what_went_with_the_file_is_no_lost_connection(tmp_path: Path) -> None:
    directory = SqliteAgents(tmp_path, everybody_lives)
    changed = replace(directory.claim(holder()), models=("phi3",))
    for path in tmp_path.iterdir():
        path.unlink()
    assert directory.change(changed)
    assert directory.current() == {changed.agent: changed}
    directory.close()


def test_a_change_that_changes_nothing_makes_nobody_look(tmp_path: Path) -> None:
    directory = SqliteAgents(tmp_path, everybody_lives)
    claimed = directory.claim(holder())
    before = directory.current()
    assert directory.change(claimed)
    directory.tidy(1000.0)
    assert directory.current() is before
    directory.close()


def test_where_the_file_cannot_be_used_the_last_look_stands(tmp_path: Path) -> None:
    directory = SqliteAgents(tmp_path / "run", everybody_lives)
    claimed = directory.claim(holder())
    assert directory.current() == {claimed.agent: claimed}
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    (tmp_path / "run").rmdir()
    (tmp_path / "run").write_text("no directory")
    with pytest.raises(StateUnavailable):
        directory.claim(holder())
    with pytest.raises(StateUnavailable):
        directory.release(claimed.agent, claimed.epoch, 1000.0)
    assert directory.current() == {claimed.agent: claimed}
    directory.close()


def test_closing_twice_is_fine_and_so_is_closing_what_was_not_used(tmp_path: Path) -> None:
    directory = SqliteAgents(tmp_path, everybody_lives)
    directory.close()
    directory.close()


def _claim(directory: Path, owner: str, times: int) -> None:
    agents = SqliteAgents(directory, everybody_lives)
    for number in range(times):
        agents.claim(holder(f"credential:{number % 3}-AT", owner=owner))


def test_claims_of_several_processes_follow_one_another(tmp_path: Path) -> None:
    looking = SqliteAgents(tmp_path, everybody_lives, lambda: 1)
    assert looking.current() == {}
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_claim, args=(tmp_path, owner, 100)) for owner in ("one", "other")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    seen = looking.current()
    assert set(seen) == {"credential:0-AT", "credential:1-AT", "credential:2-AT"}
    newest = max(found.epoch for found in seen.values())
    assert looking.claim(holder()).epoch == newest + 1
    looking.close()
