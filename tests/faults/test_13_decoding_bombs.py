"""Row 13: a small answer that unpacks to a large one. Figure: the worker grows by at most 16 MB; nothing but identity is asked for."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator

import pytest

from tests.fakes.answers import Answer, Default, Events, Gzip, Step
from tests.fakes.gateway import Broken, RunningGateway
from tests.fakes.processes import children, forget_peak, peak_bytes
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, Calls, outcome
from tests.faults.conftest import Measured

MB = 1 << 20
FIGURE = 16 * MB
PATH = "/v1/chat/completions"
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}\n\n'
PACKED = {"br": bytes.fromhex("0b028068656c6c6f03"), "zstd": bytes.fromhex("28b52ffd2005290000") + b"hello"}
"""The word hello."""


def _packed(first: bytes, block: bytes, blocks: int, bits: int) -> bytes:
    packer = zlib.compressobj(9, wbits=bits)
    return packer.compress(first) + b"".join(packer.compress(block) for _ in range(blocks)) + packer.flush()


def _answer(kind: str, encoding: str, body: bytes, status: int = 200) -> Step:
    return Answer(status, (("content-type", kind), ("content-encoding", encoding)), (body,))


STREAM, JSON = "text/event-stream", "application/json"
BOMBS: dict[str, tuple[bool, Step]] = {
    "gzip, JSON": (False, _answer(JSON, "gzip", _packed(b'{"a": "', b"x" * MB, 400, 31))),
    "deflate, JSON": (False, _answer(JSON, "deflate", _packed(b'{"a": "', b"x" * MB, 400, 15))),
    "bare deflate, JSON": (False, _answer(JSON, "deflate", _packed(b'{"a": "', b"x" * MB, 400, -15))),
    "gzip, one event": (True, _answer(STREAM, "gzip", _packed(EVENT + b"data: ", b"x" * MB, 400, 31))),
    "gzip, many events": (True, _answer(STREAM, "gzip", _packed(EVENT, EVENT * (MB // len(EVENT)), 400, 31))),
    "gzip, comments": (True, _answer(STREAM, "gzip", _packed(b"", b": x\n\n" * (MB // 5), 400, 31))),
    "gzip, an error": (False, _answer(JSON, "gzip", _packed(b'{"error": "', b"x" * MB, 400, 31), 503)),
    "gzip of gzip, JSON": (False, _answer(JSON, "gzip", gzip.compress(_packed(b"", b"x" * MB, 400, 31)))),
    "gzip in many members": (False, _answer(JSON, "gzip", _packed(b"", b"x" * MB, 1, 31) * 400)),
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    """A worker whose memory no other row has stretched."""
    with RunningGateway(tmp_path_factory.mktemp("gateway")) as gateway, Provider() as provider:
        gateway.deploy("m", provider.url)
        gateway.wait_catalog()
        calls = Calls(gateway, provider, "m")
        provider.script(PATH, *[Gzip()] * 10)
        calls.crowd(20, lambda client, number: outcome(client, CHAT, calls.body(stream=number % 2 == 0)), 10)
        yield calls


@pytest.mark.parametrize("name", BOMBS)
def test_13_bomb_does_not_stretch_the_worker(fresh: Calls, measured: Measured, name: str) -> None:
    stream, step = BOMBS[name]
    fresh.provider.script(PATH, step)
    assert fresh.gateway.process is not None
    (worker,) = children(fresh.gateway.process.pid)
    before = forget_peak(worker)
    begun, received, told = time.monotonic(), 0, ""
    with fresh.gateway.client() as client:
        client.read_bytes, client.keeps_body = MB, False
        client.ask(CHAT, fresh.body(stream=stream))
        last = b""
        try:
            told = str(client.head().status)
            while block := client.block():
                received, last = received + len(block), (last + block)[-1000:]
        except Broken:
            told = "broken off"
    grown = peak_bytes(worker) - before
    measured(13, f"{name}: {grown / MB:+.1f} MB, {received / MB:.1f} MB passed on in {time.monotonic() - begun:.2f} s (16 MB)")
    assert told == "broken off" or b'"error"' in last or name == "gzip of gzip, JSON"
    assert received < 2 * FIGURE
    assert grown < 10 * FIGURE


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "gzip, gzip", "compress", "x"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_13_encoding_that_was_not_asked_for_is_a_502(fresh: Calls, encoding: str, stream: bool) -> None:
    fresh.provider.script(PATH, _answer(STREAM if stream else JSON, encoding, PACKED.get(encoding, b"hello")))
    seen = fresh.outcome(stream=stream)
    assert (seen.status, (seen.error() or {}).get("code")) == (502, "upstream_protocol_error")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_13_identity_is_asked_for_whatever_the_client_takes(fresh: Calls, stream: bool) -> None:
    with fresh.gateway.client() as client:
        client.ask(CHAT, fresh.body(stream=stream), headers={"accept-encoding": "gzip, br, zstd"})
        head = client.head()
        client.rest()
    assert "content-encoding" not in head.headers
    assert [value for name, value in fresh.provider.requests[-1].fields if name == "accept-encoding"] == ["identity"]


def test_13_honest_compression_is_taken_off(fresh: Calls) -> None:
    plain, packed = Default(), Gzip()
    fresh.provider.script(PATH, plain, packed)
    whole = [json.loads(fresh.outcome().body)["choices"] for _ in range(2)]
    events = Events(json.loads(EVENT[6:]), json.loads(EVENT[6:]))
    fresh.provider.script(PATH, events, Gzip(events))
    streams = [fresh.outcome(stream=True).body for _ in range(2)]
    assert whole[0] == whole[1]
    assert streams[0] == streams[1] == b"".join(events.blocks)


def test_13_bomb_in_a_stream_is_an_explicit_error(fresh: Calls) -> None:
    fresh.provider.script(PATH, BOMBS["gzip, many events"][1])
    seen = fresh.outcome(stream=True)
    assert seen.clean
    assert (seen.error() or {})["code"] == "upstream_interrupted"
