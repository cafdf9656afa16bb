"""`gateway reconcile`."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from gateway.cli.edge import FAILED
from gateway.cli.export import FORMATS, check_form, output_option, write_rows
from gateway.cli.opened import READING_S, now_ms, opened
from gateway.cli.printing import emit, json_option, remark, table
from gateway.core.pricing import usd
from gateway.operations import reconcile as reconciliations
from gateway.operations.discrepancies import CAUSES, ROUNDING
from gateway.operations.reconcile import DAY_MS, PROVIDERS, Line, Reconciliation


@click.group()
def reconcile() -> None:
    """Reconcile: hold a provider's bill against the ledger."""


@reconcile.command("import")
@click.argument("provider", type=click.Choice(tuple(PROVIDERS)))
@click.argument("files", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True, metavar="FILE...")
@click.option("--deployment", "only", multiple=True, metavar="NAME", help="Whose calls the bill is for; a name or glob, may be repeated.")
@click.option("--all", "everything", is_flag=True, help="Show the days and models that agree, too.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="CSV for spreadsheets, or JSON Lines, of every line. Default: a table of what differs.")
@output_option
@json_option
def import_bill(provider: str, files: Sequence[Path], only: Sequence[str], everything: bool, form: str | None, output: Path | None, as_json: bool) -> None:
    """Compare what a provider says of each day and model with what was booked: tokens, calls, cost. Changes nothing, stores nothing.

    FILE: the provider's own exports, of its API (JSON) or its console (CSV); give usage and costs together. Without --deployment the calls of
    those deployments count that lead to the provider. Exit 1 where something differs and does not explain itself.
    """
    check_form(form, output, as_json)
    given = reconciliations.read_bills(provider, [(str(file), file.read_bytes()) for file in files])
    with opened(READING_S) as here:
        settings = here.settings
        environment_url = settings.openai_base_url if settings.openai_api_key is not None else None
        found = reconciliations.reconcile(here.database, provider, given, only, environment_url)
    if form is not None:
        write_rows(reconciliations.rows(found.lines), reconciliations.COLUMNS, form, output)
    else:
        emit(as_json, _document(found), lambda: _table_lines(found, everything))
    for text in _remarks(provider, found):
        remark(text)
    if found.differences:
        click.get_current_context().exit(FAILED)


def _remarks(provider: str, found: Reconciliation) -> list[str]:
    remarks = list(found.remarks)
    if not found.deployments:
        remarks.append(f"no call of a deployment that leads to {provider} is booked in this period; name those whose calls this bill is for with --deployment")
    if any(line.day >= now_ms() // DAY_MS for line in found.lines):
        remarks.append("the last day is not over (UTC): its figures still grow")
    return remarks


def _document(found: Reconciliation) -> dict[str, Any]:
    lines = [{name: format(value, "f") if isinstance(value, Decimal) else value for name, value in row.items()} for row in reconciliations.rows(found.lines)]
    return {
        "first": found.first,
        "last": found.last,
        "exports": list(found.shapes),
        "deployments": list(found.deployments),
        "differences": len(found.differences),
        "lines": lines,
    }


def _table_lines(found: Reconciliation, everything: bool) -> list[str]:
    shown = [line for line in found.lines if everything or line.cause not in (None, ROUNDING)]
    title = f"{' and '.join(found.shapes)}, {found.first} to {found.last}, beside {', '.join(found.deployments) or 'no deployment'}:"
    counted = f"{len(found.lines)} lines of a day and model: {len(found.differences)} differences"
    if not shown:
        return [title, counted]
    headings = ("DAY", "MODEL", "OUR CALLS", "THEIRS", "OUR TOKENS", "THEIRS", "DELTA", "OUR USD", "THEIRS", "DELTA", "LIKELY CAUSE")
    causes = sorted({line.cause for line in shown if line.cause is not None})
    explained = [f"  {cause}: {CAUSES[cause]}" for cause in causes]
    right = headings[2:10]
    return [title, "", *table(headings, [_row(line) for line in shown], right=right), "", counted + (":" if explained else ""), *explained]


def _row(line: Line) -> tuple[object, ...]:
    ours, theirs, deltas = line.compared.ours, line.compared.theirs, line.compared.token_deltas()
    their_tokens, delta = ("", "") if theirs.tokens is None else (theirs.total, _signed(sum(deltas.values())))
    their_cost, cost_delta = (
        ("", "") if theirs.cost is None else (usd(theirs.cost), ("+" if line.compared.cost_delta > 0 else "") + usd(line.compared.cost_delta))
    )
    calls = "" if theirs.calls is None else theirs.calls
    cause = line.cause or ""
    if any(deltas.values()):
        cause += " (" + ", ".join(f"{counter} {_signed(count)}" for counter, count in deltas.items() if count) + ")"
    return line.date, line.model or "(all)", ours.calls, calls, ours.total, their_tokens, delta, usd(ours.cost or 0), their_cost, cost_delta, cause


def _signed(number: int) -> str:
    return f"{number:+d}" if number else "0"
