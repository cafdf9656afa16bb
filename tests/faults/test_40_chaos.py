"""Row 40, all at once: 200 agents over three workers lose connections, double, drop and reorder frames and fall silent, while workers are killed. Every
call ends in its own whole answer or in an explicit error; whoever lost a worker is back in time; and a pool that was empty recovers."""

from __future__ import annotations

import collections
import contextlib
import json
import random
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes.agents import Agent, Misbehaviour, Serving, sometimes
from tests.fakes.gateway import Broken, RawClient, RunningGateway
from tests.faults.conftest import Measured
from tests.faults.hosting import CHAT, asking, enrolled, eventually, kill, wait_served, workers_of

AGENTS, CALLS, CLIENTS, KILLS = 200, 2000, 16, 2
PIECES, BACK_S = 6, 5.0
SETTINGS = {"WEB_CONCURRENCY": "3", "GATEWAY_LOG_LEVEL": "warning", "GATEWAY_IDLE_S": "3", "GATEWAY_FIRST_BYTE_S": "10", "GATEWAY_TOTAL_S": "30"}
MODEL = "chaos-model"


def pieces(nonce: str) -> list[str]:
    return [f"{nonce}:{number} " for number in range(PIECES)]


def echoes_its_nonce(serving: Serving) -> None:
    for piece in pieces(serving.asked):
        serving.delta(piece)
        serving.pause(0.005)
    serving.done()


def misbehaving(dice: random.Random) -> Misbehaviour:
    return Misbehaviour(
        doubles=sometimes(0.05, dice), breaks=sometimes(0.005, dice), swaps=sometimes(0.003, dice), drops=sometimes(0.002, dice), stalls=sometimes(0.001, dice)
    )


