"""Rows as files for other programs: CSV that a spreadsheet may open, or JSON Lines. Streamed; a file appears whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, TextIO

import click

FORMATS = ("csv", "jsonl")
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""With what a cell begins that a spreadsheet takes for a formula; full-width forms are such to some."""


def format_option(default: str | None = None) -> Callable[[Any], Any]:
    shown = f"Default: {default}." if default else "Default: a table."
    return click.option("--format", "form", type=click.Choice(FORMATS), default=default, help=f"CSV for spreadsheets, or JSON Lines. {shown}")


output_option = click.option("-o", "--output", "output", type=click.Path(path_type=Path), metavar="FILE", help="Where to. Default: standard output.")


def check_form(form: str | None, output: Path | None, as_json: bool) -> None:
    """Raises click.UsageError for --format, --output and --json that contradict each other."""
    if form is not None and as_json:
        raise click.UsageError("give --json or --format")
    if output is not None and form is None:
        raise click.UsageError("--output needs --format")


def write_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], form: str, output: Path | None) -> int:
    """How many were written. Decimals become text, digit by digit. Raises click.FileError."""
    with _opened(output) as file:
        return _write_csv(rows, columns, file) if form == "csv" else _write_json_lines(rows, file)


def _write_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], file: TextIO) -> int:
    writer, count = csv.writer(file), 0
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in columns])
        count += 1
    return count


def _write_json_lines(rows: Iterable[Mapping[str, Any]], file: TextIO) -> int:
    count = 0
    for row in rows:
        file.write(json.dumps(row, default=_exact, ensure_ascii=False) + "\n")
        count += 1
    return count


def _exact(value: Any) -> str:
    """What JSON has no exact type for."""
    if isinstance(value, Decimal):
        return format(value, "f")
    raise TypeError(f"{type(value).__name__} is not written")


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, Decimal):
        return _exact(value)
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=_exact, ensure_ascii=False) if value else ""
    return value


def harmless(text: str) -> str:
    """The text, behind an apostrophe where a spreadsheet would compute it: clients choose models' names, and whoever names keys has colleagues."""
    risky = text.startswith(("\t", "\r", "\n")) or text.lstrip().startswith(FORMULA)
    return "'" + text if risky else text


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """UTF-8 whatever the locale. A regular file is written beside its place and moved there at the end, readable by its owner."""
    try:
        if output is None:
            yield from _text(sys.stdout.buffer)
        elif output.exists() and not output.is_file():  # a pipe or a device
            with output.open("wb") as device:
                yield from _text(device)
        else:
            yield from _moved_into_place(output)
    except BrokenPipeError:
        raise  # a reader that has enough: click ends the command in silence
    except OSError as error:
        raise click.FileError(str(output or "standard output"), error.strerror or type(error).__name__) from error


def _moved_into_place(output: Path) -> Iterator[TextIO]:
    draft = output.with_name(f".{output.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield from _text(file)
            os.fsync(file.fileno())
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)


def _text(binary: IO[bytes]) -> Iterator[TextIO]:
    text = io.TextIOWrapper(binary, "utf-8", newline="", write_through=False)
    try:
        yield text
        text.flush()
    finally:
        text.detach()
