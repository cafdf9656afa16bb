"""The contract holds in a patched process too, as the server's are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def test_built_in_backends_keep_the_contract_under_gevent() -> None:
    script = "import sys; from gevent import monkey; monkey.patch_all(); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    files = [str(FOLDER / name) for name in ("test_echo.py", "test_openai.py", "test_access_token.py")]
    run = subprocess.run([sys.executable, "-c", script, "-q", "--no-header", *files], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
