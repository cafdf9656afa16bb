"""ChatGPT-API-server's agents and clients before three workers: an agent's websocket is in one of them, and any may be asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.conformance.api_server import ADMIN, Asking, Family, family_in, left, own
from tests.fakes.old_agents import OldAgent, answers, answers_error


@pytest.fixture(scope="module")
def of_three_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    with family_in(tmp_path_factory.mktemp("gateway"), WEB_CONCURRENCY="3") as family:
        family.gone(family.agent())
        family.patience(3)
        yield family


@pytest.fixture
def three(of_three_workers: Family) -> Iterator[Family]:
    with left(of_three_workers):
        yield of_three_workers


def newest(family: Family) -> str:
    """When the latest agent connected, or answered."""
    return max((entry["Heartbeat"] for entry in family.connections()), default="")


def test_an_agent_is_reached_from_every_worker_and_listed_by_each(three: Family) -> None:
    agents = [three.agent(always=own(f"w{number}"), kept_id=f"w{number}") for number in range(3)]
    three.wait(lambda: all(three.connected() == {"w0", "w1", "w2"} for _ in range(9)))
    for _ in range(12):
        assert three.ask().status == 200
    assert all(agent.asked for agent in agents)
    for agent in agents:
        for _ in range(4):
            assert three.ask("more", f"c-{agent.id}").json()["content"] == f"from {agent.id}"


def test_a_fresh_agent_goes_before_a_used_one_in_every_worker(three: Family) -> None:
    used = three.agent(always=answers("used"))
    for _ in range(6):
        assert three.ask().status == 200
    three.wait(lambda: all(three.connections()[0]["LastMessageTime"] > "1970" for _ in range(6)))
    fresh = three.agent(always=answers("fresh"))
    assert three.ask().json()["content"] == "fresh"
    assert (len(used.asked), len(fresh.asked)) == (6, 1)


def test_no_agent_gets_two_requests_at_once_from_different_workers(three: Family) -> None:
    at_once, most, lock = [0], [0], threading.Lock()

    def counted(agent: OldAgent, frame: dict[str, Any]) -> None:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.05)
        with lock:
            at_once[0] -= 1
        answers(json.loads(frame["data"])["content"])(agent, frame)

    three.agent(always=counted)
    asking = [Asking(three, f"prompt {number}") for number in range(12)]
    assert [each.answer().json()["content"] for each in asking] == [f"prompt {number}" for number in range(12)]
    assert most == [1]


def test_an_id_is_taken_over_from_another_worker(three: Family) -> None:
    with ExitStack() as tabs:
        before, since = None, ""
        for _ in range(6):
            tab = tabs.enter_context(OldAgent(three.port, kept_id="moving"))
            if before is not None:
                assert before.wait_closed(3).code == 4409
            three.wait(lambda since=since: newest(three) > since)  # type: ignore[misc]
            before, since = tab, newest(three)
        three.wait(lambda: all(three.connected() == {"moving"} for _ in range(6)))
        three.wait_catalog()
        three.wait(lambda: three.ask().status == 200)
        assert tab.asked


def test_an_agent_that_failed_is_asked_again(three: Family) -> None:
    agent = three.agent(answers_error())
    assert three.ask().status == 500
    assert three.ask().status == 200
    assert len(agent.asked) == 2


def test_users_of_one_worker_are_users_of_all(three: Family) -> None:
    three.agent()
    user = three.post("/admin/users/add", {"admin_key": ADMIN}).json()
    assert all(three.ask(key=user["token"]).status == 200 for _ in range(6))
    three.post("/admin/users/delete", {"admin_key": ADMIN, "user_id": user["user_id"]})
    assert all(three.ask(key=user["token"]).status == 401 for _ in range(6))
