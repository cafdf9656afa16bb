"""Prints: aligned tables for people, one JSON document for programs, remarks and errors on standard error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
"""For every command that prints what it found or made."""


def emit(as_json: bool, document: Any, lines: Callable[[], Iterable[str]]) -> None:
    """The document where JSON is asked for, else the lines."""
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        for line in lines():
            click.echo(line)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[str] = ()) -> list[str]:
    """Lines with aligned columns; those whose heading is in `right` are set to the right."""
    cells = [[_visible(str(cell)) for cell in row] for row in rows]
    widths = [max(len(heading), *(len(row[column]) for row in cells), 0) for column, heading in enumerate(headings)]
    to_right = [heading in right for heading in headings]

    def line(row: Sequence[str]) -> str:
        padded = (cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in zip(row, widths, to_right, strict=True))
        return "  ".join(padded).rstrip()

    return [line(headings), *(line(row) for row in cells)]


def _visible(text: str) -> str:
    """Names that clients chose come here: none may move the cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)


def moment(at: int | None, never: str = "") -> str:
    """Unix milliseconds as a time of day in UTC."""
    return never if at is None else datetime.fromtimestamp(at // 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def remark(text: str) -> None:
    """Something worth knowing that is not the command's result."""
    click.echo(f"note: {text}", err=True)


def complain(text: str) -> None:
    click.echo(f"gateway: {_visible(text)}", err=True)
