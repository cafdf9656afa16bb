"""What a windowed channel makes of messages that are lost, doubled, late or wrong; no network."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable

import pytest

from gateway.bus.base import MAX_QUEUED_BYTES
from gateway.bus.socket_channel import FLUSH_S, MOST_BYTES
from gateway.bus.windowed_channel import (
    ACCEPTER,
    BEAT,
    CLOSE,
    END,
    MESSAGE_BYTES,
    OPENER,
    PIECE,
    PIECE_BYTES,
    SILENCE_S,
    TAKEN,
    WINDOW_BYTES,
    Message,
    WindowedChannel,
)
from gateway.frames import ChannelLost

NAME = b"0123456789abcdef"
LATER = 1e12
"""A monotonic time long after all that happens here."""


class Side:
    """One side, with what it posted and the other has not had yet."""

    def __init__(self, side: int) -> None:
        self.posted: deque[Message] = deque()
        self.ended = 0
        self.channel = WindowedChannel(NAME, side, self._post, self._end)

    def _post(self, channel: WindowedChannel, data: bytes) -> None:
        message = Message.unpacked(data)
        assert message is not None
        self.posted.append(message)

    def _end(self, channel: WindowedChannel) -> None:
        self.ended += 1

    def deliver(self, other: Side, count: int = 1_000_000) -> None:
        """What this side posted reaches the other, and what that answers comes back, until nothing moves."""
        while count and (self.posted or other.posted):
            for sender, receiver in ((self, other), (other, self)):
                if sender.posted:
                    receiver.channel.came(sender.posted.popleft())
            count -= 1

    def lost(self) -> str:
        try:
            while self.channel.receive(0) is not None:
                continue
        except ChannelLost as error:
            return error.cause
        return ""


@pytest.fixture
def near() -> Side:
    return Side(OPENER)


@pytest.fixture
def far() -> Side:
    return Side(ACCEPTER)


def test_every_message_is_read_as_it_was_written() -> None:
    message = Message(END, ACCEPTER, NAME, 3, 1 << 40, b"{}")
    assert Message.unpacked(message.packed()) == message
    assert Message.unpacked(message.packed()[:33]) is None


def test_frames_arrive_whole_and_in_order(near: Side, far: Side) -> None:
    frames = [b"", b"{}", b"x" * PIECE_BYTES, b"y" * (PIECE_BYTES + 1), b"z" * (3 * PIECE_BYTES)]
    for frame in frames[:3]:
        near.channel.send(frame)
    assert [message.kind for message in near.posted] == [END, END, END]
    for frame in frames[3:]:
        near.channel.send(frame)
    found = list[bytes | None]()
    for _ in frames:
        near.deliver(far)
        found.append(far.channel.receive(0))
    assert found == frames
    assert far.channel.receive(0) is None


def test_no_more_than_a_window_is_under_way_until_it_is_taken(near: Side, far: Side) -> None:
    for _ in range(3 * WINDOW_BYTES // MESSAGE_BYTES):
        near.channel.send(b"{}")
    under_way = len(near.posted)
    assert WINDOW_BYTES - MESSAGE_BYTES - 2 < under_way * (MESSAGE_BYTES + 2) <= WINDOW_BYTES
    near.deliver(far)
    assert not near.posted
    for _ in range(under_way // 2):
        assert far.channel.receive(0) == b"{}"
    assert [message.kind for message in far.posted] == [TAKEN]
    near.channel.came(far.posted.popleft())
    assert len(near.posted) > under_way // 5


def test_a_frame_larger_than_the_window_comes_as_its_turn_does(near: Side, far: Side) -> None:
    large = bytes(4 * WINDOW_BYTES)
    near.channel.send(b"first")
    near.channel.send(large)
    near.channel.send(large)
    near.deliver(far)
    assert sum(message.kind == PIECE for message in near.posted) == 0
    assert far.channel.receive(0) == b"first"
    near.deliver(far)
    assert far.channel.receive(0) == large
    near.deliver(far)
    assert far.channel.receive(0) == large


def test_what_waits_unread_is_bounded(near: Side, far: Side) -> None:
    """A side that sends and sends, and one that never takes: one frame comes in, and a window."""
    frame, sent = bytes(1_000_000), 0
    while not near.ended:
        with contextlib.suppress(ChannelLost):
            near.channel.send(frame)
            sent += 1
        near.deliver(far)
    assert MAX_QUEUED_BYTES < sent * len(frame) < MAX_QUEUED_BYTES + 2 * len(frame)
    assert near.lost() == "full"
    assert [far.channel.receive(0), far.lost()] == [frame, "gone"]


def _drop(near: Side) -> None:
    del near.posted[1]


def _double(near: Side) -> None:
    near.posted.insert(1, near.posted[1])


def _swap(near: Side) -> None:
    near.posted[1], near.posted[2] = near.posted[2], near.posted[1]


@pytest.mark.parametrize("spoil", [_drop, _double, _swap])
def test_what_is_lost_doubled_or_swapped_ends_both_sides_and_nothing_wrong_is_received(near: Side, far: Side, spoil: Callable[[Side], None]) -> None:
    for number in range(4):
        near.channel.send(b"%d" % number)
    spoil(near)
    near.deliver(far)
    found = list[bytes]()
    with pytest.raises(ChannelLost, match="gone"):  # noqa: PT012
        while True:
            found.append(far.channel.receive(0) or b"nothing")
    assert found == [b"%d" % number for number in range(len(found))]
    assert 1 <= len(found) < 4
    assert near.lost() == "gone"
    assert (near.ended, far.ended) == (1, 1)


def test_a_last_message_that_is_lost_shows_with_the_next_beat(near: Side, far: Side) -> None:
    near.channel.send(b"{}")
    near.posted.clear()
    near.channel.beat()
    near.deliver(far)
    assert (far.lost(), near.lost()) == ("gone", "gone")


def test_a_note_of_what_was_taken_that_is_lost_comes_with_the_next_beat(near: Side, far: Side) -> None:
    for _ in range(2 * WINDOW_BYTES // MESSAGE_BYTES):
        near.channel.send(b"{}")
    near.deliver(far)
    while far.channel.receive(0) is not None:
        far.posted.clear()
    assert not near.posted
    far.channel.beat()
    near.channel.came(far.posted.popleft())
    assert near.posted


@pytest.mark.parametrize(
    "message",
    [
        Message(BEAT, ACCEPTER, NAME, 1, 0, b""),
        Message(END, ACCEPTER, NAME, 0, 0, b"{}"),
        Message(END, ACCEPTER, NAME, 2**64 - 1, 0, b"{}"),
        Message(TAKEN, ACCEPTER, NAME, 0, 1, b""),
        Message(b"?", ACCEPTER, NAME, 5, 0, b""),
    ],
)
def test_what_cannot_be_true_ends_the_channel(near: Side, far: Side, message: Message) -> None:
    far.channel.came(message)
    assert far.lost() == "gone"
    assert [posted.kind for posted in far.posted] == [CLOSE]
    far.deliver(near)
    assert near.lost() == "gone"


def test_a_frame_that_grows_beyond_all_measure_ends_the_channel(far: Side) -> None:
    for number in range(1, 1000):
        far.channel.came(Message(PIECE, ACCEPTER, NAME, number, 0, bytes(PIECE_BYTES)))
        if far.ended:
            break
    assert number == MOST_BYTES // PIECE_BYTES + 1
    assert far.lost() == "gone"


def test_a_side_is_given_up_after_its_silence_and_not_before(near: Side, far: Side) -> None:
    near.channel.excuse(1000.0)
    near.channel.look(1000.0 + SILENCE_S)
    assert near.lost() == ""
    near.channel.excuse(1001.0)
    near.channel.look(1000.1 + SILENCE_S)
    assert near.lost() == ""
    near.channel.look(1001.1 + SILENCE_S)
    assert near.lost() == "gone"
    with pytest.raises(ChannelLost, match="gone"):
        near.channel.send(b"{}")


def test_what_was_sent_before_the_end_arrives_though_the_window_was_full(near: Side, far: Side) -> None:
    frames = [b"%d" % number * 10_000 for number in range(10)] * 3
    for frame in frames:
        near.channel.send(frame)
    near.channel.close()
    assert near.ended == 0
    with pytest.raises(ChannelLost, match="closed"):
        near.channel.send(b"{}")
    found = list[bytes]()
    while len(found) < len(frames):
        near.deliver(far)
        found.append(far.channel.receive(0) or b"nothing")
    near.deliver(far)
    assert found == frames
    assert (far.lost(), near.ended) == ("gone", 1)


def test_flushing_ends_after_its_time_and_takes_in_nothing(near: Side, far: Side) -> None:
    near.channel.send(bytes(4 * WINDOW_BYTES))
    near.channel.close()
    far.channel.send(bytes(PIECE_BYTES))
    near.channel.came(far.posted.popleft())
    near.channel.excuse(LATER)
    near.channel.look(LATER + FLUSH_S)
    assert near.ended == 1
    assert near.posted[-1].kind == CLOSE
    assert near.lost() == "closed"


def test_closing_is_told_once(near: Side, far: Side) -> None:
    near.channel.close()
    near.channel.close()
    near.channel.lose()
    near.channel.beat()
    assert [message.kind for message in near.posted] == [CLOSE]
    near.deliver(far)
    far.channel.close()
    assert not far.posted
    assert (near.ended, far.ended) == (1, 1)
