"""Row 3: an upstream refuses a token: 401 for an invalid one, 402, 403. Figure: 1 failed attempt per token, the client sees 200.

And what no client can do: take a credential out of use for others, by its headers, its models or its prompts.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway.operations import conditions
from gateway.store.database import Database
from tests.fakes.answers import Answer, Status, Step
from tests.fakes.gateway import RunningGateway
from tests.fakes.postgres import Postgres
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT
from tests.faults.conftest import Measured
from tests.faults.pooled import BySecret

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
INVALID = Status(401, {"error": {"message": "Incorrect API key provided: sk-bad****", "code": "invalid_api_key"}})
SPENT = Status(429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}})


@pytest.mark.parametrize(
    ("refusal", "state", "reason"),
    [
        (INVALID, "quarantined", "invalid"),
        (Status(402), "cooling", "quota_spent"),
        (SPENT, "cooling", "quota_spent"),
        (Status(403), "cooling", "forbidden"),
    ],
    ids=["401", "402", "quota", "403"],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_03_a_refused_token_costs_one_attempt_and_no_client(tmp_path: Path, refusal: Answer, state: str, reason: str, workers: int, measured: Measured) -> None:
    by_secret = BySecret(sk_bad=refusal)
    with Provider() as provider, RunningGateway(tmp_path / "gateway", {"WEB_CONCURRENCY": str(workers)}) as gateway:
        provider.always("/v1/chat/completions", by_secret)
        gateway.deploy_pool("m", provider.url, "sk-bad", "sk-good")
        gateway.wait_catalog()
        time.sleep(1.2 if workers > 1 else 0)
        answers = [gateway.post(CHAT, BODY) for _ in range(60)]
        event = gateway.wait_transition("sk-bad", state)
    measured(3, f"{reason}, {workers} worker(s): {by_secret.asked['sk-bad']} failed attempt (1) in {len(answers)} calls, all answered")
    assert {answer.status for answer in answers} == {200}
    assert by_secret.asked["sk-bad"] == 1
    assert event.reason == reason
    assert "sk-bad" not in str(event.evidence)


@pytest.mark.parametrize("refusal", [Status(400), Status(404), Status(422), Status(401, {"error": {"message": "no", "code": "mystery"}})])
def test_03_a_clients_own_mistakes_take_nothing_from_others(tmp_path: Path, refusal: Step) -> None:
    by_secret = BySecret()
    with Provider() as provider, RunningGateway(tmp_path / "gateway") as gateway:
        provider.always("/v1/chat/completions", by_secret)
        gateway.deploy_pool("*", provider.url, "sk-a", "sk-b")
        gateway.wait_catalog()
        for number in range(20):
            by_secret.then("sk-a", refusal)
            by_secret.then("sk-b", refusal)
            gateway.post(CHAT, {**BODY, "model": f"invented-{number}"}, headers={"accept": "x" * 100, "openai-beta": "no-such-thing"})
        by_secret.asked.clear()
        by_secret._next.clear()
        assert [gateway.post(CHAT, BODY).status for _ in range(10)] == [200] * 10
        assert gateway.transitions("sk-a") == gateway.transitions("sk-b") == []
    assert by_secret.asked == {"sk-a": 5, "sk-b": 5}


def test_03_what_one_model_is_refused_stays_with_that_model(tmp_path: Path) -> None:
    by_secret = BySecret(sk_a=Status(403), sk_b=Status(403))
    with Provider() as provider, RunningGateway(tmp_path / "gateway") as gateway:
        provider.always("/v1/chat/completions", by_secret)
        gateway.deploy_pool("*", provider.url, "sk-a", "sk-b")
        gateway.wait_catalog()
        refused = {**BODY, "model": "forbidden-one"}
        assert [gateway.post(CHAT, refused).status for _ in range(3)] == [502, 502, 503]  # the last fit one is not rested by a call's second attempt
        for secret in ("sk-a", "sk-b"):
            by_secret.always(secret, None)
        assert gateway.post(CHAT, refused).status == 503
        assert gateway.post(CHAT, BODY).status == 200
        assert {each.model for each in gateway.transitions("sk-a")} == {"forbidden-one"}


class OtherHost(RunningGateway):
    """Another host of the same deployment: a run directory of its own, the same database and secrets."""

    def __init__(self, directory: Path, first: RunningGateway) -> None:
        super().__init__(directory, {"GATEWAY_SECRETS_DIR": str(first.directory / "data-secrets")}, first.database_url)
        self._first = first

    def prepare(self) -> None:
        self.database, self.secrets, self.key = Database(self._first.database_url or ""), self._first.secrets, self._first.key


def leaves_alone_s(gateway: RunningGateway, since: float) -> float:
    """Seconds until a call that would have gone there says that it did not."""
    while 'excluded="m:quarantined"' not in gateway.post(CHAT, BODY).headers["x-gateway-receipt"]:
        assert time.monotonic() - since < 20
        time.sleep(0.02)
    return time.monotonic() - since


def test_03_what_an_operator_quarantines_every_host_leaves_alone(tmp_path: Path, postgres: Postgres, measured: Measured) -> None:
    with Provider() as provider, RunningGateway(tmp_path / "first", database_url=postgres.emptied("hosts")) as first:
        first.deploy_pool("m", provider.url, "sk-a", "sk-b")
        first.wait_catalog()
        with OtherHost(tmp_path / "second", first) as second:
            first.database.bind()
            conditions.quarantine(first.database, "sk-a", "leaked", time.time_ns() // 1_000_000)
            begun = time.monotonic()
            seconds = [leaves_alone_s(gateway, begun) for gateway in (second, first)]
            first.database.bind()
            conditions.clear(first.database, "sk-a", time.time_ns() // 1_000_000)
            while 'excluded="' in second.post(CHAT, BODY).headers["x-gateway-receipt"]:
                time.sleep(0.02)
    measured(3, f"an operator's quarantine, two hosts over PostgreSQL: {seconds[0]:.2f} and {seconds[1]:.2f} s until neither asks it (2)")
    assert max(seconds) < 6


def test_03_an_operator_clears_a_quarantine_and_running_workers_follow(tmp_path: Path) -> None:
    by_secret = BySecret(sk_a=INVALID)
    with Provider() as provider, RunningGateway(tmp_path / "gateway") as gateway:
        provider.always("/v1/chat/completions", by_secret)
        gateway.deploy_pool("m", provider.url, "sk-a")
        gateway.wait_catalog()
        assert [gateway.post(CHAT, BODY).status for _ in range(3)] == [502, 503, 503]
        gateway.wait_transition("sk-a", "quarantined")
        by_secret.always("sk-a", None)
        gateway.database.bind()
        conditions.clear(gateway.database, "sk-a", time.time_ns() // 1_000_000)
        until = time.monotonic() + 5
        while gateway.post(CHAT, BODY).status != 200:
            assert time.monotonic() < until, "the workers do not follow"
            time.sleep(0.05)
