"""What happens at one moment, in a patched process too: a server's threads are greenlets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
FILES = ("test_agent_session.py", "test_agents.py")
AT_ONE_MOMENT = "whenever or one_moment or cut_off or adds_up or go_on"


def test_agents_keep_their_order_under_gevent() -> None:
    script = "import sys; from gevent import monkey; monkey.patch_all(); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "-q", "--no-header", "-k", AT_ONE_MOMENT, *(str(FOLDER / name) for name in FILES)]
    run = subprocess.run(command, cwd=FOLDER.parents[2], capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
