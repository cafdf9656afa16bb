"""Row 37: the host's clock jumps by an hour, forwards and backwards, and clocks change to winter time. No hold expires for it, and no budget begins anew.

What ends another host's holds is the database's own clock: tests/unit/core/test_housekeeping.py. The lengths of days: tests/unit/core/test_periods.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from tests.fakes.answers import Delay
from tests.faults.calls import CHAT
from tests.faults.conftest import Measured
from tests.faults.crashes import Crashing, crashing, settled

HOUR_S = 3600
CALLS = 10
TICKS_S = 1.3
"""More than one round of the housekeeping."""


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashing]:
    with crashing(tmp_path_factory.mktemp("clock"), request.param) as server:
        yield server


def turn(server: Crashing, off_s: float) -> None:
    """Let the server's clock be so much later than it is."""
    fresh = server.switches / "clock.new"
    fresh.write_text(str(round(off_s)))
    fresh.rename(server.switches / "clock")


def test_a_clock_that_jumps_ends_no_hold(server: Crashing, measured: Measured, request: pytest.FixtureRequest) -> None:
    server.provider.script("/v1/chat/completions", *[Delay(3 * TICKS_S)] * CALLS)
    with ThreadPoolExecutor(CALLS) as pool:
        calls = [pool.submit(server.ask, f"jump-{number}", stream=True) for number in range(CALLS)]
        server.provider.wait_requests(CALLS)
        for off_s in (HOUR_S, -HOUR_S):
            turn(server, off_s)
            time.sleep(TICKS_S)
            assert len(server.open()) == CALLS
        turn(server, 0)
        assert all(call.result().clean for call in calls)
    settled(server.gateway)
    endings = [entry.ending for model, entries in server.entries().items() if model.startswith("jump-") for entry in entries]
    measured(37, f"{request.node.callspec.id}: {endings.count('worker_lost')} of {CALLS} holds expired while the clock jumped by an hour and back by two (0)")
    assert endings == ["complete"] * CALLS
    assert server.findings().differences == ()


@pytest.mark.parametrize(
    ("moment", "days"),
    [
        pytest.param("2026-10-25T00:30", 1, id="the hour that comes twice"),  # 02:30 in Berlin; an hour later it is 02:30 once more
        pytest.param("2026-10-24T20:30", 1, id="within a day"),
        pytest.param("2026-10-25T22:30", 2, id="before midnight"),
    ],
)
def test_a_clock_that_jumps_gives_nobody_a_budget_anew(server: Crashing, moment: str, days: int) -> None:
    now_s = datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() - time.time()
    user = server.gateway.new_user(moment)
    key = server.gateway.new_key(user)
    budget = server.gateway.budget(200, "user", user, "day", "Europe/Berlin")
    server.gateway.wait_catalog()
    for off_s in (0, HOUR_S, 0, -HOUR_S, HOUR_S, 0):
        turn(server, now_s + off_s)
        spend(server, key)
    turn(server, 0)
    windows = server.gateway.windows(budget)
    assert len({entry.windows for entries in server.entries().values() for entry in entries if entry.user == user}) == days
    assert all(window.held == 0 for window in windows)
    spent = sum(entry.amount for entries in server.entries().values() for entry in entries if entry.user == user)
    assert 100 < spent <= 200 * days
    assert server.findings().differences == ()


def test_a_clock_that_jumps_gives_nobody_a_minute_of_calls_anew(server: Crashing) -> None:
    user = server.gateway.new_user("hasty")
    key = server.gateway.new_key(user)
    server.gateway.limit("user", user, rpm=2)
    server.gateway.wait_catalog()
    body = {"model": "m", "messages": [], "max_tokens": 20}
    assert [server.gateway.post(CHAT, body, key).status for _ in range(3)] == [200, 200, 429]
    for off_s in (HOUR_S, -HOUR_S, 0):
        turn(server, off_s)
        assert server.gateway.post(CHAT, body, key).status == 429


def spend(server: Crashing, key: str) -> None:
    """Until there is no room."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 20}
    for _ in range(20):
        answer = server.gateway.post(CHAT, body, key)
        if answer.status == 402:
            return
        assert answer.status == 200
    raise AssertionError("there is always room")
