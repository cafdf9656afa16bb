"""Channels between the workers of several hosts, over a real Redis. The last test runs this whole file again in a patched process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.backend import Secret
from gateway.bus.base import Opening
from gateway.bus.redis import RedisBus
from gateway.bus.unix import UnixBus
from gateway.bus.windowed_channel import ACCEPTER, OPEN, Message
from gateway.concurrency import patched
from gateway.frames import Channel, ChannelLost
from tests.fakes.redis import RedisServer
from tests.unit.bus.buses import FAR, NEAR, BusContract, far_worker, lost, opened_until_lost, opening
from tests.unit.bus.serving import ECHO, SILENT, Serving

ROOT = Path(__file__).parents[3]
PATCHED_RUN = "GATEWAY_TEST_PATCHED"
DEATH_S = 3.0
"""FAILURES row 39: of a worker on another host."""


@pytest.fixture
def place(redis_server: RedisServer) -> str:
    return redis_server.url.reveal()


def await_end(server: RedisServer) -> None:
    """Until no worker listens there any more."""
    deadline = time.monotonic() + 5
    with server.client() as client:
        while client.pubsub_channels("gateway:bus:*"):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def other_host(tmp_path: Path, place: str, redis_server: RedisServer) -> Iterator[Callable[[str, str], RedisBus]]:
    """Makes a bus whose only worker of its host is itself. Owners' ids come again in the next test, as they never do elsewhere: it waits for their end."""
    made = list[RedisBus]()

    def bus(owner: str, url: str = place) -> RedisBus:
        directory = tmp_path / owner
        directory.mkdir(exist_ok=True)
        made.append(RedisBus(Secret(url), owner, UnixBus(directory, owner), lambda asked: asked == owner))
        return made[-1]

    yield bus
    for each in made:
        each.close()
    await_end(redis_server)


@pytest.fixture
def near(other_host: Callable[[str], RedisBus]) -> RedisBus:
    bus = other_host(NEAR)
    bus.start(lambda opening, channel: None)
    return bus


@pytest.fixture
def far(other_host: Callable[[str], RedisBus], served: Serving) -> RedisBus:
    bus = other_host(FAR)
    bus.start(served.accept)
    return bus


@pytest.fixture
def served() -> Serving:
    return Serving()


class TestRedisBus(BusContract):
    kind = "redis"
    death_s = DEATH_S


def test_process_is_patched_only_where_it_was_patched() -> None:
    assert patched() is (PATCHED_RUN in os.environ)


def test_workers_of_the_same_host_reach_each_other_without_redis(tmp_path: Path) -> None:
    serving = Serving()
    nowhere = Secret("redis://127.0.0.1:1/0")
    one, other = (RedisBus(nowhere, owner, UnixBus(tmp_path, owner), lambda asked: True) for owner in (NEAR, FAR))
    other.start(serving.accept)
    channel = one.open(FAR, opening(ECHO))
    channel.send(b"x")
    assert channel.receive(5) == b"x"
    with pytest.raises(ChannelLost, match="gone"):
        RedisBus(nowhere, NEAR, UnixBus(tmp_path, NEAR), lambda asked: False).open(FAR, opening(ECHO))
    channel.close()
    one.close()
    other.close()


def test_a_worker_that_hangs_is_given_up_within_three_seconds(place: str, near: RedisBus) -> None:
    """As one whose host lost its power: nothing says that it is gone."""
    with far_worker("redis", place, "0123abcd-hung") as process:
        channel = near.open("0123abcd-hung", opening(ECHO))
        channel.send(b"x")
        assert channel.receive(5) == b"x"
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert lost(channel) == "gone"
        assert time.monotonic() - began <= DEATH_S
        channel.close()


def test_silence_of_an_idle_channel_is_no_death(near: RedisBus, far: RedisBus) -> None:
    channel = near.open(FAR, opening(ECHO))
    assert channel.receive(DEATH_S + 0.5) is None
    channel.send(b"x")
    assert channel.receive(5) == b"x"
    channel.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_without_redis_nothing_hangs_and_when_it_is_back_channels_open_again(
    own_server: RedisServer, other_host: Callable[[str, str], RedisBus], how: str
) -> None:
    serving = Serving()
    near, far = other_host(NEAR, own_server.url.reveal()), other_host(FAR, own_server.url.reveal())
    near.start(lambda opening, channel: None)
    far.start(serving.accept)
    channel = near.open(FAR, opening(ECHO))
    if how == "killed":
        own_server.stop()
    else:
        own_server.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert lost(channel) == "gone"
    assert serving.ended.wait(5)
    assert serving.lost == ["gone"]
    assert time.monotonic() - began < DEATH_S
    began = time.monotonic()
    with pytest.raises(ChannelLost, match="gone"):
        near.open(FAR, opening(ECHO))
    assert time.monotonic() - began < 1
    if how == "killed":
        own_server.start()
    else:
        own_server.signal(signal.SIGCONT)
    _opened_again(near).close()


def _opened_again(bus: RedisBus) -> Channel:
    deadline = time.monotonic() + 10
    while True:
        try:
            channel = bus.open(FAR, opening(ECHO))
            channel.send(b"again")
            assert channel.receive(5) == b"again"
            return channel
        except ChannelLost:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_redis_that_is_not_there_at_first_is_used_when_it_comes(tmp_path: Path, own_server: RedisServer, other_host: Callable[[str, str], RedisBus]) -> None:
    own_server.stop()
    near, far = other_host(NEAR, own_server.url.reveal()), other_host(FAR, own_server.url.reveal())
    near.start(lambda opening, channel: None)
    far.start(Serving().accept)
    assert opened_until_lost(near, FAR) == "gone"
    own_server.start()
    _opened_again(near).close()


