"""Conditions as several workers see them: at once, whoever changed them, and whatever becomes of the file."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from gateway.state.conditions import COOLING, FOREVER, MOST_CONDITIONS, QUARANTINED, SUSPECT, Condition, Conditions

RESTING = Condition(COOLING, 30.0, "rate_limited", 7.5, named=True)


def test_what_one_worker_changes_the_others_see(tmp_path: Path) -> None:
    one, other = Conditions(tmp_path), Conditions(tmp_path)
    assert other.current() == {}
    assert one.change("credential:1.1", lambda found: RESTING) == (None, RESTING)
    assert other.current() == {"credential:1.1": RESTING}
    other.change("credential:1.1", lambda found: None)
    assert one.current() == {}


def test_every_field_is_kept(tmp_path: Path) -> None:
    made = {
        "a": Condition(QUARANTINED, FOREVER, "invalid"),
        "b": Condition(SUSPECT, failures=((1.5, 3), (2.5, 4))),
        "c": Condition("probing", 9.0, "failing", 2.0, False, "worker"),
    }
    writer = Conditions(tmp_path)
    for subject, condition in made.items():
        writer.change(subject, lambda found, condition=condition: condition)
    assert Conditions(tmp_path).current() == made


def test_a_decision_that_changes_nothing_makes_nobody_look(tmp_path: Path) -> None:
    conditions = Conditions(tmp_path)
    conditions.change("a", lambda found: RESTING)
    count = conditions._counter.value
    conditions.change("a", lambda found: found)
    conditions.change("b", lambda found: None)
    assert conditions._counter.value == count


def test_a_new_file_is_filled_once_and_a_used_one_never(tmp_path: Path) -> None:
    one, other = Conditions(tmp_path), Conditions(tmp_path)
    assert one.seed(lambda: {"a": RESTING}, 0.0)
    assert not other.seed(lambda: {"b": RESTING}, 0.0)
    assert other.current() == {"a": RESTING}


def test_callers_of_others_are_seen_until_they_are_too_long_ago(tmp_path: Path) -> None:
    one, other = Conditions(tmp_path), Conditions(tmp_path)
    one.called("d", 1, 100.0)
    assert other.callers_besides("d", 2, 99.0)
    assert not other.callers_besides("d", 1, 99.0)
    assert not other.callers_besides("d", 2, 100.0)


def test_a_file_that_goes_is_made_anew_and_both_workers_use_it(tmp_path: Path) -> None:
    one, other = Conditions(tmp_path), Conditions(tmp_path)
    one.change("a", lambda found: RESTING)
    assert other.current() == {"a": RESTING}
    for path in tmp_path.iterdir():
        path.unlink()
    one.change("b", lambda found: RESTING)
    other.change("c", lambda found: RESTING)
    assert set(one.current()) == set(other.current()) == {"b", "c"}


def test_where_the_file_cannot_be_used_the_last_look_stands(tmp_path: Path) -> None:
    one, other = Conditions(tmp_path / "run"), Conditions(tmp_path / "run")
    one.change("a", lambda found: RESTING)
    assert other.current() == {"a": RESTING}
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    (tmp_path / "run").rmdir()
    (tmp_path / "run").write_text("no directory")
    assert other.current() == {"a": RESTING}


def test_rests_that_are_over_are_forgotten_where_there_are_too_many(tmp_path: Path) -> None:
    one, other = Conditions(tmp_path), Conditions(tmp_path)
    one.change("kept", lambda found: Condition(QUARANTINED, FOREVER, "invalid"))
    for number in range(MOST_CONDITIONS):
        one.change(f"m{number}", lambda found: RESTING)
    assert len(other.current()) == MOST_CONDITIONS + 1
    one.tidy(29.0)
    assert len(other.current()) == MOST_CONDITIONS + 1
    one.tidy(30.0)
    assert set(one.current()) == set(other.current()) == {"kept"}


def _count_up(directory: Path, times: int) -> None:
    conditions = Conditions(directory)
    for _ in range(times):
        conditions.change("n", lambda found: Condition(SUSPECT, rest_s=(found.rest_s if found is not None else 0.0) + 1))


def test_decisions_of_many_processes_follow_one_another(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count_up, args=(tmp_path, 200)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert Conditions(tmp_path).current()["n"].rest_s == 600
