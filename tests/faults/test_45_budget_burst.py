"""Row 45: a crowd on a budget that has room for half of it. spent + held <= budget at every moment, on both databases, with 1 and 3 workers."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from gateway.operations import ledger as books
from gateway.store import budgets
from tests.fakes.answers import Slow
from tests.fakes.gateway import RawClient, RunningGateway
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, crowd
from tests.faults.conftest import Measured

PRICE, OUTPUT = 1_000_000, 50
CALLS, ROOM = 200, 100


@pytest.mark.parametrize("place", ["sqlite-1", "sqlite-3", "postgres-3"])
def test_a_crowd_gets_exactly_what_a_budget_has_room_for(request: pytest.FixtureRequest, tmp_path: Path, place: str, measured: Measured) -> None:
    engine, _, workers = place.partition("-")
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": OUTPUT}
    with contextlib.ExitStack() as stack:
        url = request.getfixturevalue("postgres").emptied("burst") if engine == "postgres" else None
        provider = stack.enter_context(Provider())
        provider.always("/v1/chat/completions", Slow(0.4))
        gateway = stack.enter_context(RunningGateway(tmp_path / "gateway", {"WEB_CONCURRENCY": workers}, url))
        gateway.deploy("m", provider.url, price=PRICE)
        probe = gateway.budget(10**12, "user", 1, "total")
        time.sleep(1.2)  # every worker follows within a second
        hold = held_by_one(gateway, body, probe)
        provider.always("/v1/chat/completions", Slow(2.0))  # so that no call is settled before the last has asked
        gateway.write(lambda: end(probe))
        budget = gateway.budget(hold * ROOM, "user", 1, "day")
        time.sleep(1.2)
        stop, most = threading.Event(), [0]

        def watch() -> None:
            while not stop.wait(0.02):
                most[0] = max([most[0], *(window.spent + window.held for window in gateway.windows(budget))])

        watcher = threading.Thread(target=watch)
        watcher.start()

        def call(client: RawClient, number: int) -> int:
            client.ask(CHAT, body)
            return client.answer().status

        statuses = crowd(gateway, CALLS, call, CALLS)
        stop.set()
        watcher.join()
        (window,) = gateway.windows(budget)
        verified = books.verify(gateway.database_url or f"sqlite://{gateway.directory / 'data' / 'gateway.db'}", gateway.secrets.hasher.hash)
    measured(
        45, f"{place}: {statuses.count(200)} of {CALLS} accepted where there was room for {ROOM}; at most {most[0] / (hold * ROOM):.0%} of the budget in use"
    )
    assert (statuses.count(200), statuses.count(402)) == (ROOM, CALLS - ROOM)
    assert most[0] <= hold * ROOM
    assert (window.held, verified.differences) == (0, ())


def end(budget_id: int) -> None:

    budgets.end_budget(budget_id, time.time_ns() // 1_000_000)


def held_by_one(gateway: RunningGateway, body: dict[str, object], budget_id: int) -> int:
    """What a call of this body holds, seen while it is under way."""
    with gateway.client() as client:
        client.ask(CHAT, body)
        deadline = time.monotonic() + 5
        while not (held := sum(window.held for window in gateway.windows(budget_id))):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert client.answer().status == 200
    return held
