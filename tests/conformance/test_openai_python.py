"""OpenAI's Python SDK, unmodified, gets the provider's answers through the gateway: every endpoint, whole and streamed."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseCompletedEvent, ResponseTextDeltaEvent
from pydantic import BaseModel

from tests.conformance.models import ALIASES, SERVED
from tests.fakes.gateway import RunningGateway
from tests.fakes.openai_answers import AUDIO, PNG, TEXT, form_fields
from tests.fakes.provider import Provider

CHAT, INSTRUCT, EMBEDDING, MODERATION, IMAGE, SPEECH, LISTENING = SERVED
ASKED: Any = [{"role": "user", "content": "Grüße 👋"}]
VECTOR = [0.25, -0.5, 0.125, 1.0]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place", "days"],
            "additionalProperties": False,
        },
    },
}
PICTURE: Any = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG * 3000).decode(), "detail": "low"}},
        ],
    }
]


class Weather(BaseModel):
    place: str
    days: int


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    """Without retries: an answer that only a second try gave would look like a first one's."""
    with openai.OpenAI(base_url=gateway.url, api_key=gateway.key, max_retries=0) as client:
        yield client


def spoken(chunks: Any, index: int = 0) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index)


def calls_of(answer: Any) -> list[Any]:
    return answer.choices[0].message.tool_calls or []


# chat


def test_chat_is_answered_whole(client: openai.OpenAI, provider: Provider) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=ASKED, temperature=0.2, seed=7, metadata={"a": "b"}, extra_body={"unheard_of": [1.50]})
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.total_tokens == 21
    sent = {"model": CHAT, "messages": ASKED, "temperature": 0.2, "seed": 7, "metadata": {"a": "b"}, "unheard_of": [1.5]}
    assert [request.json() for request in provider.requests] == [sent]


def test_chat_is_streamed(client: openai.OpenAI, provider: Provider) -> None:
    chunks = list(client.chat.completions.create(model=CHAT, messages=ASKED, stream=True))
    assert spoken(chunks) == TEXT
    assert len(chunks) > 4
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_chat_is_streamed_to_the_asynchronous_client(gateway: RunningGateway) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=gateway.url, api_key=gateway.key, max_retries=0) as client:
            stream = await client.chat.completions.create(model=CHAT, messages=ASKED, stream=True)
            return spoken([chunk async for chunk in stream])

    assert asyncio.run(ask()) == TEXT


def test_echo_answers_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="echo", messages=ASKED)
    streamed = list(client.chat.completions.create(model="echo", messages=ASKED, stream=True, stream_options={"include_usage": True}))
    assert whole.choices[0].message.content == spoken(streamed) == ASKED[0]["content"]
    assert whole.usage == streamed[-1].usage


def test_an_alias_reaches_the_model_behind_it(client: openai.OpenAI, provider: Provider) -> None:
    answer = client.chat.completions.create(model="house-chat", messages=ASKED)
    assert answer.choices[0].message.content == TEXT
    assert provider.requests[0].json()["model"] == ALIASES["house-chat"]


def test_tool_calls_come_whole(client: openai.OpenAI, provider: Provider) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=ASKED, tools=[WEATHER], tool_choice="auto", parallel_tool_calls=False)
    (call,) = calls_of(answer)
    assert (call.function.name, call.function.arguments) == ("weather", '{"place": "word", "days": 7}')
    assert provider.requests[0].json()["tools"] == [WEATHER]

    told = [*ASKED, answer.choices[0].message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert client.chat.completions.create(model=CHAT, messages=told, tools=[WEATHER]).choices[0].message.content == TEXT
    assert provider.requests[1].json()["messages"] == told


def test_tool_calls_come_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=CHAT, messages=ASKED, tools=[WEATHER]) as stream:
        parts = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion()
    (call,) = calls_of(final)
    assert "".join(parts) == call.function.arguments == '{"place": "word", "days": 7}'
    assert sum(map(bool, parts)) == 2
    assert final.choices[0].finish_reason == "tool_calls"


