"""`python -m benchmarks`: measures the gateway beside a bare nginx (with --peers beside others too) and prints one table."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison import Comparison, Plan, running
from benchmarks.figures import KEYS, WORKS, Samples, Scale
from benchmarks.load import Upstream, run_load
from benchmarks.peers import PEERS
from benchmarks.processes import BUILD, Cores, Unavailable, busy_s, own_s
from benchmarks.table import remarks, table
from benchmarks.targets import ChatGateway, Direct, Nginx, Target
from benchmarks.workplace import workplace

OWN: tuple[type[Target], ...] = (Nginx, ChatGateway)


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of half the length")
    parser.add_argument("--rounds", type=int, default=3, help="medians are taken over so many (default 3)")
    parser.add_argument("--only", default="", metavar="A,B", help=f"of {', '.join(kind.name for kind in (*OWN, *PEERS))}")
    parser.add_argument("--figures", default=",".join(KEYS), metavar="A,B", help=f"of {', '.join(KEYS)}")
    parser.add_argument("--streams", type=int, default=1000, help="held open for the memory of one (default 1000)")
    parser.add_argument("--peers", action="store_true", help="install LiteLLM and Portkey below benchmarks/build/ and measure them too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--profile", choices=[work.key for work in WORKS], help="keep this load on the gateway and print its worker's pid, until Ctrl-C")
    asked = parser.parse_args(words)
    wrong = set(asked.figures.split(",")) - set(KEYS)
    if wrong:
        parser.error(f"no such figure: {', '.join(sorted(wrong))}")
    if unknown := set(filter(None, asked.only.split(","))) - {kind.name for kind in (*OWN, *PEERS)}:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    return asked


def prepared(kinds: Sequence[type[Target]], upstream: Upstream, cores: Cores, directory: Path) -> tuple[list[Target], dict[str, str]]:
    """The targets that can be measured, direct first, and why the others cannot."""
    found: list[Target] = [Direct(upstream, cores, directory)]
    failures = {}
    for kind in kinds:
        own = directory / kind.name
        own.mkdir()
        target = kind(upstream, cores, own)
        try:
            target.prepare()
            found.append(target)
        except Unavailable as error:
            failures[target.name] = str(error)
    return found, failures


def capacity(upstream: Upstream, cores: Cores) -> str:
    """What the upstream and the load tool do by themselves, each on a core of its own where there are two."""
    apart = Cores(cores.load, cores.target)
    whole = run_load(Direct(upstream, cores, BUILD).place, ["--connections", "64", "--seconds", "1", "--warmup", "0.2"], apart)
    return f"The upstream and the load tool by themselves, on a core each: {whole.requests_per_s:,.0f} requests/s."


def disturbance(cores: Cores, busy: float, own: float, seconds: float) -> list[str]:
    """A warning where other processes had more than a tenth of what the two cores can do."""
    others = (busy - own) / (seconds * len({cores.target, cores.load}))
    return [f"Other processes used {others:.0%} of the cores meanwhile: only ratios mean something, and these not much."] if others > 0.1 else []


def document(samples: Samples, asked: argparse.Namespace, failures: dict[str, str], notes: list[str]) -> dict[str, object]:
    machine = {"kernel": platform.release(), "machine": platform.machine(), "python": platform.python_version()}
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "rounds": asked.rounds,
        "quick": asked.quick,
        "slowness": {scale.value: samples.slowness(scale) for scale in Scale},
        "samples": samples.values,
        "answers": samples.answers,
        "exact": samples.exact,
        "mistakes": samples.mistakes,
        "not_measured": failures,
        "notes": notes,
    }


def measured(asked: argparse.Namespace) -> tuple[Samples, list[str], dict[str, str], list[str]]:
    """The samples, the targets' names, why some were not measured, and what else is to be said."""
    wanted = set(filter(None, asked.only.split(",")))
    kinds = [kind for kind in (*OWN, *PEERS) if kind.name in wanted] or [*OWN, *(PEERS if asked.peers else ())]
    plan = Plan(tuple(asked.figures.split(",")), 1 if asked.quick else asked.rounds, asked.quick, asked.streams // 4 if asked.quick else asked.streams)
    cores = Cores.of_this_machine()
    began, busy, own = time.monotonic(), busy_s(cores), own_s()
    with workplace(cores) as (upstream, directory):
        targets, failures = prepared(kinds, upstream, cores, directory)
        apart = capacity(upstream, cores)
        comparison = Comparison(targets, cores, plan)
        samples = comparison.run()
    others = disturbance(cores, busy_s(cores) - busy, own_s() - own, time.monotonic() - began)
    return samples, [target.name for target in targets], failures | comparison.failures, [apart, *others]


def compare(asked: argparse.Namespace) -> int:
    """Prints the table. 0 where every answer of the gateway was exact, 1 where not."""
    samples, names, failures, notes = measured(asked)
    lost = [f"{name} was not measured to the end: {why}" for name, why in failures.items()]
    print("\n".join(["", *table(samples, names), "", *notes, *remarks(samples), *lost]))
    if asked.json:
        asked.json.write_text(json.dumps(document(samples, asked, failures, notes), indent=1) + "\n")
    return 0 if "gateway" not in failures and samples.exact.get("gateway") == samples.answers.get("gateway") else 1


def profile(asked: argparse.Namespace) -> int:
    """Keeps one load on the gateway, so that a profiler can be attached."""
    work = next(work for work in WORKS if work.key == asked.profile)
    cores = Cores.of_this_machine()
    with workplace(cores) as (upstream, directory):
        targets, _ = prepared([ChatGateway], upstream, cores, directory)
        gateway = targets[1]
        gateway.start()
        try:
            pid = running(gateway).workers()[0]
            print(f"{work.title}; the worker is {pid}: py-spy record --native -d 10 -o profile.svg -p {pid}; Ctrl-C ends this", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    outcome = run_load(gateway.place, work.arguments(quick=False, slow=False), cores)
                    print(
                        f"{outcome.requests_per_s:,.0f} requests/s, {outcome.chunks_per_s:,.0f} chunks/s, {outcome.exact} of {outcome.requests} exact",
                        flush=True,
                    )
        finally:
            gateway.stop()
    return 0


def main() -> int:
    asked = options()
    try:
        return profile(asked) if asked.profile else compare(asked)
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
