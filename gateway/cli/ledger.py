"""`gateway ledger`."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.cli.edge import FAILED
from gateway.cli.export import format_option, output_option, write_rows
from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, remark, table
from gateway.cli.values import MOMENT, MONTH, period
from gateway.operations import ledger as books


@click.group()
def ledger() -> None:
    """The ledger: check it, put its counters right, hand it to an auditor."""


@ledger.command("verify")
@json_option
def verify(as_json: bool) -> None:
    """Recompute every counter from the entries, and check each entry's seal; exit 1 where anything differs. Changes nothing."""
    with opened() as here:
        seal = here.secrets().hasher.hash
        found = books.verify(here.settings.database, seal)
    counted = f"{found.entries} entries, {found.windows} budget windows, {found.holds} open holds: {len(found.differences)} differences"
    if found.unsealed:
        counted += f" ({found.unsealed} entries of an older version have no seal)"
    rows = [(each.row, each.problem) for each in found.differences]
    document = {
        "entries": found.entries,
        "unsealed": found.unsealed,
        "windows": found.windows,
        "open_holds": found.holds,
        "differences": [{"row": row, "problem": problem} for row, problem in rows],
    }
    emit(as_json, document, lambda: [*(table(("ROW", "PROBLEM"), rows) if rows else []), counted])
    if rows:
        click.get_current_context().exit(FAILED)


@ledger.command("rebuild")
@json_option
def rebuild(as_json: bool) -> None:
    """Set the counters of every budget to what the entries and open holds add up to. Entries are never changed."""
    with opened() as here:
        changed = books.rebuild(here.settings.database)
    emit(as_json, {"changed": changed}, lambda: [f"{changed} budget windows put right" if changed else "every counter was right"])


@ledger.command("export")
@click.option("--month", type=MONTH, metavar="2026-11", help="A month. Default: this one.")
@click.option("--since", type=MOMENT, metavar="TIME", help="From when on, such as 2026-11-01.")
@click.option("--until", type=MOMENT, metavar="TIME", help="Up to when, that moment not included. Default: now.")
@format_option("csv")
@output_option
def export(month: tuple[int, int] | None, since: int | None, until: int | None, form: str, output: Path | None) -> None:
    """Write every entry of a period with every column, in the order of time (UTC). Amounts are exact: USD as decimal text, and whole nano-USD.

    A call is booked when it ends, under the time of its beginning: export a period once its last calls are over.
    """
    begin, end = period(month, since, until, now_ms())
    with opened() as here:
        count = write_rows(books.export(here.database, begin, end), books.COLUMNS, form, output)
    remark(f"{count} entries" + (f" in {output}" if output is not None else ""))
