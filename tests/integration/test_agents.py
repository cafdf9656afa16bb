"""What an agent does wrong costs its own connection, with the documented close code (docs/agents.md), and disturbs nobody else."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.frames import MAX_FRAME_BYTES
from gateway.operations.agents import enrol, revoke
from tests.fakes.agents import SUBPROTOCOL, Agent, Misbehaviour, Serving, at, says
from tests.fakes.gateway import Answer, RunningGateway, now
from tests.fakes.websocket import BINARY, TEXT, Closed, Refused, WebSocketClient

CHAT = "/v1/chat/completions"
HELLO_S = 10.0


class Agents:
    """A gateway with a bystander: an agent in the middle of a stream, which must come to its end whatever the others do."""

    def __init__(self, running: RunningGateway) -> None:
        self.running, self.port = running, running.port
        self.token = self.enrol("box", "box-*")
        self._bystanders = self.enrol("bystander", "bystander")

    def enrol(self, name: str, *models: str, **options: Any) -> str:
        self.running.database.bind()
        made = enrol(self.running.database, self.running.secrets.hasher, name, models, now(), **options)
        self.running.wait_catalog()
        return made.token.reveal()

    def revoke(self, name: str) -> None:
        self.running.database.bind()
        revoke(self.running.database, name, now())

    @contextlib.contextmanager
    def bystander(self) -> Iterator[None]:
        released = threading.Event()

        def answer(serving: Serving) -> None:
            serving.delta("one ")
            while not released.is_set():
                serving.pause(0.02)
            serving.delta("two")
            serving.done()

        with Agent(self.port, answer, token=self._bystanders, models=["bystander"], resumes=False) as agent, self.running.client() as client:
            self.running.wait_catalog()
            client.ask(CHAT, body("bystander", stream=True))
            assert client.head().status == 200
            begun = client.until(b"one ")
            yield
            released.set()
            text = (begun + client.rest()).decode()
            assert "two" in text
            assert text.endswith("data: [DONE]\n\n")
            assert (agent.connections, agent.is_connected) == (1, True)
            assert self.running.post(CHAT, body("bystander")).status == 200

    def connect(self, **options: Any) -> WebSocketClient:
        return WebSocketClient(self.port, **{"subprotocols": (SUBPROTOCOL,), "timeout_s": 12.0, **options})

    def welcomed(self, name: str = "", **members: Any) -> WebSocketClient:
        """An agent that is let in, whose frames the test writes."""
        client = self.connect()
        client.send_json(self.hello(agent=name, **members))
        assert client.receive_json()["type"] == "welcome"
        return client

    def hello(self, **members: Any) -> dict[str, Any]:
        return {"type": "hello", "token": self.token, "models": ["box-1"], "concurrency": 2, "session": "s", **members}

    def asked(self, model: str = "box-1", **members: Any) -> Asked:
        return Asked(self.running, body(model, **members))


class Asked:
    """A call under way, in a thread."""

    def __init__(self, running: RunningGateway, document: dict[str, Any]) -> None:
        self._answers: list[Answer] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(running.post(CHAT, document)), daemon=True)
        self._thread.start()

    def answer(self) -> Answer:
        self._thread.join(20)
        (answer,) = self._answers
        return answer


def body(model: str, **members: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **members}


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    with RunningGateway(tmp_path_factory.mktemp("gateway")) as running:
        yield Agents(running)


def received(agent: WebSocketClient, type: str) -> dict[str, Any]:
    """The next frame of this type."""
    while (said := agent.receive_json())["type"] != type:
        pass
    return dict(said)


def frame(type: str, **members: Any) -> str:
    return json.dumps({"type": type, **members})


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("no JSON", 4400),
        ("", 4400),
        ("[]", 4400),
        ("null", 4400),
        ("[" * 100_000, 4400),
        ("{}", 4400),
        ('{"type": 5}', 4400),
        (frame("unknown"), 4400),
        (frame("hello"), 4400),
        (frame("lost", id="x", cause="gone"), 4400),
        (frame("request", id="x"), 4400),
        (frame("delta", id="never-given", seq=1, text="x"), 4400),
        (frame("done", id="never-given", seq=1, reason="stop"), 4400),
        (frame("error", seq=1, cause="internal"), 4400),
        (frame("update", models=["box-1"] * 1001), 4400),
        (frame("update", models=[5]), 4400),
        (frame("update", models=["box-1"], concurrency=0), 4400),
    ],
)
def test_a_frame_that_breaks_the_protocol_closes_its_connection_only(agents: Agents, said: str, code: int) -> None:
    with agents.bystander(), agents.welcomed() as agent:
        agent.send(said)
        assert agent.end().code == code


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (lambda agent: agent.send_frame(BINARY, b"{}"), 1003),
        (lambda agent: agent.send(b'{"type": "\xff\xfe"}'), 1007),
        (lambda agent: agent.send_frame(TEXT, b"x" * 100, length=MAX_FRAME_BYTES + 1), 1009),
        (lambda agent: agent.send_frame(TEXT, b"{}", mask=None), 1002),
    ],
)
def test_a_websocket_that_breaks_its_rules_is_closed_as_they_say(agents: Agents, write: Callable[[WebSocketClient], None], code: int) -> None:
    with agents.bystander(), agents.welcomed() as agent:
        write(agent)
        assert agent.end().code == code


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"token": ""}, 4401),
        ({"token": "gw_agent_" + "0" * 38}, 4401),
        ({"token": "x" * 128}, 4401),
        ({"token": "x" * 129}, 4400),
        ({"token": 5}, 4400),
        ({"models": ["of-another"]}, 4403),
        ({"models": []}, 4403),
        ({"models": "box-1"}, 4400),
        ({"models": [""]}, 4400),
        ({"concurrency": 0}, 4400),
        ({"concurrency": True}, 4400),
        ({"concurrency": 2000}, 4400),
        ({"agent": "x" * 129}, 4400),
        ({"agent": "line\nbreak"}, 4400),
        ({"session": "ü"}, 4400),
        ({"type": "update"}, 4400),
    ],
)
def test_who_says_hello_wrongly_is_not_let_in(agents: Agents, members: dict[str, Any], code: int) -> None:
    with agents.bystander(), agents.connect() as agent:
        agent.send_json(agents.hello(**members))
        assert agent.end().code == code


def test_an_unknown_token_is_refused_wherever_it_is_shown(agents: Agents) -> None:
    wrong = "gw_agent_" + "1" * 38
    with agents.bystander():
        for options in ({"headers": {"authorization": f"Bearer {wrong}"}}, {"path": f"/{wrong}/client/register"}):
            with agents.connect(**options) as agent:
                agent.send_json(agents.hello(token=""))
                assert agent.end().code == 4401
        with agents.connect(headers={"cookie": f"token={agents.token}"}) as agent:
            agent.send_json(agents.hello(token=""))
            assert agent.end().code == 4401
    log = agents.running.log_path.read_text()
    assert wrong not in log
    assert agents.token not in log


def test_a_token_that_has_expired_lets_nobody_in(agents: Agents) -> None:
    token = agents.enrol("expiring", "expiring", expires_at=now() + 300)
    time.sleep(0.35)
    with agents.connect() as agent:
        agent.send_json(agents.hello(token=token, models=["expiring"]))
        assert agent.end().code == 4401


def test_who_does_not_say_hello_in_time_is_closed(agents: Agents) -> None:
    """Both protocols at once: each takes its ten seconds."""
    with agents.bystander(), agents.connect() as newer, agents.connect(subprotocols=()) as older:
        began = time.monotonic()
        older.receive_json()
        assert [newer.end().code, older.end().code] == [4408, 4408]
        assert HELLO_S - 0.5 < time.monotonic() - began < HELLO_S + 2


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://chatgpt.com.evil.example"])
def test_a_page_of_a_foreign_origin_is_refused_before_the_handshake(agents: Agents, origin: str) -> None:
    with agents.bystander():
        with pytest.raises(Refused) as refused:
            agents.connect(origin=origin, headers={"authorization": f"Bearer {agents.token}"})
        assert refused.value.status == 403


def test_of_what_an_agent_announces_only_what_its_token_covers_is_served(agents: Agents) -> None:
    agents.enrol("nobody", "nobodys")
    with Agent(agents.port, token=agents.token, models=["box-scoped", "nobodys", "gpt-4o"]) as agent:
        agents.running.wait_catalog()
        assert agent.welcome["models"] == ["box-scoped"]
        served = {model["id"] for model in agents.running.get("/v1/models").json()["data"]}
        assert "box-scoped" in served
        assert "gpt-4o" not in served
        assert agents.running.post(CHAT, body("nobodys")).status == 503
        assert agent.requests == []


def test_one_agent_too_many_is_refused_and_the_others_stay(agents: Agents) -> None:
    token = agents.enrol("few", "few-*", max_agents=1)
    with agents.bystander(), Agent(agents.port, token=token, name="first", models=["few-1"]) as first:
        with agents.connect() as second:
            second.send_json(agents.hello(token=token, agent="second", models=["few-1"]))
            assert second.end().code == 4429
        assert first.is_connected
        with Agent(agents.port, token=token, name="first", models=["few-1"]):
            assert first.wait_closed().code == 4409


def test_who_announces_only_what_its_token_does_not_cover_stays_and_serves_nothing(agents: Agents) -> None:
    with agents.bystander(), Agent(agents.port, token=agents.token, name="narrowed", models=["box-narrowed"]) as agent:
        agents.running.wait_catalog()
        assert agents.running.post(CHAT, body("box-narrowed")).status == 200
        agent.say({"type": "update", "models": ["bystander"]})
        deadline = time.monotonic() + 3
        while agents.running.post(CHAT, body("box-narrowed")).status != 503:
            assert time.monotonic() < deadline
        assert agents.running.get("/v1/models").status == 200
        assert {serving.frame["model"] for serving in agent.requests} == {"box-narrowed"}
        assert agent.is_connected


def test_more_than_one_update_in_a_second_is_too_much(agents: Agents) -> None:
    with agents.bystander(), agents.welcomed() as agent:
        for _ in range(2):
            agent.send(frame("update", models=["box-1"]))
        assert agent.end().code == 4429


def test_a_token_that_is_revoked_cuts_its_agents_off_and_their_streams_end_with_an_error(agents: Agents) -> None:
    token = agents.enrol("leaver", "leaver")
    leaver = Agent(agents.port, says("one ", "two", pause_s=30), token=token, models=["leaver"], resumes=False)
    with agents.bystander(), leaver as agent, agents.running.client() as client:
        agents.running.wait_catalog()
        client.ask(CHAT, body("leaver", stream=True))
        assert client.head().status == 200
        client.until(b"one ")
        began = time.monotonic()
        agents.revoke("leaver")
        assert agent.wait_closed().code == 4401
        assert time.monotonic() - began < 2
        rest = client.rest().decode()
        assert '"error"' in rest
        assert "[DONE]" not in rest
        with pytest.raises(Closed) as closed:
            agent.connect()
        assert closed.value.code == 4401


def test_who_sends_more_than_it_has_credit_for_is_closed_and_its_client_is_told(agents: Agents) -> None:
    flood = says(*["x" * 4096] * 2500)
    flooding = Agent(agents.port, flood, token=agents.token, models=["box-flood"], wrong=Misbehaviour(ignores_credit=True), resumes=False)
    with agents.bystander(), flooding as agent, agents.running.client() as client:
        agents.running.wait_catalog()
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.ask(CHAT, body("box-flood", stream=True))  # and reads nothing, so that no credit is given
        assert agent.wait_closed(15).code == 4429
        assert client.head().status == 200
        rest = client.rest().decode()
        assert '"error"' in rest
        assert "[DONE]" not in rest


@pytest.mark.parametrize("wrong", [Misbehaviour(drops=at(2)), Misbehaviour(swaps=at(2))])
def test_a_gap_in_an_answer_fails_that_answer_only(agents: Agents, wrong: Misbehaviour) -> None:
    with agents.bystander(), Agent(agents.port, always=says("a", "b", "c"), token=agents.token, models=["box-gap"], wrong=wrong) as agent:
        agents.running.wait_catalog()
        broken = agents.running.post(CHAT, body("box-gap", stream=True))
        assert b'"error"' in broken.body
        assert b"[DONE]" not in broken.body
        agent.wrong = Misbehaviour()
        assert agents.running.post(CHAT, body("box-gap")).json()["choices"][0]["message"]["content"] == "abc"
        assert agent.connections == 1


def test_what_comes_twice_or_too_late_is_passed_over(agents: Agents) -> None:
    with agents.bystander(), agents.welcomed(models=["box-late"]) as agent:
        agents.running.wait_catalog()
        asked = agents.asked("box-late")
        request = received(agent, "request")
        for seq, more in ((1, {"type": "delta", "text": "a"}), (1, {"type": "delta", "text": "a"}), (2, {"type": "done", "reason": "stop"})):
            agent.send_json({"id": request["id"], "seq": seq, **more})
        assert asked.answer().json()["choices"][0]["message"]["content"] == "a"
        for late in ({"type": "delta", "text": "late"}, {"type": "done", "reason": "stop"}):
            agent.send_json({"id": request["id"], "seq": 3, **late})
        agent.send(frame("ping", at="still-there"))
        assert received(agent, "pong")["at"] == "still-there"


def test_an_answer_that_is_given_by_another_agent_closes_that_one_and_the_right_one_is_taken(agents: Agents) -> None:
    with agents.bystander(), agents.welcomed("asked", models=["box-own"]) as agent, agents.welcomed("other", models=["box-other"]) as other:
        agents.running.wait_catalog()
        asked = agents.asked("box-own")
        request = received(agent, "request")
        other.send_json({"id": request["id"], "type": "delta", "seq": 1, "text": "forged"})
        assert other.end().code == 4400
        agent.send_json({"id": request["id"], "type": "delta", "seq": 1, "text": "mine"})
        agent.send_json({"id": request["id"], "type": "done", "seq": 2, "reason": "stop"})
        assert asked.answer().json()["choices"][0]["message"]["content"] == "mine"


def test_receipts_the_ledger_and_the_log_name_the_agent(agents: Agents) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    with Agent(agents.port, says("a", "b", usage=usage), token=agents.token, name="named", models=["box-named"]) as agent:
        agents.running.wait_catalog()
        answer = agents.running.post(CHAT, body("box-named"))
        (entry,) = [entry for entry in agents.running.wait_entries(1) if entry.exchange == answer.headers["x-request-id"]]
        assert (answer.json()["usage"]["total_tokens"], entry.usage_source) == (7, "provider")
        assert entry.credential == agent.welcome["agent"]
        receipt = json.loads(agents.running.exchange(entry.exchange).receipt)  # type: ignore[union-attr]
        assert [attempt["credential"] for attempt in receipt["attempts"]] == [entry.credential]
