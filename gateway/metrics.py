"""Prometheus metrics, right over several workers: with PROMETHEUS_MULTIPROC_DIR set (gunicorn.conf.py does), `exposition` adds up all workers."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Labels are operators' words (deployments) and our own (endings): never a caller's, whose number has no bound."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self.exchanges = Counter("gateway_exchanges", "Calls that ended, by ending and HTTP status.", ["ending", "status"], registry=own)
        self.attempts = Counter("gateway_attempts", "Attempts at upstreams, by deployment and outcome.", ["deployment", "outcome"], registry=own)
        self.first_byte = Histogram(
            "gateway_first_byte_seconds", "From the client's call to the answer's head.", ["deployment"], buckets=_SECONDS, registry=own
        )
        self.duration = Histogram("gateway_exchange_seconds", "From the client's call to the answer's end.", buckets=_SECONDS, registry=own)
        self.open = Gauge("gateway_open_exchanges", "Calls under way.", multiprocess_mode="livesum", registry=own)
        self.tokens = Counter("gateway_tokens", "Tokens booked, by bucket.", ["bucket"], registry=own)
        self.amount = Counter("gateway_amount_nano_usd", "Nano-dollars booked.", registry=own)
        self.flagged = Counter("gateway_flagged_entries", "Ledger entries with a flag.", ["flag"], registry=own)
        self.settle_failures = Counter("gateway_settle_failures", "Entries that could not be committed and were logged instead.", registry=own)
        self.refusals_unrecorded = Counter("gateway_refusals_unrecorded", "Refusals beyond a key's quota of rows.", registry=own)

    def exposition(self) -> bytes:
        """The text format, version 0.0.4."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        collected = CollectorRegistry()
        MultiProcessCollector(collected)  # type: ignore[no-untyped-call]
        return generate_latest(collected)
