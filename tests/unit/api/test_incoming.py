from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.incoming import NO_CODE, Incoming, Part, Violation, closing
from tests.fakes.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame_bytes

LIMIT = 1000
FRAMES = st.builds(
    frame_bytes,
    st.sampled_from([TEXT, CONTINUATION, PING, PONG, CLOSE, BINARY, 3]),
    st.binary(max_size=200) | st.text(max_size=80).map(str.encode),
    fin=st.booleans(),
    rsv=st.sampled_from([0] * 9 + [4]),
    mask=st.sampled_from([b"\x01\x02\x03\x04"] * 9 + [None]),
)


def read(pieces: list[bytes]) -> list[object]:
    """What is made of the bytes; a violation's code at the end. Pieces of messages are left out: how many there are is up to the blocks."""
    incoming, read = Incoming(LIMIT), list[object]()
    for piece in pieces:
        incoming.feed(piece)
        try:
            while (got := incoming.next()) is not None:
                read += [] if isinstance(got, Part) and got.opcode == CONTINUATION else [got]
                assert incoming.held <= LIMIT
        except Violation as violation:
            return [*read, violation.code]
    return read


@given(st.lists(FRAMES, max_size=12).map(b"".join) | st.binary(max_size=300), st.lists(st.integers(1, 60), min_size=1))
def test_what_arrives_is_read_the_same_however_it_is_cut(data: bytes, sizes: list[int]) -> None:
    cuts = [0, *itertools.takewhile(lambda at: at < len(data), itertools.accumulate(itertools.cycle(sizes))), len(data)]
    assert read([data[start:end] for start, end in itertools.pairwise(cuts)]) == read([data])


def test_message_is_under_way_from_its_first_byte_to_its_last() -> None:
    incoming, data = Incoming(LIMIT), frame_bytes(TEXT, b"ab", fin=False) + frame_bytes(CONTINUATION, b"c")
    for at in range(len(data)):
        assert incoming.is_under_way is (at > 0)
        incoming.feed(data[at : at + 1])
        while isinstance(got := incoming.next(), Part):
            pass
    assert got == "abc"
    assert (incoming.is_under_way, incoming.held) == (False, 0)


def test_limit_is_known_by_the_header() -> None:
    incoming = Incoming(LIMIT)
    incoming.feed(frame_bytes(TEXT, b"", length=LIMIT + 1))
    with pytest.raises(Violation) as violation:
        incoming.next()
    assert violation.value.code == 1009


def test_close_frame_has_a_code_and_a_reason_or_neither() -> None:
    assert closing(b"") == (NO_CODE, "")
    assert closing(b"\x0f\xa0bye") == (4000, "bye")
