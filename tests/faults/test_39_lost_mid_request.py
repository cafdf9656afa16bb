"""Row 39, a pool's half: the one that was called is lost in the midst of a request. Before the first byte another answers; after it, an explicit error."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.answers import CloseAt, Events, ResetAt
from tests.fakes.gateway import RunningGateway
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, outcome
from tests.faults.conftest import Measured
from tests.faults.pooled import BySecret

STREAM = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
CHUNK = {"id": "c", "choices": [{"index": 0, "delta": {"content": "word "}}]}


def test_39_before_the_first_byte_another_credential_answers_and_after_it_the_client_is_told(tmp_path: Path, measured: Measured) -> None:
    by_secret, cut = BySecret(), Events(*[CHUNK] * 20, done=False)
    with Provider() as provider, RunningGateway(tmp_path / "gateway") as gateway:
        provider.always("/v1/chat/completions", by_secret)
        gateway.deploy_pool("m", provider.url, "sk-a", "sk-b")
        gateway.wait_catalog()
        taken_over, told = 0, 0
        for number in range(20):
            for secret in ("sk-a", "sk-b"):
                by_secret._next[secret].clear()
            by_secret.then("sk-a" if number % 2 else "sk-b", CloseAt(0) if number % 4 < 2 else ResetAt(0))
            with gateway.client() as client:
                answer = outcome(client, CHAT, STREAM)
            taken_over += answer.status == 200 and answer.done
        for _ in range(10):
            for secret in ("sk-a", "sk-b"):
                by_secret._next[secret].clear()
                by_secret.then(secret, ResetAt(900, cut))
            with gateway.client() as client:
                answer = outcome(client, CHAT, STREAM)
            told += answer.status == 200 and not answer.done and answer.error() is not None and b"word" in answer.body
    measured(39, f"pool: {taken_over} of 20 lost before the first byte were answered by another; {told} of 10 lost after it ended with an explicit error")
    assert (taken_over, told) == (20, 10)
