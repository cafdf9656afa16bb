"""Row 18: the client goes away during a call that is not streamed; the same watch as row 17. Figure: the upstream is closed within 50 ms."""

from __future__ import annotations

import time

import pytest

from tests.fakes.answers import Answer, Default, Delay, Drip, Silent, Step
from tests.fakes.gateway import RawClient
from tests.faults.calls import CHAT, Calls, milliseconds, percentile
from tests.faults.conftest import Measured

ABORTS = 40
BOUND_S = 10 * 0.050


@pytest.mark.parametrize("step", [Silent(), Delay(30, Default()), Drip(1, 0.02, Default())], ids=["silent", "late", "dripping"])
def test_18_upstream_is_closed_at_once(calls: Calls, measured: Measured, request: pytest.FixtureRequest, step: Step) -> None:
    calls.provider.always("/v1/chat/completions", step)
    took = []
    for number in range(1, ABORTS + 1):
        with calls.gateway.client() as client:
            client.ask(CHAT, calls.body())
            calls.provider.wait_requests(number)
            left = time.monotonic()
            (RawClient.reset if number % 2 else _close)(client)
            took.append(calls.provider.wait_closed(number)[-1] - left)
    slow = percentile(took, 0.99)
    how = request.node.callspec.id
    measured(18, f"upstream closed {milliseconds(percentile(took, 0.5))} median, {milliseconds(slow)} p99 of {ABORTS} aborts, {how} (50 ms)")
    assert min(took) > 0
    assert slow < BOUND_S
    assert calls.gateway.wait_endings(calls.model, ABORTS) == {"client_gone": ABORTS}


def test_18_leaving_a_long_download_closes_the_upstream(calls: Calls) -> None:
    size, block = 50_000_000, b"a" * 100_000
    sound = Answer(200, (("content-type", "audio/mpeg"), ("content-length", str(size))), (block,) * (size // len(block)), pause_s=0.005)
    calls.provider.always("/v1/audio/speech", sound)
    with calls.gateway.client() as client:
        client.ask("/v1/audio/speech", {"model": calls.model, "input": "x", "voice": "v"})
        client.head()
        client.block()
    left = time.monotonic()
    assert calls.provider.wait_closed(1)[-1] - left < BOUND_S
    assert calls.gateway.wait_endings(calls.model, 1) == {"client_gone": 1}


def test_18_an_abort_is_not_retried_and_blames_nobody(calls: Calls) -> None:
    calls.gateway.deploy(calls.model, calls.provider.url, name=f"{calls.model}-second")
    calls.gateway.wait_catalog()
    calls.provider.always("/v1/chat/completions", Silent())
    for number in range(1, 6):
        with calls.gateway.client() as client:
            client.ask(CHAT, calls.body())
            calls.provider.wait_requests(number)
        calls.provider.wait_closed(number)
    calls.provider.always("/v1/chat/completions", Default())
    answer = calls.ask()
    assert answer.status == 200
    assert "excluded" not in answer.headers["x-gateway-receipt"]
    assert len(calls.provider.requests) == 6


def _close(client: RawClient) -> None:
    client.sock.close()
