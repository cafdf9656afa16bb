"""A gateway that crashes where a test says, and what its clients, its ledger and its audit say afterwards."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gateway.core.exchange import Ending
from gateway.core.holds import Holds
from gateway.core.ledger import Ledger
from gateway.metrics import Metrics
from gateway.operations import ledger as books
from gateway.store import holds
from gateway.store.audit import Audit
from gateway.store.journal import Journal
from gateway.store.ledger import Entry
from tests.fakes.gateway import ROOT, Answer, Broken, RunningGateway
from tests.fakes.postgres import Postgres
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, DONE

SOON_S = 10.0
"""Within which every hold of a dead worker has ended."""
INJECTED = ROOT / "tests" / "fakes" / "injected"


def settled(gateway: RunningGateway) -> float:
    """Seconds until no hold is open and the journal is empty."""
    began = time.monotonic()
    journal = gateway.directory / "data" / "journal"
    while gateway.read(holds.owners) or (journal.exists() and any(journal.iterdir())):
        assert time.monotonic() - began < 2 * SOON_S, "holds or journals are left"
        time.sleep(0.05)
    return time.monotonic() - began


def audited(gateway: RunningGateway) -> Audit:
    url = gateway.database_url or f"sqlite://{gateway.directory / 'data' / 'gateway.db'}"
    return books.verify(url, gateway.secrets.hasher.hash)


@dataclass(frozen=True)
class Seen:
    """What a client saw of its call. Each call here has a model's name of its own, by which its entries are found."""

    model: str
    ended: bool
    """The answer's end: `[DONE]`, or as many bytes as its length says."""
    clean: bool
    """The end of HTTP as well."""


@dataclass(frozen=True)
class Findings:
    """What the kill test counts: calls whose end was seen and that are not booked, or not with what they cost; calls booked more than once."""

    lost: list[str]
    doubled: list[str]
    differences: tuple[str, ...]


@dataclass
class Crashing:
    """A running gateway of two workers with a budget on its tester, another key without one, and switches for its crashes."""

    gateway: RunningGateway
    provider: Provider
    free_key: str
    cost: int = 0
    """Of every call here, nano-USD."""
    seen: list[Seen] = field(default_factory=list)

    @property
    def switches(self) -> Path:
        return self.gateway.directory / "switches"

    def arm(self, name: str) -> None:
        (self.switches / name).touch()

    def disarm(self, name: str) -> None:
        (self.switches / name).unlink()

    def reached(self, name: str) -> bool:
        """Whether what was armed happened; it may be armed again then."""
        with contextlib.suppress(FileNotFoundError):
            (self.switches / f"{name}.reached").unlink()
            return not (self.switches / name).exists()
        return False

    def ask(self, model: str, *, stream: bool, key: str = "") -> Seen:
        """One call over a connection of its own."""
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream, "max_tokens": 50}
        head: Answer | None = None
        with self.gateway.client(key) as client:
            client.ask(CHAT, body)
            try:
                head = client.head()
                text, clean = client.rest(), True
            except Broken as broken:
                text, clean = broken.body, False
        assert head is None or head.status == 200
        ended = head is not None and (text.endswith(DONE) if stream else clean)
        self.seen.append(Seen(model, ended, clean))
        return self.seen[-1]

    @contextlib.contextmanager
    def watching(self) -> Iterator[dict[str, float]]:
        """For how many seconds each hold was seen open meanwhile, by its id."""
        first: dict[str, float] = {}
        open_s: dict[str, float] = {}
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.05):
                for hold in self.open():
                    open_s[hold.id] = time.monotonic() - first.setdefault(hold.id, time.monotonic())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield open_s
        finally:
            over.set()
            thread.join()

    def open(self) -> list[holds.OpenHold]:
        """Every open hold."""
        return [hold for owner in self.gateway.read(holds.owners) for hold in self.gateway.read(lambda: holds.open_holds(owner, 100))]  # noqa: B023

    def entries(self) -> dict[str, list[Entry]]:
        """By the model's name."""
        found: dict[str, list[Entry]] = {}
        for entry in self.gateway.entries():
            found.setdefault(entry.model_asked, []).append(entry)
        return found

    def findings(self) -> Findings:
        """Of every call so far."""
        booked = {model: [entry.amount for entry in entries if entry.ending == "complete"] for model, entries in self.entries().items()}
        lost = [each.model for each in self.seen if each.ended and booked.get(each.model, [])[:1] != [self.cost]]
        doubled = [model for model, amounts in booked.items() if len(amounts) > 1]
        return Findings(lost, doubled, tuple(f"{each.row} {each.problem}" for each in audited(self.gateway).differences))

    def reaper(self) -> Ledger:
        """Another host's, that books what it takes for abandoned."""
        database = self.gateway.database
        journal = Journal(self.gateway.directory / "other", "other")
        return Ledger(database, journal, self.gateway.secrets.hasher.hash, Holds(database, "other", 1), Metrics())

    def expire(self, *, times: int) -> int:
        """So many reapers have seen the open holds, and end them one after the other; how many holds there were."""
        reaper = self.reaper()
        found = self.open()
        self.gateway.database.bind()
        for _ in range(times):
            reaper.book([reaper.abandoned(hold, Ending.WORKER_LOST) for hold in found])
        return len(found)


@contextlib.contextmanager
def crashing(directory: Path, engine: str) -> Iterator[Crashing]:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(Postgres(directory / "postgres")).emptied("gateway") if engine == "postgres" else None
        provider = stack.enter_context(Provider())
        switches = directory / "gateway" / "switches"
        switches.mkdir(parents=True)
        environment = {"WEB_CONCURRENCY": "3" if url else "2", "GATEWAY_LOG_LEVEL": "warning", "INJECTED": str(switches), "PYTHONPATH": f"{INJECTED}:{ROOT}"}
        gateway = RunningGateway(directory / "gateway", environment, url)
        gateway.prepare()
        stack.callback(gateway.database.close)
        gateway.deploy("*", provider.url, upstream_model="m", price=None)
        gateway.deploy("m", provider.url)
        gateway.budget(10**15, "user", 1, "total")
        gateway.budget(10**15, "key", 1, "month")
        free_key = gateway.new_key(gateway.new_user("free"))
        stack.callback(gateway.stop)
        gateway.start()
        running = Crashing(gateway, provider, free_key)
        assert running.ask("measure", stream=True).clean
        (entry,) = gateway.wait_entries(1)
        running.cost = entry.amount
        assert running.cost > 0
        yield running
