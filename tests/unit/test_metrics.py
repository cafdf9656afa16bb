"""What is counted, that it adds up over workers, and that docs/operator.md lists all of it."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway.metrics import OTHER, Metrics
from tests.factories import Clock

ROOT = Path(__file__).parents[2]
WORKER = """
import sys
from gateway.metrics import Metrics
metrics = Metrics()
count = int(sys.argv[1])
for _ in range(count):
    metrics.ended("/chat/completions", "d", 200, "complete", 3, 0.002, 0)
metrics.attempted("d", "answered", 0.2)
metrics.sample(lambda: metrics.open.set(count))
metrics.catalog(count, 1000.0 * count, count != 5)
metrics.resting([("d", "failing")], count)
metrics.refresh()
print(__import__("os").getpid())
"""
COLLECTOR = """
import sys
from prometheus_client import multiprocess
from gateway.metrics import _of_all_workers
for pid in sys.argv[1:]:
    multiprocess.mark_process_dead(int(pid))
sys.stdout.write(_of_all_workers().decode())
"""
CALL = ("/chat/completions", "d", 200, "complete", 0.3, 0.001, 0)


def run(directory: Path, program: str, *arguments: str) -> str:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout


def samples(text: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if not line.startswith("#")}


def shown(metrics: Metrics) -> dict[str, float]:
    return samples(metrics.exposition().decode())


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """What two workers left behind, and their process ids."""
    directory = tmp_path_factory.mktemp("metrics")
    return directory, [run(directory, WORKER, "2").strip(), run(directory, WORKER, "5").strip()]


def test_one_process_shows_its_own_counts() -> None:
    metrics = Metrics()
    metrics.ended(*CALL)
    metrics.ended(*CALL)
    assert shown(metrics)['gateway_exchanges_total{deployment="d",ending="complete",endpoint="/chat/completions",status="200"}'] == 2
    metrics.ended(*CALL)
    assert shown(metrics)['gateway_exchanges_total{deployment="d",ending="complete",endpoint="/chat/completions",status="200"}'] == 3


def test_two_gateways_of_a_process_do_not_mix() -> None:
    first, second = Metrics(), Metrics()
    first.booked("d", {}, 7, ())
    assert 'gateway_amount_usd_total{deployment="d"}' not in shown(second)


def test_a_booked_entry_is_counted_in_tokens_dollars_and_flags() -> None:
    metrics = Metrics()
    metrics.booked("d", {"output_text": 7, "cache_read": 0}, 2_500_000_000, ("unpriced",))
    found = shown(metrics)
    assert found['gateway_tokens_total{bucket="output_text",deployment="d"}'] == 7
    assert found['gateway_amount_usd_total{deployment="d"}'] == 2.5
    assert found['gateway_flagged_entries_total{flag="unpriced"}'] == 1
    assert not any("cache_read" in name for name in found)


def test_everything_else_that_happens_is_counted() -> None:
    metrics = Metrics()
    metrics.ended("/chat/completions", "d", 200, "complete", 0.3, None, 4)
    metrics.attempted("d", "upstream_timeout")
    metrics.retry_denied()
    metrics.refused(413, "body_too_large")
    metrics.refusal_unrecorded()
    metrics.settle_failed()
    metrics.committed(3, 0.004)
    metrics.stalled(0.25)
    found = shown(metrics)
    assert found["gateway_overhead_seconds_count"] == 0
    assert found["gateway_heartbeats_total"] == 4
    assert found['gateway_attempts_total{deployment="d",outcome="upstream_timeout"}'] == 1
    assert found["gateway_retries_denied_total"] == 1
    assert found['gateway_refusals_total{code="body_too_large",status="413"}'] == 1
    assert found["gateway_refusals_unrecorded_total"] == 1
    assert found["gateway_settle_failures_total"] == 1
    assert (found['gateway_commit_batch_size_bucket{le="4.0"}'], found['gateway_commit_batch_size_bucket{le="2.0"}']) == (1, 0)
    assert (found["gateway_commit_seconds_sum"], found["gateway_commit_seconds_count"]) == (0.004, 1)
    assert (found["gateway_hub_stalls_total"], found["gateway_hub_stall_seconds_total"]) == (1, 0.25)


@pytest.mark.parametrize("value", [0.0, 0.05, 0.0500001, 300, 600, 601, 1e9])
def test_histogram_is_what_one_observation_at_a_time_would_make(value: float) -> None:
    metrics = Metrics()
    metrics.ended("/x", "d", 200, "complete", value, None, 0)
    found = {float(name.split('le="')[1].rstrip('"}')): count for name, count in shown(metrics).items() if "exchange_seconds_bucket" in name}
    assert found == {bound: float(value <= bound) for bound in found}
    assert math.inf in found


def test_rest_that_is_over_is_shown_as_over() -> None:
    metrics = Metrics()
    metrics.resting([("d", "failing"), ("e", "quarantined")], 1)
    metrics.resting([("e", "quarantined")], 1)
    found = shown(metrics)
    assert found['gateway_deployments_resting{deployment="d",reason="failing"}'] == 0
    assert found['gateway_deployments_resting{deployment="e",reason="quarantined"}'] == 1
    assert found["gateway_credentials_quarantined"] == 1


def test_process_is_looked_at_now_and_then() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    found = shown(metrics)
    assert found["process_resident_memory_bytes"] > 1_000_000
    assert 3 <= found["process_open_fds"] <= found["process_max_fds"]
    assert found["process_start_time_seconds"] > 1_700_000_000
    sum(number * number for number in range(200_000))
    assert shown(metrics)["process_cpu_seconds_total"] == found["process_cpu_seconds_total"]
    clock.now += 6
    assert shown(metrics)["process_cpu_seconds_total"] > found["process_cpu_seconds_total"]


def test_counts_of_another_thread_are_not_lost_while_they_are_shown() -> None:
    metrics = Metrics()
    writer = threading.Thread(target=lambda: [metrics.committed(1, 0.001) for _ in range(20_000)])
    writer.start()
    while writer.is_alive():
        metrics.refresh()
    assert shown(metrics)["gateway_commit_seconds_count"] == 20_000


def test_counts_of_all_workers_are_added_up_whoever_is_asked(workers: tuple[Path, list[str]]) -> None:
    found = samples(run(workers[0], COLLECTOR))
    assert found['gateway_exchanges_total{deployment="d",ending="complete",endpoint="/chat/completions",status="200"}'] == 7
    assert found['gateway_exchange_seconds_count{endpoint="/chat/completions"}'] == 7
    assert found['gateway_exchange_seconds_sum{endpoint="/chat/completions"}'] == 21
    assert found['gateway_first_byte_seconds_bucket{deployment="d",le="0.25"}'] == 2
    assert found['gateway_first_byte_seconds_bucket{deployment="d",le="0.1"}'] == 0
    assert found["gateway_open_exchanges"] == 7
    assert found['gateway_deployments_resting{deployment="d",reason="failing"}'] == 2


def test_states_are_those_of_the_worker_that_is_worst_off(workers: tuple[Path, list[str]]) -> None:
    found = samples(run(workers[0], COLLECTOR))
    assert found["gateway_database_up"] == 0
    assert found["gateway_catalog_generation"] == 2
    assert found["gateway_catalog_confirmed_timestamp_seconds"] == 2000
    assert found["gateway_credentials_quarantined"] == 5
    assert {name for name in found if name.startswith("process_resident")} == {f'process_resident_memory_bytes{{pid="{pid}"}}' for pid in workers[1]}


def test_dead_worker_has_no_calls_under_way_but_its_counts_remain(workers: tuple[Path, list[str]]) -> None:
    directory, pids = workers
    found = samples(run(directory, COLLECTOR, pids[0]))
    assert found["gateway_open_exchanges"] == 5
    assert found['gateway_exchanges_total{deployment="d",ending="complete",endpoint="/chat/completions",status="200"}'] == 7


def families() -> dict[str, set[str]]:
    """Every metric by its name in the exposition, with its labels."""
    metrics = Metrics()
    found = {}
    for family in metrics._registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        collector = metrics._registry._names_to_collectors[family.name]
        found[name] = set(collector._labelnames)
    return found


def test_no_label_holds_what_a_caller_chooses() -> None:
    labels = set().union(*families().values())
    assert labels == {"endpoint", "deployment", "status", "ending", "outcome", "bucket", "flag", "code", "reason", "version", "python"}


def test_number_of_a_metrics_series_has_a_bound() -> None:
    metrics = Metrics()
    for number in range(6000):
        metrics.attempted(f"d{number}", "answered")
    found = {name: value for name, value in shown(metrics).items() if name.startswith("gateway_attempts_total")}
    assert len(found) == 5001
    assert found[f'gateway_attempts_total{{deployment="{OTHER}",outcome="{OTHER}"}}'] == 1000


def test_names_follow_prometheus() -> None:
    text = Metrics().exposition().decode()
    kinds = dict(re.findall(r"# TYPE (\S+) (\S+)", text))
    helps = dict(re.findall(r"# HELP (\S+) (.+)", text))
    ours = {name: kind for name, kind in kinds.items() if not name.endswith("_created")}
    assert all(re.fullmatch(r"(gateway|process)_[a-z_]+", name) for name in ours)
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in ours.items())
    assert not any(re.search(r"_(ms|millis|minutes|kb|mb|count)(_|$)", name) for name in ours)
    assert all(len(helps[name]) > 10 for name in ours)


def test_operators_page_lists_every_metric_and_no_other() -> None:
    page = (ROOT / "docs" / "operator.md").read_text().partition("### Metrics")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_]+)` \|([^|]*)\|", page, re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows} == families()


def test_alerts_name_only_metrics_that_there_are() -> None:
    rules = (ROOT / "deploy" / "prometheus-rules.yml").read_text()
    expressions = re.findall(r"expr: .*(?:\n {10,}.*)*", rules)
    named = set(re.findall(r"\b(?:gateway|process)_[a-z_]+", "\n".join(expressions)))
    assert len(expressions) == rules.count("alert: ")
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= set(families())
