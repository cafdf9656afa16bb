"""The two compiled programs: the fake upstream (upstream.c) and the load tool (load.c)."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import Cores, Started, compiled


@dataclass(frozen=True, slots=True)
class Place:
    """Where the load is sent, and how: `headers` are whole lines; `exact` is false for a gateway that writes events anew."""

    port: int
    key: str = "none"
    path: str = "/v1/chat/completions"
    headers: tuple[str, ...] = ()
    exact: bool = True

    def arguments(self) -> list[str]:
        words = ["--port", str(self.port), "--key", self.key, "--path", self.path]
        for header in self.headers:
            words += ["--header", header]
        return words if self.exact else [*words, "--content"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Latencies in microseconds."""

    p50: float
    p90: float
    p99: float
    max: float
    count: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the load tool saw. `requests` were begun, `left` given up on purpose by the load tool; rates are of the measured window only."""

    requests: int
    exact: int
    wrong: int
    failed: int
    left: int
    chunks: int
    seconds: float
    requests_per_s: float
    chunks_per_s: float
    latency: Spread
    first: Spread
    mistake: str

    @classmethod
    def of(cls, line: str) -> Outcome:
        """Raises ValueError where the line is not the load tool's report."""
        members: dict[str, Any] = json.loads(line)
        latency, first = Spread(**members.pop("latency_us")), Spread(**members.pop("first_us"))
        return cls(**members, latency=latency, first=first)


class Upstream:
    """The fake upstream, while it runs."""

    def __init__(self, cores: Cores, directory: Path) -> None:
        log = directory / "upstream.log"
        self.started = Started([str(compiled("upstream"))], cores.load, log, directory)
        deadline = time.monotonic() + 5
        while not log.read_text().endswith("}\n"):
            if time.monotonic() > deadline or not self.started.alive():
                raise RuntimeError(f"the upstream does not start: {self.started.tail()}")
            time.sleep(0.01)
        self.port = int(json.loads(log.read_text())["port"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict[str, int]:
        """connections, answering: now; begun, finished, broken: answers since the start. This question's own connection is not counted."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            line.request("GET", "/stats")
            found: dict[str, int] = json.loads(line.getresponse().read())
        finally:
            line.close()
        return found | {"connections": found["connections"] - 1}


class Load:
    """The load tool, while it runs."""

    def __init__(self, place: Place, arguments: Sequence[str], cores: Cores) -> None:
        command = ["taskset", "-c", str(cores.load), str(compiled("load")), *place.arguments(), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def running(self) -> bool:
        return self.process.poll() is None

    def outcome(self, timeout_s: float) -> Outcome:
        """Waits for its end. Raises RuntimeError where it did not report."""
        try:
            text, _ = self.process.communicate(timeout=timeout_s)
            return Outcome.of(text.strip().splitlines()[-1])
        except (subprocess.TimeoutExpired, ValueError, IndexError, TypeError) as error:
            self.stop()
            raise RuntimeError(f"the load tool has no report: {error}") from error

    def stop(self) -> None:
        if self.running():
            self.process.kill()
        self.process.communicate()


def run_load(place: Place, arguments: Sequence[str], cores: Cores, timeout_s: float = 120) -> Outcome:
    """One run from start to end. Raises RuntimeError."""
    load = Load(place, arguments, cores)
    try:
        return load.outcome(timeout_s)
    finally:
        load.stop()
