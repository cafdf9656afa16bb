"""Server-sent events are told apart and never changed, whatever their line ends and wherever the bytes are cut."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import sse
from gateway.dialects.sse import Event

LINE_ENDS = (b"\n", b"\r\n", b"\r")
LINES = st.sampled_from(
    [b"data: one", b"data:two", b"data", b"data: \xc3\xa9\xf0\x9f\x98\x80", b"event: ping", b": comment", b"id: 7", b"retry: 1", b"data: [DONE]", b"x"]
)
ENDS = st.sampled_from(LINE_ENDS)


def stream(end: bytes) -> bytes:
    lines = [b": hello", b"", b"event: first", b"data: {", b"data: }", b"", "data: \u20ac\U0001f600".encode(), b"", b"", b"data: [DONE]", b""]
    return b"".join(line + end for line in lines)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Events whose line ends may differ from line to line."""
    pieces: list[bytes] = []
    for _ in range(draw(st.integers(0, 6))):
        for line in draw(st.lists(LINES, max_size=4)):
            pieces += [line, draw(ENDS)]
        pieces.append(draw(ENDS))
    return b"".join(pieces) + draw(st.sampled_from([b"", b"data: unfinished", b"\r", b"\n"]))


def relayed(blocks: list[bytes]) -> list[bytes]:
    """What leaves at each block where only whole events may leave, and the rest at the end."""
    left, rest = [], b""
    for block in blocks:
        rest += block
        boundary = sse.last_boundary(rest)
        left.append(rest[:boundary])
        rest = rest[boundary:]
    return [*left, rest]


def events(raw: bytes) -> list[Event]:
    """An independent reading: line by line, as the standard tells it."""
    found: list[Event] = []
    name, data = "", list[bytes]()
    for line in raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]:
        if not line:
            if name or data:
                found.append(Event(name, b"\n".join(data) if data else None))
            name, data = "", []
            continue
        field, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode()
    return found


def meaning(pieces: list[bytes]) -> list[Event]:
    return [event for event in map(sse.parse, itertools.chain.from_iterable(map(sse.split, pieces))) if event != Event("", None)]


@pytest.mark.parametrize("end", LINE_ENDS)
def test_cut_at_every_byte_no_event_is_split_and_no_byte_is_lost(end: bytes) -> None:
    whole = stream(end)
    expected = events(whole)
    for cut in range(len(whole) + 1):
        pieces = relayed([whole[:cut], whole[cut:]])
        assert b"".join(pieces) == whole
        assert meaning(pieces) == expected


@pytest.mark.parametrize("end", LINE_ENDS)
def test_byte_by_byte_every_event_leaves_whole(end: bytes) -> None:
    whole = stream(end)
    pieces = [piece for piece in relayed([whole[at : at + 1] for at in range(len(whole))]) if piece]
    assert b"".join(pieces) == whole
    assert meaning(pieces) == events(whole)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_event_leaves_with_the_byte_that_completes_it(end: bytes) -> None:
    raw = b"data: one" + end + end
    assert [sse.last_boundary(raw[:cut]) for cut in range(len(raw))] == [0] * len(raw)
    assert sse.last_boundary(raw) == len(raw)


def test_carriage_return_at_the_end_may_be_half_of_a_line_end() -> None:
    assert sse.last_boundary(b"data: one\r\n\r") == 0
    assert sse.last_boundary(b"data: one\r\n\r\n") == 13
    assert sse.last_boundary(b"data: one\r\rdata: two") == 11
    assert sse.last_boundary(b"data: one\r\r") == 0


def test_line_end_of_two_bytes_is_no_blank_line() -> None:
    assert sse.last_boundary(b"data: one\r\ndata: two\r\n") == 0
    assert list(sse.split(b"data: one\r\ndata: two\r\n\r\n")) == [b"data: one\r\ndata: two\r\n\r\n"]


@settings(max_examples=400, deadline=None)
@given(streams(), st.lists(st.integers(0, 200), max_size=6))
def test_any_cuts_of_any_mixture_of_line_ends_mean_the_same(whole: bytes, cuts: list[int]) -> None:
    edges = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    pieces = relayed([whole[start:end] for start, end in itertools.pairwise(edges)])
    assert b"".join(pieces) == whole
    complete = b"".join(pieces[:-1])
    assert meaning(pieces[:-1]) == events(complete)
    assert len(events(whole)) - len(events(complete)) <= 1  # at most an event that ends in a bare carriage return waits


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | streams())
def test_split_events_join_to_the_buffer_again(buffer: bytes) -> None:
    boundary = sse.last_boundary(buffer)
    assert 0 <= boundary <= len(buffer)
    assert b"".join(sse.split(buffer)) == buffer
    assert b"".join(sse.split(buffer[:boundary])) == buffer[:boundary]
    assert sse.last_boundary(buffer[boundary:]) == 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_can_be_parsed(raw: bytes) -> None:
    event = sse.parse(raw)
    assert event.data is None or b"\r" not in event.data


@pytest.mark.parametrize(
    ("raw", "event"),
    [
        (b"data: one\n\n", Event("", b"one")),
        (b"data:one\n\n", Event("", b"one")),
        (b"data:  one \n\n", Event("", b" one ")),
        (b"data: one\r\ndata: two\r\n\r\n", Event("", b"one\ntwo")),
        (b"event: delta\rdata: {}\r\r", Event("delta", b"{}")),
        (b"data\n\n", Event("", b"")),
        (b"data:\n\n", Event("", b"")),
        (b": keep-alive\n\n", Event("", None)),
        (b"event: ping\n\n", Event("ping", None)),
        (b"Data: one\n\n", Event("", None)),
        (b"id: 1\nretry: 2\n\n", Event("", None)),
        (b"\xef\xbb\xbfdata: one\n\n", Event("", b"one")),
        (b"event: \xff\ndata: \xff\n\n", Event("\ufffd", b"\xff")),
        (b"\n\n", Event("", None)),
    ],
)
def test_event_is_read_as_the_standard_says(raw: bytes, event: Event) -> None:
    assert sse.parse(raw) == event


@given(st.binary(max_size=100).filter(lambda data: not {10, 13} & set(data)), st.sampled_from(["", "error", "response.completed"]))
def test_encoded_event_reads_back(data: bytes, name: str) -> None:
    raw = sse.encode(data, name)
    assert sse.parse(raw) == Event(name, data)
    assert list(sse.split(raw)) == [raw]


@given(
    st.lists(st.sampled_from([b"data: a", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r", b": x"]), max_size=12), st.lists(st.integers(1, 9), max_size=40)
)
def test_splitter_gives_whole_events_and_keeps_no_whole_one(parts: list[bytes], sizes: list[int]) -> None:
    whole, splitter, out, at = b"".join(parts), sse.Splitter(), b"", 0
    for size in [*sizes, len(whole) or 1]:
        block = whole[at : at + size]
        at += size
        if block:
            out += splitter.feed(block)
            assert len(out) + splitter.size == min(at, len(whole))
            assert sse.last_boundary(whole[len(out) : at]) == 0
            assert out == b"" or re.search(rb"(?:\r\n|\n|\r)(?:\r\n|\n|\r)\Z", out)
    assert out + splitter.drain() == whole


def test_splitter_shows_the_head_of_what_it_keeps() -> None:
    splitter = sse.Splitter()
    for piece in (b"data: 1\n\nev", b"ent", b": x"):
        splitter.feed(piece)
    assert (splitter.head(4), splitter.head(99), splitter.size) == (b"even", b"event: x", 8)
