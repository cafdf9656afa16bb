"""Row 41: one agent connects twice, to the same worker or another. The newest connection serves; what the replaced one still sends reaches nobody. Under
another token a name is another agent. What the directory says of a worker that died misleads no call."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable

import pytest

from tests.fakes.agents import SUBPROTOCOL, Agent, says
from tests.fakes.gateway import RunningGateway
from tests.fakes.websocket import WebSocketClient
from tests.faults.conftest import Measured
from tests.faults.hosting import CHAT, Streaming, asking, client_where, connected_where, enrolled, kill, wait_served, worker_of, workers

PIECES = 20
ROUNDS = 5


def welcomed_where(gateway: RunningGateway, token: str, model: str, fits: Callable[[int], bool]) -> WebSocketClient:
    """The first connection to a worker that fits, all of whose frames the test writes: the others say no hello."""
    while True:
        socket = WebSocketClient(gateway.port, headers={"authorization": f"Bearer {token}"}, subprotocols=(SUBPROTOCOL,))
        if (worker := worker_of(gateway, socket.sock)) is not None and fits(worker):
            socket.send_json({"type": "hello", "models": [model], "session": "s", "resumes": True, "concurrency": 4})
            assert socket.receive_json()["type"] == "welcome"
            return socket
        socket.close()
        socket.sock.close()


def replaced(gateway: RunningGateway, token: str, model: str, fits: Callable[[int, int], bool]) -> tuple[int, int, int, bool]:
    """An agent is replaced in the midst of an answer, and goes on sending: how many pieces it had sent when the new one was welcomed, how many of
    the client's are its own, with which code it was closed, and whether the answer is whole."""
    old = welcomed_where(gateway, token, model, lambda _: True)
    worker = worker_of(gateway, old.sock)
    assert worker is not None
    call = Streaming(gateway.client(), model)
    asked = next(frame for frame in iter(old.receive_json, None) if frame["type"] == "request")
    sent = 0
    for _ in range(5):
        sent += 1
        old.send_json({"type": "delta", "id": asked["id"], "seq": sent, "text": "old "})
    call.wait_pieces(5)
    new = welcomed_where(gateway, token, model, lambda pid: fits(pid, worker))
    before = sent
    with contextlib.suppress(OSError):
        for _ in range(PIECES):  # fewer than it has credit for
            sent += 1
            old.send_json({"type": "delta", "id": asked["id"], "seq": sent, "text": "old "})
            time.sleep(0.005)
    resume = next(frame for frame in iter(new.receive_json, None) if frame["type"] == "resume")
    for number in range(resume["received"] + 1, PIECES + 1):
        new.send_json({"type": "delta", "id": asked["id"], "seq": number, "text": "new "})
    new.send_json({"type": "done", "id": asked["id"], "seq": PIECES + 1, "reason": "stop"})
    call.join()
    code = old.end().code
    for socket in (old, new):
        socket.sock.close()
    words = call.text.split()
    is_whole = call.whole and words == ["old"] * resume["received"] + ["new"] * (PIECES - resume["received"])
    return before, words.count("old"), code, is_whole


@pytest.mark.parametrize("where", ["the same worker", "another worker"])
def test_41_newest_connection_answers_and_the_replaced_one_no_more(hosts: RunningGateway, measured: Measured, where: str) -> None:
    model = f"twice-{where[0]}"
    token = enrolled(hosts, model, model)
    with welcomed_where(hosts, token, model, lambda _: True):
        wait_served(hosts, model)
    found = [replaced(hosts, token, model, lambda new, old: (new == old) is (where == "the same worker")) for _ in range(ROUNDS)]
    late = sum(max(0, delivered - before) for before, delivered, _, _ in found)
    measured(
        41, f"agent connects again to {where}: {late} pieces of the replaced one after that, in {ROUNDS} rounds; closed with {[code for *_, code, _ in found]}"
    )
    assert late == 0
    assert [(code, is_whole) for *_, code, is_whole in found] == [(4409, True)] * ROUNDS


def test_41_calls_go_to_the_newest_connection(hosts: RunningGateway) -> None:
    token = enrolled(hosts, "newest", "newest-model")
    with Agent(hosts.port, token=token, models=["newest-model"], always=says("first")) as first:
        wait_served(hosts, "newest-model")
        for number in range(4):
            newest = Agent(hosts.port, token=token, models=["newest-model"], always=says(f"number {number}"))
            newest.connect()
            answers = [hosts.post(CHAT, asking("newest-model", f"to {number}, {again}")).body for again in range(6)]
            assert [f'"number {number}"'.encode() in answer for answer in answers] == [True] * 6
            assert first.wait_closed().code == 4409
            first = newest
        first.close()


def test_41_under_another_token_the_name_is_another_agent(hosts: RunningGateway) -> None:
    tokens = [enrolled(hosts, f"namesake-{number}", f"namesake-{number}") for number in range(2)]
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(Agent(hosts.port, token=token, name="the name", models=[f"namesake-{number}"], always=says(str(number))))
            for number, token in enumerate(tokens)
        ]
        wait_served(hosts, "namesake-0", "namesake-1")
        answers = [hosts.post(CHAT, asking(f"namesake-{number}", "who?")).json()["choices"][0]["message"]["content"] for number in range(2)]
        assert answers == ["0", "1"]
        assert all(agent.is_connected for agent in both)


def test_41_stale_entry_of_a_killed_worker_costs_no_call(hosts: RunningGateway, measured: Measured) -> None:
    """Calls come from the moment of the death on; the agent whose entry is left does not come back for a while, and the other answers all of them."""
    token = enrolled(hosts, "stale", "stale-model")
    gone = Agent(hosts.port, token=token, name="gone", models=["stale-model"], concurrency=8, always=says("gone"))
    there = Agent(hosts.port, token=token, name="there", models=["stale-model"], concurrency=8, always=says("there"))
    with contextlib.ExitStack() as stack:
        worker = connected_where(hosts, gone, lambda _: True)
        stack.callback(gone.close)
        connected_where(hosts, there, lambda pid: pid != worker)
        stack.callback(there.close)
        wait_served(hosts, "stale-model")
        clients = [client_where(hosts, pid.__eq__) for pid in workers(hosts) if pid != worker]
        kill(hosts, worker)
        answers = []
        for number, client in zip(range(40), itertools.cycle(clients)):
            client.ask(CHAT, asking("stale-model", f"call {number}"))
            answers.append(client.answer())
            time.sleep(0.02)
        for client in clients:
            client.sock.close()
        right = sum(answer.status == 200 and b'"there"' in answer.body for answer in answers)
        gone.wait_closed()
        gone.connect()
        there.drop()
        assert b'"gone"' in hosts.post(CHAT, asking("stale-model", "and now?")).body
        assert gone.is_connected
    measured(41, f"stale entry of a killed worker: {right} of {len(answers)} calls from that moment on answered by the agent that is there")
    assert right == len(answers)
