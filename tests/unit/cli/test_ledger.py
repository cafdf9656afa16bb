from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from tests.unit.cli.conftest import Typed

HOSTILE = '=HYPERLINK("http://evil","x")'


def credited(gateway: Typed) -> None:
    gateway("user", "create", "ann")
    gateway("budget", "set", "--user", "ann", "--period", "total", "--limit", "0")
    assert gateway("credit", "add", "--user", "ann", "--amount", "1.50", "--note", HOSTILE).code == 0


def test_an_export_is_csv_with_amounts_to_the_last_digit_and_no_formulas(installed: Typed) -> None:
    credited(installed)
    result = installed("ledger", "export")
    (row,) = csv.DictReader(io.StringIO(result.out, newline=""))
    assert (row["kind"], row["user"], row["amount_usd"], row["amount_nano_usd"]) == ("credit", "ann", "-1.500000000", "-1500000000")
    assert row["note"] == "'" + HOSTILE
    assert "1 entries" in result.err


def test_json_lines_go_to_a_file(installed: Typed, tmp_path: Path) -> None:
    credited(installed)
    result = installed("ledger", "export", "--since", "2020-01-01", "--format", "jsonl", "-o", "books.jsonl")
    assert (result.code, result.out) == (0, "")
    (line,) = (tmp_path / "books.jsonl").read_text().splitlines()
    assert (json.loads(line)["note"], json.loads(line)["seal"] is not None) == (HOSTILE, True)


def test_a_place_that_is_not_there_is_one_line_and_leaves_nothing(installed: Typed, tmp_path: Path) -> None:
    result = installed("ledger", "export", "-o", "nowhere/books.csv")
    assert (result.code, "nowhere/books.csv" in result.err, len(result.err.splitlines())) == (1, True, 1)
    assert not (tmp_path / "nowhere").exists()


def test_an_export_of_nothing_is_its_heading(installed: Typed) -> None:
    result = installed("ledger", "export", "--month", "2026-11")
    assert (result.code, result.out.count("\n"), result.out[:9]) == (0, 1, "id,at,at_")
    assert installed("ledger", "export", "--month", "2026-11", "--since", "2026-11-01").code == 2
