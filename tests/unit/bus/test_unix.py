"""Channels between the workers of a host. The last test runs this whole file again in a patched process."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.bus.base import Opening
from gateway.bus.unix import UnixBus
from gateway.concurrency import patched
from gateway.frames import ChannelLost
from tests.fakes.processes import descriptors
from tests.unit.bus.buses import FAR, NEAR, BusContract, far_worker, lost, opening
from tests.unit.bus.serving import ECHO, SILENT, Serving

ROOT = Path(__file__).parents[3]
PATCHED_RUN = "GATEWAY_TEST_PATCHED"
HEAD = json.dumps({"agent": ECHO, "epoch": 1, "by": NEAR}).encode()


def framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def near(place: str) -> Iterator[UnixBus]:
    bus = UnixBus(Path(place), NEAR)
    bus.start(lambda opening, channel: None)
    yield bus
    bus.close()


@pytest.fixture
def far(place: str, served: Serving) -> Iterator[UnixBus]:
    bus = UnixBus(Path(place), FAR)
    bus.start(served.accept)
    yield bus
    bus.close()


class TestUnixBus(BusContract):
    kind = "unix"


class TestUnixBusInADeepDirectory(BusContract):
    """The path of a socket is longer than its address can hold."""

    kind = "unix"

    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        path = tmp_path / ("deep" * 30)
        path.mkdir()
        return str(path)

    def test_its_path_is_too_long(self, place: str) -> None:
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match="too long"):
            sock.bind(f"{place}/bus/{FAR}")


@pytest.fixture
def served() -> Serving:
    return Serving()


def test_process_is_patched_only_where_it_was_patched() -> None:
    assert patched() is (PATCHED_RUN in os.environ)


def test_only_our_own_user_may_come_near(tmp_path: Path, far: UnixBus) -> None:
    assert stat.S_IMODE((tmp_path / "bus").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "bus" / FAR).stat().st_mode) == 0o600


if os.geteuid() == 0:  # nobody else can be another user

    def test_another_user_is_not_served_though_it_could_reach_the_socket(tmp_path: Path, far: UnixBus, served: Serving) -> None:
        script = f"""
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    print("connected", flush=True)
    sock.sendall({framed(HEAD)!r})
    sock.recv(1)
"""
        with tempfile.TemporaryDirectory(dir="/tmp") as reachable:
            os.chmod(reachable, 0o755)
            path = Path(reachable) / "socket"
            (tmp_path / "bus" / FAR).rename(path)
            path.chmod(0o777)
            run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=10)
        assert run.stdout == "connected\n"
        assert served.openings == []


def test_sockets_of_workers_that_died_are_removed_and_no_others(tmp_path: Path, far: UnixBus) -> None:
    with far_worker("unix", str(tmp_path), "killed") as killed, far_worker("unix", str(tmp_path), "other"):
        killed.kill()
        killed.wait(5)
        (tmp_path / "bus" / ".draft").touch()
        (tmp_path / "bus" / ".old").touch()
        os.utime(tmp_path / "bus" / ".old", (1, 1))
        assert {path.name for path in (tmp_path / "bus").iterdir()} == {FAR, "killed", "other", ".draft", ".old"}
        bus = UnixBus(tmp_path, "new")
        bus.start(lambda opening, channel: None)
        assert {path.name for path in (tmp_path / "bus").iterdir()} == {FAR, "other", "new", ".draft"}
        bus.close()
        assert {path.name for path in (tmp_path / "bus").iterdir()} == {FAR, "other", ".draft"}


GARBAGE = {
    "another-protocol": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a-giant": b"\xff\xff\xff\xff" + bytes(100),
    "no-json": framed(b"hello"),
    "no-object": framed(b"[1]"),
    "no-utf8": framed(b'{"agent": "\xff"}'),
    "deep": framed(b"[" * 4000),
    "members-missing": framed(b'{"agent": "echo", "epoch": 1}'),
    "another-type": framed(b'{"agent": "echo", "epoch": true, "by": "x"}'),
    "a-long-head": framed(json.dumps({"agent": "x" * 5000, "epoch": 1, "by": "x"}).encode()),
    "nothing": b"",
    "half": framed(HEAD)[:-1],
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_shut_out_and_disturbs_nobody(tmp_path: Path, near: UnixBus, far: UnixBus, served: Serving, sent: bytes) -> None:
    channel = near.open(FAR, opening(ECHO, 2))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(5)
        stranger.connect(str(tmp_path / "bus" / FAR))
        stranger.sendall(sent)
        if sent in (GARBAGE["nothing"], GARBAGE["half"]):
            stranger.shutdown(socket.SHUT_WR)
        try:
            assert stranger.recv(1) == b""
        except ConnectionResetError:
            assert sent  # it had not read all of it
    channel.send(b"x")
    assert channel.receive(5) == b"x"
    assert [found.epoch for found in served.openings] == [2]
    channel.close()


def test_who_says_nothing_is_shut_out_after_a_second(tmp_path: Path, far: UnixBus) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(5)
        stranger.connect(str(tmp_path / "bus" / FAR))
        assert stranger.recv(1) == b""


def test_a_giant_after_a_good_head_ends_that_channel_only(tmp_path: Path, near: UnixBus, far: UnixBus, served: Serving) -> None:
    channel = near.open(FAR, opening(ECHO, 2))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(5)
        stranger.connect(str(tmp_path / "bus" / FAR))
        stranger.sendall(framed(HEAD) + framed(b"good") + b"\x7f\xff\xff\xff")
        assert stranger.recv(100) == framed(b"good")
        assert stranger.recv(100) == b""
    channel.send(b"x")
    assert channel.receive(5) == b"x"
    assert Opening(ECHO, 1, NEAR) in served.openings
    channel.close()


def test_a_closed_channel_leaves_no_descriptor(near: UnixBus, far: UnixBus, served: Serving) -> None:
    def once() -> None:
        served.ended.clear()
        channel = near.open(FAR, opening(ECHO))
        channel.send(b"x" * 1_000_000)
        assert channel.receive(5) == b"x" * 1_000_000
        channel.close()
        assert served.ended.wait(5)

    once()
    before = descriptors(os.getpid())
    for _ in range(20):
        once()
    deadline = time.monotonic() + 5
    while descriptors(os.getpid()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors(os.getpid()) <= before


def test_what_nobody_takes_is_given_up_a_second_after_closing(near: UnixBus, far: UnixBus, served: Serving) -> None:
    before = descriptors(os.getpid())
    channel = near.open(FAR, opening(SILENT))
    channel.send(bytes(10_000_000))
    channel.close()
    deadline = time.monotonic() + 5
    while descriptors(os.getpid()) > before + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors(os.getpid()) <= before + 1  # the far side's own
    served.go_on.set()
    assert served.ended.wait(5)


def test_a_bus_that_was_not_started_reaches_others_but_not_itself(tmp_path: Path, far: UnixBus) -> None:
    bus = UnixBus(tmp_path, NEAR)
    with pytest.raises(ChannelLost, match="gone"):
        bus.open(NEAR, opening(ECHO))
    channel = bus.open(FAR, opening(ECHO))
    channel.send(b"x")
    assert channel.receive(5) == b"x"
    bus.close()
    assert lost(channel) == "closed"


def test_all_of_this_holds_under_gevent() -> None:
    script = "import sys; from gevent import monkey; monkey.patch_all(); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "-q", "--no-header", __file__, "-k", "not under_gevent"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {PATCHED_RUN: "1"}, capture_output=True, text=True, timeout=55)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
