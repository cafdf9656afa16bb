"""Schemathesis in a process of its own, against a gateway that runs: every operation of /openapi.json, with data that fits it and data that does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.gateway import ROOT, RunningGateway

EXAMPLES = int(os.environ.get("EXPLORATION_EXAMPLES", "0"))
"""How many cases of each operation are generated; 0: a few. A longer run: `EXPLORATION_EXAMPLES=300 pytest -s tests/conformance/test_openapi.py`."""
TIMEOUT_S = 3600 if EXAMPLES else 240
"""A limit, no measure: an exploration takes 20 s at most where nothing else runs."""

CONFIG = """\
seed = 1
continue-on-failure = true
request-timeout = 20
hooks = "tests.conformance.openapi_checks"

[generation]
deterministic = true
database = "none"
no-shrink = true
max-examples = {examples}

[auth.openapi.key]
bearer = "${{EXPLORATION_KEY}}"

[checks.not_a_server_error]
# An upstream's failures have statuses of their own, and what is not served says so; a 500 is a bug.
expected-statuses = ["2XX", "4XX", "501", "502", "503", "504"]

{more}
"""


@dataclass(frozen=True)
class Explored:
    """`answers`: how many there were by path and status."""

    passed: bool
    output: str
    answers: Mapping[tuple[str, int], int]

    def statuses(self) -> Counter[int]:
        found: Counter[int] = Counter()
        for (_, status), count in self.answers.items():
            found[status] += count
        return found


def explore(gateway: RunningGateway, directory: Path, *options: str, examples: int, config: str = "") -> Explored:
    """Run Schemathesis with `examples` cases of each operation (or EXPLORATION_EXAMPLES); `options` are of its command line, `config` of its file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "schemathesis.toml").write_text(CONFIG.format(examples=EXAMPLES or examples, more=config))
    record, document = directory / "answers.jsonl", directory / "openapi.json"
    record.touch()
    document.write_bytes(gateway.get("/openapi.json", key=None).body)  # from its URL, Schemathesis would leave that route out
    own = {"PYTHONPATH": str(ROOT), "EXPLORATION_KEY": gateway.key, "EXPLORATION_RECORD": str(record), "NO_COLOR": "1", "NO_PROXY": "*"}
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(document), "--url", gateway.root, *options]
    done = subprocess.run(command, cwd=directory, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S)
    answers: Counter[tuple[str, int]] = Counter()
    for line in record.read_text().splitlines():
        answer: dict[str, Any] = json.loads(line)
        answers[answer["path"], answer["status"]] += 1
    return Explored(done.returncode == 0, done.stdout, answers)
