"""Row 26, websockets: a worker that is told to leave sends its idle agents to the next at once, lets answers end over the others or says that they are
cut, and is gone in time."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.fakes.agents import Agent, Answer, Serving, says
from tests.fakes.gateway import RunningGateway
from tests.faults.conftest import Measured
from tests.faults.hosting import CHAT, Streaming, asking, enrolled, eventually, wait_served, workers, workers_of

DRAIN_S, IDLE, STREAMS = 3, 6, 6
AT_ONCE_S = 1.0


def endless(serving: Serving) -> None:
    for number in itertools.count():
        serving.delta(f"{number} ")
        serving.pause(0.02)


def quick() -> Answer:
    """A second long."""
    return says(*[f"{number} " for number in range(50)], pause_s=0.02)


def agents_of(gateway: RunningGateway, model: str, count: int, answer: Answer, stays: bool) -> list[Agent]:
    token = enrolled(gateway, model, model)
    return [
        Agent(gateway.port, token=token, name=f"{model}-{number}", models=[model], concurrency=2, always=answer, stays=stays, again_s=0.1)
        for number in range(count)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_26_idle_agents_leave_at_once_and_streams_end_or_say_that_they_are_cut(tmp_path: Path, measured: Measured, workers: int) -> None:
    settings = {"GATEWAY_DRAIN_S": str(DRAIN_S), "WEB_CONCURRENCY": str(workers), "GATEWAY_LOG_LEVEL": "info"}
    with RunningGateway(tmp_path, settings) as gateway, contextlib.ExitStack() as stack:
        idle, ending, going_on = (
            agents_of(gateway, "idle", IDLE, says("never asked"), False),
            agents_of(gateway, "ending", STREAMS, quick(), False),
            agents_of(gateway, "going-on", STREAMS, endless, False),
        )
        for agent in (*idle, *ending, *going_on):
            stack.enter_context(agent)
        wait_served(gateway, "idle", "ending", "going-on")
        streams = [Streaming(gateway.client(), model, f"{model} {number}") for number in range(STREAMS) for model in ("ending", "going-on")]
        for stream in streams:
            stream.wait_pieces(1)
        unasked = [agent for agent in (*idle, *ending, *going_on) if not agent.requests]
        assert gateway.process is not None
        told = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        codes = {agent.wait_closed().code for agent in unasked}
        idle_s = time.monotonic() - told
        status = gateway.process.wait(10 * DRAIN_S)
        seconds = time.monotonic() - told
        for stream in streams:
            stream.join()
        busy = {agent.wait_closed().code for agent in (*ending, *going_on)}
    whole = [stream for stream in streams if stream.whole and len(stream.pieces) == 50]
    cut = [stream for stream in streams if stream.error and not stream.whole and stream.status == 200]
    measured(
        26,
        f"{workers} workers, agents: {len(unasked)} idle ones closed with {sorted(codes)} within {idle_s:.2f} s; {len(whole)} streams whole, {len(cut)} told;"
        f" all gone {seconds:.2f} s after SIGTERM, {DRAIN_S} s given",
    )
    assert (codes, busy) == ({1012}, {1012})
    assert (len(whole), len(cut), status) == (STREAMS, STREAMS, 0)
    assert idle_s < AT_ONCE_S
    assert seconds < DRAIN_S + 2


def test_26_reload_leads_agents_to_the_next_worker_and_costs_no_call(tmp_path: Path, measured: Measured) -> None:
    settings = {"GATEWAY_DRAIN_S": "6", "WEB_CONCURRENCY": "1", "GATEWAY_LOG_LEVEL": "info"}
    with RunningGateway(tmp_path, settings) as gateway, contextlib.ExitStack() as stack:
        idle = agents_of(gateway, "idle", IDLE, says("hello"), True)
        busy = agents_of(gateway, "busy", STREAMS, quick(), True)
        for agent in (*idle, *busy):
            stack.enter_context(agent)
        wait_served(gateway, "idle", "busy")
        before = workers(gateway)
        streams = [Streaming(gateway.client(), "busy", f"call {number}") for number in range(STREAMS)]
        for stream in streams:
            stream.wait_pieces(1)
        answered, stop = list[bytes](), threading.Event()
        asking_on = threading.Thread(target=_ask, args=(gateway, answered, stop))
        asking_on.start()
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGHUP)
        eventually(lambda: all(agent.connections > 1 and agent.is_connected for agent in (*idle, *busy)))
        there = set(workers_of(gateway, [agent.socket.sock for agent in (*idle, *busy)]))
        stop.set()
        asking_on.join()
        for stream in streams:
            stream.join()
        codes = {closed.code for agent in (*idle, *busy) for closed in agent.closed}
        whole = sum(stream.whole and len(stream.pieces) == 50 for stream in streams)
    wrong = [answer for answer in answered if b'"hello"' not in answer]
    measured(26, f"reload: {IDLE + STREAMS} agents went to the next worker; {whole} of {STREAMS} streams whole, {len(wrong)} of {len(answered)} calls failed")
    assert codes == {1012}
    assert not there & set(before)
    assert whole == STREAMS
    assert answered
    assert not wrong


def _ask(gateway: RunningGateway, answered: list[bytes], stop: threading.Event) -> None:
    """Over a connection for each call."""
    for number in itertools.count():
        if stop.is_set():
            return
        answered.append(gateway.post(CHAT, asking("idle", f"question {number}")).body)
        time.sleep(0.01)
