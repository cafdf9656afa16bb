"""The figures: which load is sent, what is read off it, and which value is to be reached (docs/performance.md)."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.load import Outcome

NGINX_REQUESTS_PER_S = 92_000.0
NGINX_CPU_US_REQUEST = 10.0
"""nginx's own figures on the machine where the goals were set."""


class Scale(enum.Enum):
    """What of nginx a goal is read beside: on a machine where nginx is half as fast, twice the time is allowed."""

    NONE = "none"
    TIME = "time"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Work:
    """One load. `seconds` of a closed loop, or one of `requests` requests; `slow` is the script for slow targets."""

    key: str
    title: str
    connections: int
    model: str
    seconds: float = 0.0
    requests: int = 0
    slow_model: str = ""

    def arguments(self, quick: bool, slow: bool) -> list[str]:
        words = ["--connections", str(self.connections), "--model", self.slow_model if slow and self.slow_model else self.model, "--timeout", "60"]
        if self.requests:
            return [*words, "--requests", str(self.connections if quick else self.requests)]
        seconds, warmup = (self.seconds * 2, "2") if slow else (self.seconds / 2 if quick else self.seconds, "0.3")
        return [*words, "--seconds", str(seconds), "--warmup", warmup]

    def read(self, outcome: Outcome, cpu_s: float) -> dict[str, float]:
        """Values by name: milliseconds, microseconds of CPU, rates."""
        cpu_us = cpu_s * 1e6
        return {
            f"{self.key}.requests_per_s": outcome.requests_per_s,
            f"{self.key}.chunks_per_s": outcome.chunks_per_s,
            f"{self.key}.p50_ms": outcome.latency.p50 / 1000,
            f"{self.key}.p99_ms": outcome.latency.p99 / 1000,
            f"{self.key}.first_ms": outcome.first.p50 / 1000,
            f"{self.key}.cpu_us_request": cpu_us / max(outcome.requests, 1),
            f"{self.key}.cpu_us_chunk": cpu_us / max(outcome.chunks, 1),
        }


WORKS = (
    Work("requests", "64 connections", 64, "whole-600-0", seconds=2),
    Work("latency", "1 connection", 1, "whole-600-0", seconds=1),
    Work("waiting", "64 connections, upstream 50 ms", 64, "whole-600-50", seconds=2),
    Work("chunks", "16 streams at full speed", 16, "stream-2000-0", seconds=2, slow_model="stream-500-0"),
    Work("paced", "100 streams paced at 20 ms", 100, "stream-100-20", requests=200),
)
START, MEMORY = "start", "memory"
KEYS = (*(work.key for work in WORKS), START, MEMORY)
"""What --figures may name."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A value to be reached, at most or at `least`. `slowness`: how much slower nginx is here, by the goal's scale."""

    limit: float
    least: bool = False
    scale: Scale = Scale.NONE

    def allowed(self, slowness: float) -> float:
        return self.limit / slowness if self.least else self.limit * slowness

    def reached(self, value: float, slowness: float) -> bool:
        return value >= self.allowed(slowness) if self.least else value <= self.allowed(slowness)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: the median of `sample`; `added`: beyond direct's; `against`: the gateway's as a multiple of that target's."""

    label: str
    sample: str
    goal: Goal | None = None
    added: bool = False
    against: str = ""


ROWS = (
    Row("requests/s, 64 connections", "requests.requests_per_s"),
    Row("... as a multiple of nginx's", "requests.requests_per_s", Goal(0.03, least=True), against="nginx"),
    Row("... as a multiple of LiteLLM's", "requests.requests_per_s", Goal(12, least=True), against="litellm"),
    Row("... as a multiple of Portkey's", "requests.requests_per_s", Goal(3, least=True), against="portkey"),
    Row("CPU per request, µs", "requests.cpu_us_request"),
    Row("added latency p50, 1 connection, ms", "latency.p50_ms", Goal(0.6, scale=Scale.TIME), added=True),
    Row("added latency p99, 64 connections, upstream 50 ms, ms", "waiting.p99_ms", Goal(10, scale=Scale.TIME), added=True),
    Row("chunks/s at full speed, 16 streams", "chunks.chunks_per_s", Goal(100_000, least=True, scale=Scale.TIME)),
    Row("CPU per chunk at full speed, µs", "chunks.cpu_us_chunk"),
    Row("added first token p50, 100 streams paced at 20 ms, ms", "paced.first_ms", Goal(10, scale=Scale.TIME), added=True),
    Row("CPU per chunk paced, µs", "paced.cpu_us_chunk", Goal(60, scale=Scale.CPU)),
    Row("start to first answer, s", "start.start_s", Goal(2)),
    Row("idle worker, RSS MB", "start.worker_rss_mb", Goal(90)),
    Row("idle worker, PSS MB", "start.worker_pss_mb"),
    Row("idle parent process, PSS MB", "start.parent_pss_mb"),
    Row("memory per open stream, KB", "memory.stream_kb", Goal(40)),
)


@dataclass(slots=True)
class Samples:
    """Values of all rounds, and every answer counted: by target."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    exact: dict[str, int] = field(default_factory=dict)
    mistakes: dict[str, str] = field(default_factory=dict)

    def add(self, target: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.values.setdefault(target, {}).setdefault(name, []).append(value)

    def count(self, target: str, outcome: Outcome) -> None:
        self.answers[target] = self.answers.get(target, 0) + outcome.requests - outcome.left
        self.exact[target] = self.exact.get(target, 0) + outcome.exact
        if outcome.mistake:
            self.mistakes.setdefault(target, outcome.mistake)

    def of(self, target: str, sample: str) -> Sequence[float]:
        return self.values.get(target, {}).get(sample, ())

    def median(self, target: str, sample: str) -> float | None:
        found = self.of(target, sample)
        return statistics.median(found) if found else None

    def slowness(self, scale: Scale) -> float:
        """How much slower nginx is here than where the goals were set; 1 where it is not, or was not measured."""
        rate, cpu_us = self.median("nginx", "requests.requests_per_s"), self.median("nginx", "requests.cpu_us_request")
        by_cpu = cpu_us / NGINX_CPU_US_REQUEST if cpu_us else None
        if scale is Scale.TIME and rate:  # not by its rate alone, which other load pulls down
            return max(1.0, min(NGINX_REQUESTS_PER_S / rate, by_cpu or float("inf")))
        return max(1.0, by_cpu) if scale is Scale.CPU and by_cpu else 1.0

    def value(self, row: Row, target: str) -> float | None:
        """What stands in a cell; None where it was not measured."""
        found = self.median(target, row.sample)
        if found is None or (row.against and target != "gateway"):
            return None
        if row.against:
            other = self.median(row.against, row.sample)
            return found / other if other else None
        return found - (self.median("direct", row.sample) or 0) if row.added and target != "direct" else found
