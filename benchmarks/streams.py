"""`python -m benchmarks.streams`: many open streams on one worker, one chunk a second each, every one checked byte for byte."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.comparison import running
from benchmarks.load import Load, Outcome, run_load
from benchmarks.processes import Cores, Unavailable, memory, open_files
from benchmarks.targets import ChatGateway, Nginx, Target
from benchmarks.workplace import workplace

TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in (ChatGateway, Nginx)}
SPARE_FILES = 200


@dataclass(slots=True)
class Held:
    """What was seen while the streams were open: the most of each, and the CPU of the whole time."""

    base_kb: float
    peak_kb: float = 0.0
    files: int = 0
    answering: int = 0
    cpu_s: float = 0.0
    seconds: float = 0.0

    def watch(self, target: Target, load: Load) -> None:
        began, before = time.monotonic(), running(target).cpu_s()
        while load.running():
            workers = running(target).workers()
            self.peak_kb = max(self.peak_kb, memory(workers).rss * 1.024)
            self.files = max(self.files, open_files(workers))
            self.answering = max(self.answering, target.upstream.stats()["answering"])
            time.sleep(0.5)
        self.seconds, self.cpu_s = time.monotonic() - began, running(target).cpu_s() - before


def hold(target: Target, streams: int, seconds: int, rate: int, cores: Cores) -> tuple[Outcome, Held]:
    """All streams are open at once for about `seconds`, after the time that it takes to open them."""
    run_load(target.place, ["--connections", "8", "--requests", "64", "--model", "stream-10-0"], cores)
    held = Held(memory(running(target).workers()).rss * 1.024)
    chunks = seconds + -(-streams // rate)
    arguments = ["--hold", "--connections", str(streams), "--rate", str(rate), "--model", f"stream-{chunks}-1000", "--timeout", str(3 * chunks + 60)]
    load = Load(target.place, arguments, cores)
    try:
        held.watch(target, load)
        return load.outcome(10), held
    finally:
        load.stop()


def report(name: str, streams: int, outcome: Outcome, held: Held) -> list[str]:
    stream_kb = (held.peak_kb - held.base_kb) / streams
    lines = [
        f"{name}: {held.answering:,} of {streams:,} streams were open at once, {outcome.exact:,} of {outcome.requests:,} were exact",
        f"memory: {stream_kb:.1f} KB a stream ({held.base_kb / 1000:.0f} MB before, {held.peak_kb / 1000:.0f} MB at most); descriptors: {held.files:,} at most",
        f"first token: p50 {outcome.first.p50 / 1000:.1f} ms, p99 {outcome.first.p99 / 1000:.1f} ms, at most {outcome.first.max / 1000:.1f} ms",
        f"CPU: {held.cpu_s / held.seconds:.0%} of a core, {held.cpu_s / max(outcome.chunks, 1) * 1e6:.0f} µs for each of {outcome.chunks:,} chunks",
    ]
    return [*lines, f"the first mistake: {outcome.mistake}"] if outcome.mistake else lines


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    parser.add_argument("--streams", type=int, default=5000)
    parser.add_argument("--seconds", type=int, default=20, help="all of them are open for so long (default 20)")
    parser.add_argument("--rate", type=int, default=500, help="opened each second (default 500)")
    parser.add_argument("--target", choices=sorted(TARGETS), default="gateway")
    asked = parser.parse_args(words)
    cores = Cores.of_this_machine()
    with workplace(cores) as (upstream, directory):
        needed, limit = 2 * asked.streams + SPARE_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit < needed:
            raise Unavailable(f"{asked.streams:,} streams take {needed:,} descriptors in the worker, and {limit:,} are allowed: raise `ulimit -Hn`")
        target = TARGETS[asked.target](upstream, cores, directory)
        target.prepare()
        target.start()
        try:
            outcome, held = hold(target, asked.streams, asked.seconds, asked.rate, cores)
        finally:
            target.stop()
    print("\n".join(report(target.name, asked.streams, outcome, held)))
    return 0 if outcome.exact == asked.streams == held.answering else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unavailable as error:
        print(error, file=sys.stderr)
        sys.exit(2)
