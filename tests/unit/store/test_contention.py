"""Workers of one PostgreSQL server that reserve and settle in the same budgets: none of them waits for another that waits for it."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from contextlib import closing
from dataclasses import replace

import psycopg

from gateway.store import budgets, holds, ledger
from gateway.store.database import Batched, Database
from gateway.store.holds import Period
from gateway.store.ledger import Booking
from tests.factories import seal
from tests.unit.store.test_holds import AT, ENTRY, WANTED

USERS, SECONDS, THREADS = 6, 1.5, 8


def record(bookings: list[Booking]) -> list[bool]:
    return ledger.record(bookings, seal)


def work(url: str, worker: int) -> int:
    """Calls of random users, each in the user's budget and everybody's; how many."""
    with closing(Database(url, timeout_s=20)) as database:
        database.bind()
        listed = {budget.subject: budget.id for budget in database.read(budgets.list_budgets)}
        until, counts = time.monotonic() + SECONDS, [0] * THREADS

        def calls(thread: int) -> None:
            chance = random.Random(worker * THREADS + thread)
            while time.monotonic() < until:
                id, user = f"{worker}-{thread}-{counts[thread]}", chance.randint(1, USERS)
                periods = (Period(listed[user], 0, None), Period(listed[0], 0, None))
                assert database.write(Batched(holds.reserve, replace(WANTED, id=id, amount=5, periods=periods))) is None
                database.write(Batched(record, Booking(replace(ENTRY, exchange=id, amount=3, cost=3), None, held=True)))
                counts[thread] += 1

        threads = [threading.Thread(target=calls, args=(thread,)) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts)


def test_no_two_workers_wait_for_each_other(postgres_database: Database, postgres_url: str) -> None:
    for user in range(1, USERS + 1):
        postgres_database.write(lambda user=user: budgets.set_budget("user", user, "total", "UTC", 10**12, AT))
    postgres_database.write(lambda: budgets.set_budget("global", 0, "total", "UTC", 10**12, AT))
    made = [budget.id for budget in postgres_database.read(budgets.list_budgets)]
    postgres_database.write(lambda: holds.open_windows([Period(id, 0, None) for id in made]))  # as Holds does, before any is locked
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        calls = sum(pool.starmap(work, [(postgres_url, worker) for worker in range(3)]))
    with psycopg.connect(postgres_url) as connection:
        row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    ids = [budget.id for budget in postgres_database.read(budgets.list_budgets)]
    windows = postgres_database.read(lambda: budgets.windows_of(ids, AT))
    assert row == (0,), f"{row} deadlocks in {calls} calls"
    assert sum(window.spent for window in windows) == 2 * 3 * calls
    assert all(window.held == 0 for window in windows)
