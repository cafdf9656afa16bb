"""Rows as files, without a database."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import pytest

from gateway.cli.export import harmless, write_rows

ROWS = [{"name": "=1+1", "usd": Decimal("-0.000000001"), "nano": -1, "more": {"a": [1]}, "none": None}]
COLUMNS = tuple(ROWS[0])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n1", "  =cmd|' /C calc'!A0", "\uff1d1+1", "=", "\u00a0=1"])
def test_a_text_that_a_spreadsheet_would_compute_is_put_behind_an_apostrophe(text: str) -> None:
    assert harmless(text) == "'" + text


@pytest.mark.parametrize("text", ["", "gpt-4o", "a=1", "ünï", "'quoted'", "1-2", "{}", " "])
def test_any_other_text_stays_as_it_is(text: str) -> None:
    assert harmless(text) == text


def test_csv_keeps_numbers_numbers_and_amounts_to_the_last_digit(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert write_rows(ROWS, COLUMNS, "csv", path) == 1
    assert list(csv.reader(io.StringIO(path.read_text(), newline=""))) == [list(COLUMNS), ["'=1+1", "-0.000000001", "-1", '{"a": [1]}', ""]]


def test_json_lines_have_every_text_as_it_is_and_amounts_as_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(ROWS * 2, COLUMNS, "jsonl", path)
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"name": "=1+1", "usd": "-0.000000001", "nano": -1, "more": {"a": [1]}, "none": None}] * 2


def test_no_rows_are_a_heading(tmp_path: Path) -> None:
    assert write_rows([], ("a", "b"), "csv", tmp_path / "empty.csv") == 0
    assert (tmp_path / "empty.csv").read_bytes() == b"a,b\r\n"


def test_a_file_is_the_owner_s_alone_and_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("before")

    def broken() -> Iterator[Mapping[str, Any]]:
        yield ROWS[0]
        raise RuntimeError("the database went away")

    with pytest.raises(RuntimeError):
        write_rows(broken(), COLUMNS, "csv", path)
    assert ([each.name for each in tmp_path.iterdir()], path.read_text()) == (["rows.csv"], "before")
    write_rows(ROWS, COLUMNS, "csv", path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(click.FileError) as caught:
        write_rows(ROWS, COLUMNS, "csv", tmp_path / "nowhere" / "rows.csv")
    assert "No such file or directory" in caught.value.format_message()
    with pytest.raises(click.FileError):
        write_rows(ROWS, COLUMNS, "csv", tmp_path)


def test_a_device_is_written_to_and_stays() -> None:
    assert write_rows(ROWS, COLUMNS, "csv", Path("/dev/null")) == 1
    assert not os.path.isfile("/dev/null")
