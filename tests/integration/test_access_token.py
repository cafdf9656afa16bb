"""A served gateway before a web-style upstream: what the client gets, and what the ledger knows of an answer that reports no usage."""

from __future__ import annotations

import json

import pytest

from tests.fakes.chatgpt_web import CutByTokens, Expired, Said
from tests.fakes.gateway import RunningGateway
from tests.fakes.provider import Provider

WORDS = tuple(f"word{number} " for number in range(40))


@pytest.fixture(scope="module", autouse=True)
def deployed(gateway: RunningGateway, provider: Provider) -> None:
    for model in ("whole", "streamed", "refused", "broken"):
        gateway.deploy(model, f"{provider.root}/{model}", backend="access_token", secret="eyJ-access-token")
    gateway.wait_catalog()


def ask(gateway: RunningGateway, model: str, **members: object) -> bytes:
    answer = gateway.post("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "hello there"}], **members})
    assert answer.status == 200, answer.body
    return answer.body


def test_whole_answer_is_an_openai_completion_and_its_usage_an_estimate(gateway: RunningGateway, provider: Provider) -> None:
    provider.script("/whole/conversation", CutByTokens("one, "), Said("two"))
    answer = json.loads(ask(gateway, "whole"))
    assert answer["choices"][0]["message"]["content"] == "one, two"
    assert (answer["choices"][0]["finish_reason"], answer["model"]) == ("stop", "whole")
    (entry,) = [entry for entry in gateway.wait_entries(1) if entry.model_asked == "whole"]
    assert (entry.usage_source, entry.ending) == ("estimated", "complete")
    assert entry.usage.input_tokens > 0
    assert entry.usage.output_tokens > 0


def test_streamed_answer_is_estimated_by_its_pieces_and_not_by_its_cumulative_texts(gateway: RunningGateway, provider: Provider) -> None:
    provider.always("/streamed/conversation", Said(*WORDS))
    body = ask(gateway, "streamed", stream=True)
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in body.splitlines() if line.startswith(b"data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "".join(WORDS)
    assert body.endswith(b"data: [DONE]\n\n")
    (entry,) = [entry for entry in gateway.wait_entries(1) if entry.model_asked == "streamed"]
    assert (entry.usage_source, entry.ending) == ("estimated", "complete")
    assert len(WORDS) <= entry.usage.output_tokens <= len(WORDS) + 2


def test_stream_that_breaks_ends_with_an_error_and_no_done(gateway: RunningGateway, provider: Provider) -> None:
    provider.always("/broken/conversation", Said("half of ", error="It broke for eyJ-access-token."))
    body = ask(gateway, "broken", stream=True)
    error = json.loads(body.strip().rpartition(b"data: ")[2])["error"]
    assert error["message"] == "The upstream broke its answer off: It broke for ***."
    assert b"[DONE]" not in body
    assert gateway.wait_endings("broken", 1) == {"upstream_truncated": 1}


def test_expired_token_is_the_gateways_own_matter(gateway: RunningGateway, provider: Provider) -> None:
    provider.always("/refused/conversation", Expired())
    answer = gateway.post("/v1/chat/completions", {"model": "refused", "messages": [{"role": "user", "content": "hi"}]})
    assert answer.status in (502, 503)
    assert b"expired" not in answer.body
    asked = len([received for received in provider.requests if received.path == "/refused/conversation"])
    gateway.post("/v1/chat/completions", {"model": "refused", "messages": [{"role": "user", "content": "hi"}]})
    assert len([received for received in provider.requests if received.path == "/refused/conversation"]) == asked == 1
