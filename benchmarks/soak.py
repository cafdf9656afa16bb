"""`python -m benchmarks.soak`: minutes of mixed load of which a third of the streams is given up by the client; at the end nothing may be left over."""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import statistics
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.comparison import running
from benchmarks.load import Load, Outcome, Upstream
from benchmarks.processes import Cores, Unavailable, memory, open_files
from benchmarks.targets import ChatGateway
from benchmarks.workplace import workplace

LOADS = (
    ("stream-100-20", "--connections", "100", "--leave", "0.333"),
    ("stream-2000-1", "--connections", "8", "--leave", "0.333"),
    ("whole-600-100", "--connections", "8"),
    ("whole-600-400", "--connections", "8", "--leave", "0.5", "--patience", "0.1"),
)
"""Streams given up at a random byte, half of these with a reset; whole answers; and clients that go before the first byte."""
EVERY_S = 5.0
SETTLE_S = 10.0
SPARE_FILES = 4
FLAT_SHARE = 0.01
"""Growth of a worker's memory a minute, in its second half, that counts as none."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Of the worker, `at` seconds after the start. `own_files`: without the idle connections to the upstream, which it may keep."""

    at: float
    rss_mb: float
    files: int
    upstream: int
    answering: int

    @property
    def own_files(self) -> int:
        return self.files - self.upstream

    def __str__(self) -> str:
        return f"{self.at:5.0f} s: {self.rss_mb:.1f} MB, {self.files} descriptors, {self.upstream} connections to the upstream, {self.answering} in use"


@dataclass(slots=True)
class Watch:
    """Takes samples of one gateway."""

    gateway: ChatGateway
    upstream: Upstream
    began: float = field(default_factory=time.monotonic)

    def sample(self) -> Sample:
        workers, stats = running(self.gateway).workers(), self.upstream.stats()
        return Sample(time.monotonic() - self.began, memory(workers).rss * 1.024 / 1000, open_files(workers), stats["connections"], stats["answering"])

    def open_exchanges(self) -> float:
        """The gateway's own count of the calls under way."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.gateway.place.port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("gateway_open_exchanges"))


def run_loads(gateway: ChatGateway, seconds: float, cores: Cores, samples: list[Sample], watch: Watch) -> dict[str, Outcome]:
    """The outcome of each load by its model. Adds a sample every 5 s."""
    loads = {
        model: Load(gateway.place, ["--model", model, "--seconds", str(seconds), "--seed", str(number + 1), "--timeout", "60", *words], cores)
        for number, (model, *words) in enumerate(LOADS)
    }
    try:
        while any(load.running() for load in loads.values()):
            samples.append(watch.sample())
            print(samples[-1], file=sys.stderr, flush=True)
            deadline = time.monotonic() + EVERY_S
            while time.monotonic() < deadline and any(load.running() for load in loads.values()):
                time.sleep(0.1)
        return {model: load.outcome(10) for model, load in loads.items()}
    finally:
        for load in loads.values():
            load.stop()


def slope(samples: Sequence[Sample]) -> float:
    """MB a minute, by least squares; 0 for fewer than two samples."""
    if len(samples) < 2:
        return 0.0
    return statistics.linear_regression([sample.at / 60 for sample in samples], [sample.rss_mb for sample in samples]).slope


def verdict(samples: Sequence[Sample]) -> str:
    """Whether the memory stays as it is; the pools and caches of a worker take their first minute to fill."""
    if not samples or samples[0].at < 60:
        return "too short to tell"
    return "flat" if slope(samples) <= FLAT_SHARE * samples[0].rss_mb else "growing"


def settled(watch: Watch) -> tuple[Sample, float]:
    """The last sample and count of open calls: once nothing is under way, or when the time is up."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        sample, under_way = watch.sample(), watch.open_exchanges()
        if (not sample.answering and not under_way) or time.monotonic() > deadline:
            return sample, under_way
        time.sleep(0.2)


def ledger_faults(gateway: ChatGateway, outcomes: dict[str, Outcome]) -> list[str]:
    """Where calls and rows do not agree: each call that was begun has one row in `exchange` and one entry in the ledger."""
    faults = []
    with contextlib.closing(sqlite3.connect(f"file:{gateway.database}?mode=ro", uri=True)) as database:
        for model, outcome in outcomes.items():
            (rows,) = database.execute("SELECT count(*) FROM exchange WHERE model = ?", (model,)).fetchone()
            entries, calls = database.execute("SELECT count(*), count(DISTINCT exchange) FROM entry WHERE model_asked = ?", (model,)).fetchone()
            if not rows == entries == calls == outcome.requests:
                faults.append(f"{model}: {outcome.requests} calls begun, {rows} rows in exchange, {entries} entries of {calls} calls")
    return faults


def faults(base: Sample, last: Sample, under_way: float, outcomes: dict[str, Outcome]) -> list[str]:
    found = []
    if last.own_files > base.own_files + SPARE_FILES:
        found.append(f"{last.own_files} descriptors besides the upstream's are open, {base.own_files} at the start")
    if last.answering:
        found.append(f"{last.answering} connections to the upstream are still in use")
    if under_way:
        found.append(f"gateway_open_exchanges is {under_way:g}")
    for model, outcome in outcomes.items():
        if outcome.wrong or outcome.failed or outcome.exact + outcome.left != outcome.requests:
            found.append(f"{model}: {outcome.wrong} wrong, {outcome.failed} failed: {outcome.mistake}")
    return found


def report(samples: Sequence[Sample], outcomes: dict[str, Outcome], problems: Sequence[str]) -> list[str]:
    lines = [str(samples[0]), str(samples[len(samples) // 2]), str(samples[-1])]
    late = samples[len(samples) // 2 :]
    lines.append(f"memory in the second half: {slope(late):+.2f} MB a minute ({verdict(late)})")
    lines += [f"{model}: {one.requests:,} calls, {one.exact:,} exact, {one.left:,} given up by the client" for model, one in outcomes.items()]
    return [*lines, *problems, "nothing is left over, and every call is booked once" if not problems else f"{len(problems)} faults"]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    asked = parser.parse_args(words)
    cores, samples = Cores.of_this_machine(), list[Sample]()
    with workplace(cores) as (upstream, directory):
        gateway = ChatGateway(upstream, cores, directory)
        gateway.prepare()
        gateway.start()
        try:
            watch = Watch(gateway, upstream)
            time.sleep(1)
            base, _ = settled(watch)
            outcomes = run_loads(gateway, asked.minutes * 60, cores, samples, watch)
            last, under_way = settled(watch)
            problems = [*faults(base, last, under_way, outcomes), *ledger_faults(gateway, outcomes)]
            if verdict(samples[len(samples) // 2 :]) == "growing":
                problems.append("the worker's memory grows")
        finally:
            gateway.stop()
    print("\n".join([f"{base} (before)", *report(samples, outcomes, problems), f"{last} (after)"]))
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unavailable as error:
        print(error, file=sys.stderr)
        sys.exit(2)
