"""The directory of agents among several hosts, in a real Redis."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.backend import Secret
from gateway.state.agents import FORGET_S, AgentDirectory, Holder
from gateway.state.agents_redis import AWAY_S, DEAD_MS, LOOK_S, TIDY_S, RedisAgents
from gateway.state.base import StateUnavailable
from tests.fakes.redis import RedisServer
from tests.unit.state.agents_directories import AgentDirectoryContract, holder

ROOT = Path(__file__).parents[3]
OTHER_HOST = """
import sys
from gateway.backend import Secret
from gateway.state.agents_redis import RedisAgents
from tests.unit.state.agents_directories import holder
agents = RedisAgents(Secret(sys.argv[1]), "other", lambda owner: True, lambda owner: False)
print(agents.claim(holder("credential:9-AT", owner="other")).epoch, flush=True)
for line in sys.stdin:
    agents.tidy(float(line))
"""


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    with redis_server.client() as client:
        client.flushall()
    return redis_server


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


Make = Callable[..., RedisAgents]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(server: RedisServer) -> Iterator[Make]:
    made = list[RedisAgents]()

    def another(owner: str, dead: Collection[str] = (), url: Secret = server.url, look_s: float = 0.0, **others: object) -> RedisAgents:
        made.append(RedisAgents(url, owner, lambda asked: asked not in dead, lambda asked: asked in dead, look_s, **others))  # type: ignore[arg-type]
        return made[-1]

    yield another
    for directory in made:
        directory.close()


class TestRedisAgents(AgentDirectoryContract):
    @pytest.fixture
    def make(self, make: Make) -> Callable[..., AgentDirectory]:
        """Without the pauses of `tidy`: its tests call it as often as they like."""

        def unhurried(owner: str, dead: Collection[str] = ()) -> RedisAgents:
            clock = Clock()

            def leaping() -> float:
                clock.now += TIDY_S
                return clock.now

            return make(owner, dead, clock=leaping)

        return unhurried


def shown(directory: AgentDirectory) -> dict[str, Holder]:
    return dict(directory.current())


def test_epochs_do_not_fall_where_redis_loses_everything_or_the_clock_goes_back(server: RedisServer, make: Make) -> None:
    now = 5_000
    directory = make("one", wall_ms=lambda: now)
    assert [directory.claim(holder()).epoch for _ in range(2)] == [5_000, 5_001]
    now = 4_000
    assert directory.claim(holder()).epoch == 5_002
    with server.client() as client:
        client.flushall()
    now = 1_900_000_000_000
    assert directory.claim(holder()).epoch == 1_900_000_000_000


def test_a_look_is_as_old_as_a_quarter_of_a_second_and_own_changes_are_seen_at_once(make: Make, clock: Clock) -> None:
    one, other = make("one", look_s=LOOK_S, clock=clock), make("other", look_s=LOOK_S, clock=clock)
    assert one.current() == other.current() == {}
    claimed = one.claim(holder())
    assert (shown(one), shown(other)) == ({claimed.agent: claimed}, {})
    clock.now += LOOK_S
    assert shown(other) == {claimed.agent: claimed}
    one.release(claimed.agent, claimed.epoch, 1001.0)
    assert shown(one) == {claimed.agent: replace(claimed, gone_at=1001.0)}


def test_where_nothing_changes_nothing_is_read(server: RedisServer, make: Make) -> None:
    directory = make("one")
    claimed = directory.claim(holder())
    before = directory.current()
    assert before == {claimed.agent: claimed}
    assert directory.current() is before
    assert make("other").change(claimed)
    assert directory.current() is before


def test_agents_of_a_worker_on_another_host_are_gone_three_seconds_after_its_death(server: RedisServer, make: Make) -> None:
    directory = make("one")
    with subprocess.Popen([sys.executable, "-c", OTHER_HOST, server.url.reveal()], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        epoch = int(other.stdout.readline())
        other.stdin.write("1000\n")
        other.stdin.flush()
        directory.tidy(1000.0)
        assert directory.current()["credential:9-AT"] == replace(holder("credential:9-AT", owner="other"), epoch=epoch)
        other.kill()
        began = time.monotonic()
        while directory.current()["credential:9-AT"].gone_at is None:
            assert time.monotonic() - began < DEAD_MS / 1000 + 2 * TIDY_S
            time.sleep(0.05)
            directory.tidy(1234.0)
        assert directory.current()["credential:9-AT"].gone_at == 1234.0
        assert time.monotonic() - began > 1  # and not before its time


def test_a_worker_that_renews_itself_is_not_taken_for_dead(server: RedisServer, make: Make, clock: Clock) -> None:
    one, other = make("one", clock=clock), make("other", clock=clock)
    claimed = other.claim(holder(owner="other"))
    with server.client() as client:
        assert 0 < client.pttl("gateway:owner:other") <= DEAD_MS
        client.pexpire("gateway:owner:other", 100)
        clock.now += TIDY_S
        other.tidy(1000.0)
        assert client.pttl("gateway:owner:other") > 1000
    one.tidy(1000.0)
    assert one.current() == {claimed.agent: claimed}


def test_connections_that_are_there_still_outlast_what_redis_knew(server: RedisServer, make: Make, clock: Clock) -> None:
    one, other = make("one", clock=clock), make("other", clock=clock)
    kept, moved, left = (one.claim(holder(f"credential:{number}-AT")) for number in range(3))
    moved = other.claim(replace(moved, owner="other"))
    one.release(left.agent, left.epoch, 1000.0)
    with server.client() as client:
        client.flushall()
    assert one.current() == {}
    for _ in range(2):
        clock.now += TIDY_S
        for directory in (one, other):
            directory.tidy(1001.0)
    assert one.current() == other.current() == {kept.agent: kept, moved.agent: moved}


def test_a_change_of_what_redis_lost_is_no_lost_connection(server: RedisServer, make: Make) -> None:
    directory = make("one")
    changed = replace(directory.claim(holder()), models=("phi3",))
    with server.client() as client:
        client.flushall()
    assert directory.change(changed)
    assert directory.current() == {changed.agent: changed}


def test_who_was_wrongly_taken_for_dead_comes_back(server: RedisServer, make: Make, clock: Clock) -> None:
    """A worker that could not reach Redis for a while, and whose agents never noticed."""
    one, other = make("one", clock=clock), make("other", clock=clock)
    claimed = other.claim(holder(owner="other"))
    with server.client() as client:
        client.delete("gateway:owner:other")
    one.tidy(1000.0)
    assert one.current() == {claimed.agent: replace(claimed, gone_at=1000.0)}
    other.tidy(1001.0)
    assert one.current() == other.current() == {claimed.agent: claimed}


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_without_redis_the_last_look_stands_and_what_was_left_meanwhile_is_told_later(own_server: RedisServer, make: Make, clock: Clock, how: str) -> None:
    one, other = (make(owner, url=own_server.url, clock=clock) for owner in ("one", "other"))
    kept, left = one.claim(holder("credential:1-AT")), one.claim(holder("credential:2-AT"))
    assert set(other.current()) == {kept.agent, left.agent}
    if how == "killed":
        own_server.stop()
    else:
        own_server.signal(signal.SIGSTOP)
    began = time.monotonic()
    for _ in range(10):
        assert set(one.current()) == set(other.current()) == {kept.agent, left.agent}
        with pytest.raises(StateUnavailable):
            other.claim(holder())
        with pytest.raises(StateUnavailable):
            one.change(replace(kept, draining=True))
    with pytest.raises(StateUnavailable):
        one.release(left.agent, left.epoch, 1000.0)
    with pytest.raises(StateUnavailable):
        one.tidy(1000.0)
    assert time.monotonic() - began < 2  # only one of many waits until its time is up
    if how == "killed":
        own_server.start()
    else:
        own_server.signal(signal.SIGCONT)
    clock.now += AWAY_S
    one.tidy(1001.0)
    clock.now += AWAY_S
    one.tidy(1002.0)
    other.tidy(1002.0)
    assert other.current()[kept.agent] == kept
    assert left.agent not in other.current() or other.current()[left.agent].gone_at is not None


@pytest.mark.parametrize("text", [b"", b"hello", b"1 - []", b"x - {}", b'1 - {"agent": 3}', b"\xff", b"1 soon {}"])
def test_what_is_no_entry_is_passed_over(server: RedisServer, make: Make, text: bytes) -> None:
    one = make("one")
    claimed = one.claim(holder())
    with server.client() as client:
        client.hset("gateway:agents", "credential:4-AT", text)
        client.incr("gateway:agents:version")
    assert one.current() == {claimed.agent: claimed}
    one.tidy(1000.0 + 2 * FORGET_S)
    assert one.claim(holder("credential:4-AT")).agent in make("other").current()
