"""Row 2: an upstream limits a token's rate. That token rests until the upstream's own time, another answers at once. Figure: 0 calls to a cooling token."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fakes.answers import RateLimited
from tests.fakes.gateway import RawClient, RunningGateway
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, crowd
from tests.faults.conftest import Measured
from tests.faults.pooled import BySecret

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
REST_S, CALLS = 2, 300


def status(client: RawClient, number: int) -> int:
    client.ask(CHAT, BODY)
    return client.answer().status


@pytest.mark.parametrize("workers", [1, 3])
def test_02_a_limited_token_is_left_alone_until_its_reset_and_used_again_after_it(tmp_path: Path, workers: int, measured: Measured) -> None:
    by_secret = BySecret()
    with Provider() as provider, RunningGateway(tmp_path / "gateway", {"WEB_CONCURRENCY": str(workers)}) as gateway:
        provider.always("/v1/chat/completions", by_secret)
        gateway.deploy_pool("m", provider.url, "sk-limited", "sk-second", "sk-third")
        gateway.wait_catalog()
        time.sleep(1.2 if workers > 1 else 0)
        by_secret.always("sk-limited", RateLimited(REST_S))
        while not by_secret.asked["sk-limited"]:
            assert gateway.post(CHAT, BODY).status == 200
        limited_at, begun = time.monotonic(), by_secret.asked["sk-limited"]
        statuses = crowd(gateway, CALLS, status, 4)
        early = by_secret.asked["sk-limited"] - begun if time.monotonic() - limited_at < REST_S else 0
        within_s = time.monotonic() - limited_at
        by_secret.always("sk-limited", None)
        while by_secret.asked["sk-limited"] == begun:
            assert time.monotonic() - limited_at < REST_S + 5, "it is never used again"
            assert gateway.post(CHAT, BODY).status == 200
        back_s = time.monotonic() - limited_at
        event = gateway.wait_transition("sk-limited", "active")
        cooling = gateway.transitions("sk-limited")[1]
    measured(
        2,
        f"{workers} worker(s): {early} calls to the resting token among {CALLS} within {within_s:.1f} s (0); used again {back_s - REST_S:+.2f} s of its reset",
    )
    assert statuses == [200] * CALLS
    assert early == 0
    assert back_s >= REST_S - 0.05
    assert (cooling.after, cooling.reason, cooling.evidence["status"], cooling.evidence["headers"]["retry-after"]) == (
        "cooling",
        "rate_limited",
        429,
        str(REST_S),
    )
    assert event.reason == "recovered"


def test_02_when_all_rest_the_client_is_told_the_smallest_wait(tmp_path: Path) -> None:
    by_secret = BySecret(sk_a=RateLimited(30), sk_b=RateLimited(9))
    with Provider() as provider, RunningGateway(tmp_path / "gateway") as gateway:
        provider.always("/v1/chat/completions", by_secret)
        gateway.deploy_pool("m", provider.url, "sk-a", "sk-b")
        gateway.wait_catalog()
        for _ in range(3):
            answer = gateway.post(CHAT, BODY)
            assert answer.status == 429
            assert answer.json()["error"]["code"] == "upstream_rate_limited"
            assert 7 <= int(answer.headers["retry-after"]) <= 9
    assert by_secret.asked == {"sk-a": 1, "sk-b": 1}


def test_02_a_restart_forgets_nothing(tmp_path: Path) -> None:
    by_secret = BySecret(sk_a=RateLimited(600))
    with Provider() as provider, RunningGateway(tmp_path / "gateway") as gateway:
        provider.always("/v1/chat/completions", by_secret)
        gateway.deploy_pool("m", provider.url, "sk-a", "sk-b")
        gateway.wait_catalog()
        while not by_secret.asked["sk-a"]:
            gateway.post(CHAT, BODY)
        gateway.wait_transition("sk-a", "cooling")
        gateway.stop()
        for path in (gateway.directory / "data" / "run").glob("state-*"):  # as after another boot of the host
            path.unlink()
        gateway.start()
        assert [gateway.post(CHAT, BODY).status for _ in range(10)] == [200] * 10
    assert by_secret.asked["sk-a"] == 1
