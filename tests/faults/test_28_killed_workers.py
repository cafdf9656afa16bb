"""Row 28: workers die by kill -9 (and PostgreSQL by an immediate shutdown) while calls with a budget are under way. Whoever saw the end of an
answer is in the ledger once; whoever did not is there at most once; every hold ends; the books verify.

`make kill-test` runs it with 10,000 calls and 20 kills for each database; the suite with fewer.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.store import ledger
from tests.fakes.answers import Slow
from tests.fakes.gateway import Broken, RawClient, RunningGateway
from tests.fakes.postgres import Postgres
from tests.fakes.processes import children
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, DONE
from tests.faults.conftest import Measured
from tests.faults.crashes import SOON_S, audited, settled

CALLS, KILLS = int(os.environ.get("KILL_TEST_CALLS", "1500")), int(os.environ.get("KILL_TEST_KILLS", "5"))
CRASHES = max(1, KILLS // 5)
"""Of PostgreSQL."""
CLIENTS, WORKERS = 24, 3


@dataclass
class Seen:
    """What clients saw: ids of answers with their end, and how many calls had none."""

    ended: list[str] = field(default_factory=list)
    cut: int = 0
    refused: collections.Counter[int] = field(default_factory=collections.Counter)

    @property
    def calls(self) -> int:
        """Those that were begun: who is refused while the database is away comes again."""
        return len(self.ended) + self.cut


@contextlib.contextmanager
def running(tmp_path: Path, engine: str) -> Iterator[tuple[RunningGateway, Postgres | None]]:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Postgres(tmp_path / "postgres")) if engine == "postgres" else None
        provider = stack.enter_context(Provider())
        provider.always("/v1/chat/completions", Slow(0.002))
        gateway = RunningGateway(
            tmp_path / "gateway", {"WEB_CONCURRENCY": str(WORKERS), "GATEWAY_LOG_LEVEL": "warning"}, server.emptied("gateway") if server else None
        )
        stack.enter_context(gateway)
        gateway.deploy("m", provider.url)
        gateway.budget(10**15, "user", 1, "total")
        gateway.budget(10**15, "global", 0, "month")
        time.sleep(1.2)  # every worker follows within a second
        yield gateway, server


def ask(client: RawClient, seen: Seen) -> None:
    client.ask(CHAT, {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 50})
    head = client.head()
    if head.status != 200:
        client.rest()
        seen.refused[head.status] += 1
        time.sleep(0.05)
        return
    try:
        body = client.rest()
    except Broken as broken:
        body = broken.body
    if body.endswith(DONE):
        seen.ended.append(head.headers["x-request-id"])
    else:
        seen.cut += 1


def asking(gateway: RunningGateway, seen: Seen) -> None:
    """Over one connection as long as it lasts."""
    while seen.calls < CALLS:
        try:
            with gateway.client() as client:
                ask(client, seen)
                while client.sock.fileno() >= 0 and client.silent(0) and seen.calls < CALLS:
                    ask(client, seen)
        except (OSError, Broken, ValueError, IndexError):
            seen.cut += 1
            time.sleep(0.01)


def killed(gateway: RunningGateway, server: Postgres | None, seen: Seen) -> None:
    """Kill a random worker, or the database, each time so many more calls have ended."""
    assert gateway.process is not None
    draw = random.Random(28)
    blows = ["worker"] * KILLS + (["database"] * CRASHES if server else [])
    draw.shuffle(blows)
    for number, blow in enumerate(blows):
        while seen.calls < (number + 1) * CALLS // (len(blows) + 1):
            time.sleep(0.005)
        if blow == "database" and server is not None:
            server.restart(signal.SIGQUIT)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(children(gateway.process.pid) or [0]), signal.SIGKILL)


def everything(gateway: RunningGateway) -> collections.Counter[tuple[str, str]]:
    """How often each call was charged, and lost, by (exchange, "charged" or "lost")."""

    found: collections.Counter[tuple[str, str]] = collections.Counter()
    entries = gateway.read(lambda: ledger.entries(0, 2**62, 0, 2 * CALLS))
    found.update((entry.exchange, "charged" if entry.ending == "complete" else "other") for entry in entries)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_killed_workers_lose_and_double_nothing(tmp_path: Path, engine: str, measured: Measured) -> None:
    seen = Seen()
    with running(tmp_path, engine) as (gateway, server):
        clients = [threading.Thread(target=asking, args=(gateway, seen)) for _ in range(CLIENTS)]
        for thread in clients:
            thread.start()
        killed(gateway, server, seen)  # here: PostgreSQL ends with the thread that started it
        for thread in clients:
            thread.join()
        seconds = settled(gateway)
        entries, audit = everything(gateway), audited(gateway)
    charged = {exchange: count for (exchange, kind), count in entries.items() if kind == "charged"}
    lost = [each for each in seen.ended if each not in charged]
    doubled = [exchange for exchange, count in charged.items() if count > 1]
    expired = sum(1 for (_, kind) in entries if kind == "other")
    crashes = f" and {CRASHES} crashes of the database" if server else ""
    measured(
        28,
        f"{engine}: {seen.calls} calls, {KILLS} kills{crashes}: {len(lost)} lost, {len(doubled)} doubled, {seen.cut} cut,"
        f" {expired} not charged, refused {dict(seen.refused)}; all holds ended {seconds:.1f} s after the last call (10);"
        f" verify: {len(audit.differences)} differences in {audit.entries} entries",
    )
    assert (lost, doubled, audit.differences, audit.holds) == ([], [], (), 0)
    assert set(seen.refused) <= {503}
    assert len(seen.ended) > CALLS // 2
    assert seconds < 10 * SOON_S