@dataclass
class Seen:
    """How calls ended: "whole", "error" (told by the gateway), "cut" (the connection broke with the client's own worker), or what must never be:
    "crossed" (another call's nonce), "truncated" or "garbled" (taken for whole, and not), "lost" (no end)."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    examples: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, result: str, detail: str) -> None:
        with self.lock:
            self.counts[result] += 1
            if result == "error":
                self.errors[detail] += 1
            elif result not in ("whole", "cut"):
                self.examples.append(f"{result}: {detail}")


def judged(nonce: str, text: str, error: str, *, is_whole: bool) -> tuple[str, str]:
    if any(not word.startswith(nonce) for word in text.split()):
        return "crossed", f"{nonce} got {text}"
    if error:
        return "error", error
    if not is_whole:
        return "truncated", text
    return ("whole", "") if text == "".join(pieces(nonce)) else ("truncated" if "".join(pieces(nonce)).startswith(text) else "garbled", text)


def streamed(nonce: str, body: bytes) -> tuple[str, str]:
    events = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event.startswith("data: ")]
    documents = [json.loads(event) for event in events if event != "[DONE]"]
    error = next((str(document["error"]["code"]) for document in documents if "error" in document), "")
    text = "".join(choice["delta"].get("content") or "" for document in documents for choice in document.get("choices", ()))
    return judged(nonce, text, error, is_whole=bool(events) and events[-1] == "[DONE]")


def result_of(client: RawClient, nonce: str, *, stream: bool) -> tuple[str, str]:
    try:
        client.ask(CHAT, asking(MODEL, nonce, stream=stream))
        head = client.head()
        body = client.rest()
    except TimeoutError:
        return "lost", nonce
    except (Broken, OSError):
        return "cut", ""
    if head.status != 200:
        return "error", str(json.loads(body)["error"]["code"])
    if stream:
        return streamed(nonce, body)
    return judged(nonce, json.loads(body)["choices"][0]["message"]["content"], "", is_whole=True)


def call(gateway: RunningGateway, seen: Seen, number: int) -> None:
    nonce = uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(gateway.client(timeout_s=40))
        except OSError:
            seen.note("cut", "")
            return
        seen.note(*result_of(client, nonce, stream=number % 2 == 0))


@contextlib.contextmanager
def connected(gateway: RunningGateway) -> Iterator[list[Agent]]:
    token, dice = enrolled(gateway, "chaos", MODEL), random.Random(40)
    made = [
        Agent(
            gateway.port,
            token=token,
            name=f"agent-{number}",
            models=[MODEL],
            concurrency=4,
            resumes=number % 2 == 0,
            always=echoes_its_nonce,
            wrong=misbehaving(random.Random(dice.random())),
            stays=True,
            again_s=0.5,
        )
        for number in range(AGENTS)
    ]
    with contextlib.ExitStack() as stack:
        for agent in made:
            stack.enter_context(agent)
        yield made
        with ThreadPoolExecutor(32) as pool:  # else each in turn
            list(pool.map(Agent.close, made))


def killed(gateway: RunningGateway, agents: Sequence[Agent]) -> tuple[int, float]:
    """Kill the worker with the most agents: how many those were, and after how long each of them was connected again."""
    held = workers_of(gateway, [agent.socket.sock for agent in agents])
    ((worker, count),) = collections.Counter(pid for pid in held if pid is not None).most_common(1)
    lost = [(agent, agent.connections) for agent, pid in zip(agents, held) if pid == worker]
    at = kill(gateway, worker)
    waited: dict[int, float] = {}

    def all_back() -> bool:
        for number, (agent, before) in enumerate(lost):
            if number not in waited and agent.connections > before:
                waited[number] = time.monotonic() - at
        return len(waited) == count

    with contextlib.suppress(AssertionError):
        eventually(all_back, timeout_s=4 * BACK_S)
    assert len(waited) == count, [agent for number, (agent, _) in enumerate(lost) if number not in waited]
    return count, max(waited.values())


@pytest.mark.timeout(180)
def test_40_chaos_loses_crosses_and_truncates_nothing(tmp_path: Path, measured: Measured) -> None:
    seen, backs, began = Seen(), list[tuple[int, float]](), time.monotonic()
    with RunningGateway(tmp_path, SETTINGS) as gateway, connected(gateway) as agents:
        wait_served(gateway, MODEL)
        connecting_s = time.monotonic() - began
        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            calls = [pool.submit(call, gateway, seen, number) for number in range(CALLS)]
            for number in range(KILLS):
                eventually(lambda number=number: seen.counts.total() > (number + 1) * CALLS // (KILLS + 2), timeout_s=60)  # type: ignore[misc]
                backs.append(killed(gateway, agents))
            for each in calls:
                each.result()
        seconds = time.monotonic() - began
        dropped = sum(agent.connections - 1 for agent in agents)
        measured(40, f"chaos: {AGENTS} agents in {connecting_s:.1f} s; {CALLS} calls in {seconds:.1f} s, {dropped} connections lost")
        measured(40, f"chaos: {dict(seen.counts)}, errors {dict(seen.errors)}")
        for count, back_s in backs:
            measured(40, f"chaos: {count} agents of a killed worker are all back after {back_s:.2f} s (5 s)")
        assert set(seen.counts) <= {"whole", "error", "cut"}, seen.examples[:5]
        assert seen.counts.total() == CALLS
        assert seen.counts["whole"] > CALLS * 0.8
        assert seen.counts["cut"] <= KILLS * CLIENTS
        assert max(back_s for _, back_s in backs) < 2 * BACK_S
        emptied(gateway, agents, measured)


def emptied(gateway: RunningGateway, agents: Sequence[Agent], measured: Measured) -> None:
    """All agents leave: calls are refused, or wait. Some come back: calls are answered, also those that wait."""
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(Agent.close, agents))
    seen = Seen()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(call, gateway, seen, number) for number in range(8)]
        time.sleep(0.3)
        back = [Agent(gateway.port, token=agent.token, name=agent.name, models=[MODEL], concurrency=4, always=echoes_its_nonce) for agent in agents[:10]]
        with contextlib.ExitStack() as stack:
            for agent in back:
                stack.enter_context(agent)
            for each in waiting:
                each.result()
            for number in range(20):
                call(gateway, seen, number)
    measured(40, f"chaos: the pool was empty; of 8 calls that came then and 20 afterwards: {dict(seen.counts)}, errors {dict(seen.errors)}")
    assert set(seen.counts) <= {"whole", "error"}, seen.examples[:5]
    assert seen.counts["whole"] >= 20
