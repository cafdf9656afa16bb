"""Row 12: an upstream's answer has no end, or a head that has none. Figure: the worker grows by at most twice what it may hold of such an answer."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.fakes.answers import Endless, HeaderBomb, RawBytes, Status, Step
from tests.fakes.gateway import Broken, RawClient, RunningGateway
from tests.fakes.processes import children, forget_peak, peak_bytes
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, Calls, outcome
from tests.faults.conftest import Measured

TOTAL_S = 1.2
KB, MB = 1 << 10, 1 << 20
PATH = "/v1/chat/completions"
OK = b"HTTP/1.1 200 OK\r\n"
STREAM = OK + b"content-type: text/event-stream\r\n\r\n"
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}\n\n'
AT_ONCE = 10
HEADS: dict[str, Step] = {
    "one huge field": HeaderBomb(20 * MB),
    "a field without end": Endless(OK + b"x: ", b"a" * 64 * KB),
    "many small fields": HeaderBomb(20 * MB, 200_000),
    "fields without end": Endless(OK, b"x-a: b\r\n" * 8 * KB),
    "a reason without end": Endless(b"HTTP/1.1 200 ", b"a" * 64 * KB),
    "interim answers without end": Endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * KB),
    "interim answers with large fields": Endless(b"", b"HTTP/1.1 103 Early\r\nlink: " + b"a" * 60 * KB + b"\r\n\r\n"),
    "a chunk's extension without end": Endless(OK + b"transfer-encoding: chunked\r\n\r\n1;", b"a" * 64 * KB),
    "trailers without end": Endless(OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"x-a: b\r\n" * 8 * KB),
}
HEAD_CAP = 64 * KB
BODIES: dict[str, tuple[int, Step, bool]] = {
    "JSON without end": (4 * MB, Endless(OK + b"content-type: application/json\r\n\r\n", b" " * MB, 0.02), False),
    "JSON of 1 TB": (4 * MB, Endless(OK + b"content-type: application/json\r\ncontent-length: 1000000000000\r\n\r\n", b" " * MB, 0.02), False),
    "an error without end": (MB // 4, Endless(b"HTTP/1.1 503 No\r\n\r\n", b"x" * MB, 0.02), False),
    "an event without end": (1 * MB, Endless(STREAM + EVENT + b"data: ", b"x" * MB, 0.02), True),
    "a first event without end": (1 * MB, Endless(STREAM + b"data: ", b"x" * MB, 0.02), True),
    "comments without end": (64 * KB, Endless(STREAM, b": x\n\n" * 8 * KB, 0.02), True),
    "events without end": (64 * KB, Endless(STREAM, EVENT * KB, 0.02), True),
    "a last event without end": (32 * MB, Endless(STREAM + EVENT + b'data: {"type": "response.completed [DONE]', b"x" * MB), True),
}
"""What the worker may hold of it, the answer, and whether the call asks for a stream."""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    """A worker whose memory no other row has stretched."""
    with RunningGateway(tmp_path_factory.mktemp("gateway")) as gateway, Provider() as provider:
        gateway.deploy("m", provider.url, total_s=TOTAL_S)
        gateway.wait_catalog()
        calls = Calls(gateway, provider, "m")
        provider.script(PATH, *[Status(503)] * 4)
        calls.crowd(40, lambda client, number: outcome(client, CHAT, calls.body(stream=number % 2 == 0)), AT_ONCE)
        yield calls


def _worker(calls: Calls) -> int:
    assert calls.gateway.process is not None
    (pid,) = children(calls.gateway.process.pid)
    return pid


@pytest.mark.parametrize("name", HEADS)
def test_12_head_without_end_is_cut_off(fresh: Calls, measured: Measured, name: str) -> None:
    fresh.provider.always(PATH, HEADS[name])
    before = forget_peak(_worker(fresh))
    begun = time.monotonic()
    outcomes = fresh.crowd(AT_ONCE, lambda client, _: outcome(client, CHAT, fresh.body()), AT_ONCE)
    took, grown = time.monotonic() - begun, peak_bytes(_worker(fresh)) - before
    measured(12, f"{name}: 502 after {took:.2f} s, {grown / KB / AT_ONCE:.0f} KB for each of {AT_ONCE} at once ({2 * HEAD_CAP // KB} KB)")
    assert {(one.status, (one.error() or {}).get("code")) for one in outcomes} == {(502, "upstream_protocol_error")} or name.startswith(("a chunk", "trail"))
    assert all(one.status == 502 and one.error() for one in outcomes)
    assert grown < 10 * 2 * HEAD_CAP * AT_ONCE
    fresh.provider.wait_open(0)


@pytest.mark.parametrize("name", BODIES)
def test_12_body_without_end_is_not_kept(fresh: Calls, measured: Measured, name: str) -> None:
    cap, step, stream = BODIES[name]
    fresh.provider.always(PATH, step)
    before = forget_peak(_worker(fresh))
    begun = time.monotonic()
    with fresh.gateway.client() as client:
        received, end = _swallowed(client, fresh.body(stream=stream))
    took, grown = time.monotonic() - begun, peak_bytes(_worker(fresh)) - before
    measured(12, f"{name}: {grown / MB:+.1f} MB while {received / MB:.0f} MB pass in {took:.1f} s ({2 * cap / MB:.3g} MB)")
    assert took < TOTAL_S + 5
    assert end in (b"broken", b"error")
    assert grown < 10 * 2 * cap
    fresh.provider.wait_open(0)


def test_12_long_last_event_arrives_and_is_booked(fresh: Calls, measured: Measured) -> None:
    """It waits for the commit, and its usage is read, so that it costs more than once its size."""
    last = b'event: response.completed\ndata: {"type": "response.completed", "x": "%b", "response": {"usage": {"input_tokens": 5, "output_tokens": 6}}}\n\n'
    last %= b"x" * (30 * MB)
    fresh.provider.always(PATH.replace("chat/completions", "responses"), RawBytes(STREAM + EVENT + last))
    before = forget_peak(_worker(fresh))
    with fresh.gateway.client() as client:
        client.read_bytes = MB
        client.ask("/v1/responses", {"model": "m", "input": "x", "stream": True})
        head = client.head()
        assert client.rest() == EVENT + last
    grown = peak_bytes(_worker(fresh)) - before
    measured(12, f"a last event of 30 MB, which is parsed: {grown / MB:+.1f} MB")
    entry = fresh.gateway.entry(head.headers["x-request-id"])
    assert entry is not None
    assert (entry.ending, entry.usage.output_text) == ("complete", 6)


def _swallowed(client: RawClient, document: object) -> tuple[int, bytes]:
    """How many bytes of an answer came, and whether it was broken off or ended with an error that says so."""
    client.read_bytes, client.keeps_body = MB, False
    client.ask(CHAT, document)
    received, last = 0, b""
    try:
        client.head()
        while block := client.block():
            received, last = received + len(block), (last + block)[-1000:]
    except Broken:
        return received, b"broken"
    return received, b"error" if b'"error"' in last else last


def test_12_worker_is_as_it_was(fresh: Calls) -> None:
    fresh.provider.always(PATH, RawBytes(OK + b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}", end=None))
    assert fresh.ask().body == b"{}"
