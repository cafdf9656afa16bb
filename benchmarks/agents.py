"""`python -m benchmarks.agents`: what a model costs that an agent serves, whose websocket another worker has, beside the same gateway's direct way to an
upstream; and the memory of idle agents."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.__main__ import disturbance
from benchmarks.comparison import running
from benchmarks.fast_agent import PREFIX, connected, models
from benchmarks.load import Upstream
from benchmarks.processes import ROOT, Cores, Unavailable, busy_s, memory, own_s
from benchmarks.table import number
from benchmarks.targets import ChatGateway
from benchmarks.workplace import workplace
from tests.fakes.gateway import RawClient
from tests.fakes.processes import accepted_by

FIRST, FULL = "stream-1-0", "stream-20000-0"
FOLLOWS_S = 5.0
"""How long workers may take to follow the catalog."""
STREAMS = 4
"""At full speed, at once."""
GOALS = {"first": 1.0, "chunks": 10_000.0}
"""Milliseconds that the first token may take longer; chunks/s at least."""
DIRECT, AGENT = "direct", "through an agent"


class WithAgents(ChatGateway):
    """The gateway with so many workers, beside whose deployment agents may connect: under `token`, for models of their own prefix."""

    def __init__(self, upstream: Upstream, cores: Cores, directory: Path, workers: int) -> None:
        super().__init__(upstream, cores, directory)
        self.count, self.token = workers, ""

    def environment(self) -> dict[str, str]:
        return super().environment() | {"WEB_CONCURRENCY": str(self.count)}

    def prepare(self) -> None:
        super().prepare()
        self.token = json.loads(self._run("agent", "enrol", "bench", "--model", f"{PREFIX}*", "--max-agents", "5000", "--json"))["token"]

    def gunicorn_workers(self) -> list[int]:
        return running(self).workers()


@dataclass(slots=True)
class Rounds:
    """By the way: milliseconds to the first token, chunks/s, CPU of the gateway a chunk (µs), a value a round."""

    first_ms: dict[str, list[float]] = field(default_factory=lambda: {DIRECT: [], AGENT: []})
    chunks_per_s: dict[str, list[float]] = field(default_factory=lambda: {DIRECT: [], AGENT: []})
    cpu_us: dict[str, list[float]] = field(default_factory=lambda: {DIRECT: [], AGENT: []})


@contextlib.contextmanager
def agent(target: WithAgents, cores: Cores) -> Iterator[int]:
    """In a process of its own; the worker that has its websocket."""
    command = ["taskset", "-c", str(cores.load), sys.executable, "-m", "benchmarks.fast_agent", str(target.place.port), target.token, *models(FIRST, FULL)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            found = [pid for pid in target.gunicorn_workers() if _has(target.place.port, pid, port)]
            yield found[0]
        finally:
            process.kill()


def _has(port: int, pid: int, peer: int) -> bool:
    class Peer:
        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", peer

    return accepted_by(port, [pid], [Peer()]) == [pid]  # type: ignore[list-item]


def client(target: WithAgents, other_than: int) -> RawClient:
    """A connection to a worker that does not have the agent."""
    kept = []
    try:
        for _ in range(1000):
            made = RawClient(target.place.port, target.place.key, 60)
            made.keeps_body = False
            made.ask("/healthz", method="GET")
            made.answer()
            (worker,) = accepted_by(target.place.port, target.gunicorn_workers(), [made.sock])
            if worker not in (None, other_than):
                return made
            kept.append(made)
    finally:
        for each in kept:
            each.sock.close()
    raise Unavailable("no other worker answers")


def asked(model: str) -> dict[str, object]:
    return {"model": model, "stream": True, "messages": [{"role": "user", "content": "nonce-0000002a: say what you were told."}]}


def first_ms(asking: RawClient, model: str) -> float:
    """From the request's last byte to the first piece of text."""
    asking.ask("/v1/chat/completions", asked(model))
    began, seen = time.perf_counter(), b""
    if asking.head().status != 200:
        raise RuntimeError(asking.block().decode())
    while b"0000002a" not in seen:
        seen += asking.block()
    took = time.perf_counter() - began
    while asking.block():
        pass
    return took * 1000


def chunks(asking: RawClient, model: str) -> int:
    """How many pieces of text there were in a stream."""
    asking.ask("/v1/chat/completions", asked(model))
    if asking.head().status != 200:
        raise RuntimeError(asking.block().decode())
    count, tail = 0, b""
    while block := asking.block():
        seen = tail + block
        count += seen.count(b"0000002a.")
        tail = seen[-8:]
    return count


