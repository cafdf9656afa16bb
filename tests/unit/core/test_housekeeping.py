"""Housekeeping: what the dead left is ended and booked, what the living hold is left alone, whatever the clocks say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.housekeeping import REAP_AT_ONCE, Housekeeping
from gateway.presence import Presence
from gateway.store import agents, budgets, holds, ledger, pools
from gateway.store.agents import Announced
from gateway.store.database import Database
from gateway.store.holds import Closing, Period, Wanted
from gateway.store.ledger import Booking, Entry
from gateway.store.models_money import HoldRow
from tests.factories import Books, migrated, now_ms
from tests.unit.store.test_holds import ENTRY


class Stage:
    """A worker's housekeeping, and a budget to hold from."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database, self.directory = database, directory
        self.presence = Presence(directory / "run")
        self.presence.start()
        self.books = Books(database, directory, owner=self.presence.owner)
        self.housekeeping = self.keeper(self.books, self.presence)
        made = database.write(lambda: budgets.set_budget("user", 1, "total", "UTC", 1000, 0))
        self.period = Period(made.id, 0, None)

    def keeper(self, books: Books, presence: Presence) -> Housekeeping:
        return Housekeeping(self.database, books.journal, books.ledger, books.holds, presence, self.directory / "housekeeping.lock")

    def hold(self, id: str, owner: str, lease_s: int = 60) -> None:
        wanted = Wanted(id, owner, lease_s, 1, 1, None, "m", now_ms(), 40, (self.period,))
        self.database.write(lambda: holds.reserve([wanted]))

    def held(self) -> int:
        (window,) = self.database.read(lambda: budgets.windows_of([self.period.budget_id], now_ms()))
        return window.held

    def entries(self) -> list[Entry]:
        return self.database.read(lambda: ledger.entries(0, 2**62, 0, 100))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with migrated(tmp_path) as database:
        stage = Stage(database, tmp_path)
        yield stage
        stage.housekeeping.close()
        stage.presence.close()


def test_what_a_dead_worker_held_expires_and_is_booked_as_lost(stage: Stage) -> None:
    stage.hold("a", "gone")
    stage.housekeeping.tick()
    (entry,) = stage.entries()
    assert (entry.exchange, entry.ending, entry.amount, entry.usage_source, stage.held()) == ("a", "worker_lost", 0, "none", 0)


@pytest.mark.parametrize("lease_s", [60, -7200])
def test_what_a_living_worker_holds_stays_whatever_the_clock_says(stage: Stage, lease_s: int) -> None:
    stage.hold("a", stage.presence.owner, lease_s)
    stage.housekeeping.tick()
    assert (stage.entries(), stage.held()) == ([], 40)


def test_a_dead_worker_s_journal_goes_before_its_holds(stage: Stage) -> None:
    stage.hold("a", "gone")
    Books(stage.database, stage.directory, owner="gone").journal.append(Booking(replace(ENTRY, exchange="a", amount=7), None, held=True))
    stage.housekeeping.tick()
    assert [(entry.ending, entry.amount) for entry in stage.entries()] == [("complete", 7)]
    assert stage.held() == 0


def test_a_worker_s_own_journal_is_booked(stage: Stage) -> None:
    stage.books.journal.append(Booking(ENTRY, None))
    stage.housekeeping.tick()
    assert [entry.exchange for entry in stage.entries()] == [ENTRY.exchange]


def test_one_worker_of_a_host_looks_after_the_dead(stage: Stage) -> None:
    stage.housekeeping.tick()
    other = Presence(stage.directory / "run")
    other.start()
    second = stage.keeper(Books(stage.database, stage.directory, owner=other.owner), other)
    stage.hold("a", "gone")
    second.tick()
    assert stage.held() == 40
    stage.housekeeping.close()
    second.tick()
    assert stage.held() == 0
    second.close()
    other.close()


def old_holds(database: Database, count: int) -> None:
    """Closed ones, of calls of last month."""
    at = now_ms() - 30 * 86_400_000
    wanted = [Wanted(f"old-{number}", "gone", 60, 1, 1, None, "m", at, 0, ()) for number in range(count)]
    closings = [Closing(each.id, 0, holds.SETTLED) for each in wanted]
    for start in range(0, count, 200):
        database.write(lambda start=start: (holds.reserve(wanted[start : start + 200]), holds.close(closings[start : start + 200])))  # type: ignore[misc]


def hold_count(database: Database) -> int:
    return database.read(lambda: HoldRow.select().count())


def test_old_holds_are_forgotten_as_fast_as_a_busy_gateway_makes_them(stage: Stage) -> None:
    old_holds(stage.database, 2 * REAP_AT_ONCE + 1)
    stage.hold("a", stage.presence.owner)
    stage.housekeeping.tick()
    assert hold_count(stage.database) == 1


def test_forgetting_holds_up_no_tick_and_goes_on_at_the_next(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.core.housekeeping.FORGET_S", -1.0)
    old_holds(stage.database, 2 * REAP_AT_ONCE + 1)
    left = []
    for _ in range(3):
        stage.housekeeping.tick()
        left.append(hold_count(stage.database))
    assert left == [REAP_AT_ONCE + 1, 1, 0]


def test_agents_that_nobody_saw_for_thirty_days_are_forgotten(stage: Stage) -> None:
    def create() -> None:
        pool = pools.create_pool("agents")
        enrolment = agents.create_enrolment("laptop", "h", pool.id, ["m"], 1, shown=("", ""))
        for name, days in (("old", 31), ("new", 29)):
            agents.ensure_agent(enrolment, Announced(name, ("m",), 2, "", 1), now_ms() - days * 86_400_000, lambda number: b"sealed")

    stage.database.write(create)
    stage.housekeeping.tick()
    assert [agent.announced.name for agent in stage.database.read(agents.list_agents)] == ["new"]
    assert len(stage.database.read(pools.list_credentials)) == 1
