"""How a call ends, seen from both sides: by OpenAI's Python SDK, and in the ledger and the receipt that its key's owner can read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from gateway.store.ledger import Entry
from tests.conformance.models import SERVED
from tests.fakes.gateway import RunningGateway
from tests.fakes.openai_answers import AUDIO, CHAT_USAGE, TEXT
from tests.fakes.provider import Provider

CHAT, INSTRUCT, EMBEDDING, MODERATION, IMAGE, SPEECH, LISTENING = SERVED
ASKED: Any = [{"role": "user", "content": "Hello"}]
BOOKED_NANO_USD = 53
"""21 tokens at 2,500 pico-dollars, rounded up."""
Ask = Callable[[openai.OpenAI], Any]


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url, api_key=gateway.key, max_retries=0) as client:
        yield client


def chat(model: str, **members: Any) -> Ask:
    return lambda client: client.chat.completions.create(model=model, messages=ASKED, **members)


def response(model: str, **members: Any) -> Ask:
    return lambda client: client.responses.create(model=model, input="Hello", **members)


def receipt(gateway: RunningGateway, request_id: str | None) -> Any:
    answer = gateway.get(f"/v1/requests/{request_id}")
    assert answer.status == 200
    return answer.json()


def entry_of(gateway: RunningGateway, model: str) -> Entry:
    """The newest entry of a model, waited for: a client that left does not see the commit."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if found := [entry for entry in gateway.entries() if entry.model_asked == model]:
            return found[-1]
        time.sleep(0.02)
    raise AssertionError(f"no entry of {model}")


# a client that leaves


@pytest.mark.parametrize(("model", "make"), [("stalls", chat), ("stalls-too", response)])
def test_closing_a_stream_ends_the_upstreams_work(
    client: openai.OpenAI, gateway: RunningGateway, provider: Provider, model: str, make: Callable[..., Ask]
) -> None:
    stream = make(model, stream=True)(client)
    next(stream)
    stream.close()
    provider.wait_closed()  # the provider itself would hold the connection for ever
    entry = entry_of(gateway, model)
    assert (entry.exchange, entry.ending) == (stream.response.headers["x-request-id"], "client_gone")


def test_giving_up_on_a_silent_upstream_ends_its_work(client: openai.OpenAI, gateway: RunningGateway, provider: Provider) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="is-silent", messages=ASKED)
    provider.wait_closed()
    assert entry_of(gateway, "is-silent").ending == "client_gone"


# an upstream that leaves


@pytest.mark.parametrize("ask", [chat("breaks", stream=True), chat("stops-talking", stream=True), response("breaks", stream=True)])
def test_a_cut_stream_is_an_error_and_no_silent_end(client: openai.OpenAI, gateway: RunningGateway, ask: Ask) -> None:
    stream = ask(client)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert type(caught.value) is openai.APIError
    assert caught.value.code == "upstream_interrupted"
    request_id = stream.response.headers["x-request-id"]
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["exchange"] == request_id
    assert receipt(gateway, request_id)["ending"] == "upstream_truncated"


def test_what_came_before_a_cut_is_delivered(client: openai.OpenAI) -> None:
    stream, seen = chat("breaks", stream=True)(client), []
    with pytest.raises(openai.APIError):
        seen.extend(stream)
    told = "".join(chunk.choices[0].delta.content for chunk in seen)
    assert told.startswith("Grüße ")
    assert TEXT.startswith(told)


# usage


def test_usage_that_was_asked_for_is_seen(client: openai.OpenAI, gateway: RunningGateway) -> None:
    stream = chat(CHAT, stream=True, stream_options={"include_usage": True})(client)
    *_, last = stream
    assert last.choices == []
    assert last.usage.total_tokens == CHAT_USAGE["total_tokens"]
    assert receipt(gateway, stream.response.headers["x-request-id"])["booked"]["amount_nano_usd"] == BOOKED_NANO_USD


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}, {"stream_options": {"include_obfuscation": False}}])
def test_usage_that_was_not_asked_for_is_booked_and_not_seen(client: openai.OpenAI, gateway: RunningGateway, provider: Provider, options: Any) -> None:
    stream = chat(CHAT, stream=True, **options)(client)
    chunks = list(stream)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert provider.requests[0].json()["stream_options"] == options.get("stream_options", {}) | {"include_usage": True}
    entry = gateway.entry(stream.response.headers["x-request-id"])
    assert entry is not None
    assert (entry.usage_source, entry.usage.input_uncached, entry.usage.cache_read, entry.usage.output_text) == ("provider", 7, 2, 12)


