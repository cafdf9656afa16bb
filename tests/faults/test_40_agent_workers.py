"""Row 40: a worker dies that has agents' sockets. They are all back within 5 s, wherever they come to, and no call reaches an agent it was not for."""

from __future__ import annotations

import collections
import contextlib
import itertools
import threading
import time
from dataclasses import dataclass, field

from tests.fakes.agents import Agent, Serving
from tests.fakes.gateway import Broken, RunningGateway
from tests.faults.conftest import Measured
from tests.faults.hosting import CHAT, asking, client_where, enrolled, eventually, kill, wait_served, worker_of, workers

AGENTS, CLIENTS = 24, 4
BACK_S = 5.0
AFTERWARDS_S = 1.0


def names_itself(serving: Serving) -> None:
    serving.delta(f"{serving.agent.name} answers ")
    serving.delta(serving.asked)
    serving.done()


@dataclass
class Seen:
    """What clients saw of calls, each for one agent alone: "right", "wrong", "told" (an error) or "cut" (their own worker died)."""

    gateway: RunningGateway
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    last: dict[str, str] = field(default_factory=dict)
    """By agent, the latest."""
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, first: int) -> None:
        for number in itertools.count(first, CLIENTS):
            if self.stop.is_set():
                return
            name = f"own-{number % AGENTS}"
            self.last[name] = result = self._result(name, f"question {number}")
            self.counts[result] += 1

    def _result(self, name: str, content: str) -> str:
        try:
            with self.gateway.client() as client:
                client.ask(CHAT, asking(name, content))
                answer = client.answer()
        except (Broken, OSError):
            return "cut"
        if answer.status != 200:
            return "told" if answer.json()["error"]["message"] else "wrong"
        return "right" if answer.json()["choices"][0]["message"]["content"] == f"{name} answers {content}" else "wrong"

    @contextlib.contextmanager
    def asking(self) -> collections.abc.Iterator[None]:
        threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()


def test_40_agents_of_a_killed_worker_are_back_and_nothing_goes_astray(hosts: RunningGateway, measured: Measured) -> None:
    token = enrolled(hosts, "owners", "own-*")
    made = [Agent(hosts.port, token=token, name=f"own-{number}", models=[f"own-{number}"], stays=True, always=names_itself) for number in range(AGENTS)]
    seen = Seen(hosts)
    with contextlib.ExitStack() as stack:
        for agent in made:
            stack.enter_context(agent)
        wait_served(hosts, *[agent.name for agent in made])
        held = collections.Counter(worker_of(hosts, agent.socket.sock) for agent in made)
        worker, count = held.most_common(1)[0]
        assert worker is not None
        with seen.asking():
            eventually(lambda: seen.counts["right"] > AGENTS)
            at = kill(hosts, worker)
            eventually(lambda: sum(agent.connections for agent in made) == AGENTS + count and all(agent.is_connected for agent in made))
            back_s = time.monotonic() - at
            seen.last.clear()
            eventually(lambda: len(seen.last) == AGENTS and set(seen.last.values()) == {"right"}, str(seen.counts))
            answered_s = time.monotonic() - at
        eventually(lambda: len(workers(hosts)) == 3)
    measured(
        40, f"worker with {count} of {AGENTS} agents killed: all back after {back_s:.2f} s, all answer after {answered_s:.2f} s (5 s); {dict(seen.counts)}"
    )
    assert seen.counts["wrong"] == 0
    assert back_s < 10 * BACK_S


def test_40_calls_for_the_agents_of_a_killed_worker_wait_for_them(hosts: RunningGateway, measured: Measured) -> None:
    """A call that comes while its only agent is away is answered when it is back, and nobody is told of it."""
    token = enrolled(hosts, "awaited", "awaited-model")
    with Agent(hosts.port, token=token, models=["awaited-model"], concurrency=CLIENTS, stays=True, again_s=0.5, always=names_itself) as agent:
        wait_served(hosts, "awaited-model")
        worker = worker_of(hosts, agent.socket.sock)
        assert worker is not None
        clients = [client_where(hosts, lambda pid: pid != worker) for _ in range(CLIENTS)]
        kill(hosts, worker)
        agent.wait_closed()
        for number, client in enumerate(clients):
            client.ask(CHAT, asking("awaited-model", f"question {number}"))
        answers = [client.answer() for client in clients]
        for client in clients:
            client.sock.close()
    answered = sum(answer.status == 200 for answer in answers)
    measured(40, f"{answered} of {CLIENTS} calls for an agent that is away for a moment are answered when it is back")
    assert answered == CLIENTS
