"""The stall monitor in patched processes of their own, as it runs in a server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from gevent import monkey

monkey.patch_all()
import sys, time
from gateway import logs
from gateway.stalls import StallMonitor

logs.set_up("info", logs.Redactor(), sys.stdout)
block = monkey.get_original("time", "sleep")
seen = []
monitor = StallMonitor(seen.append)
monitor.start()


def culprit(seconds):
    block(seconds)


time.sleep(0.2)
BODY
time.sleep(0.2)
print(len(seen), *seen)
"""


def lines(body: str) -> tuple[list[dict[str, Any]], list[float]]:
    """The lines that are logged, and the seconds that are observed, while `body` runs."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM.replace("BODY", body)], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    *logged, last = done.stdout.splitlines()
    assert done.stderr == ""
    return [json.loads(line) for line in logged], [float(word) for word in last.split()[1:]]


def test_a_stall_is_logged_with_its_stack_and_its_seconds() -> None:
    (line,), (seconds,) = lines("culprit(0.4)")
    assert 0.3 < seconds < 4
    assert (line["level"], line["logger"], line["stack_of"], line["since_last_line"]) == ("warning", "gateway.stalls", "the stall", 0)
    assert line["seconds"] == round(seconds, 3)
    assert line["cpu_seconds"] < line["seconds"]
    assert "culprit" in line["stack"][0]


def test_what_waits_as_it_should_is_no_stall() -> None:
    assert lines("time.sleep(0.5)") == ([], [])


def test_c_code_that_holds_the_interpreter_is_told_from_the_moment_after() -> None:
    (line,), (seconds,) = lines("sum(range(40_000_000))")
    assert seconds > 0.2
    assert line["stack_of"].startswith("the moment after")
    assert line["cpu_seconds"] > 0.1


def test_many_stalls_make_one_line_and_all_are_counted() -> None:
    logged, seconds = lines("for _ in range(4): culprit(0.3); time.sleep(0.1)")
    assert len(logged) == 1
    assert len(seconds) == 4


def test_closed_monitor_sees_nothing() -> None:
    assert lines("monitor.close(); monitor.close(); culprit(0.4)") == ([], [])
