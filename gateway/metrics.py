"""Prometheus metrics, right over several workers: with PROMETHEUS_MULTIPROC_DIR set (gunicorn.conf.py does), `exposition` adds up all workers.

A call only counts in memory. `refresh`, once a second and before this worker answers /metrics, writes what was counted where
every worker finds it. docs/operator.md explains each metric.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from gateway import __version__
from gateway.concurrency import offload

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OVERHEAD_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_COMMIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CHILDREN = 5000
"""A metric's label values at most; what comes after them is counted as "other"."""
OTHER = "other"
_PROCESS_S = 5.0
_NANO = 1_000_000_000


class Tally:
    """A counter in memory. One thread adds; `show` hands over what was added since it was last called, so that no count is lost between them."""

    __slots__ = ("_child", "_shown", "total")

    def __init__(self, child: Counter) -> None:
        self._child = child
        self.total = self._shown = 0.0

    def add(self, amount: float = 1) -> None:
        self.total += amount

    def show(self) -> None:
        if (grown := self.total - self._shown) > 0:
            self._child.inc(grown)
            self._shown += grown


class Spread:
    """A histogram in memory; see Tally."""

    __slots__ = ("_bounds", "_child", "_counts", "_shown", "_shown_sum", "_sum")

    def __init__(self, child: Histogram, bounds: tuple[float, ...]) -> None:
        self._child, self._bounds = child, bounds
        self._counts, self._shown = [0] * (len(bounds) + 1), [0] * (len(bounds) + 1)
        self._sum = self._shown_sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def show(self) -> None:
        # The library's only way in is one observation at a time, at 2 us each.
        for number, count in enumerate(self._counts):
            if grown := count - self._shown[number]:
                self._child._buckets[number].inc(grown)
                self._shown[number] = count
        if grown_sum := self._sum - self._shown_sum:
            self._child._sum.inc(grown_sum)
            self._shown_sum += grown_sum


class _Family:
    """The children of one metric, by their labels' values; each is made once."""

    def __init__(self, metric: Any, made: Callable[[Any], Any], shown: list[Any]) -> None:
        self._metric, self._made, self._shown = metric, made, shown
        self._children: dict[tuple[str, ...], Any] = {}

    def __call__(self, *labels: str) -> Any:
        child = self._children.get(labels)
        return child if child is not None else self._new(labels)

    def _new(self, labels: tuple[str, ...]) -> Any:
        if len(self._children) >= _CHILDREN:
            labels = (OTHER,) * len(labels)
        if labels not in self._children:
            self._children[labels] = self._made(self._metric.labels(*labels) if labels else self._metric)
            self._shown.append(self._children[labels])
        return self._children[labels]