def test_a_password_is_given_and_a_wrong_one_is_told_without_showing_it(
    tmp_path: Path, other_host: Callable[[str, str], RedisBus], caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path, "hunter22-hunter22") as server:
        near, far = other_host(NEAR, server.url.reveal()), other_host(FAR, server.url.reveal())
        near.start(lambda opening, channel: None)
        far.start(Serving().accept)
        _opened_again(near).close()
        wrong = other_host("0123abcd-wrong", server.url.reveal().replace("hunter22-", "secret33-"))
        wrong.start(lambda opening, channel: None)
        with pytest.raises(ChannelLost, match="gone"):
            wrong.open(FAR, opening(ECHO))
        (told,) = (record.getMessage() for record in caplog.records)
        assert told.startswith("workers of other hosts cannot be reached: ")
        assert "hunter22" not in told
        assert "secret33" not in told


def test_channels_go_over_tls(tmp_path: Path, other_host: Callable[[str, str], RedisBus]) -> None:
    with RedisServer(tmp_path, "hunter22", tls=True) as server:
        near, far = other_host(NEAR, server.url.reveal()), other_host(FAR, server.url.reveal())
        near.start(lambda opening, channel: None)
        far.start(Serving().accept)
        _opened_again(near).close()
        # In a process of its own, since the library leaves the socket of a failed handshake to the garbage collector, which complains.
        script = "import sys; from gateway.backend import Secret; from gateway.redis import connect; connect(Secret(sys.argv[1])).ping()"
        untrusted = [sys.executable, "-c", script, server.url.reveal().partition("?")[0]]
        assert "certificate verify failed" in subprocess.run(untrusted, cwd=ROOT, capture_output=True, text=True, timeout=20).stderr
        near.close()
        far.close()
        await_end(server)


GARBAGE = {
    "nothing": b"",
    "text": b"hello",
    "long": bytes(100_000),
    "no-json": Message(OPEN, ACCEPTER, bytes(16), 0, 0, b"hello").packed(),
    "no-object": Message(OPEN, ACCEPTER, bytes(16), 0, 0, b"[]").packed(),
    "deep": Message(OPEN, ACCEPTER, bytes(16), 0, 0, b"[" * 100_000).packed(),
    "no-address": Message(OPEN, ACCEPTER, bytes(16), 0, 0, b'{"agent": "echo", "epoch": 1, "by": "x", "answer": "a b"}').packed(),
    "another-type": Message(OPEN, ACCEPTER, bytes(16), 0, 0, b'{"agent": "echo", "epoch": true, "by": "x", "answer": "a"}').packed(),
    "unknown-channel": Message(b"E", ACCEPTER, bytes(16), 1, 0, b"{}").packed(),
    "unknown-kind": Message(b"?", 77, bytes(16), 1, 0, b"{}").packed(),
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
def test_garbage_disturbs_nobody(redis_server: RedisServer, near: RedisBus, far: RedisBus, served: Serving, sent: bytes) -> None:
    channel = near.open(FAR, opening(ECHO, 2))
    with redis_server.client() as client:
        assert client.publish(f"gateway:bus:{FAR}", sent) == 1
    channel.send(b"x")
    assert channel.receive(5) == b"x"
    assert served.openings == [Opening(ECHO, 2, NEAR)]
    channel.close()


def test_who_opens_and_is_never_heard_of_again_is_given_up(redis_server: RedisServer, far: RedisBus, served: Serving) -> None:
    head = b'{"agent": "take", "epoch": 3, "by": "0123abcd-ghost", "answer": "0123abcd-ghost"}'
    with redis_server.client() as client:
        assert client.publish(f"gateway:bus:{FAR}", Message(OPEN, ACCEPTER, b"g" * 16, 0, 0, head).packed()) == 1
    assert served.ended.wait(DEATH_S)
    assert served.lost == ["gone"]


def test_a_message_that_is_lost_ends_the_channel_on_both_sides(redis_server: RedisServer, near: RedisBus, far: RedisBus, served: Serving) -> None:
    channel = near.open(FAR, opening("take"))
    channel.send(b"first")
    with redis_server.client() as client:
        # What Redis would have dropped: the next one says that there were three frames, and the second never came.
        name = channel.key[0]
        client.publish(f"gateway:bus:{FAR}", Message(b"E", ACCEPTER, name, 3, 0, b"third").packed())
    assert lost(channel) == "gone"
    assert served.ended.wait(5)
    assert (served.frames[:1], served.lost) == ([b"first"], ["gone"])
    assert b"third" not in served.frames
    channel.close()


def test_a_slow_side_holds_back_its_own_channel_only(near: RedisBus, far: RedisBus, served: Serving) -> None:
    slow, other = near.open(FAR, opening(SILENT)), near.open(FAR, opening(ECHO))
    for _ in range(10):
        slow.send(bytes(1_000_000))
    other.send(b"x")
    assert other.receive(5) == b"x"
    slow.close()
    other.close()
    served.go_on.set()


@pytest.mark.timeout(150)
def test_all_of_this_holds_under_gevent() -> None:
    script = "import sys; from gevent import monkey; monkey.patch_all(); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "-q", "--no-header", __file__, "-k", "not under_gevent"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {PATCHED_RUN: "1"}, capture_output=True, text=True, timeout=140)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
