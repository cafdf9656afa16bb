"""Row 16: a client that does not read what it asked for. Figures: at most 0.5 MB of the worker's memory for each such stream, and its end within
1 s of the time that a client has."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.fakes.answers import Events
from tests.fakes.gateway import RawClient, RunningGateway
from tests.fakes.processes import children, resident_bytes
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, Calls
from tests.faults.conftest import Measured

SEND_S = 3.0
CLIENTS = 24
EVENTS = 1_200
CHUNK = {"id": "c", "choices": [{"index": 0, "delta": {"content": "word " * 4_000}, "finish_reason": None}]}
"""24 MB each: more than the buffers of every socket on the way take."""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), {"GATEWAY_SEND_S": str(SEND_S)}) as gateway, Provider() as provider:
        gateway.deploy("m", provider.url)
        gateway.wait_catalog()
        yield Calls(gateway, provider, "m")


def test_16_client_that_reads_nothing_costs_little_and_is_given_up_in_time(slow: Calls, measured: Measured) -> None:
    assert slow.ask().status == 200
    assert slow.gateway.process is not None
    (worker,) = children(slow.gateway.process.pid)
    before = resident_bytes(worker)
    slow.provider.always("/v1/chat/completions", Events(*[CHUNK] * EVENTS))
    clients = [_stalled(slow) for _ in range(CLIENTS)]
    asked = time.monotonic()
    most = before
    while slow.gateway.endings("m").get("client_gone", 0) < CLIENTS:
        most = max(most, resident_bytes(worker))
        assert time.monotonic() < asked + SEND_S + 10
        time.sleep(0.05)
    took = time.monotonic() - asked
    each = (most - before) / CLIENTS
    measured(16, f"{each / 1e6:.2f} MB of memory for each of {CLIENTS} clients that do not read (0.5 MB)")
    measured(16, f"given up after {took:.1f} s where a client has {SEND_S:g} s (+-1 s)")
    assert each < 5e6
    assert SEND_S - 1 < took < SEND_S + 10
    slow.provider.wait_closed(CLIENTS)
    for client in clients:
        client.sock.close()


def test_16_client_that_reads_slowly_gets_all_of_it(slow: Calls) -> None:
    slow.provider.always("/v1/chat/completions", Events(*[CHUNK] * 100))
    with _stalled(slow) as client:
        end = time.monotonic() + SEND_S + 1
        while time.monotonic() < end:
            client.block()
            time.sleep(0.1)
        assert client.until(b"data: [DONE]").count(b'"finish_reason"') == 100


def _stalled(calls: Calls) -> RawClient:
    """Asked for a stream, and read its head alone."""
    client = calls.gateway.client()
    client.ask(CHAT, calls.body(stream=True))
    assert client.head().status == 200
    return client
