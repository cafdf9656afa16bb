"""The Python agent speaks protocol v2 as docs/agents.md says, and tells the truth about its upstream."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agents.openai_agent import Pauses, main, run
from tests.fakes.agent_gateway import PROTOCOL, AgentGateway, Attached, BytesMessage
from tests.fakes.answers import (
    Answer,
    CloseAt,
    CloseDelimited,
    ErrorEvent,
    Events,
    Json,
    RateLimited,
    Redirect,
    ResetAt,
    ShortContentLength,
    Silent,
    Slow,
    StallAt,
    Status,
    Step,
    WithoutDone,
)
from tests.fakes.openai_answers import CHAT_USAGE, MODELS, TEXT
from tests.fakes.provider import Provider
from tests.unit.agents.conftest import TOKEN, Authority, Starter

PATH = "/v1/chat/completions"
ROOT = Path(__file__).parents[3]


def chunk(text: str | None = None, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}]}


def counting(count: int) -> list[dict[str, Any]]:
    return [*(chunk(f"{number} ") for number in range(count)), chunk(finish="stop")]


def numbered(word: str, count: int) -> list[dict[str, Any]]:
    return [*(chunk(f"{word}-{number} ") for number in range(count)), chunk(finish="stop")]


def text_of(frames: list[dict[str, Any]]) -> str:
    return "".join(frame.get("text", "") for frame in frames)


# saying hello


def test_agent_says_hello_with_what_its_upstream_serves(gateway: AgentGateway, start: Starter) -> None:
    start(concurrency=7, name="box")
    agent = gateway.accept()
    assert agent.headers["authorization"] == f"Bearer {TOKEN}"
    assert agent.headers["user-agent"] == "chat-gateway"
    assert agent.request.target == "/client/register"
    assert agent.request.subprotocols == [PROTOCOL]
    assert agent.hello["models"] == list(MODELS)
    assert {name: agent.hello[name] for name in ("type", "concurrency", "resumes", "agent")} == {
        "type": "hello",
        "concurrency": 7,
        "resumes": True,
        "agent": "box",
    }
    assert len(agent.hello["session"]) >= 16
    assert "token" not in agent.hello


def test_agent_announces_the_models_that_it_is_told(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    start(models=["one", "two"])
    assert gateway.accept().hello["models"] == ["one", "two"]
    assert provider.requests == []


@pytest.mark.parametrize(("path", "target"), [("/", "/client/register"), ("/prefix/", "/prefix/client/register"), ("/client/register", "/client/register")])
def test_path_of_the_url_is_a_prefix(gateway: AgentGateway, start: Starter, path: str, target: str) -> None:
    start(connect=gateway.url + path)
    assert gateway.accept().request.target == target


def test_upstream_that_is_not_up_yet_is_waited_for(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    provider.script("/v1/models", Status(503), CloseAt(0), Json({"data": []}), Json({"data": ["?", {"id": 7}]}))
    start()
    assert gateway.accept().hello["models"] == list(MODELS)
    assert len(provider.requests) == 5


def test_upstream_that_refuses_its_list_ends_the_agent(provider: Provider, start: Starter, capfd: pytest.CaptureFixture[str]) -> None:
    provider.always("/v1/models", Status(401))
    assert start().wait() == 1
    assert "--upstream" in capfd.readouterr().err


def test_what_the_token_does_not_cover_is_told(gateway: AgentGateway, start: Starter, capfd: pytest.CaptureFixture[str]) -> None:
    gateway.welcome = {**(gateway.welcome or {}), "models": ["gpt-4o"]}
    running = start(models=["gpt-4o", "other\nname"])
    gateway.accept().close(4401)
    running.wait()
    assert "agent: its token does not cover other name\n" in capfd.readouterr().err


# answering


@pytest.fixture
def agent(gateway: AgentGateway, start: Starter) -> Attached:
    start()
    return gateway.accept()


def test_answer_is_streamed_with_its_usage(agent: Attached, provider: Provider) -> None:
    agent.ask("r1", body={"temperature": 0.5, "stream": False}, deadline_s=60)
    frames = agent.answer()
    assert text_of(frames) == TEXT
    assert len(frames) > 5
    assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
    assert {frame["id"] for frame in frames} == {"r1"}
    assert frames[-1]["reason"] == "stop"
    assert frames[-1]["usage"] == CHAT_USAGE
    asked = provider.requests[-1]
    assert (asked.method, asked.path, asked.headers.get("authorization")) == ("POST", PATH, None)
    assert asked.json() == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_upstream_gets_its_key_and_not_the_token(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    start(upstream_key="sk-of-upstream", upstream=provider.url + "/")
    agent = gateway.accept()
    agent.ask("r1")
    agent.answer()
    assert {received.headers["authorization"] for received in provider.requests} == {"Bearer sk-of-upstream"}
    assert TOKEN not in repr([received.headers for received in provider.requests])


def test_tool_calls_are_streamed(agent: Attached) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}}
    agent.ask("r1", body={"tools": [tool]})
    frames = agent.answer()
    calls = [frame["tool_call"] for frame in frames[:-1]]
    assert calls[0] == {"index": 0, "arguments": "", "id": "call_fake", "name": "weather"}
    assert all(set(call) == {"index", "arguments"} for call in calls[1:])
    assert "place" in json.loads("".join(call["arguments"] for call in calls))
    assert frames[-1]["reason"] == "tool_calls"


def test_upstream_that_cannot_stream_is_answered_for_whole(agent: Attached, provider: Provider) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": "Grüße", "tool_calls": [call]}
    provider.script(PATH, Json({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 3}}))
    agent.ask("r1")
    first, second, last = agent.answer()
    assert first["text"] == "Grüße"
    assert second["tool_call"] == {"index": 0, "arguments": '{"a": 1}', "id": "c1", "name": "f"}
    assert (last["reason"], last["usage"]) == ("tool_calls", {"prompt_tokens": 3})


def test_large_text_is_cut_into_frames(agent: Attached, provider: Provider) -> None:
    text = "ü👋" * 150_000
    provider.script(PATH, Events(chunk(text), chunk(finish="length")))
    agent.ask("r1")
    frames = agent.answer()
    assert text_of(frames) == text
    assert len(frames) == 4


def test_several_requests_are_answered_at_once(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    start(concurrency=2)
    agent = gateway.accept()
    provider.always(PATH, StallAt(150, Events(*counting(3))))
    agent.ask("a")
    agent.ask("b")
    provider.wait_requests(3)
    agent.ask("c")
    frame = agent.receive()
    assert (frame["id"], frame["type"], frame["cause"], frame["seq"]) == ("c", "error", "busy", 1)


def test_model_that_was_not_announced_is_not_asked_for(agent: Attached, provider: Provider) -> None:
    agent.ask("r1", body={"model": "other"})
    assert agent.receive()["cause"] == "model_not_served"
    assert [received.path for received in provider.requests] == ["/v1/models"]


def test_ping_is_answered_while_requests_are_under_way(agent: Attached, provider: Provider) -> None:
    provider.script(PATH, StallAt(150, Events(*counting(3))))
    agent.ask("r1")
    provider.wait_requests(2)
    agent.send(type="ping", at=[1.5, "x"])
    assert agent.receive() == {"type": "pong", "at": [1.5, "x"]}


def test_usage_keeps_whole_numbers_only(agent: Attached, provider: Provider) -> None:
    raw = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "cost": 1e999, "details": {"x": 1, "y": null}}}\n\n'
    provider.script(PATH, Events(chunk("a", finish="stop"), raw))
    agent.ask("r1")
    assert agent.answer()[-1]["usage"] == {"prompt_tokens": 3, "details": {"x": 1}}


# flow control and cancel


def test_no_more_frames_than_credit_are_sent(agent: Attached, provider: Provider) -> None:
    provider.script(PATH, Events(*counting(6)))
    agent.ask("r1", credit=2)
    assert [agent.receive()["seq"] for _ in range(2)] == [1, 2]
    assert agent.silent()
    agent.send(type="credit", id="r1", n=3, received=2)
    assert [agent.receive()["seq"] for _ in range(3)] == [3, 4, 5]
    assert agent.silent()
    agent.send(type="credit", id="r1", n=1, received=5)
    assert agent.receive()["text"] == "5 "
    assert agent.silent()
    agent.send(type="credit", id="r1", n=1, received=6)
    assert agent.receive()["type"] == "done"


def test_slow_client_slows_the_upstream_down(agent: Attached, provider: Provider) -> None:
    sent = 0

    def endless(received: Any) -> Any:
        nonlocal sent
        yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        while True:
            yield b"data: " + json.dumps(chunk("x" * 60_000)).encode() + b"\n\n"
            sent += 1

    provider.script(PATH, endless)
    agent.ask("r1", credit=3)
    assert [len(agent.receive()["text"]) for _ in range(3)] == [60_000] * 3
    before = -1
    while before < sent:
        before = sent
        time.sleep(0.1)
    assert sent * 60_000 < 20_000_000
    agent.send(type="cancel", id="r1")
    provider.wait_closed()


@pytest.mark.parametrize("cut", [0, 150, 400])
def test_cancel_closes_the_upstream_at_once(agent: Attached, provider: Provider, cut: int) -> None:
    """Before the head, within it, within the body."""
    provider.script(PATH, StallAt(cut, Events(*counting(50))))
    agent.ask("r1")
    provider.wait_requests(2)
    begun = time.monotonic()
    agent.send(type="cancel", id="r1")
    assert provider.wait_closed()[0] - begun < 0.5
    agent.ask("r2")
    while (frame := agent.receive())["id"] == "r1":
        assert frame["type"] == "delta"
    assert frame["id"] == "r2"


def test_cancel_ends_a_wait_for_credit(agent: Attached, provider: Provider) -> None:
    provider.script(PATH, Slow(0.01, Events(*counting(50))))
    agent.ask("r1", credit=1)
    agent.receive()
    agent.send(type="cancel", id="r1")
    provider.wait_closed()
    assert agent.silent()


def test_deadline_ends_the_request(agent: Attached, provider: Provider) -> None:
    provider.script(PATH, StallAt(400, Events(*counting(50))))
    agent.ask("r1", deadline_s=0.3)
    assert agent.answer()[-1]["cause"] == "timeout"
    provider.wait_closed()


# what goes wrong upstream

REFUSALS: list[tuple[Step, dict[str, Any]]] = [
    (Status(400, {"error": {"message": "no"}}), {"cause": "bad_request", "status": 400, "body": {"error": {"message": "no"}}}),
    (Status(404, b"not here"), {"cause": "bad_request", "status": 404, "body": "not here"}),
    (Status(422, b'{"x": NaN}'), {"cause": "bad_request", "status": 422, "body": '{"x": NaN}'}),
    (Status(401), {"cause": "unauthorised", "status": 401}),
    (Status(403), {"cause": "unauthorised", "status": 403}),
    (RateLimited(7), {"cause": "rate_limited", "status": 429, "retry_after_s": 7}),
    (RateLimited("soon"), {"cause": "rate_limited", "status": 429, "retry_after_s": None}),
    (Status(500), {"cause": "upstream_failed", "status": 500}),
    (Redirect("http://127.0.0.1:1/"), {"cause": "upstream_failed", "status": 302}),
    (CloseAt(0), {"cause": "upstream_failed"}),
    (
        ErrorEvent(),
        {"cause": "upstream_failed", "body": {"error": {"message": "The server had an error", "type": "server_error", "param": None, "code": None}}},
    ),
    (Events(b"data: what is this\n\n"), {"cause": "upstream_failed"}),
    (Events(b"data: " + b"[" * 100_000 + b"\n\n"), {"cause": "upstream_failed"}),
    (Events({"choices": [7]}), {"cause": "upstream_failed"}),
    (Events({"choices": [{"delta": {"content": {"a": 1}}}]}), {"cause": "upstream_failed"}),
    (Events(b"data: " + b"x" * 5_000_000), {"cause": "upstream_failed"}),
    (Json({"choices": [{"message": {"content": ""}}]}), {"cause": "upstream_failed"}),
]


@pytest.mark.parametrize(("step", "expected"), REFUSALS)
def test_refusal_becomes_an_error_with_its_cause(agent: Attached, provider: Provider, step: Step, expected: dict[str, Any]) -> None:
    provider.script(PATH, step)
    agent.ask("r1")
    frame = agent.receive()
    assert (frame["type"], frame["seq"]) == ("error", 1)
    assert {name: frame.get(name) for name in expected} == expected
    assert "\n" not in frame["message"]


def test_upstream_that_is_gone_is_told(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    start(upstream="http://127.0.0.1:1/v1", models=["gpt-4o"])
    agent = gateway.accept()
    agent.ask("r1")
    assert agent.receive()["cause"] == "upstream_failed"


CUTS: list[Step] = [
    WithoutDone(drop=3),
    CloseDelimited(WithoutDone()),
    ShortContentLength(CloseDelimited(WithoutDone())),
    ResetAt(700),
    CloseAt(700),
    Events(chunk("a"), done=True),
]


@pytest.mark.parametrize("step", CUTS)
def test_cut_answer_is_an_error_and_never_an_end(agent: Attached, provider: Provider, step: Step) -> None:
    provider.script(PATH, step)
    agent.ask("r1")
    frames = agent.answer()
    assert frames[0]["type"] == "delta"
    assert (frames[-1]["type"], frames[-1]["cause"]) == ("error", "upstream_failed")


@pytest.mark.parametrize(
    "step", [WithoutDone(), CloseDelimited(), Answer(200, (("content-type", "text/event-stream"),), Events(*counting(3), done=False).blocks)]
)
def test_answer_that_ends_as_it_was_announced_needs_no_more(agent: Attached, provider: Provider, step: Step) -> None:
    """Whole chunks or a whole Content-Length with a finish reason; or [DONE], however the body ends."""
    provider.script(PATH, step)
    agent.ask("r1")
    assert agent.answer()[-1]["type"] == "done"


def test_cut_at_every_byte_is_never_an_end(agent: Attached, provider: Provider) -> None:
    answer = Events(chunk("Grüße 👋"), chunk(finish="stop"))
    size = sum(len(action) for action in answer.script() if isinstance(action, bytes))
    marker = b"".join(action for action in answer.script() if isinstance(action, bytes)).index(b"[DONE]\n") + 7
    for at in range(0, size, 7):
        provider.script(PATH, CloseAt(at, answer))
        agent.ask(f"r{at}")
        last = agent.answer()[-1]
        assert (last["type"] == "done") == (at >= marker) or at == marker - 1, at


# connecting again


def test_lost_connection_is_made_again_and_resumed_exactly(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    start()
    agent = gateway.accept()
    go_on = threading.Event()

    def halting(received: Any) -> Any:
        actions = [action for action in Events(*counting(40)).script() if isinstance(action, bytes)]
        yield from actions[:21]
        go_on.wait(10)
        yield from actions[21:]

    provider.script(PATH, halting)
    agent.ask("r1", credit=25)
    first = [agent.receive() for _ in range(20)]
    agent.send(type="credit", id="r1", n=0, received=8)
    agent.drop()
    go_on.set()
    again = gateway.accept()
    assert again.hello["session"] == agent.hello["session"]
    again.send(type="resume", id="r1", session=agent.hello["session"], received=13, credit=20)
    second = [again.receive() for _ in range(20)]
    assert again.silent()
    again.send(type="credit", id="r1", n=20, received=33)
    second += again.answer()
    assert second[:7] == first[13:]
    assert [frame["seq"] for frame in second] == list(range(14, 42))
    assert text_of(first[:13]) + text_of(second) == "".join(f"{number} " for number in range(40))
    assert second[-1]["type"] == "done"
    assert len(provider.requests) == 2


def test_answer_that_ended_meanwhile_is_resumed(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    start()
    agent = gateway.accept()
    agent.ask("r1")
    frames = agent.answer()
    agent.drop()
    again = gateway.accept()
    again.send(type="resume", id="r1", session=agent.hello["session"], received=2, credit=100)
    assert again.answer() == frames[2:]


def test_resume_may_happen_twice(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    start()
    agent = gateway.accept()
    provider.script(PATH, Slow(0.02, Events(*counting(30))))
    agent.ask("r1", credit=100)
    got = [agent.receive() for _ in range(3)]
    for _ in range(2):
        agent.drop()
        agent = gateway.accept()
        agent.send(type="resume", id="r1", session=agent.hello["session"], received=len(got), credit=100)
        got += [agent.receive() for _ in range(3)]
    got += agent.answer()
    assert [frame["seq"] for frame in got] == list(range(1, 32))


def test_no_drop_loses_doubles_or_mixes_answers(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    """Six answers over five connections, each broken at a random moment, with credit by the handful: every text is exact."""
    chance = random.Random(7)
    gateway.welcome = {**(gateway.welcome or {}), "grace_s": 30}
    provider.always(PATH, lambda received: Slow(0.002, Events(*numbered(received.json()["user"], 60)))(received))
    start(concurrency=6)
    agent = gateway.accept()
    got: dict[str, list[dict[str, Any]]] = {f"r{number}": [] for number in range(6)}
    for identity in got:
        agent.ask(identity, credit=5, body={"user": identity})
    for breaks in (Attached.drop, lambda each: each.close(1012), Attached.drop, lambda each: each.close(1012), None):
        for _ in range(chance.randint(20, 60) if breaks else 1000):
            if all(frames and frames[-1]["type"] == "done" for frames in got.values()):
                break
            frame = agent.receive()
            got[frame["id"]].append(frame)
            assert [each["seq"] for each in got[frame["id"]][-2:]] in ([1], [frame["seq"] - 1, frame["seq"]])
            if frame["seq"] % 3 == 0:
                agent.send(type="credit", id=frame["id"], n=3, received=frame["seq"])
        if breaks:
            breaks(agent)
            agent = gateway.accept()
            for identity, frames in got.items():
                agent.send(type="resume", id=identity, session=agent.hello["session"], received=len(frames), credit=5)
    assert {identity: text_of(frames) for identity, frames in got.items()} == {
        identity: "".join(f"{identity}-{number} " for number in range(60)) for identity in got
    }


@pytest.mark.parametrize(
    "resume",
    [{"id": "never", "received": 3}, {"id": "r1", "received": 3, "session": "another"}, {"id": "r1", "received": 1}, {"id": "r1", "received": 99}],
    ids=["unknown", "other session", "forgotten", "never sent"],
)
def test_what_cannot_be_resumed_is_said_so(gateway: AgentGateway, start: Starter, resume: dict[str, Any]) -> None:
    start()
    agent = gateway.accept()
    agent.ask("r1")
    agent.answer()
    agent.send(type="credit", id="r1", n=0, received=3)
    agent.send(type="ping", at=1)
    agent.receive()
    agent.drop()
    again = gateway.accept()
    again.send(**{"type": "resume", "session": agent.hello["session"], "credit": 5, **resume})
    frame = again.receive()
    assert (frame["type"], frame["cause"], frame["id"], frame["seq"]) == ("error", "unknown_request", resume["id"], resume["received"] + 1)


def test_what_nothing_was_sent_of_keeps_no_place_after_a_lost_connection(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    start(concurrency=1)
    agent = gateway.accept()
    provider.script(PATH, Silent(), Events(*counting(2)))
    agent.ask("r1")
    provider.wait_requests(2)
    agent.drop()
    again = gateway.accept()
    again.ask("r2")
    assert text_of(again.answer()) == "0 1 "


def test_what_nobody_resumes_is_given_up_after_the_grace_period(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    gateway.welcome = {**(gateway.welcome or {}), "grace_s": 0.4}
    start()
    agent = gateway.accept()
    provider.script(PATH, StallAt(400, Events(*counting(50))))
    agent.ask("r1")
    agent.receive()
    begun = time.monotonic()
    agent.drop()
    again = gateway.accept()
    assert 0.3 < provider.wait_closed()[0] - begun < 2
    again.send(type="resume", id="r1", session=agent.hello["session"], received=0, credit=5)
    assert again.receive()["cause"] == "unknown_request"


def test_silent_gateway_is_left(gateway: AgentGateway, start: Starter) -> None:
    gateway.welcome = {**(gateway.welcome or {}), "ping_s": 0.1}
    start()
    agent = gateway.accept()
    begun = time.monotonic()
    assert agent.wait_closed() == 1006
    assert 0.5 < time.monotonic() - begun < 3
    gateway.accept()


@pytest.mark.parametrize("code", [1001, 1012, 1000, 1011])
def test_leaving_worker_is_connected_to_again(gateway: AgentGateway, start: Starter, code: int) -> None:
    start()
    agent = gateway.accept()
    begun = time.monotonic()
    agent.close(code)
    gateway.accept()
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("code", "advice"),
    [(4401, "gateway agent enrol"), (4403, "gateway agent enrol"), (4409, "--name"), (1009, "limit"), (4400, "update"), (1007, "update")],
)
def test_close_that_is_final_stops_the_agent(gateway: AgentGateway, start: Starter, capfd: pytest.CaptureFixture[str], code: int, advice: str) -> None:
    running = start()
    agent = gateway.accept()
    capfd.readouterr()
    agent.close(code, "as it is\nso")
    assert running.wait() == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if str(code) in line]
    assert len(lines) == 1
    assert advice in lines[0]
    assert gateway.handshakes == 1


@pytest.mark.parametrize("status", [401, 403])
def test_refused_handshake_stops_the_agent(gateway: AgentGateway, start: Starter, status: int) -> None:
    gateway.refuses = status
    assert start().wait() == 1
    assert gateway.handshakes == 1


def test_gateway_of_another_protocol_stops_the_agent(gateway: AgentGateway, start: Starter) -> None:
    gateway.protocol = None
    assert start().wait() == 1


def test_busy_front_is_asked_again(gateway: AgentGateway, start: Starter) -> None:
    gateway.refuses = 503
    start()
    while gateway.handshakes < 2:
        time.sleep(0.01)
    gateway.refuses = None
    gateway.accept()


def test_pauses_grow_at_random_and_end_with_a_long_connection() -> None:
    pauses = Pauses()
    first = [Pauses().next(1006, 0) for _ in range(50)]
    assert len(set(first)) > 40
    assert all(0.2 <= pause_s <= 0.6 for pause_s in first)
    grown = [pauses.next(1006, 1) for _ in range(100)]
    assert max(grown) > 10
    assert max(grown) <= 30
    assert pauses.next(1006, 3600) <= 0.6
    assert all(pauses.next(4503, 3600) >= 3 for _ in range(20))
    assert pauses.next(1012, 0) <= 0.6


GARBAGE = [
    "no json",
    "[]",
    "7",
    "{}",
    '{"type": 7}',
    '{"type": "surprise"}',
    '{"type": []}',
    '{"type": "request", "id": "x"}',
    '{"type": "request", "id": 7, "body": {}}',
    '{"type": "request", "id": "x", "body": [], "credit": 1}',
    '{"type": "request", "id": "x", "body": {}, "credit": -1}',
    '{"type": "request", "id": "x", "body": {}, "credit": "many"}',
    '{"type": "request", "id": "x", "body": {}, "credit": 1, "deadline_s": 1' + "0" * 400 + "}",
    '{"type": "cancel", "id": []}',
    '{"type": "resume", "received": 1}',
    '{"type": "welcome", "grace_s": "soon"}',
    '{"type": "welcome", "grace_s": 1, "models": 7}',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", GARBAGE, ids=[text[:60] for text in GARBAGE])
def test_garbage_from_the_gateway_closes_the_connection_only(gateway: AgentGateway, start: Starter, text: str) -> None:
    start(models=["gpt-4o"])
    agent = gateway.accept()
    agent.send_text(text)
    assert agent.wait_closed() == 4400
    again = gateway.accept()
    again.ask("r1")
    assert text_of(again.answer()) == TEXT


def test_frame_that_is_no_text_closes_the_connection(agent: Attached) -> None:
    agent.send_event(BytesMessage(b"{}"))
    assert agent.wait_closed() == 4400


def test_unknown_members_and_ended_requests_are_passed_over(agent: Attached) -> None:
    agent.send(type="credit", id="gone", n=1, received=1, more={})
    agent.send(type="cancel", id="gone")
    agent.send(type="pong", at=1)
    agent.ask("r1", surprise=7)
    assert text_of(agent.answer()) == TEXT
    agent.ask("r1")
    assert agent.silent()


# leaving


def test_agent_that_is_stopped_finishes_what_it_does(gateway: AgentGateway, provider: Provider, start: Starter) -> None:
    running = start()
    agent = gateway.accept()
    provider.script(PATH, Slow(0.02, Events(*counting(20))))
    agent.ask("r1")
    agent.receive()
    running.stop.set()
    frames = [agent.receive()]
    while frames[-1]["type"] != "done":
        frames.append(agent.receive())
        if frames[-1]["type"] == "leaving":
            agent.ask("r2")
    assert {"leaving", "delta", "done"} == {frame["type"] for frame in frames if frame.get("id") != "r2"}
    assert [frame["cause"] for frame in frames if frame.get("id") == "r2"] == ["busy"]
    assert agent.wait_closed() == 1000
    assert running.wait() == 0


def test_program_ends_with_status_0_on_sigterm(gateway: AgentGateway, provider: Provider, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    command = [sys.executable, "-m", "agents.openai_agent", "--connect", gateway.url, "--token-file", str(tmp_path / "token"), "--upstream", provider.url]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True) as program:
        agent = gateway.accept()
        agent.ask("r1", body={"messages": [{"role": "user", "content": "a secret prompt"}]})
        agent.answer()
        program.send_signal(signal.SIGTERM)
        assert agent.receive()["type"] == "leaving"
        _, log = program.communicate(timeout=10)
    assert program.returncode == 0
    assert all(line.startswith("agent: ") for line in log.splitlines())
    assert "r1: stop" in log
    assert TOKEN not in log
    assert "secret prompt" not in log


@pytest.mark.parametrize(
    "options",
    [
        ["--connect", "http://127.0.0.1:1", "--token", "t", "--upstream", "http://127.0.0.1/v1"],
        ["--connect", "ws://user:pass@127.0.0.1:1", "--token", "t", "--upstream", "http://127.0.0.1/v1"],
        ["--connect", "ws://127.0.0.1:99999", "--token", "t", "--upstream", "http://127.0.0.1/v1"],
        ["--connect", "ws://127.0.0.1:1", "--token", "t", "--upstream", "file:///etc/passwd"],
        ["--connect", "ws://127.0.0.1:1", "--token", "a b\n", "--upstream", "http://127.0.0.1/v1"],
        ["--connect", "ws://127.0.0.1:1", "--token-file", "/nowhere", "--upstream", "http://127.0.0.1/v1"],
    ],
)
def test_wrong_option_is_one_line(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_token_beyond_loopback_without_tls_is_warned_of(capfd: pytest.CaptureFixture[str]) -> None:
    stop = threading.Event()
    stop.set()
    assert run("ws://192.0.2.1", TOKEN, "http://127.0.0.1/v1", models=["m"], stop=stop) == 0
    assert "not encrypted" in capfd.readouterr().err


def test_everything_works_over_tls(authority: Authority, start: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with AgentGateway(tls=authority.server) as gateway, Provider(tls=authority.server) as provider:
        running = start(connect=gateway.url, upstream=provider.url)
        agent = gateway.accept()
        agent.ask("r1", body={"messages": [{"role": "user", "content": "x" * 3_000_000}]})
        assert text_of(agent.answer()) == TEXT
        provider.script(PATH, StallAt(400, Events(*counting(50))))
        agent.ask("r2")
        agent.receive()
        agent.send(type="cancel", id="r2")
        provider.wait_closed()
        running.stop.set()
        assert agent.wait_closed() == 1000
        assert running.wait() == 0


def test_certificate_that_is_not_trusted_ends_no_agent_and_sends_no_token(authority: Authority, start: Starter, capfd: pytest.CaptureFixture[str]) -> None:
    with AgentGateway(tls=authority.server) as gateway:
        running = start(connect=gateway.url)
        log = ""
        while "certificate" not in log:
            log += capfd.readouterr().err
            time.sleep(0.01)
        running.stop.set()
        assert running.wait() == 0
        assert gateway.handshakes == 0
