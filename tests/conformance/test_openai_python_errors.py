"""OpenAI's Python SDK raises the class that fits each failure, tells what the gateway told, and repeats only what may be repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conformance.conftest import BODY_LIMIT
from tests.conformance.models import REFUSAL, SERVED, UNREACHABLE
from tests.fakes.answers import CloseAt, Delay, RateLimited
from tests.fakes.gateway import RunningGateway
from tests.fakes.openai_answers import TEXT
from tests.fakes.provider import Provider

CHAT = SERVED[0]
ASKED: Any = [{"role": "user", "content": "Hello"}]
Ask = Callable[[openai.OpenAI], Any]


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url, api_key=gateway.key, max_retries=0) as client:
        yield client


def chat(model: str, **members: Any) -> Ask:
    return lambda client: client.chat.completions.create(model=model, messages=ASKED, **members)


def raised(client: openai.OpenAI, ask: Ask) -> openai.APIStatusError:
    """The error, checked for what every error has."""
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client)
    assert caught.value.request_id
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]
    return caught.value


def requests_of(gateway: RunningGateway, path: str) -> int:
    """How many requests for a path the server has logged."""
    lines = [line for line in gateway.log_path.read_text().splitlines() if line.startswith("{")]
    return sum(entry.get("path") == path for entry in map(json.loads, lines))


# the client's own mistakes


def test_an_upstreams_refusal_arrives_in_its_own_words(client: openai.OpenAI) -> None:
    error = raised(client, chat("refuses-400"))
    assert type(error) is openai.BadRequestError
    assert error.response.content == REFUSAL
    assert (error.code, error.param) == ("unknown_tool", "tools")


@pytest.mark.parametrize(
    ("model", "kind"), [("refuses-404", openai.NotFoundError), ("refuses-409", openai.ConflictError), ("refuses-422", openai.UnprocessableEntityError)]
)
def test_an_upstreams_refusal_keeps_its_class(client: openai.OpenAI, model: str, kind: type[openai.APIStatusError]) -> None:
    error = raised(client, chat(model))
    assert type(error) is kind
    assert "status " + str(error.status_code) in error.message


@pytest.mark.parametrize(
    ("ask", "code", "param"),
    [
        (chat(""), "invalid_request", "model"),
        (chat(CHAT, store=True), "store_not_served", "store"),
        (lambda client: client.responses.create(model=CHAT, input="x", store=True), "store_not_served", "store"),
        (lambda client: client.responses.create(model=CHAT, input="x", background=True), "background_not_served", "background"),
        (
            lambda client: client.responses.create(model=CHAT, input="x", previous_response_id="resp_1"),
            "previous_response_id_not_served",
            "previous_response_id",
        ),
        (lambda client: client.responses.create(model=CHAT, input="x", conversation="conv_1"), "conversation_not_served", "conversation"),
        (lambda client: client.responses.create(model=CHAT, input="x", prompt={"id": "pmpt_1"}), "prompt_not_served", "prompt"),
        (lambda client: client.embeddings.create(model="echo", input="x"), "endpoint_not_served", "model"),
    ],
)
def test_what_the_gateway_refuses_is_a_bad_request_that_names_the_member(client: openai.OpenAI, provider: Provider, ask: Ask, code: str, param: str) -> None:
    error = raised(client, ask)
    assert type(error) is openai.BadRequestError
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert not provider.requests


@pytest.mark.parametrize("key", ["gw_user_unknown", "sk-not-even-ours", "gw_user_" + "0" * 38])
def test_a_wrong_key_is_an_authentication_error(client: openai.OpenAI, key: str) -> None:
    error = raised(client.with_options(api_key=key), chat(CHAT))
    assert type(error) is openai.AuthenticationError
    assert error.code == "invalid_api_key"


def test_a_model_that_the_key_may_not_use_is_denied(client: openai.OpenAI, restricted_key: str) -> None:
    error = raised(client.with_options(api_key=restricted_key), chat("house-chat"))
    assert type(error) is openai.PermissionDeniedError
    assert error.code == "model_not_allowed"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    error = raised(client, chat("gpt-nonesuch"))
    assert type(error) is openai.NotFoundError
    assert (error.code, error.param) == ("model_not_found", "model")
    assert "/v1/models" in error.message


@pytest.mark.parametrize("size", [BODY_LIMIT, 4 * BODY_LIMIT, 16 * BODY_LIMIT])
def test_a_body_over_the_limit_is_told_so(client: openai.OpenAI, size: int) -> None:
    error = raised(client, chat(CHAT, extra_body={"padding": "x" * size}))
    assert type(error) is openai.APIStatusError
    assert (error.status_code, error.code) == (413, "body_too_large")


# the upstream's failures


def test_a_rate_limit_tells_when_to_come_back(client: openai.OpenAI, provider: Provider) -> None:
    error = raised(client, chat("is-limited"))
    assert type(error) is openai.RateLimitError
    assert 1 <= int(error.response.headers["retry-after"]) <= 7
    again = raised(client, chat("is-limited", stream=True))
    assert type(again) is openai.RateLimitError
    assert len(provider.requests) == 1  # the second was refused without asking


def test_the_sdk_waits_as_long_as_the_rate_limit_says(client: openai.OpenAI, provider: Provider) -> None:
    provider.script("/v1/embeddings", RateLimited(2))
    started = time.monotonic()
    client.with_options(max_retries=1).embeddings.create(model=SERVED[2], input="x")
    assert time.monotonic() - started >= 1.9
    assert len(provider.requests) == 2


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("fails", 502, "upstream_error"),
        ("fails-in-its-first-event", 502, "upstream_error"),
        ("forbids", 502, "upstream_refused_credential"),
        (UNREACHABLE, 502, "upstream_unreachable"),
        ("is-cut-short", 502, "upstream_interrupted"),
        ("is-silent-too-long", 504, "upstream_timeout"),
    ],
)
def test_an_upstreams_failure_is_the_servers(client: openai.OpenAI, model: str, status: int, code: str) -> None:
    error = raised(client, chat(model))
    assert type(error) is openai.InternalServerError
    assert (error.status_code, error.code, error.type) == (status, code, "server_error")


@pytest.mark.parametrize("model", ["fails", "fails-in-its-first-event", UNREACHABLE, "is-silent-too-long"])
def test_a_failure_before_the_first_event_is_an_error_of_the_request(client: openai.OpenAI, model: str) -> None:
    assert type(raised(client, chat(model, stream=True))) is openai.InternalServerError


def test_a_refused_credential_is_the_operators_affair(client: openai.OpenAI) -> None:
    first, second = (raised(client, chat("knows-no-key")) for _ in range(2))
    assert (type(first), first.status_code, first.code) == (openai.InternalServerError, 502, "upstream_refused_credential")
    assert (type(second), second.status_code, second.code) == (openai.InternalServerError, 503, "no_deployment_available")
    assert "sk-" not in first.message + second.message


# repetition


@pytest.mark.parametrize(
    ("path", "ask"),
    [
        ("/v1/files", lambda client: client.files.list()),
        ("/v1/batches", lambda client: client.batches.list()),
        ("/v1/vector_stores", lambda client: client.vector_stores.create(name="x")),
        ("/v1/fine_tuning/jobs", lambda client: client.fine_tuning.jobs.list()),
        ("/v1/responses/resp_1", lambda client: client.responses.retrieve("resp_1")),
        ("/v1/chat/completions/chat_1", lambda client: client.chat.completions.retrieve("chat_1")),
        ("/v1/conversations", lambda client: client.conversations.create()),
    ],
)
def test_what_is_not_served_is_asked_for_once(gateway: RunningGateway, path: str, ask: Ask) -> None:
    """With the SDK's default retries, which repeat every other 5xx."""
    before = requests_of(gateway, path)
    with openai.OpenAI(base_url=gateway.url, api_key=gateway.key) as client:
        error = raised(client, ask)
    assert (error.status_code, error.code) == (501, "not_served")
    assert requests_of(gateway, path) == before + 1


