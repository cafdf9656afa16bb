from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway.api.websocket import WebSocket
from tests.fakes import agents, old_agents
from tests.fakes.agents import SUBPROTOCOL, Agent, Misbehaviour
from tests.fakes.old_agents import OldAgent
from tests.fakes.socket_server import SocketServer
from tests.fakes.websocket import Closed

BODY = {"messages": [{"role": "user", "content": "what is it"}]}


class Side:
    """The gateway's side, played by the test: `take` is the next frame of the agent, `say` sends one."""

    def __init__(self) -> None:
        self.sockets: queue.Queue[WebSocket] = queue.Queue()
        self.frames: queue.Queue[dict[str, Any]] = queue.Queue()
        self.websocket: WebSocket | None = None

    def serve(self, websocket: WebSocket) -> None:
        self.websocket = websocket
        self.sockets.put(websocket)
        while (message := websocket.receive(None)) is not None:
            frame = json.loads(message)
            if frame.get("type") == "hello":
                websocket.send(json.dumps({"type": "welcome", "agent": frame.get("agent", ""), "grace_s": 5}))
            self.frames.put(frame)

    def say(self, **frame: Any) -> None:
        assert self.websocket is not None
        self.websocket.send(json.dumps(frame))

    def ask(self, id: str = "r1", credit: int = 100, model: str = "m") -> None:
        self.say(type="request", id=id, model=model, stream=True, credit=credit, deadline_s=60, body=BODY)

    def take(self, timeout_s: float = 5.0) -> dict[str, Any]:
        return self.frames.get(timeout=timeout_s)

    def silent(self, seconds: float = 0.1) -> bool:
        try:
            self.frames.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def pieces(self, count: int) -> list[tuple[int, str]]:
        return [(frame["seq"], frame.get("text", frame["type"])) for frame in (self.take() for _ in range(count))]


@contextmanager
def connected(make: Callable[[int], Agent]) -> Iterator[tuple[Side, Agent]]:
    side = Side()
    with SocketServer(side.serve, (SUBPROTOCOL,)) as server, make(server.port) as agent:
        side.take()
        yield side, agent


def test_agent_says_hello_as_documented() -> None:
    side = Side()
    with SocketServer(side.serve, (SUBPROTOCOL,)) as server, Agent(server.port, name="a", models=("x", "y"), token="t", token_in="hello"):
        hello = side.take()
        assert hello["session"]
        expected = {"type": "hello", "agent": "a", "models": ["x", "y"], "concurrency": 1, "resumes": True, "token": "t", "software": "scripted/1"}
        assert hello == expected | {"session": hello["session"]}


def test_answer_is_counted_and_ended() -> None:
    with connected(lambda port: Agent(port, agents.says("a", "b", usage={"total_tokens": 3}))) as (side, agent):
        side.ask()
        assert [side.take() for _ in range(3)] == [
            {"type": "delta", "id": "r1", "seq": 1, "text": "a"},
            {"type": "delta", "id": "r1", "seq": 2, "text": "b"},
            {"type": "done", "id": "r1", "seq": 3, "reason": "stop", "usage": {"total_tokens": 3}},
        ]
        assert agent.requests[0].asked == "what is it"


def test_agent_sends_no_more_than_its_credit() -> None:
    with connected(lambda port: Agent(port, agents.says("a", "b", "c"))) as (side, _):
        side.ask(credit=2)
        assert side.pieces(2) == [(1, "a"), (2, "b")]
        assert side.silent()
        side.say(type="credit", id="r1", n=1, received=2)
        assert side.pieces(1) == [(3, "c")]
        side.say(type="credit", id="r1", n=1, received=3)
        assert side.pieces(1) == [(4, "done")]


def test_pong_comes_while_a_request_waits() -> None:
    with connected(lambda port: Agent(port, agents.keeps_silent())) as (side, agent):
        side.ask()
        agent.wait(lambda: agent.requests)
        side.say(type="ping", at=7)
        assert side.take() == {"type": "pong", "at": 7}
        agent.ping("x")
        assert side.take() == {"type": "ping", "at": "x"}


def test_cancelled_answer_stops() -> None:
    with connected(lambda port: Agent(port, agents.keeps_silent("a"))) as (side, agent):
        side.ask()
        assert side.pieces(1) == [(1, "a")]
        side.say(type="cancel", id="r1")
        agent.wait(lambda: agent.requests[0].given_up == "cancelled")
        assert side.silent()


def test_agent_takes_no_more_than_it_said_and_only_its_models() -> None:
    with connected(lambda port: Agent(port, agents.keeps_silent())) as (side, _):
        side.ask("r1")
        side.ask("r2")
        side.ask("r3", model="other")
        assert {(frame["id"], frame["cause"]) for frame in (side.take(), side.take())} == {("r2", "busy"), ("r3", "model_not_served")}


def test_lost_answer_is_resumed_after_what_arrived() -> None:
    with connected(lambda port: Agent(port, agents.says("a", "b", "c", "d"))) as (side, agent):
        side.ask(credit=3)
        assert side.pieces(3) == [(1, "a"), (2, "b"), (3, "c")]
        agent.drop()
        agent.connect()
        assert side.take()["session"] == agent.session
        side.say(type="resume", id="r1", session=agent.session, received=1, credit=3)
        assert side.pieces(3) == [(2, "b"), (3, "c"), (4, "d")]
        side.say(type="credit", id="r1", n=5, received=4)
        assert side.pieces(1) == [(5, "done")]
        assert agent.requests[0].resumed == 1


