from __future__ import annotations

from dataclasses import replace

from gateway.store import conditions, pools
from gateway.store.conditions import StoredCondition, Transition
from gateway.store.database import Database

COOLED = Transition(
    at=100,
    subject="credential:3.1:gpt-4o",
    credential="main",
    deployment=None,
    model="gpt-4o",
    before="active",
    after="cooling",
    until_at=200,
    reason="rate_limited",
    host="worker",
    rest_s=2.5,
    named=True,
    evidence={"status": 429, "excerpt": "slow down"},
    exchange="01X",
)
HEALED = replace(COOLED, at=200, before="cooling", after="active", until_at=None, reason="recovered", evidence={})


def test_a_transition_is_kept_with_its_evidence_and_what_is_in_force_after_it(database: Database) -> None:
    database.write(lambda: conditions.record([COOLED]))
    (kept,) = database.read(lambda: conditions.transitions_of("main", (), 10))
    assert replace(kept, id=0, rest_s=2.5, named=True) == COOLED
    assert database.read(conditions.conditions) == [StoredCondition("credential:3.1:gpt-4o", "cooling", 200, "rate_limited", 2.5, True, 100)]
    database.write(lambda: conditions.record([HEALED]))
    assert database.read(conditions.conditions) == []
    assert [each.after for each in database.read(lambda: conditions.transitions_of("main", (), 10))] == ["active", "cooling"]


def test_what_comes_late_is_history_only(database: Database) -> None:
    later = replace(COOLED, at=300, reason="forbidden")
    database.write(lambda: conditions.record([later, COOLED]))
    assert [each.reason for each in database.read(conditions.conditions)] == ["forbidden"]


def test_conditions_of_a_credential_are_those_of_every_version_and_model(database: Database) -> None:
    mine = database.write(lambda: pools.create_credential("main", "", 7, lambda id: b""))
    subjects = ("credential:1-7.1", "credential:1-7.2:m", "credential:11-7.1", "credential:1-70.1", "deployment:1")
    database.write(lambda: conditions.record([replace(COOLED, subject=subject) for subject in subjects]))
    assert [row.subject for row in database.read(lambda: conditions.conditions_of(mine))] == ["credential:1-7.1", "credential:1-7.2:m"]
    assert [row.subject for row in database.read(lambda: conditions.conditions({"deployment:1"}))] == ["deployment:1"]


def test_transitions_are_followed_by_id_and_old_ones_forgotten(database: Database) -> None:
    database.write(lambda: conditions.record([replace(COOLED, at=at) for at in (100, 200, 300)]))
    first, second, third = database.read(lambda: conditions.transitions_after(0))
    assert [each.id for each in database.read(lambda: conditions.transitions_after(first.id))] == [second.id, third.id]
    assert database.read(lambda: conditions.last_transition(300)) == second.id
    assert database.read(lambda: conditions.last_transition(100)) == 0
    assert database.write(lambda: conditions.forget_transitions(300, 1)) == 1
    assert database.write(lambda: conditions.forget_transitions(300, 10)) == 1
    assert len(database.read(lambda: conditions.transitions_after(0))) == 1
