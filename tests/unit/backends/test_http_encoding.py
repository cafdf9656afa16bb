"""Bodies that come compressed although nobody asked."""

from __future__ import annotations

import collections
import gzip
import os
import resource
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.http_encoding import STEP_BYTES, Decoded
from gateway.errors import UpstreamInterrupted
from tests.fakes.answers import Answer, Events, Gzip, RawBytes
from tests.fakes.provider import Provider
from tests.unit.backends.conftest import Client

PATH = "/v1/chat/completions"
GZIP = zlib.MAX_WBITS | 16


class Received:
    """Blocks as a connection would bring them."""

    def __init__(self, *blocks: bytes) -> None:
        self._blocks = iter(blocks)
        self.closed = False

    def __iter__(self) -> Received:
        return self

    def __next__(self) -> bytes:
        return next(self._blocks)

    def close(self) -> None:
        self.closed = True


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(b"hello" * 50)),
        ("X-GZIP", gzip.compress(b"hello" * 50)),
        ("deflate", zlib.compress(b"hello" * 50)),
        ("deflate", raw_deflate(b"hello" * 50)),
    ],
    ids=["gzip", "X-GZIP", "zlib", "raw"],
)
def test_compressed_answer_is_decoded_and_its_headers_say_so(provider: Provider, client: Client, encoding: str, packed: bytes) -> None:
    provider.script(PATH, Answer(headers=(("content-encoding", encoding), ("x-a", "b")), blocks=(packed,)))
    response = client.send(PATH)
    assert response.headers == (("x-a", "b"),)
    assert b"".join(response.chunks) == b"hello" * 50
    client.whole(PATH)
    assert provider.connections_seen == 1


def test_identity_is_no_encoding(provider: Provider, client: Client) -> None:
    provider.script(PATH, Answer(headers=(("content-encoding", "identity"),), blocks=(b"hello",)))
    assert client.whole(PATH) == b"hello"


def test_compressed_events_are_handed_on_when_they_come(provider: Provider, client: Client) -> None:
    events = [b"data: %d\n\n" % number for number in range(3)]
    provider.script(PATH, Gzip(Events(*events, done=False, pause_s=0.1)))
    assert list(client.send(PATH).chunks) == events


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_compressed_answer_that_is_cut_is_an_interruption(provider: Provider, client: Client, cut: int) -> None:
    provider.script(PATH, Gzip(Answer(blocks=(os.urandom(200),)), cut=cut))
    with pytest.raises(UpstreamInterrupted):
        client.whole(PATH)


def test_answer_that_is_not_compressed_as_it_says_is_an_interruption(provider: Provider, client: Client) -> None:
    provider.script(PATH, Answer(headers=(("content-encoding", "gzip"),), blocks=(b"hello world",)))
    response = client.send(PATH)
    for _ in range(2):
        with pytest.raises(UpstreamInterrupted):
            next(response.chunks)


def test_encoding_of_an_answer_without_a_body_does_not_matter(provider: Provider, client: Client) -> None:
    provider.script(PATH, Answer(304, (("content-encoding", "br"),)), Answer(200, (("content-encoding", "gzip"),)))
    assert client.whole(PATH) == b""
    assert client.whole(PATH) == b""


def test_bomb_is_cut_off_without_much_memory(provider: Provider, client: Client) -> None:
    packer = zlib.compressobj(9, wbits=GZIP)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    provider.script(PATH, Answer(headers=(("content-encoding", "gzip"),), blocks=(packed,)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    response = client.send(PATH)
    with pytest.raises(UpstreamInterrupted):
        collections.deque(response.chunks, maxlen=0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32_000


def test_bomb_that_stays_small_is_let_through(provider: Provider, client: Client) -> None:
    provider.script(PATH, RawBytes(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n", gzip.compress(bytes(10_000_000))))
    assert client.whole(PATH) == bytes(10_000_000)


@given(
    data=st.lists(st.one_of(st.binary(max_size=400), st.integers(1, 200_000).map(lambda size: b"ab" * size)), max_size=4).map(b"".join),
    cuts=st.lists(st.integers(1, 2000), max_size=10),
    members=st.integers(1, 2),
)
def test_decoding_does_not_depend_on_the_cuts(data: bytes, cuts: list[int], members: int) -> None:
    packed = gzip.compress(data, mtime=0) * members
    edges = [0, *sorted({cut for cut in cuts if cut < len(packed)}), len(packed)]
    blocks = list(Decoded(Received(*(packed[start:end] for start, end in pairwise(edges))), GZIP))
    assert b"".join(blocks) == data * members
    assert all(0 < len(block) <= STEP_BYTES for block in blocks)


@given(cut=st.integers(1, 60), head=st.integers(0, 3))
def test_every_cut_of_a_bare_deflate_body_is_seen(cut: int, head: int) -> None:
    packed = raw_deflate(bytes(range(100)))
    with pytest.raises(UpstreamInterrupted):
        list(Decoded(Received(packed[:head], packed[head:-cut]), zlib.MAX_WBITS))


def test_given_up_in_the_middle_does_not_look_whole() -> None:
    received = Received(gzip.compress(bytes(1_000_000)))
    decoded = Decoded(received, GZIP)
    next(decoded)
    decoded.close()
    assert received.closed
    with pytest.raises(UpstreamInterrupted):
        next(decoded)
