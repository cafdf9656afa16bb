"""The comparison: all targets side by side on one core, each figure measured in rounds that go from target to target."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.figures import MEMORY, START, WORKS, Samples, Work
from benchmarks.load import Load, Outcome, run_load
from benchmarks.processes import Cores, Started, Unavailable, memory
from benchmarks.targets import Target

KIB_IN_MB = 1.024e-3


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. `streams` are held open for the memory of one; `quick` halves every load."""

    figures: tuple[str, ...]
    rounds: int = 3
    quick: bool = False
    streams: int = 1000

    def works(self) -> list[Work]:
        return [work for work in WORKS if work.key in self.figures]


@dataclass(slots=True)
class Progress:
    """Lines on stderr while it runs: [3/24] gateway: 16 streams at full speed."""

    steps: int
    step: int = 0

    def next(self, text: str) -> None:
        self.step += 1
        print(f"[{self.step}/{self.steps}] {text}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Comparison:
    """`targets` are prepared; direct, the base of what is added, is the first. A target that fails is left out from there on, with the reason."""

    targets: list[Target]
    cores: Cores
    plan: Plan
    samples: Samples = field(default_factory=Samples)
    failures: dict[str, str] = field(default_factory=dict)

    def run(self) -> Samples:
        """Measures everything. The targets are stopped when it returns, however it does."""
        loads = len(self.plan.works()) * self.plan.rounds * len(self.targets)
        progress = Progress(loads + len(self._servers()) * ((self.plan.rounds if START in self.plan.figures else 1) + (MEMORY in self.plan.figures)))
        try:
            self._starts(progress)
            for work in self.plan.works():
                for number in range(self.plan.rounds):
                    self._each(self.targets, lambda target: self._load(target, work, number, progress))  # noqa: B023  called before the loop goes on
            if MEMORY in self.plan.figures:
                self._each(self._servers(), lambda target: self._hold(target, progress))
        finally:
            for target in self.targets:
                target.stop()
        return self.samples

    def _servers(self) -> list[Target]:
        return [target for target in self.targets if target.name != "direct"]

    def _each(self, targets: Sequence[Target], act: Callable[[Target], None]) -> None:
        for target in targets:
            if target.name in self.failures:
                continue
            try:
                act(target)
            except (RuntimeError, Unavailable) as error:
                self.failures[target.name] = " ".join(str(error).split())[:600]
                target.stop()

    def _starts(self, progress: Progress) -> None:
        """Each is started once a round; the last start stays."""
        rounds = self.plan.rounds if START in self.plan.figures else 1
        for number in range(rounds):
            self._each(self._servers(), lambda target: self._start(target, number, progress))  # noqa: B023  called before the loop goes on

    def _start(self, target: Target, number: int, progress: Progress) -> None:
        progress.next(f"{target.name}: start {number + 1}")
        target.stop()
        target.start()
        if START not in self.plan.figures:
            return
        time.sleep(0.3)
        started = running(target)
        workers, whole = memory(started.workers()), memory(started.pids())
        values = {"start.start_s": target.start_s, "start.worker_rss_mb": workers.rss * KIB_IN_MB, "start.worker_pss_mb": workers.pss * KIB_IN_MB}
        parent = {"start.parent_pss_mb": (whole.pss - workers.pss) * KIB_IN_MB} if whole != workers else {}
        self.samples.add(target.name, values | parent)

    def _load(self, target: Target, work: Work, number: int, progress: Progress) -> None:
        progress.next(f"{target.name}: {work.title}, round {number + 1}")
        before = target.started.cpu_s() if target.started else 0.0
        outcome = run_load(target.place, work.arguments(self.plan.quick, target.slow), self.cores)
        used = target.started.cpu_s() - before if target.started else 0.0
        self._count(target, outcome)
        values = work.read(outcome, used)
        self.samples.add(target.name, values if target.started else {name: value for name, value in values.items() if ".cpu_" not in name})

    def _hold(self, target: Target, progress: Progress) -> None:
        """What each of many open streams costs, in a target that has just been started and warmed."""
        streams = self.plan.streams // (10 if target.slow else 1)
        progress.next(f"{target.name}: {streams:,} open streams")
        target.stop()
        target.start()
        warm = run_load(target.place, ["--connections", "8", "--requests", "64", "--model", "stream-10-0"], self.cores)
        self._count(target, warm)
        base = memory(running(target).workers()).rss
        rate = 500 if not target.slow else 50
        load = Load(target.place, ["--hold", "--connections", str(streams), "--rate", str(rate), "--model", "stream-8-1000", "--timeout", "60"], self.cores)
        peak = base
        try:
            while load.running():
                peak = max(peak, memory(running(target).workers()).rss)
                time.sleep(0.25)
            self._count(target, load.outcome(10))
        finally:
            load.stop()
        self.samples.add(target.name, {"memory.stream_kb": (peak - base) * 1.024 / streams})

    def _count(self, target: Target, outcome: Outcome) -> None:
        self.samples.count(target.name, outcome)


def running(target: Target) -> Started:
    """Its process. Raises RuntimeError where it has ended."""
    if target.started is None or not target.started.alive():
        raise RuntimeError(f"{target.name} has ended: {target.started.tail() if target.started else 'it was never started'}")
    return target.started
