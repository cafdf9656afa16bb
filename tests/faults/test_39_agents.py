"""Row 39, agents: one dies in the midst of a request. Before its first byte another answers; after it the client is told; so too where the worker dies
that held its socket. An agent that keeps its frames goes on where it was."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence

from tests.fakes.agents import Agent, Answer, Serving
from tests.fakes.gateway import RunningGateway
from tests.faults.calls import milliseconds
from tests.faults.conftest import Measured
from tests.faults.hosting import Streaming, client_where, connected_where, enrolled, kill, wait_served, worker_of

CALLS = 12
NAMES = "abcdefgh"
FIGURE_S = 0.1
AFTERWARDS = 30


class Dying:
    """An answer's script for several agents: whoever is asked first is lost at that moment; `at`: when (monotonic), by what was asked."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.lost: dict[str, str] = {}

    def __call__(self, serving: Serving) -> None:
        if serving.asked not in self.at:
            self.lost[serving.asked] = serving.agent.name
            self.at[serving.asked] = time.monotonic()
            serving.agent.drop()
            return
        serving.delta(f"by {serving.agent.name}")
        serving.done()


def spread(seconds: Sequence[float]) -> str:
    return f"{milliseconds(sorted(seconds)[len(seconds) // 2])} in the middle, {milliseconds(max(seconds))} at most, of {len(seconds)}"


def test_39_agent_lost_before_its_first_byte_is_replaced_by_another(hosts: RunningGateway, measured: Measured) -> None:
    token, dying = enrolled(hosts, "dying", "dying-model"), Dying()
    with contextlib.ExitStack() as stack:
        # So many that none dies three times within a minute, for which it would be left alone for a moment.
        agents = {name: stack.enter_context(Agent(hosts.port, token=token, name=name, models=["dying-model"], always=dying)) for name in NAMES}
        wait_served(hosts, "dying-model")
        time.sleep(1.2)  # every worker knows all of them within a second
        answered, seconds = 0, list[float]()
        for number in range(CALLS):
            asked = f"call {number}"
            call = Streaming(hosts.client(), "dying-model", asked).join()
            lost = dying.lost[asked]
            answered += call.whole and call.text in {f"by {name}" for name in set(NAMES) - {lost}}
            seconds.append(call.times[0] - dying.at[asked])
            agents[lost].connect()
    measured(39, f"agent lost before its first byte: {answered} of {CALLS} answered by another, {spread(seconds)} later (100 ms)")
    assert answered == CALLS
    assert max(seconds) < 10 * FIGURE_S


@contextlib.contextmanager
def streams(gateway: RunningGateway, agent: Agent, model: str, worker: int) -> Iterator[list[Streaming]]:
    """CALLS of them at this agent, whose socket `worker` has, from clients of other workers; each has begun."""
    calls = [Streaming(client_where(gateway, lambda pid: pid != worker), model, f"{model} {number}") for number in range(CALLS)]
    for call in calls:
        call.wait_pieces(1)
    yield calls
    for call in calls:
        call.join()


def counting(enough: threading.Event) -> Answer:
    """A number every 20 ms, and so many more AFTERWARDS."""

    def answer(serving: Serving) -> None:
        left = AFTERWARDS
        for number in itertools.count():
            serving.delta(f"{number} ")
            serving.pause(0.02)
            left -= enough.is_set()
            if not left:
                break
        serving.done()

    return answer


def is_whole(call: Streaming, agent: Agent) -> bool:
    """Every piece that was made, each once and in order."""
    return call.whole and call.pieces == [f"{number} " for number in range(made(call, agent) - 1)]


def is_told(call: Streaming, agent: Agent) -> bool:
    """A beginning, and an error."""
    count = len(call.pieces)
    return bool(call.error) and not call.whole and call.pieces == [f"{number} " for number in range(count)] and 0 < count <= made(call, agent)


def made(call: Streaming, agent: Agent) -> int:
    (serving,) = [serving for serving in agent.requests if serving.asked == call.content]
    return serving.seq


def test_39_agent_lost_after_its_first_byte_is_told_at_once(hosts: RunningGateway, measured: Measured) -> None:
    token, enough = enrolled(hosts, "mortal", "mortal-model"), threading.Event()
    with Agent(hosts.port, token=token, models=["mortal-model"], concurrency=CALLS, resumes=False, always=counting(enough)) as agent:
        wait_served(hosts, "mortal-model")
        worker = worker_of(hosts, agent.socket.sock)
        assert worker is not None
        with streams(hosts, agent, "mortal-model", worker) as calls:
            at = time.monotonic()
            agent.drop()
    told = [call for call in calls if is_told(call, agent)]
    seconds = [call.over_at - at for call in calls]
    measured(39, f"agent lost after its first byte: {len(told)} of {CALLS} end with an explicit error, {spread(seconds)} later (100 ms)")
    assert len(told) == CALLS
    assert max(seconds) < 10 * FIGURE_S


def test_39_death_of_the_worker_that_has_the_socket_is_told_at_once_or_made_good(hosts: RunningGateway, measured: Measured) -> None:
    enough = threading.Event()
    plain_token, lasting_token = enrolled(hosts, "plain", "plain-model"), enrolled(hosts, "lasting", "lasting-model")
    plain = Agent(hosts.port, token=plain_token, models=["plain-model"], concurrency=CALLS, resumes=False, always=counting(enough))
    lasting = Agent(hosts.port, token=lasting_token, models=["lasting-model"], concurrency=CALLS, stays=True, again_s=0.2, always=counting(enough))
    with contextlib.ExitStack() as stack:
        worker = connected_where(hosts, plain, lambda _: True)
        stack.callback(plain.close)
        connected_where(hosts, lasting, worker.__eq__)
        stack.callback(lasting.close)
        wait_served(hosts, "plain-model", "lasting-model")
        with streams(hosts, plain, "plain-model", worker) as told, streams(hosts, lasting, "lasting-model", worker) as going_on:
            at = kill(hosts, worker)
            lasting.wait(lambda: all(serving.resumed for serving in lasting.requests))
            enough.set()
        explicit = [call for call in told if is_told(call, plain)]
        exact = [call for call in going_on if is_whole(call, lasting)]
    seconds = [call.over_at - at for call in told]
    pause_s = max(max(later - earlier for earlier, later in itertools.pairwise(call.times)) for call in going_on)
    measured(39, f"worker of the agent killed: {len(explicit)} of {CALLS} end with an explicit error, {spread(seconds)} later (100 ms)")
    measured(39, f"worker of an agent that resumes killed: {len(exact)} of {CALLS} go on exactly, the longest pause {milliseconds(pause_s)}")
    assert (len(explicit), len(exact)) == (CALLS, CALLS)
    assert max(seconds) < 10 * FIGURE_S
