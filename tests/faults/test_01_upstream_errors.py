"""Row 1: an upstream fails with 500, 502 or 503 before its first byte. Figures: >= 99.9 % success, <= 1.2 upstream calls for each call."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fakes.answers import CloseAt, Default, Status
from tests.fakes.gateway import RawClient, RunningGateway
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, Calls, Outcome, crowd, outcome
from tests.faults.conftest import Measured
from tests.faults.pooled import BySecret

CALLS, POOL_CALLS = 2_000, 10_000
FIGURE, UPSTREAM_CALLS = 0.999, 1.2


def test_01_one_of_three_upstreams_failing(calls: Calls, measured: Measured) -> None:
    steps = (Status(500), Status(502), Status(503), CloseAt(0))
    with Provider() as failing, Provider() as second:
        failing.script("/v1/chat/completions", *(steps[number % 4] for number in range(CALLS)))
        for name, provider in (("failing", failing), ("second", second)):
            calls.gateway.deploy(calls.model, provider.url, name=f"{calls.model}-{name}")
        calls.gateway.wait_catalog()

        def call(client: RawClient, number: int) -> Outcome:
            return outcome(client, CHAT, calls.body(stream=number % 2 == 0))

        outcomes = calls.crowd(CALLS, call, clients=8)
        asked = len(failing.requests)
        made = asked + len(second.requests) + len(calls.provider.requests)
    good = sum(one.status == 200 and one.clean and one.error() is None for one in outcomes)
    measured(
        1, f"{good / CALLS:.2%} of {CALLS} calls answered ({FIGURE:.1%}); {made / CALLS:.3f} upstream calls each ({UPSTREAM_CALLS}), {asked} of them failed"
    )
    assert asked >= 3
    assert good >= FIGURE * CALLS
    assert made <= UPSTREAM_CALLS * CALLS
    assert calls.gateway.wait_endings(calls.model, CALLS) == {"complete": CALLS}


def test_01_every_upstream_failing_is_an_explicit_502(calls: Calls) -> None:
    with Provider() as second:
        calls.gateway.deploy(calls.model, second.url, name=f"{calls.model}-second")
        calls.gateway.wait_catalog()
        for provider in (calls.provider, second):
            provider.always("/v1/chat/completions", Status(503))
        for stream in (False, True):
            answer = calls.ask(stream=stream)
            assert answer.status == 502
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["error"]["code"] == "upstream_error"
        assert len(calls.provider.requests) == len(second.requests) == 2


def test_01_an_upstream_that_recovers_is_used_again(calls: Calls) -> None:
    calls.provider.script("/v1/chat/completions", Status(500), Status(500), Status(500), Status(500), Default())
    assert [calls.ask().status for _ in range(5)] == [502, 502, 502, 502, 200]


@pytest.mark.parametrize("workers", [1, 3])
def test_01_one_of_a_pool_of_three_credentials_failing(tmp_path: Path, workers: int, measured: Measured) -> None:
    count = POOL_CALLS // workers

    by_secret = BySecret(sk_failing=Status(500))
    with Provider() as provider, RunningGateway(tmp_path / "gateway", {"WEB_CONCURRENCY": str(workers)}) as gateway:
        provider.always("/v1/chat/completions", by_secret)
        gateway.deploy_pool("m", provider.url, "sk-failing", "sk-second", "sk-third")
        gateway.wait_catalog()
        time.sleep(1.2 if workers > 1 else 0)

        def call(client: RawClient, number: int) -> Outcome:
            return outcome(client, CHAT, {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": number % 2 == 0})

        outcomes = crowd(gateway, count, call, 8)
    made, failed = by_secret.asked.total(), by_secret.asked["sk-failing"]
    shares = [by_secret.asked[name] / made for name in ("sk-second", "sk-third")]
    good = sum(one.status == 200 and one.clean and one.error() is None for one in outcomes)
    measured(
        1,
        f"pool of 3, {workers} worker(s): {good / count:.2%} of {count} calls answered ({FIGURE:.1%}); {made / count:.4f} upstream calls each "
        f"({UPSTREAM_CALLS}), {failed} of them failed; the fit ones had {shares[0]:.0%} and {shares[1]:.0%}",
    )
    assert failed >= 3
    assert good >= FIGURE * count
    assert made <= UPSTREAM_CALLS * count
    assert min(shares) > 0.4
