"""What every bus has to do, whatever carries its frames: inherited by the tests of each kind, which bring `near`, `far` and `place`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.bus.base import MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, Bus, Opening
from gateway.concurrency import patched, spawn
from gateway.frames import MAX_FRAME_BYTES, Channel, ChannelLost
from tests.unit.bus.serving import ECHO, FLOOD, LEAVING, SILENT, Serving

ROOT = Path(__file__).parents[3]
FAR = "0123abcd-far"
NEAR = "0123abcd-near"


def opening(agent: str, epoch: int = 1) -> Opening:
    return Opening(agent, epoch, NEAR)


@contextlib.contextmanager
def far_worker(kind: str, place: str, owner: str) -> Iterator[subprocess.Popen[str]]:
    """A worker in a process of its own; patched where this one is."""
    command = [sys.executable, "-m", "tests.unit.bus.serving", *(["patched"] if patched() else []), kind, place, owner]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "reachable\n"
            yield process
        finally:
            process.kill()


def lost(channel: Channel, timeout_s: float = 5.0) -> str:
    """The cause that `receive` raises, once all frames are read; "" where it raises none."""
    try:
        while channel.receive(timeout_s) is not None:
            continue
    except ChannelLost as error:
        return error.cause
    return ""


def sent_until_lost(channel: Channel, frame: bytes, most: int) -> tuple[int, str]:
    """How often it could be sent, and what the end was."""
    for count in range(most):
        try:
            channel.send(frame)
        except ChannelLost as error:
            return count, error.cause
    return most, ""


def opened_until_lost(bus: Bus, owner: str) -> str:
    """The cause with which opening is refused in the end: where nobody knows yet that the worker is dead, it is not refused at once."""
    try:
        for _ in range(200):
            bus.open(owner, opening(ECHO)).close()
            time.sleep(0.02)
    except ChannelLost as error:
        return error.cause
    return ""


class BusContract:
    """`served`: what serves the channels of `far`."""

    kind = ""
    death_s = 1.0

    @pytest.fixture
    def served(self) -> Serving:
        return Serving()

    def test_frames_go_both_ways_in_order(self, near: Bus, far: Bus, served: Serving) -> None:
        channel = near.open(FAR, opening(ECHO, 7))
        frames = [b'{"id":"%d"}' % number for number in range(200)]
        for frame in frames:
            channel.send(frame)
        assert [channel.receive(5) for _ in frames] == frames
        channel.close()
        assert served.ended.wait(5)
        assert (served.openings, served.frames, served.lost) == ([Opening(ECHO, 7, NEAR)], frames, ["gone"])

    def test_nothing_comes_until_the_time_is_up(self, near: Bus, far: Bus) -> None:
        channel = near.open(FAR, opening(SILENT))
        assert channel.receive(0) is None
        began = time.monotonic()
        assert channel.receive(0.05) is None
        assert 0.04 < time.monotonic() - began < 2
        channel.close()

    def test_the_largest_frame_passes_both_ways(self, near: Bus, far: Bus) -> None:
        frame = bytes(range(256)) * (MAX_FRAME_BYTES // 256)
        channel = near.open(FAR, opening(ECHO))
        channel.send(frame)
        channel.send(b"after")
        assert channel.receive(20) == frame
        assert channel.receive(5) == b"after"
        channel.close()

    def test_a_frame_that_is_too_large_ends_its_channel_and_no_other(self, near: Bus, far: Bus) -> None:
        channel, other = near.open(FAR, opening(ECHO)), near.open(FAR, opening(ECHO))
        with pytest.raises(ChannelLost, match="full"):
            channel.send(bytes(17_000_001))
        assert lost(channel) == "full"
        other.send(b"x")
        assert other.receive(5) == b"x"
        channel.close()
        other.close()

    def test_10_000_frames_come_from_another_process_in_order(self, place: str, near: Bus) -> None:
        with far_worker(self.kind, place, "0123abcd-process"):
            channel = near.open("0123abcd-process", opening(FLOOD))
            channel.send(b"10000")
            for number in range(10_000):
                assert channel.receive(10) == b"%d" % number
                if number % 100 == 99:
                    channel.send(b"100")
            channel.close()

    def test_the_death_of_a_worker_is_noticed(self, place: str, near: Bus) -> None:
        with far_worker(self.kind, place, "0123abcd-process") as process:
            waiting, idle = (near.open("0123abcd-process", opening(ECHO)) for _ in range(2))
            waiting.send(b"x")
            assert waiting.receive(5) == b"x"
            began = time.monotonic()
            process.kill()
            assert lost(waiting) == "gone"
            noticed_s = time.monotonic() - began
            print(f"{self.kind}: the death of a worker was noticed after {noticed_s * 1000:.1f} ms")
            assert noticed_s < self.death_s
            process.wait(5)
            assert lost(idle) == "gone"
            assert sent_until_lost(idle, b"x", 10_000)[1] == "gone"
            assert opened_until_lost(near, "0123abcd-process") == "gone"
            waiting.close()
            idle.close()

    @pytest.mark.parametrize("owner", ["0123abcd-nobody", "", "..", "../x", "a/b", "a\0b", "x" * 300])
    def test_a_worker_that_is_not_there_cannot_be_reached(self, near: Bus, owner: str) -> None:
        with pytest.raises(ChannelLost, match="gone"):
            near.open(owner, opening(ECHO))

    def test_who_is_not_read_is_told_so_and_takes_no_memory_without_end(self, near: Bus, far: Bus, served: Serving) -> None:
        channel = near.open(FAR, opening(SILENT))
        sent, cause = sent_until_lost(channel, bytes(1_000_000), 100)
        assert cause == "full"
        assert 0.9 * MAX_QUEUED_BYTES < sent * 1_000_000 < 1.2 * MAX_QUEUED_BYTES
        assert lost(channel) == "full"
        served.go_on.set()
        assert served.ended.wait(10)
        assert served.lost == ["gone"]
        channel.close()

    def test_small_frames_that_are_not_read_are_bounded_too(self, near: Bus, far: Bus, served: Serving) -> None:
        channel = near.open(FAR, opening(SILENT))
        sent, cause = sent_until_lost(channel, b"{}", 20_000)
        assert cause == "full"
        assert sent > MAX_QUEUED_FRAMES
        served.go_on.set()
        channel.close()

    def test_what_was_sent_before_the_end_still_arrives(self, near: Bus, far: Bus, served: Serving) -> None:
        channel = near.open(FAR, opening("take"))
        frames = [b"%d" % number * 20_000 for number in range(100)]
        for frame in frames:
            channel.send(frame)
        channel.close()
        assert served.ended.wait(10)
        assert served.frames == frames
        assert served.lost == ["gone"]

    def test_what_the_other_side_sent_before_it_left_can_be_received(self, near: Bus, far: Bus, served: Serving) -> None:
        channel = near.open(FAR, opening(LEAVING))
        with contextlib.suppress(ChannelLost):  # it may have left already
            channel.send(b"never read")
        assert served.ended.wait(5)
        assert [channel.receive(5), channel.receive(5)] == [b"1", b"2"]
        assert lost(channel) == "gone"
        channel.close()

    def test_closing_wakes_who_receives(self, near: Bus, far: Bus) -> None:
        channel = near.open(FAR, opening(SILENT))
        causes = list[str]()
        receiver = spawn(lambda: causes.append(lost(channel, 30)), "receiver")
        time.sleep(0.02)
        channel.close()
        receiver.join(5)
        assert causes == ["closed"]

    def test_after_closing_nothing_goes_and_closing_again_is_fine(self, near: Bus, far: Bus, served: Serving) -> None:
        channel = near.open(FAR, opening(ECHO))
        channel.close()
        channel.close()
        with pytest.raises(ChannelLost, match="closed"):
            channel.send(b"x")
        assert lost(channel) == "closed"
        assert served.ended.wait(5)

    def test_several_greenlets_may_send_at_once(self, near: Bus, far: Bus) -> None:
        channel = near.open(FAR, opening(ECHO))
        senders = [spawn(lambda name=name: [channel.send(b"%s%03d" % (name, number)) for number in range(200)], "sender") for name in (b"a", b"b", b"c")]  # type: ignore[misc]
        found = [channel.receive(5) or b"" for _ in range(600)]
        for sender in senders:
            sender.join(5)
        for name in (b"a", b"b", b"c"):
            assert [frame for frame in found if frame.startswith(name)] == [b"%s%03d" % (name, number) for number in range(200)]
        channel.close()

    def test_500_channels_at_once_are_not_confused(self, near: Bus, far: Bus) -> None:
        channels = [near.open(FAR, opening(ECHO)) for _ in range(500)]
        for number, channel in enumerate(channels):
            channel.send(b"%d" % number)
        assert [channel.receive(20) for channel in channels] == [b"%d" % number for number in range(500)]
        for channel in channels:
            channel.close()

    def test_a_channel_to_itself_is_like_any_other(self, far: Bus, served: Serving) -> None:
        channel = far.open(FAR, opening(ECHO))
        channel.send(b"x")
        assert channel.receive(5) == b"x"
        channel.close()
        assert served.ended.wait(5)
        assert served.lost == ["gone"]

    def test_the_end_of_a_bus_ends_its_channels_and_leaves_no_greenlet(self, near: Bus, far: Bus, served: Serving) -> None:
        before = threading.active_count()
        channel = near.open(FAR, opening(ECHO))
        channel.send(b"x")
        assert channel.receive(5) == b"x"
        far.close()
        far.close()
        assert lost(channel) == "gone"
        assert served.ended.wait(5)
        assert served.lost == ["closed"]
        assert opened_until_lost(near, FAR) == "gone"
        with pytest.raises(ChannelLost, match="closed"):
            far.open(FAR, opening(ECHO))
        channel.close()
        near.close()
        deadline = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before
