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
conf["on_starting"](types.SimpleNamespace(handle_term="term"))
kept = {"own": os.getpid(), "alive": os.getppid(), "dead": 2**22 + 1}
print({name: sorted(path.name for path in run.glob(f"metrics-{pid}*/*")) if (run / f"metrics-{pid}").exists() else None for name, pid in kept.items()})
"""


def test_counters_begin_at_zero_and_those_of_living_servers_stay(tmp_path: Path) -> None:
    environment = os.environ | {"GATEWAY_RUN_DIR": str(tmp_path / "run"), "GATEWAY_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", STARTING], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == str({"own": [], "alive": ["counter_1.db"], "dead": None})
