"""Row 39, agents, between hosts: an agent's socket is on one and its client on another, over Redis."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.store.database import Database
from tests.fakes.agents import Agent, says
from tests.fakes.gateway import RunningGateway
from tests.fakes.postgres import Postgres
from tests.fakes.redis import RedisServer
from tests.faults.conftest import Measured
from tests.faults.hosting import Streaming, enrolled, wait_served, workers

FIGURE_S = 3.0
PIECES = 200


class OtherHost(RunningGateway):
    """Another host of the same deployment: a run directory of its own, the same database, secrets and Redis."""

    def __init__(self, directory: Path, first: RunningGateway, environment: dict[str, str]) -> None:
        super().__init__(directory, environment | {"GATEWAY_SECRETS_DIR": str(first.directory / "data-secrets")}, first.database_url)
        self._first = first

    def prepare(self) -> None:
        self.database, self.secrets, self.key = Database(self._first.database_url or ""), self._first.secrets, self._first.key


@dataclass(frozen=True, slots=True)
class Hosts:
    near: RunningGateway
    far: RunningGateway


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Hosts]:
    directory = tmp_path_factory.mktemp("hosts")
    environment = {"REDIS_URL": redis_server.url.reveal()}
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(Postgres(directory / "postgres"))
        near = stack.enter_context(RunningGateway(directory / "near", environment, postgres.emptied("agents")))
        yield Hosts(near, stack.enter_context(OtherHost(directory / "far", near, environment)))


def test_39_agent_of_one_host_answers_clients_of_another(hosts: Hosts) -> None:
    token = enrolled(hosts.near, "across", "across-model")
    with Agent(hosts.near.port, token=token, models=["across-model"], always=says(*(f"{number} " for number in range(PIECES)))):
        wait_served(hosts.near, "across-model")
        wait_served(hosts.far, "across-model")
        for gateway in (hosts.near, hosts.far):
            call = Streaming(gateway.client(), "across-model", "count").join()
            assert (call.whole, call.text) == (True, "".join(f"{number} " for number in range(PIECES)))


def test_39_worker_of_the_agent_dies_and_its_clients_on_another_host_are_told(hosts: Hosts, measured: Measured) -> None:
    seconds = [call.over_at - killed for call, killed in killed_meanwhile(hosts, "mortal", resumes=False) if call.error and not call.whole]
    measured(39, f"worker of the agent killed, clients on another host: {len(seconds)} of 5 told, {max(seconds):.2f} s later at most (3)")
    assert len(seconds) == 5
    assert max(seconds) < 10 * FIGURE_S


def test_39_streams_go_on_on_another_host_where_the_agent_keeps_its_frames(hosts: Hosts, measured: Measured) -> None:
    calls = [call for call, _ in killed_meanwhile(hosts, "lasting", resumes=True)]
    whole = [call for call in calls if call.whole and call.text == "".join(f"{number} " for number in range(60))]
    measured(39, f"worker of an agent that resumes killed, clients on another host: {len(whole)} of 5 go on exactly")
    assert len(whole) == 5


def killed_meanwhile(hosts: Hosts, name: str, *, resumes: bool) -> list[tuple[Streaming, float]]:
    """Five calls of the far host at an agent of the near one, whose workers are killed as they stream; when that was (monotonic)."""
    token, slowly = enrolled(hosts.near, name, f"{name}-model"), says(*(f"{number} " for number in range(60)), pause_s=0.05)
    with Agent(hosts.near.port, token=token, models=[f"{name}-model"], always=slowly, concurrency=8, resumes=resumes, stays=True):
        wait_served(hosts.near, f"{name}-model")
        wait_served(hosts.far, f"{name}-model")
        calls = [Streaming(hosts.far.client(), f"{name}-model", f"call {number}") for number in range(5)]
        for call in calls:
            call.wait_pieces(2)
        killed = time.monotonic()
        for pid in workers(hosts.near):
            os.kill(pid, signal.SIGKILL)
        return [(call.join(), killed) for call in calls]