def test_pictures_are_passed_on(client: openai.OpenAI, provider: Provider) -> None:
    assert client.chat.completions.create(model=CHAT, messages=PICTURE).choices[0].message.content == TEXT
    assert provider.requests[0].json()["messages"] == PICTURE


def test_an_answer_that_follows_a_schema_is_parsed(client: openai.OpenAI, provider: Provider) -> None:
    answer = client.chat.completions.parse(model=CHAT, messages=ASKED, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(place="word", days=7)
    assert provider.requests[0].json()["response_format"]["json_schema"]["strict"] is True


def test_a_streamed_answer_that_follows_a_schema_is_parsed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=CHAT, messages=ASKED, response_format=Weather) as stream:
        assert stream.until_done().get_final_completion().choices[0].message.parsed == Weather(place="word", days=7)


def test_log_probabilities_are_passed_on(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=CHAT, messages=ASKED, logprobs=True, top_logprobs=2)
    streamed = list(client.chat.completions.create(model=CHAT, messages=ASKED, logprobs=True, stream=True))
    tokens = [item for chunk in streamed for choice in chunk.choices if choice.logprobs for item in choice.logprobs.content or ()]
    assert whole.choices[0].logprobs
    assert tokens == whole.choices[0].logprobs.content
    assert {token.logprob for token in tokens} == {-0.25}


def test_several_choices_are_passed_on(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=CHAT, messages=ASKED, n=2)
    streamed = list(client.chat.completions.create(model=CHAT, messages=ASKED, n=2, stream=True))
    assert [choice.message.content for choice in whole.choices] == [TEXT, TEXT]
    assert [spoken(streamed, index) for index in (0, 1)] == [TEXT, TEXT]


def test_the_account_of_the_gateway_is_the_operators_choice(gateway: RunningGateway, provider: Provider) -> None:
    with openai.OpenAI(base_url=gateway.url, api_key=gateway.key, organization="org-mine", project="proj-mine", max_retries=0) as client:
        client.chat.completions.create(model=CHAT, messages=ASKED)
    (received,) = provider.requests
    assert received.headers["authorization"] == "Bearer sk-upstream-secret"
    assert not {"openai-organization", "openai-project"} & received.headers.keys()


# the other endpoints


def test_completions_come_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=INSTRUCT, prompt="Say it", max_tokens=9)
    streamed = list(client.completions.create(model=INSTRUCT, prompt=["Say", "it"], stream=True))
    assert whole.choices[0].text == "".join(choice.text for chunk in streamed for choice in chunk.choices) == TEXT


@pytest.mark.parametrize(("asked", "sent"), [({}, "base64"), ({"encoding_format": "float"}, "float")])
def test_embeddings_come_as_numbers(client: openai.OpenAI, provider: Provider, asked: Any, sent: str) -> None:
    answer = client.embeddings.create(model=EMBEDDING, input=["one", "two"], **asked)
    assert [item.embedding for item in answer.data] == [VECTOR, VECTOR]
    assert provider.requests[0].json()["encoding_format"] == sent


def test_moderations_name_no_model(client: openai.OpenAI, provider: Provider) -> None:
    answer = client.moderations.create(input=["a", "b"])
    assert [result.flagged for result in answer.results] == [False, False]
    assert provider.requests[0].json() == {"input": ["a", "b"]}


def test_pictures_are_made(client: openai.OpenAI) -> None:
    whole = client.images.generate(model=IMAGE, prompt="a dot", n=2)
    assert [base64.b64decode(item.b64_json or "") for item in whole.data or ()] == [PNG, PNG]