class Metrics:
    """Labels are operators' words (deployments), our own (endpoints, endings, codes) and statuses: never a caller's, whose number has no bound."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._registry = CollectorRegistry()
        self._tallies: list[Any] = []
        self._samplers: list[Callable[[], None]] = []
        self._rests: set[tuple[str, str]] = set()
        self._process_due, self._cpu_s = 0.0, 0.0
        self._calls()
        self._store()
        self._states()
        self._process()
        self._build.labels(__version__, platform.python_version()).set(1)

    def _counter(self, name: str, text: str, *labels: str) -> _Family:
        return _Family(Counter(name, text, labels, registry=self._registry), Tally, self._tallies)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> _Family:
        made = Histogram(name, text, labels, buckets=bounds, registry=self._registry)
        return _Family(made, lambda child: Spread(child, bounds), self._tallies)

    def _gauge(self, name: str, text: str, mode: Any, *labels: str) -> Gauge:
        return Gauge(name, text, labels, multiprocess_mode=mode, registry=self._registry)

    def _calls(self) -> None:
        self._exchanges = self._counter("gateway_exchanges_total", "Calls that ended, by how.", "endpoint", "deployment", "status", "ending")
        self._duration = self._histogram("gateway_exchange_seconds", "From the client's call to the answer's end.", _SECONDS, "endpoint")
        self._first_byte = self._histogram("gateway_first_byte_seconds", "From the client's call to the answer's head.", _SECONDS, "deployment")
        self._overhead = self._histogram("gateway_overhead_seconds", "Of the time to the answer's head, what the gateway itself took.", _OVERHEAD_SECONDS)()
        self._attempts = self._counter("gateway_attempts_total", "Attempts at upstreams, by outcome.", "deployment", "outcome")
        self._retries_denied = self._counter("gateway_retries_denied_total", "Further attempts that the retry budget did not allow.")()
        self._heartbeats = self._counter("gateway_heartbeats_total", "Comments sent to clients while an upstream was silent.")()
        self._replays = self._counter("gateway_replays_total", "Stored answers given once more, for an Idempotency-Key.")()
        self._refusals = self._counter("gateway_refusals_total", "Requests refused before they became a call.", "status", "code")
        self._unrecorded = self._counter("gateway_refusals_unrecorded_total", "Refused calls beyond a key's quota of rows: counted, not recorded.")()

    def _store(self) -> None:
        self._tokens = self._counter("gateway_tokens_total", "Tokens booked, by bucket.", "deployment", "bucket")
        self._amount = self._counter("gateway_amount_usd_total", "US dollars booked; the ledger is exact, this is a float.", "deployment")
        self._flagged = self._counter("gateway_flagged_entries_total", "Ledger entries with a flag.", "flag")
        self._settle_failures = self._counter("gateway_settle_failures_total", "Entries that were not committed and stand in the log instead.")()
        self._journaled = self._counter("gateway_journaled_total", "Entries that the database did not take at once and the journal did.")()
        self._commit_s = self._histogram("gateway_commit_seconds", "How long the database took for a group commit.", _COMMIT_SECONDS)()
        self._commit_size = self._histogram("gateway_commit_batch_size", "Writes that shared a group commit.", _BATCH_SIZES)()
        self.commits_waiting = self._gauge("gateway_commits_waiting", "Writes that wait for their commit now.", "livesum")

    def _states(self) -> None:
        self.open = self._gauge("gateway_open_exchanges", "Calls under way.", "livesum")
        self.waiting = self._gauge("gateway_waiting_calls", "Calls that wait for their turn at a busy model.", "livesum")
        self.agents = self._gauge("gateway_agents_connected", "Agents whose websockets are here.", "livesum")
        self._resting = self._gauge(
            "gateway_deployments_resting", "Workers that see this deployment, or a credential of its pool, rest.", "livesum", "deployment", "reason"
        )
        self._quarantined = self._gauge("gateway_credentials_quarantined", "Credentials out of use until they are cleared, or get another secret.", "livemax")
        self._database_up = self._gauge("gateway_database_up", "1 where every worker's last read of the database succeeded.", "livemin")
        self._generation = self._gauge("gateway_catalog_generation", "The catalog that the most backward worker serves.", "livemin")
        self._confirmed = self._gauge("gateway_catalog_confirmed_timestamp_seconds", "When the catalog was last known to be the newest.", "livemin")
        self._stalls = self._counter("gateway_hub_stalls_total", "Times that a worker's hub was blocked for too long.")()
        self._stall_s = self._counter("gateway_hub_stall_seconds_total", "How long these stalls lasted, together.")()
        self._build = self._gauge("gateway_build_info", "1; which version runs.", "livemax", "version", "python")

    def _process(self) -> None:
        self._cpu = self._counter("process_cpu_seconds_total", "User and system CPU time of all workers.")()
        self._memory = self._gauge("process_resident_memory_bytes", "Resident memory, by worker.", "liveall")
        self._descriptors = self._gauge("process_open_fds", "Open file descriptors, by worker.", "liveall")
        self._most_descriptors = self._gauge("process_max_fds", "The limit of open file descriptors, by worker.", "liveall")
        self._started = self._gauge("process_start_time_seconds", "Start of the worker, by worker.", "liveall")
        self._started.set(time.time())

    # what calls count

    def attempted(self, deployment: str, outcome: str, first_byte_s: float | None = None) -> None:
        """An attempt ended. `outcome` is "answered" or an error's code; `first_byte_s` is given where it was answered."""
        self._attempts(deployment, outcome).add()
        if first_byte_s is not None:
            self._first_byte(deployment).add(first_byte_s)

    def retry_denied(self) -> None:
        self._retries_denied.add()

    def ended(self, endpoint: str, deployment: str, status: int | None, ending: str, total_s: float, own_s: float | None, heartbeats: int) -> None:
        """A call ended. `deployment` is the last that was tried, or ""; `own_s` of its seconds to the first byte were ours (None: there was no byte)."""
        self._exchanges(endpoint, deployment, str(status), ending).add()
        self._duration(endpoint).add(total_s)
        if own_s is not None:
            self._overhead.add(own_s)
        if heartbeats:
            self._heartbeats.add(heartbeats)

    def booked(self, deployment: str, tokens: Mapping[str, int], amount_nano: int, flags: Iterable[str]) -> None:
        """An entry was committed. `tokens` by bucket."""
        for bucket, count in tokens.items():
            if count:
                self._tokens(deployment, bucket).add(count)
        self._amount(deployment).add(amount_nano / _NANO)
        for flag in flags:
            self._flagged(flag).add()

    def replayed(self) -> None:
        """A stored answer was given once more."""
        self._replays.add()

    def refused(self, status: int, code: str) -> None:
        """A request was refused before it became a call."""
        self._refusals(str(status), code).add()

    def refusal_unrecorded(self) -> None:
        self._unrecorded.add()

    def settle_failed(self) -> None:
        self._settle_failures.add()

    def journaled(self) -> None:
        self._journaled.add()

    def committed(self, writes: int, seconds: float) -> None:
        """A group commit. May be called by the database's native thread, and by nobody else."""
        self._commit_size.add(writes)
        self._commit_s.add(seconds)

    def stalled(self, seconds: float) -> None:
        """The hub was blocked for so long."""
        self._stalls.add()
        self._stall_s.add(seconds)

    # what is looked at once a second

    def sample(self, look: Callable[[], None]) -> None:
        """Have `look` set its gauges at every `refresh`. It must not raise, nor do I/O."""
        self._samplers.append(look)

    def catalog(self, generation: int, confirmed_at: float | None, reachable: bool) -> None:
        """`confirmed_at`: Unix seconds."""
        self._generation.set(generation)
        self._confirmed.set(confirmed_at or 0)
        self._database_up.set(reachable)

    def resting(self, rests: Iterable[tuple[str, str]], quarantined: int) -> None:
        """The (deployment, reason) of each that rests in this worker, and how many credentials are quarantined."""
        now = set(rests)
        for deployment, reason in self._rests - now:
            self._resting.labels(deployment, reason).set(0)
        for deployment, reason in now - self._rests:
            self._resting.labels(deployment, reason).set(1)
        self._rests = now
        self._quarantined.set(quarantined)

    def refresh(self) -> None:
        """Look at what has a state, and write down what was counted. For the hub's thread."""
        for look in self._samplers:
            look()
        if self._clock() >= self._process_due:
            self._process_due = self._clock() + _PROCESS_S
            self._look_at_the_process()
        for tally in list(self._tallies):
            tally.show()

    def _look_at_the_process(self) -> None:
        used = time.process_time()
        self._cpu.add(used - self._cpu_s)
        self._cpu_s = used
        self._memory.set(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
        self._descriptors.set(os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")))  # the size is their number since Linux 6.2
        self._most_descriptors.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def exposition(self) -> bytes:
        """The text format, version 0.0.4. This worker's counts are of this moment, the others' at most a second old."""
        self.refresh()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        return offload(_of_all_workers)  # it reads and adds up every worker's file


def _of_all_workers() -> bytes:
    collected = CollectorRegistry()
    MultiProcessCollector(collected)  # type: ignore[no-untyped-call]
    return generate_latest(collected)
