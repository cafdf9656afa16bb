"""`python -m benchmarks.budgets`: what budgets on a call's path cost, as a share of the requests/s of the same gateway without any, for each database."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.__main__ import disturbance
from benchmarks.figures import WORKS
from benchmarks.load import Upstream, run_load
from benchmarks.processes import Cores, Unavailable, busy_s, own_s
from benchmarks.table import number
from benchmarks.targets import ChatGateway
from benchmarks.workplace import workplace
from gateway.store import accounts, budgets
from gateway.store.database import Database
from tests.fakes.postgres import Postgres, binary

KINDS = ("key", "user", "team", "global")
GOALS = {"sqlite": 0.30, "postgres": 0.50}
"""How much of the requests/s four budgets may take."""
LIMIT_NANO = 10**17
COUNTS = (0, 1, 4)
DURABLE = ("shared_buffers=64MB", "max_connections=100")


class Budgeted(ChatGateway):
    """The gateway with the first so many of KINDS on the path of every call."""

    def __init__(self, upstream: Upstream, cores: Cores, directory: Path, count: int, url: str | None) -> None:
        super().__init__(upstream, cores, directory)
        self.count, self._url = count, url
        self.name = f"budgets-{count}"

    def environment(self) -> dict[str, str]:
        return super().environment() | ({"DATABASE_URL": self._url} if self._url else {})

    def prepare(self) -> None:
        super().prepare()
        with contextlib.closing(Database(self._url or f"sqlite://{self.database}")) as database:
            database.bind()
            database.write(self._set)

    def _set(self) -> None:
        at = time.time_ns() // 1_000_000
        team = accounts.create_team("benchmark", at)
        accounts.set_user_team(1, team.id)
        for kind, subject in list(zip(KINDS, (1, 1, team.id, 0)))[: self.count]:
            budgets.set_budget(kind, subject, "month", "UTC", LIMIT_NANO, at, soft=False)


@dataclass(slots=True)
class Rounds:
    """Of one database: by the number of budgets, requests/s, CPU of the gateway a request (µs), and the p50 of one connection (ms), a value a round."""

    rates: dict[int, list[float]] = field(default_factory=lambda: {count: [] for count in COUNTS})
    cpu_us: dict[int, list[float]] = field(default_factory=lambda: {count: [] for count in COUNTS})
    p50_ms: dict[int, list[float]] = field(default_factory=lambda: {count: [] for count in COUNTS})
    wrong: int = 0

    def ratio(self, count: int) -> float:
        """The median over the rounds of the rate beside that without a budget in the same round."""
        return statistics.median(rate / plain for rate, plain in zip(self.rates[count], self.rates[0]))


def measure(targets: Sequence[Budgeted], rounds: int, cores: Cores) -> Rounds:
    """Each round goes through all targets, every other one backwards."""
    found = Rounds()
    crowd, alone = (next(work for work in WORKS if work.key == key) for key in ("requests", "latency"))
    for number_ in range(rounds):
        for target in targets if number_ % 2 == 0 else reversed(targets):
            print(f"[{number_ + 1}/{rounds}] {target.directory.name}: {target.count} budgets", file=sys.stderr, flush=True)
            before = target.started.cpu_s() if target.started else 0.0
            outcome = run_load(target.place, crowd.arguments(quick=False, slow=False), cores)
            used = (target.started.cpu_s() if target.started else 0.0) - before
            quiet = run_load(target.place, alone.arguments(quick=False, slow=False), cores)
            found.wrong += outcome.requests - outcome.exact + quiet.requests - quiet.exact
            found.rates[target.count].append(outcome.requests_per_s)
            found.cpu_us[target.count].append(used * 1e6 / max(outcome.requests, 1))
            found.p50_ms[target.count].append(quiet.latency.p50 / 1000)
    return found


def lines(engine: str, rounds: Rounds) -> Iterator[str]:
    """Rows of the table."""
    for count in COUNTS:
        rate, cpu, p50 = (statistics.median(values[count]) for values in (rounds.rates, rounds.cpu_us, rounds.p50_ms))
        loss = 1 - rounds.ratio(count)
        goal = f"<= {GOALS[engine]:.0%}" if count == COUNTS[-1] else ""
        verdict = "" if not goal else "yes" if loss <= GOALS[engine] else "no"
        shown = "-" if not count else f"{loss:.0%}"
        yield f"| {engine} | {count} | {number(rate)} | {number(cpu)} | {number(p50)} | {shown} | {goal} | {verdict} |"


@contextlib.contextmanager
def engines(names: Sequence[str], directory: Path) -> Iterator[dict[str, Postgres | None]]:
    with contextlib.ExitStack() as stack:
        found: dict[str, Postgres | None] = {}
        for name in names:
            if name == "postgres" and binary("postgres") is None:
                print("PostgreSQL is not installed: apt-get install postgresql", file=sys.stderr)
                continue
            found[name] = stack.enter_context(Postgres(directory / "server", DURABLE)) if name == "postgres" else None
        yield found


def compare(engine: str, server: Postgres | None, rounds: int, upstream: Upstream, cores: Cores, directory: Path) -> Rounds:
    targets = []
    try:
        for count in COUNTS:
            own = directory / f"{engine}-{count}"
            own.mkdir()
            targets.append(Budgeted(upstream, cores, own, count, server.url(f"budgets{count}") if server else None))
            targets[-1].prepare()
            targets[-1].start()
        return measure(targets, rounds, cores)
    finally:
        for target in targets:
            target.stop()


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budgets", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", choices=sorted(GOALS))
    asked = parser.parse_args(words)
    cores = Cores.of_this_machine()
    began, busy, own = time.monotonic(), busy_s(cores), own_s()
    rows: list[str] = []
    wrong = 0
    with workplace(cores) as (upstream, directory), engines([asked.only] if asked.only else sorted(GOALS, reverse=True), directory) as found:
        for engine, server in found.items():
            measured = compare(engine, server, asked.rounds, upstream, cores, directory)
            rows += lines(engine, measured)
            wrong += measured.wrong
    heading = (
        "| database | budgets | requests/s, 64 connections | CPU of the gateway per request, µs | p50, 1 connection, ms | less than without | goal | reached |"
    )
    print("\n".join(["", heading, "|---|---|---|---|---|---|---|---|", *rows, "", f"{wrong} answers were not exact."]))
    print("\n".join(disturbance(cores, busy_s(cores) - busy, own_s() - own, time.monotonic() - began)))
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unavailable as error:
        print(error, file=sys.stderr)
        sys.exit(2)