def test_pictures_are_streamed(client: openai.OpenAI) -> None:
    events = list(client.images.generate(model=IMAGE, prompt="a dot", stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]


def test_pictures_are_edited(client: openai.OpenAI, provider: Provider) -> None:
    answer = client.images.edit(model=IMAGE, image=("dot.png", PNG), prompt="bigger")
    assert base64.b64decode((answer.data or [])[0].b64_json or "") == PNG
    assert form_fields(provider.requests[0]) == {"model": IMAGE, "prompt": "bigger", "image": PNG}


def test_speech_comes_byte_for_byte(client: openai.OpenAI, tmp_path: Path) -> None:
    answer = client.audio.speech.create(model=SPEECH, voice="alloy", input="Say it", response_format="flac")
    assert answer.content == AUDIO
    assert answer.response.headers["content-type"] == "audio/flac"
    with client.audio.speech.with_streaming_response.create(model=SPEECH, voice="alloy", input="Say it") as streamed:
        streamed.stream_to_file(tmp_path / "speech.mp3")
    assert (tmp_path / "speech.mp3").read_bytes() == AUDIO


def test_a_long_recording_arrives_byte_for_byte(client: openai.OpenAI, provider: Provider, upload: Path) -> None:
    with upload.open("rb") as recording:
        answer = client.audio.transcriptions.create(model="house-ears", file=recording, prompt="Grüße")
    assert answer.text == TEXT
    (received,) = provider.requests
    assert form_fields(received) == {"model": "whisper-1", "prompt": "Grüße", "file": upload.read_bytes()}


def test_transcriptions_come_as_text_and_streamed(client: openai.OpenAI) -> None:
    text: Any = client.audio.transcriptions.create(model=LISTENING, file=("a.wav", AUDIO), response_format="text")
    streamed = list(client.audio.transcriptions.create(model=LISTENING, file=("a.wav", AUDIO), stream=True))
    assert text.strip() == TEXT
    assert "".join(event.delta for event in streamed if event.type == "transcript.text.delta") == TEXT
    assert streamed[-1].type == "transcript.text.done"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_translations_are_made(client: openai.OpenAI, provider: Provider) -> None:
    assert client.audio.translations.create(model=LISTENING, file=("a.wav", AUDIO)).text == TEXT
    assert provider.requests[0].path == "/v1/audio/translations"


# responses


def test_a_response_comes_whole_and_is_not_kept_upstream(client: openai.OpenAI, provider: Provider) -> None:
    answer = client.responses.create(model=CHAT, input="Say it", instructions="Be brief")
    assert answer.output_text == TEXT
    assert answer.usage
    assert answer.usage.total_tokens == 21
    assert provider.requests[0].json() == {"store": False, "model": CHAT, "input": "Say it", "instructions": "Be brief"}


def test_a_response_that_is_not_to_be_kept_arrives_as_it_was_sent(client: openai.OpenAI, provider: Provider) -> None:
    assert client.responses.create(model=CHAT, input="Say it", store=False).output_text == TEXT
    assert provider.requests[0].json() == {"model": CHAT, "input": "Say it", "store": False}


def test_a_response_is_streamed_as_typed_events(client: openai.OpenAI, provider: Provider) -> None:
    events = list(client.responses.create(model=CHAT, input="Say it", stream=True))
    assert events[0].type == "response.created"
    assert "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)) == TEXT
    assert isinstance(events[-1], ResponseCompletedEvent)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert provider.requests[0].json()["store"] is False


def test_a_streamed_response_is_put_together(client: openai.OpenAI) -> None:
    with client.responses.stream(model=CHAT, input="Say it") as stream:
        assert stream.until_done().get_final_response().output_text == TEXT


# models


def test_models_are_those_that_the_key_may_use(client: openai.OpenAI, restricted_key: str) -> None:
    assert {"echo", *SERVED, *ALIASES} <= {model.id for model in client.models.list()}
    restricted = client.with_options(api_key=restricted_key)
    assert [model.id for model in restricted.models.list()] == [CHAT]
    assert restricted.models.retrieve(CHAT).id == CHAT
    with pytest.raises(openai.NotFoundError):
        restricted.models.retrieve("echo")
