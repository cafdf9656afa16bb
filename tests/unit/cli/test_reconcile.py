from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from tests.unit.cli.conftest import Typed
from tests.unit.operations.exports import OpenAIMonth

FIRST = 20_758


def test_what_differs_is_a_table_with_its_cause_and_an_exit_code(installed: Typed, tmp_path: Path) -> None:
    month = OpenAIMonth()
    month.add(FIRST, "gpt-4o-2024-08-06", 2, 100, 40, 10, 5_000)
    (tmp_path / "usage.json").write_bytes(month.usage(range(FIRST, FIRST + 2)))
    (tmp_path / "costs.json").write_bytes(month.costs(range(FIRST, FIRST + 2)))
    result = installed("reconcile", "import", "openai", "usage.json", "costs.json")
    assert result.code == 1
    assert "missing_here (input +60, cache_read +40, output +10)" in result.out
    assert "missing_here: calls that did not come through the gateway" in result.out
    assert "no call of a deployment that leads to openai is booked in this period" in result.err

    rows = installed("reconcile", "import", "openai", "usage.json", "costs.json", "--format", "csv").out
    (row,) = csv.DictReader(io.StringIO(rows, newline=""))
    assert (row["day"], row["cause"], row["cost_usd_theirs"], row["cost_usd_delta"]) == ("2026-11-01", "missing_here", "0.000005000", "0.000005000")
    lines = installed("reconcile", "import", "openai", "usage.json", "--format", "jsonl").out.splitlines()
    assert json.loads(lines[0])["cost_usd_theirs"] is None
    document = installed("reconcile", "import", "openai", "usage.json", "costs.json", "--json").json()
    assert (document["differences"], document["first"], document["lines"][0]["cost_usd_delta"]) == (1, "2026-11-01", "0.000005000")


def test_a_bill_of_nothing_agrees_with_nothing(installed: Typed, tmp_path: Path) -> None:
    (tmp_path / "costs.csv").write_text("start_time,end_time,amount_value,amount_currency,line_item\n1793491200,1793577600,,,\n")
    result = installed("reconcile", "import", "openai", "costs.csv", "--all")
    assert (result.code, "0 differences" in result.out) == (0, True)


def test_another_file_is_one_line_that_says_what_is_taken(installed: Typed, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("date,total\n2026-11-01,5\n")
    result = installed("reconcile", "import", "anthropic", "other.csv")
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert "found: CSV with the columns date, total" in result.err
    assert "usage_report/messages" in result.err
    assert installed("reconcile", "import", "mistral", "other.csv").code == 2
    assert installed("reconcile", "import", "openai", "nowhere.csv").code == 2
    assert installed("reconcile", "import", "openai", "other.csv", "-o", "x").code == 2