# receipts


def drained(ask: Ask) -> Ask:
    """The id of a stream that was read to its end."""

    def ask_and_read(client: openai.OpenAI) -> Any:
        stream = ask(client)
        assert list(stream)
        return stream.response.headers["x-request-id"]

    return ask_and_read


def identified(ask: Ask) -> Ask:
    return lambda client: ask(client)._request_id


def speech_events(client: openai.OpenAI) -> Any:
    with client.audio.speech.with_streaming_response.create(model=SPEECH, voice="alloy", input="x", stream_format="sse") as answer:
        assert b"speech.audio.done" in answer.read()
        return answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("ask", "source", "amount"),
    [
        (identified(chat(CHAT)), "provider", BOOKED_NANO_USD),
        (drained(chat(CHAT, stream=True)), "provider", BOOKED_NANO_USD),
        (identified(chat("house-chat")), "provider", BOOKED_NANO_USD),
        (identified(chat("echo")), "provider", 0),
        (identified(lambda client: client.completions.create(model=INSTRUCT, prompt="x")), "provider", BOOKED_NANO_USD),
        (drained(lambda client: client.completions.create(model=INSTRUCT, prompt="x", stream=True)), "provider", BOOKED_NANO_USD),
        (identified(response(CHAT)), "provider", BOOKED_NANO_USD),
        (drained(response(CHAT, stream=True)), "provider", BOOKED_NANO_USD),
        (identified(lambda client: client.embeddings.create(model=EMBEDDING, input="x")), "provider", 23),
        (identified(lambda client: client.images.generate(model=IMAGE, prompt="x")), "provider", BOOKED_NANO_USD),
        (drained(lambda client: client.images.generate(model=IMAGE, prompt="x", stream=True)), "provider", BOOKED_NANO_USD),
        (identified(lambda client: client.audio.transcriptions.create(model=LISTENING, file=("a.wav", AUDIO))), "provider", BOOKED_NANO_USD),
        (drained(lambda client: client.audio.transcriptions.create(model=LISTENING, file=("a.wav", AUDIO), stream=True)), "provider", BOOKED_NANO_USD),
        (speech_events, "provider", BOOKED_NANO_USD),
        (identified(lambda client: client.moderations.create(model=MODERATION, input="x")), "none", 0),
    ],
)
def test_the_receipt_has_what_was_booked(client: openai.OpenAI, gateway: RunningGateway, ask: Ask, source: str, amount: int) -> None:
    told = receipt(gateway, ask(client))
    assert told["ending"] == "complete"
    assert (told["booked"]["usage_source"], told["booked"]["amount_nano_usd"]) == (source, amount)
    assert [attempt["status"] for attempt in told["attempts"]] == [200]
    entry = gateway.entry(told["id"])
    assert entry is not None
    assert entry.amount == amount


def test_a_whole_answer_carries_its_cost_and_the_upstreams_id(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="house-chat", messages=ASKED)
    assert raw.headers["x-gateway-cost-usd"] == "0.000000053"
    assert raw.headers["x-upstream-request-id"] == "req_fake"
    assert raw.headers["x-gateway-receipt"] == 'attempts="house-chat:answered"'
    assert {"gateway", "upstream", "first_byte"} == {part.partition(";")[0].strip() for part in raw.headers["server-timing"].split(",")}


def test_a_failure_has_a_receipt_and_costs_nothing(client: openai.OpenAI, gateway: RunningGateway) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        chat("fails")(client)
    told = receipt(gateway, caught.value.request_id)
    assert (told["ending"], told["status"], told["error"]) == ("upstream_error", 502, "upstream_error")
    assert [(attempt["outcome"], attempt["status"]) for attempt in told["attempts"]] == [("upstream_refused", 500)]
    assert told["booked"]["amount_nano_usd"] == 0


def test_a_refusal_has_a_receipt_and_no_entry(client: openai.OpenAI, gateway: RunningGateway) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat("gpt-nonesuch")(client)
    told = receipt(gateway, caught.value.request_id)
    assert (told["ending"], told["status"], told["attempts"], told["booked"]) == ("refused", 404, [], None)


def test_a_receipt_is_its_owners_alone(client: openai.OpenAI, gateway: RunningGateway, restricted_key: str) -> None:
    request_id = chat(CHAT)(client)._request_id
    assert gateway.get(f"/v1/requests/{request_id}", restricted_key).status == 404
