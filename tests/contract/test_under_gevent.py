"""The contract holds in a patched process too, as the server's are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


@pytest.mark.parametrize("file", ["test_echo.py", "test_openai.py", "test_access_token.py", "test_agent.py"])
def test_built_in_backends_keep_the_contract_under_gevent(file: str) -> None:
    script = "import sys; from gevent import monkey; monkey.patch_all(); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "-q", "--no-header", str(FOLDER / file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