def test_a_passing_failure_is_repeated(gateway: RunningGateway, provider: Provider) -> None:
    """The counterpart: what may come right the next time is tried again by default."""
    provider.script("/v1/moderations", RateLimited(0.1))
    with openai.OpenAI(base_url=gateway.url, api_key=gateway.key) as client:
        assert client.moderations.create(input="x").results
    assert len(provider.requests) == 2


def test_a_client_serves_on_after_errors(client: openai.OpenAI) -> None:
    for model in ("refuses-400", "gpt-nonesuch", "fails", CHAT):
        if model != CHAT:
            raised(client, chat(model))
    assert chat(CHAT)(client).choices[0].message.content == TEXT


# its own retries, with a key


def test_a_retry_with_a_key_waits_for_the_first_call_s_answer(gateway: RunningGateway, provider: Provider) -> None:
    provider.script("/v1/chat/completions", Delay(0.6))
    ask = chat(CHAT, extra_headers={"Idempotency-Key": "of two at once"})
    with openai.OpenAI(base_url=gateway.url, api_key=gateway.key, max_retries=2) as client, ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: ask(client), range(2))
    assert first == second
    assert len(provider.requests) == 1


def test_an_upload_with_a_key_is_the_same_when_it_is_sent_again(client: openai.OpenAI, provider: Provider, upload: Path) -> None:
    key = {"Idempotency-Key": "of an upload"}
    texts = [client.audio.transcriptions.create(model="whisper-1", file=upload, extra_headers=key).text for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(provider.requests) == 1


def test_an_answer_that_is_not_kept_is_not_asked_for_again(gateway: RunningGateway, provider: Provider) -> None:
    provider.script("/v1/chat/completions", CloseAt(900))
    with openai.OpenAI(base_url=gateway.url, api_key=gateway.key, max_retries=2) as client:
        ask = chat(CHAT, stream=True, extra_headers={"Idempotency-Key": "of a cut stream"})
        with pytest.raises(openai.APIError):
            list(ask(client))
        error = raised(client, ask)
    assert (type(error), error.code) == (openai.ConflictError, "idempotency_answer_not_kept")
    assert len(provider.requests) == 1
