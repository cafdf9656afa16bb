"""The reader of responses, fed with bytes cut anywhere, and with bytes that are wrong."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.http_message import MAX_HEAD_BYTES, Malformed, Reader, request_head
from gateway.errors import BadRequest

WHOLE = (
    b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
    b"5;name=value\r\nhello\r\n6\r\n\r\n\r\n\r\n\r\n1\r\n\xc3\r\n0\r\nx-trailer: y\r\n\r\n"
)
BODY = b"hello\r\n\r\n\r\n\xc3"


def read(reader: Reader, *blocks: bytes) -> bytes:
    return b"".join(reader.feed(block) for block in blocks if block)


@given(st.sets(st.integers(1, len(WHOLE) - 1)))
@example(set(range(1, len(WHOLE))))
def test_response_is_the_same_wherever_it_is_cut(cuts: set[int]) -> None:
    reader = Reader()
    edges = [0, *sorted(cuts), len(WHOLE)]
    for _ in range(2):
        reader.begin("POST")
        assert read(reader, *(WHOLE[start:end] for start, end in pairwise(edges))) == BODY
        assert (reader.status, reader.fields) == (200, [("transfer-encoding", "chunked"), ("x-a", "b")])
        assert reader.complete
        assert reader.reusable


@given(st.integers(0, len(WHOLE) - 1))
def test_response_is_complete_only_with_its_last_byte(cut: int) -> None:
    reader = Reader()
    read(reader, WHOLE[:cut])
    assert not reader.complete
    assert not reader.until_close


@given(st.integers(0, len(WHOLE)), st.binary(min_size=1, max_size=30))
def test_wrong_bytes_are_malformed_and_nothing_else(at: int, wrong: bytes) -> None:
    reader = Reader()
    with contextlib.suppress(Malformed):
        read(reader, WHOLE[:at], wrong, WHOLE[at:])


@given(st.binary(min_size=1, max_size=200))
def test_garbage_never_begins_a_response(garbage: bytes) -> None:
    reader = Reader()
    try:
        reader.feed(garbage)
    except Malformed:
        assert not reader.head_done


@given(st.binary(min_size=1, max_size=60))
def test_surplus_never_reaches_the_body_and_spoils_the_connection(surplus: bytes) -> None:
    reader = Reader()
    body = read(reader, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" + surplus)
    assert body == b"ok"
    assert reader.complete
    assert not reader.reusable or not surplus.strip(b"\r\n")


def test_one_line_that_comes_slowly_is_cut_off() -> None:
    reader = Reader()
    reader.feed(b"HTTP/1.1 200 OK\r\nx: ")
    pieces = [b"a" * 100] * (MAX_HEAD_BYTES // 100 + 1)
    with pytest.raises(Malformed):
        read(reader, *pieces)


def test_head_within_the_limits_passes() -> None:
    fields = b"".join(b"x-%d: %b\r\n" % (number, b"a" * 250) for number in range(199))
    reader = Reader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n" + fields + b"\r\n" + b"x" * 60_000) == b"x" * 60_000
    assert len(reader.fields) == 200


def test_head_that_passes_the_limit_together_with_its_body_is_cut_off() -> None:
    reader = Reader()
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\nhello"
    with pytest.raises(Malformed):
        reader.feed(head)


@given(name=st.text(max_size=8), value=st.text(max_size=12))
@example(name="x", value="\u2028")
@example(name="x", value="\x85")
def test_request_head_holds_one_field_per_header_or_is_refused(name: str, value: str) -> None:
    try:
        head = request_head("POST", "/x", "", ((name, value),), 2)
    except BadRequest:
        return
    assert head.count(b"\r") == head.count(b"\n") == head.count(b"\r\n")
    assert head.count(b"\r\n") in (3, 4)
    assert b"\0" not in head


@given(method=st.text(max_size=6), target=st.text(max_size=12))
def test_request_line_is_one_line_of_three_words_or_is_refused(method: str, target: str) -> None:
    try:
        head = request_head(method, "/" + target, "", (), 0)
    except BadRequest:
        return
    line, _, _ = head.partition(b"\r\n")
    assert [word.decode("ascii") for word in line.split(b" ")] == [method, "/" + target, "HTTP/1.1"]