def test_forgotten_request_cannot_be_resumed() -> None:
    with connected(lambda port: Agent(port, agents.keeps_silent("a"))) as (side, agent):
        side.ask()
        side.take()
        session = agent.session
        agent.drop()
        agent.wait_closed()
        agent.forget()
        agent.connect()
        side.take()
        side.say(type="resume", id="r1", session=session, received=1, credit=3)
        assert side.take()["cause"] == "unknown_request"


def test_agent_that_stays_connects_again_by_itself() -> None:
    with connected(lambda port: Agent(port, stays=True, again_s=0.05)) as (side, agent):
        agent.drop()
        assert side.take()["type"] == "hello"
        agent.wait(lambda: agent.connections == 2 and agent.is_connected)


def test_agent_that_was_replaced_does_not_connect_again() -> None:
    with connected(lambda port: Agent(port, stays=True, again_s=0.01)) as (side, agent):
        assert side.websocket is not None
        side.websocket.close(4409)
        assert agent.wait_closed().code == 4409
        assert side.silent()
        assert agent.connections == 1


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (Misbehaviour(drops=agents.at(2)), [(1, "a"), (3, "c"), (4, "done")]),
        (Misbehaviour(doubles=agents.at(2)), [(1, "a"), (2, "b"), (2, "b"), (3, "c"), (4, "done")]),
        (Misbehaviour(swaps=agents.at(2)), [(1, "a"), (3, "c"), (2, "b"), (4, "done")]),
        (Misbehaviour(stalls=agents.at(2)), [(1, "a")]),
        (Misbehaviour(breaks=agents.at(3)), [(1, "a"), (2, "b")]),
    ],
)
def test_misbehaviour_is_as_asked(wrong: Misbehaviour, expected: list[tuple[int, str]]) -> None:
    with connected(lambda port: Agent(port, agents.says("a", "b", "c"), wrong=wrong)) as (side, _):
        side.ask()
        assert side.pieces(len(expected)) == expected
        assert side.silent()


def test_agent_may_ignore_its_credit_and_pings() -> None:
    with connected(lambda port: Agent(port, agents.says("a", "b"), wrong=Misbehaviour(ignores_credit=True, pongs=False))) as (side, agent):
        side.ask(credit=1)
        assert side.pieces(3) == [(1, "a"), (2, "b"), (3, "done")]
        side.say(type="ping", at=1)
        agent.wait(lambda: agent.pings == 1)
        assert side.silent()


# the older protocol


@contextmanager
def registered(make: Callable[[int], OldAgent]) -> Iterator[tuple[Side, OldAgent]]:
    side, ready = Side(), threading.Event()

    def serve(websocket: WebSocket) -> None:
        websocket.send(json.dumps({"id": "offered", "message": "Connection id", "data": ""}))
        ready.set()
        side.serve(websocket)

    with SocketServer(serve) as server, make(server.port) as agent:
        yield side, agent


def asked(side: Side, content: str, conversation_id: str = "") -> None:
    data = {"message_id": "m", "conversation_id": conversation_id, "parent_id": "p", "content": content}
    side.say(id="q1", message="ChatGptRequest", data=json.dumps(data))


def test_old_agent_keeps_the_id_that_it_got_first() -> None:
    with registered(OldAgent) as (side, agent):
        assert side.take() == {"id": "offered", "message": "Connection id", "data": ""}
        assert agent.id == "offered"
    with registered(lambda port: OldAgent(port, kept_id="kept")) as (side, agent):
        assert side.take()["id"] == "kept"
        agent.drop()
        agent.connect()
        assert side.take()["id"] == "kept"


def test_old_agent_answers_and_pongs_meanwhile() -> None:
    with registered(lambda port: OldAgent(port, old_agents.answers("hi", after_s=0.2))) as (side, agent):
        side.take()
        asked(side, "hello", "c1")
        side.say(id="p1", message="ping", data="")
        assert side.take() == {"id": "p1", "message": "pong", "data": ""}
        answer = side.take()
        assert (answer["id"], answer["message"]) == ("q1", "ChatGptResponse")
        data = json.loads(answer["data"])
        assert (data["content"], data["conversation_id"]) == ("hi", "c1")
        assert agent.asked[0]["content"] == "hello"


def test_old_agent_fails_as_scripted() -> None:
    script = (old_agents.answers_error(), old_agents.answers_data("no json"), old_agents.answers_as("other"), old_agents.answers_nothing(), old_agents.drops())
    with registered(lambda port: OldAgent(port, *script)) as (side, agent):
        side.take()
        asked(side, "1")
        assert side.take() == {"id": "q1", "message": "error", "data": "Unknown error", "error": {}}
        asked(side, "2")
        assert side.take()["data"] == "no json"
        asked(side, "3")
        assert side.take()["id"] == "other"
        asked(side, "4")
        assert side.silent()
        asked(side, "5")
        assert agent.wait_closed().code == 1006


def test_server_that_closes_tells_the_old_agent_why() -> None:
    with registered(OldAgent) as (side, agent):
        assert side.websocket is not None
        side.websocket.close(1012, "restart")
        closed = agent.wait_closed()
        assert isinstance(closed, Closed)
        assert (closed.code, closed.reason) == (1012, "restart")
