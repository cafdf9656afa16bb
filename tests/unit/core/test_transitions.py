"""What happens to a credential is durable, and what others changed is taken over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.rests import Rest
from gateway.core.transitions import LOOK_BACK_MS, Transitions
from gateway.errors import StoreUnavailable
from gateway.presence import Presence
from gateway.state.conditions import COOLING, FOREVER, QUARANTINED, Condition
from gateway.store import conditions as store
from gateway.store.conditions import Transition
from gateway.store.database import Database
from tests.factories import Clock, Pooled, candidate, conditions, migrated

WALL = 1_700_000_000_000
QUARANTINE = Transition(WALL, "credential:1.1", "main", None, None, "active", "quarantined", None, "invalid", "operator")


class Away:
    """A database that does not answer until it is `back`."""

    def __init__(self, database: Database) -> None:
        self._database, self.back, self.asked = database, False, 0

    def write(self, work: Any) -> Any:
        self.asked += 1
        if not self.back:
            raise StoreUnavailable("away")
        return self._database.write(work)

    read = write


class Stage:
    def __init__(self, database: Database, path: Path) -> None:
        self.database, self.clock, self.conditions, self.presence = database, Clock(), conditions(), Presence(path)
        self.transitions = self.made(database)

    def made(self, database: Any) -> Transitions:
        return Transitions(database, self.conditions, self.presence, self.clock, lambda: WALL)

    def kept(self) -> list[Transition]:
        return self.database.read(lambda: store.transitions_after(0))

    def record(self, *made: Transition) -> None:
        self.database.write(lambda: store.record(made))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with migrated(tmp_path) as database:
        yield Stage(database, tmp_path)


def test_what_is_told_is_stored_in_its_order(stage: Stage) -> None:
    for number in range(500):
        stage.transitions.tell(replace(QUARANTINE, reason=str(number)))
    assert stage.transitions.flush(10)
    assert [each.reason for each in stage.kept()] == [str(number) for number in range(500)]


def test_a_database_that_is_away_gets_it_later(stage: Stage) -> None:
    away = Away(stage.database)
    transitions = stage.made(away)
    transitions.tell(QUARANTINE)
    until = time.monotonic() + 5
    while not away.asked and time.monotonic() < until:
        time.sleep(0.01)
    assert stage.kept() == []
    away.back = True
    while not stage.kept() and time.monotonic() < until:
        time.sleep(0.01)
    assert len(stage.kept()) == 1


def test_a_new_boot_knows_what_the_store_knows(stage: Stage) -> None:
    stage.record(QUARANTINE, replace(QUARANTINE, subject="deployment:2", after="cooling", until_at=WALL + 5000, rest_s=4.0, reason="failing"))
    stage.transitions.seed()
    assert stage.conditions.current() == {
        "credential:1.1": Condition(QUARANTINED, FOREVER, "invalid"),
        "deployment:2": Condition(COOLING, stage.clock.now + 5, "failing", 4.0),
    }


def test_a_probe_of_an_earlier_boot_is_due_and_one_of_another_host_is_waited_for(stage: Stage) -> None:
    """Nobody of this host makes it: there is no worker to ask whether it lives."""
    one = candidate("a", credential_subject="credential:1.1")
    pool = Pooled(stage.clock, shared=stage.conditions).pool
    stage.presence.start()
    pool._alive = stage.presence.alive
    probing = replace(QUARANTINE, after="probing", until_at=WALL + 100_000, reason="rate_limited", host="other-host")
    stage.record(probing)
    stage.transitions.seed()
    assert pool.rest(one) is None
    stage.record(replace(probing, at=WALL + 1))
    stage.transitions.follow()
    assert pool.rest(one) == Rest("probing", stage.clock.now + 100)
    stage.clock.now += 100
    assert pool.rest(one) is None
    stage.presence.close()


def test_what_an_operator_changed_is_taken_over_and_what_this_host_did_is_not(stage: Stage) -> None:
    stage.transitions.follow()
    stage.record(QUARANTINE, replace(QUARANTINE, subject="credential:2.1", host=stage.presence.owner))
    stage.transitions.follow()
    assert set(stage.conditions.current()) == {"credential:1.1"}
    stage.record(replace(QUARANTINE, at=WALL + 1, before="quarantined", after="active"))
    stage.transitions.follow()
    assert stage.conditions.current() == {}


def test_whoever_begins_to_follow_looks_back_a_while(stage: Stage) -> None:
    stage.transitions.seed()
    stage.record(replace(QUARANTINE, at=WALL - LOOK_BACK_MS + 1))
    stage.transitions.follow()
    assert set(stage.conditions.current()) == {"credential:1.1"}


def test_a_lower_id_that_is_seen_late_is_not_missed(stage: Stage) -> None:
    stage.transitions.follow()
    stage.record(*(replace(QUARANTINE, subject=f"credential:{number}.1") for number in range(1, 4)))
    stage.transitions.follow()
    hidden = stage.kept()[1].id
    stage.transitions._seen.discard(hidden)
    stage.conditions.change("credential:2.1", lambda found: None)
    stage.transitions.follow()
    assert "credential:2.1" in stage.conditions.current()


def test_a_database_that_is_away_ends_nothing(stage: Stage) -> None:
    transitions = stage.made(Away(stage.database))
    transitions.follow()
    transitions.seed()
    assert stage.conditions.current() == {}
