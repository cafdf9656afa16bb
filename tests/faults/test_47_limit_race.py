"""Row 47: calls race for a limit of requests over the workers of a server: as many begin as it says, and the refused consume nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fakes.answers import Json, Slow
from tests.fakes.gateway import RawClient, RunningGateway
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, crowd
from tests.faults.conftest import Measured

CALLS, LIMIT = 6000, 300
PATH = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}


@pytest.mark.parametrize("place", ["sqlite-1", "postgres-3"])
def test_exactly_as_many_calls_begin_as_the_limit_says(request: pytest.FixtureRequest, tmp_path: Path, place: str, measured: Measured) -> None:
    engine, _, workers = place.partition("-")
    calls = CALLS if engine == "postgres" else 1500
    url = request.getfixturevalue("postgres").emptied("race") if engine == "postgres" else None
    with Provider() as provider, RunningGateway(tmp_path, {"WEB_CONCURRENCY": workers}, url) as gateway:
        gateway.deploy("m", provider.url)
        gateway.limit(rpm=LIMIT)
        time.sleep(1.2)  # every worker follows within a second
        began = time.monotonic()

        def call(client: RawClient, number: int) -> tuple[int, float, str]:
            client.ask(CHAT, BODY)
            answer = client.answer()
            return answer.status, time.monotonic() - began, answer.headers.get("x-ratelimit-limit-requests", f"{answer.status} {answer.body!r}")

        outcomes = crowd(gateway, calls, call, 60)
        seconds = time.monotonic() - began
    accepted = sum(status == 200 for status, _, _ in outcomes)
    refilled = int(seconds * LIMIT / 60)
    measured(47, f"{place}: {accepted} of {calls} began in {seconds:.1f} s, with a limit of {LIMIT} a minute that refills by {refilled} meanwhile")
    assert LIMIT <= accepted <= LIMIT + refilled + 1
    assert {status for status, _, _ in outcomes} == {200, 429}
    assert {limit for _, _, limit in outcomes} == {str(LIMIT)}
    assert len(provider.requests) == accepted


def test_who_was_refused_has_lost_nothing(tmp_path: Path) -> None:
    """A admitted, B refused, C admitted: the sequence at which peers count the refused call."""
    with Provider() as provider, RunningGateway(tmp_path) as gateway:
        provider.always(PATH, Slow(0.4))
        gateway.deploy("m", provider.url)
        gateway.limit(concurrency=1, rpm=2)
        gateway.wait_catalog()
        with gateway.client() as a:
            a.ask(CHAT, BODY)
            while not provider.requests:
                time.sleep(0.01)
            refused = gateway.post(CHAT, BODY)
            assert a.answer().status == 200
        c = gateway.post(CHAT, BODY)
        last = gateway.post(CHAT, BODY)
    assert (refused.status, refused.headers["retry-after"], refused.json()["error"]["code"]) == (429, "1", "rate_limit_exceeded")
    assert refused.headers["x-ratelimit-remaining-requests"] == "1"
    assert (c.status, c.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    assert (last.status, int(last.headers["retry-after"]) > 20, "2 requests a minute" in last.json()["error"]["message"]) == (429, True, True)


def test_tokens_that_were_not_used_come_back(tmp_path: Path) -> None:
    """Row 47, for tokens: the estimate is taken when a call begins and put right by the provider's usage."""
    with Provider() as provider, RunningGateway(tmp_path) as gateway:
        usage = {"prompt_tokens": 10, "completion_tokens": 40, "total_tokens": 50}
        provider.always(PATH, Json({"id": "1", "choices": [], "usage": usage}))
        gateway.deploy("m", provider.url)
        gateway.limit(tpm=1000)
        gateway.wait_catalog()
        remaining = [int(gateway.post(CHAT, BODY | {"max_tokens": 600}).headers["x-ratelimit-remaining-tokens"]) for _ in range(4)]
    assert 100 <= remaining[0] - remaining[3] <= 150
