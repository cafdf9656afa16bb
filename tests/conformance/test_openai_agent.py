"""OpenAI's Python SDK, unmodified, gets an agent's answers, whose websocket another worker has than the SDK's connection: text, tool calls, usage, errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.fakes import agents
from tests.fakes.agents import Agent, Answer, Serving
from tests.fakes.gateway import RunningGateway
from tests.faults.hosting import enrolled, wait_served, worker_of

MODEL = "llama-behind-nat"
ASKED: Any = [{"role": "user", "content": "Grüße 👋"}]
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
WORDS = ("Grüße", " zurück", " 👋", "\n", "")
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}}]


def calls_tools(serving: Serving) -> None:
    serving.delta("Let me see.")
    serving.tool_call(0, "", id="call_1", name="weather")
    for piece in ('{"place"', ": ", '"Köln"}'):
        serving.tool_call(0, piece)
    serving.tool_call(1, '{"place": "Ulm"}', id="call_2", name="weather")
    serving.done("tool_calls", usage=USAGE)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), {"WEB_CONCURRENCY": "2"}) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def agent(gateway: RunningGateway) -> Iterator[Agent]:
    with Agent(gateway.port, token=enrolled(gateway, "sdk", MODEL), models=[MODEL], concurrency=8) as agent:
        wait_served(gateway, MODEL)
        yield agent


@pytest.fixture
def client(gateway: RunningGateway, agent: Agent) -> Iterator[openai.OpenAI]:
    """It keeps its connection, which is to the worker that does not have the agent's."""
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(openai.OpenAI(base_url=gateway.url, api_key=gateway.key, max_retries=0))
            if worker_with(gateway, client.models.with_raw_response.list().http_response) != worker_of(gateway, agent.socket.sock):
                yield client
                return
    raise AssertionError("no other worker answers")


def worker_with(gateway: RunningGateway, answer: Any) -> int:
    """Which one has the connection that the answer came over."""
    worker = worker_of(gateway, answer.extensions["network_stream"].get_extra_info("socket"))
    assert worker is not None
    return worker


def scripted(agent: Agent, answer: Answer) -> None:
    agent.always = answer


def test_stream_arrives_piece_by_piece_with_usage_and_end(gateway: RunningGateway, client: openai.OpenAI, agent: Agent) -> None:
    scripted(agent, agents.says(*WORDS, usage=USAGE))
    stream = client.chat.completions.create(model=MODEL, messages=ASKED, stream=True, stream_options={"include_usage": True})
    assert worker_with(gateway, stream.response) != worker_of(gateway, agent.socket.sock)
    chunks = list(stream)
    assert [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content] == [word for word in WORDS if word]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    (usage,) = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert usage.model_dump(exclude_none=True).items() >= {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}.items()
    assert {chunk.model for chunk in chunks} == {MODEL}
    assert len({chunk.id for chunk in chunks}) == 1
    assert agent.requests[-1].body["messages"] == ASKED


def test_usage_is_not_in_a_stream_that_did_not_ask_for_it(client: openai.OpenAI, agent: Agent) -> None:
    scripted(agent, agents.says(*WORDS, usage=USAGE))
    chunks = list(client.chat.completions.create(model=MODEL, messages=ASKED, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_whole_answer_has_text_usage_and_end(client: openai.OpenAI, agent: Agent) -> None:
    scripted(agent, agents.says(*WORDS, reason="length", usage=USAGE))
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, temperature=0.5)
    assert answer.choices[0].message.content == "".join(WORDS)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (11, 7, 18)
    assert agent.requests[-1].body["temperature"] == 0.5


def test_tool_calls_are_put_together_by_the_sdk_from_a_stream(client: openai.OpenAI, agent: Agent) -> None:
    scripted(agent, calls_tools)
    with client.chat.completions.stream(model=MODEL, messages=ASKED, tools=TOOLS) as stream:
        stream.until_done()
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert [(call.id, call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()] == [
        ("call_1", "weather", {"place": "Köln"}),
        ("call_2", "weather", {"place": "Ulm"}),
    ]
    assert agent.requests[-1].body["tools"] == TOOLS


def test_tool_calls_stand_in_a_whole_answer(client: openai.OpenAI, agent: Agent) -> None:
    scripted(agent, calls_tools)
    choice = client.chat.completions.create(model=MODEL, messages=ASKED, tools=TOOLS).choices[0]
    assert [(call.id, call.function.arguments) for call in choice.message.tool_calls or () if call.type == "function"] == [
        ("call_1", '{"place": "Köln"}'),
        ("call_2", '{"place": "Ulm"}'),
    ]


def test_answer_that_breaks_off_is_an_error_to_the_sdk(client: openai.OpenAI, agent: Agent) -> None:
    scripted(agent, agents.fails("upstream_failed", after=("a", "b")))
    stream, got = client.chat.completions.create(model=MODEL, messages=ASKED, stream=True), list[str]()
    with pytest.raises(openai.APIError) as raised:
        got.extend(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert "ended before it was complete" in str(raised.value)


def test_clients_own_mistake_is_a_bad_request_in_the_upstreams_words(client: openai.OpenAI, agent: Agent) -> None:
    body = {"error": {"message": "temperature is too hot", "type": "invalid_request_error", "param": "temperature", "code": None}}
    scripted(agent, agents.fails("bad_request", status=400, body=body))
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=MODEL, messages=ASKED, temperature=9)
    assert raised.value.body == body["error"]


def test_stream_that_the_client_leaves_is_cancelled_at_the_agent(client: openai.OpenAI, agent: Agent) -> None:
    scripted(agent, agents.keeps_silent("a"))
    with client.chat.completions.create(model=MODEL, messages=ASKED, stream=True) as stream:
        next(iter(stream))
    agent.wait(lambda: agent.requests[-1].given_up == "cancelled")
