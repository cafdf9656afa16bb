"""The server's configuration, executed as gunicorn does: in a process of its own, since it patches whatever process it is in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STARTING = """
import os, pathlib, runpy, types
run = pathlib.Path(os.environ["GATEWAY_RUN_DIR"])
for pid in (os.getpid(), os.getppid(), 2**22 + 1):
    (run / f"metrics-{pid}").mkdir(parents=True)
    (run / f"metrics-{pid}" / "counter_1.db").touch()
conf = runpy.run_path("gunicorn.conf.py")
conf["on_starting"](types.SimpleNamespace())
kept = {"own": os.getpid(), "alive": os.getppid(), "dead": 2**22 + 1}
print({name: sorted(path.name for path in run.glob(f"metrics-{pid}*/*")) if (run / f"metrics-{pid}").exists() else None for name, pid in kept.items()})
"""


def test_counters_begin_at_zero_and_those_of_living_servers_stay(tmp_path: Path) -> None:
    environment = os.environ | {"GATEWAY_RUN_DIR": str(tmp_path / "run"), "GATEWAY_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", STARTING], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == str({"own": [], "alive": ["counter_1.db"], "dead": None})


def executed(program: str, directory: Path, **settings: str) -> str:
    """What a program prints that finds the configuration's names in `conf`."""
    environment = os.environ | {"GATEWAY_RUN_DIR": str(directory / "run"), "GATEWAY_DATA_DIR": str(directory / "data"), "PYTHONPATH": str(ROOT)} | settings
    script = f"import os, runpy, sys\nconf = runpy.run_path('gunicorn.conf.py')\n{program}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()


def test_time_to_drain_is_the_setting_and_a_worker_that_hangs_has_20_seconds(tmp_path: Path) -> None:
    assert executed("print(conf['timeout'], conf['graceful_timeout'], conf['keepalive'])", tmp_path, GATEWAY_DRAIN_S="41") == "20 41 15"


def test_trial_of_a_reload_counts_nothing(tmp_path: Path) -> None:
    program = "import sys; sys.argv.append('--check-config'); runpy.run_path('gunicorn.conf.py'); print('PROMETHEUS_MULTIPROC_DIR' in os.environ)"
    assert executed(program, tmp_path) == "False"
    assert not (tmp_path / "run").exists()


def test_configuration_executed_again_brings_new_code(tmp_path: Path) -> None:
    program = "before = sys.modules['gateway.settings']; runpy.run_path('gunicorn.conf.py'); print(sys.modules['gateway.settings'] is before)"
    assert executed(program, tmp_path) == "False"
