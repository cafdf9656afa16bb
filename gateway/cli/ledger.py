"""`gateway ledger`."""

from __future__ import annotations

import click

from gateway.cli.edge import FAILED
from gateway.cli.opened import opened
from gateway.cli.printing import emit, json_option, table
from gateway.operations import ledger as books


@click.group()
def ledger() -> None:
    """The ledger: check it, and put its counters right."""


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
