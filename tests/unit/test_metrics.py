from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.metrics import Metrics

WORKER = """
import sys
from gateway.metrics import Metrics
metrics = Metrics()
metrics.exchanges.labels("complete", "200").inc(int(sys.argv[1]))
metrics.first_byte.labels("d").observe(0.2)
metrics.duration.observe(3)
metrics.open.set(int(sys.argv[1]))
print(__import__("os").getpid())
"""
COLLECTOR = """
import sys
from prometheus_client import multiprocess
from gateway.metrics import Metrics
for pid in sys.argv[1:]:
    multiprocess.mark_process_dead(int(pid))
sys.stdout.write(Metrics().exposition().decode())
"""


def run(directory: Path, program: str, *arguments: str) -> str:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout


def samples(text: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if not line.startswith("#")}


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """What two workers left behind, and their process ids."""
    directory = tmp_path_factory.mktemp("metrics")
    return directory, [run(directory, WORKER, "2").strip(), run(directory, WORKER, "5").strip()]


def test_one_process_shows_its_own_counts() -> None:
    metrics = Metrics()
    metrics.exchanges.labels("complete", "200").inc()
    assert samples(metrics.exposition().decode())['gateway_exchanges_total{ending="complete",status="200"}'] == 1


def test_two_gateways_of_a_process_do_not_mix() -> None:
    first, second = Metrics(), Metrics()
    first.amount.inc(7)
    assert samples(second.exposition().decode())["gateway_amount_nano_usd_total"] == 0


def test_counts_of_all_workers_are_added_up_whoever_is_asked(workers: tuple[Path, list[str]]) -> None:
    found = samples(run(workers[0], COLLECTOR))
    assert found['gateway_exchanges_total{ending="complete",status="200"}'] == 7
    assert found["gateway_exchange_seconds_count"] == 2
    assert found["gateway_exchange_seconds_sum"] == 6
    assert found['gateway_first_byte_seconds_bucket{deployment="d",le="0.25"}'] == 2
    assert found['gateway_first_byte_seconds_bucket{deployment="d",le="0.1"}'] == 0
    assert found["gateway_open_exchanges"] == 7


def test_dead_worker_has_no_calls_under_way_but_its_counts_remain(workers: tuple[Path, list[str]]) -> None:
    directory, pids = workers
    found = samples(run(directory, COLLECTOR, pids[0]))
    assert found["gateway_open_exchanges"] == 5
    assert found['gateway_exchanges_total{ending="complete",status="200"}'] == 7


def test_no_label_holds_what_a_caller_chooses() -> None:
    metrics = Metrics()
    labels = {name for each in vars(metrics).values() for name in getattr(each, "_labelnames", ())}
    assert labels == {"ending", "status", "deployment", "outcome", "bucket", "flag"}


def test_every_metric_has_a_help_text_and_the_gateways_prefix() -> None:
    text = Metrics().exposition().decode()
    names = re.findall(r"# HELP (\S+) (.+)", text)
    assert len(names) >= 10
    assert all(name.startswith("gateway_") and len(words) > 10 for name, words in names)