def measure(target: WithAgents, rounds: int, times: int, cores: Cores) -> Rounds:
    found = Rounds()
    with agent(target, cores) as worker, contextlib.closing(_Clients(target, worker)) as clients:
        for _ in range(30):
            clients.warm()
        for number_ in range(rounds):
            print(f"round {number_ + 1} of {rounds}", file=sys.stderr, flush=True)
            for way, prefix in ((DIRECT, ""), (AGENT, PREFIX)):
                found.first_ms[way].append(statistics.median(first_ms(clients.all[0], prefix + FIRST) for _ in range(times)))
            for way, prefix in ((DIRECT, ""), (AGENT, PREFIX)):
                before, began = running(target).cpu_s(), time.perf_counter()
                count = clients.chunks(prefix + FULL)
                found.chunks_per_s[way].append(count / (time.perf_counter() - began))
                found.cpu_us[way].append((running(target).cpu_s() - before) * 1e6 / count)
    return found


def _serves(asking: RawClient, model: str) -> bool:
    asking.ask("/v1/models", method="GET")
    asking.head()
    listed = b""
    while block := asking.block():
        listed += block
    return f'"{model}"'.encode() in listed


class _Clients:
    def __init__(self, target: WithAgents, worker: int) -> None:
        deadline = time.monotonic() + FOLLOWS_S
        self.all = [client(target, worker) for _ in range(STREAMS)]
        while not all(_serves(each, PREFIX + FULL) for each in self.all):
            if time.monotonic() > deadline:
                raise Unavailable("the agent's models are not served")
            time.sleep(0.1)

    def warm(self) -> None:
        for prefix in ("", PREFIX):
            first_ms(self.all[0], prefix + FIRST)

    def chunks(self, model: str) -> int:
        """Raises RuntimeError where a stream is not whole."""
        with ThreadPoolExecutor(STREAMS) as pool:
            counts = list(pool.map(lambda each: chunks(each, model), self.all))
        if counts != [int(FULL.split("-")[1])] * STREAMS:
            raise RuntimeError(f"streams of {counts} chunks")
        return sum(counts)

    def close(self) -> None:
        for each in self.all:
            each.sock.close()


def idle_kb(target: WithAgents, count: int) -> tuple[float, float]:
    """What the one worker grows by for each agent that is connected and does nothing, in KB; and how long it took to connect them, in seconds."""
    first = connected(target.place.port, target.token, "first", models(FIRST), 1)
    time.sleep(2)
    before, began = memory(target.gunicorn_workers()).rss, time.monotonic()
    held = [connected(target.place.port, target.token, f"agent-{number}", models(FIRST), 1) for number in range(count)]
    seconds = time.monotonic() - began
    time.sleep(3)  # the catalog follows
    after = memory(target.gunicorn_workers()).rss
    for each in (first, *held):
        each.sock.close()
    return (after - before) * 1.024 / count, seconds


def report(found: Rounds) -> list[str]:
    lines = ["| | direct | through an agent in another worker | added | goal | reached |", "|---|---|---|---|---|---|"]
    direct, through = (statistics.median(found.first_ms[way]) for way in (DIRECT, AGENT))
    added = statistics.median(b - a for a, b in zip(found.first_ms[DIRECT], found.first_ms[AGENT]))
    reached = "yes" if added <= GOALS["first"] else "no"
    lines.append(f"| first token, 1 connection, ms | {number(direct)} | {number(through)} | {number(added)} | <= {number(GOALS['first'])} | {reached} |")
    rate = {way: statistics.median(found.chunks_per_s[way]) for way in (DIRECT, AGENT)}
    reached = "yes" if rate[AGENT] >= GOALS["chunks"] else "no"
    lines.append(f"| chunks/s, {STREAMS} streams | {number(rate[DIRECT])} | {number(rate[AGENT])} | | >= {number(GOALS['chunks'])} | {reached} |")
    cpu = {way: statistics.median(found.cpu_us[way]) for way in (DIRECT, AGENT)}
    lines.append(f"| CPU of the gateway a chunk, µs | {number(cpu[DIRECT])} | {number(cpu[AGENT])} | {number(cpu[AGENT] - cpu[DIRECT])} | | |")
    return lines


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agents", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="medians are taken over so many (default 5)")
    parser.add_argument("--times", type=int, default=100, help="calls a round for the first token (default 100)")
    parser.add_argument("--agents", type=int, default=1000, help="idle ones on one worker (default 1000; 0: none)")
    wanted = parser.parse_args(words)
    cores = Cores.of_this_machine()
    began, busy, own = time.monotonic(), busy_s(cores), own_s()
    lines: list[str] = []
    with workplace(cores) as (upstream, directory):
        for workers in (2, 1) if wanted.agents else (2,):
            place = directory / f"workers-{workers}"
            place.mkdir()
            target = WithAgents(upstream, cores, place, workers)
            target.prepare()
            target.start()
            try:
                if workers == 2:
                    lines += report(measure(target, wanted.rounds, wanted.times, cores))
                else:
                    each_kb, seconds = idle_kb(target, wanted.agents)
                    lines.append(f"{wanted.agents:,} idle agents on one worker: {each_kb:.1f} KB each; they connected in {seconds:.1f} s")
            finally:
                target.stop()
    print("\n".join([*lines, *disturbance(cores, busy_s(cores) - busy, own_s() - own, time.monotonic() - began)]))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unavailable as error:
        print(error, file=sys.stderr)
        sys.exit(2)
