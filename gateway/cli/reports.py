"""`gateway report` and `gateway route explain`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gateway.cli.accounts import shown
from gateway.cli.edge import FAILED, NOT_FOUND
from gateway.cli.export import check_form, format_option, output_option, write_rows
from gateway.cli.opened import READING_S, now_ms, opened
from gateway.cli.printing import emit, json_option, moment, table
from gateway.cli.values import MOMENT, MONTH, NAMES, period
from gateway.core.pricing import usd
from gateway.core.routing import Candidate
from gateway.dialects.events import BUCKETS, INPUT_BUCKETS, OUTPUT_BUCKETS
from gateway.operations import reports, routes
from gateway.operations.prices import usd_per_million
from gateway.operations.reports import DIMENSIONS, Line
from gateway.operations.routes import Explanation
from gateway.store.catalog import Price


@click.command()
@click.option("--by", type=NAMES, multiple=True, default=("model",), metavar=",".join(DIMENSIONS), help="What to group by, one or more. Default: model.")
@click.option("--month", type=MONTH, metavar="2026-11", help="A month. Default: this one.")
@click.option("--since", type=MOMENT, metavar="TIME", help="From when on, such as 2026-11-01.")
@click.option("--until", type=MOMENT, metavar="TIME", help="Up to when, that moment not included. Default: now.")
@format_option()
@output_option
@json_option
def report(
    by: tuple[tuple[str, ...], ...], month: tuple[int, int] | None, since: int | None, until: int | None, form: str | None, output: Path | None, as_json: bool
) -> None:
    """What was used and what it cost, from the ledger. Times are UTC."""
    check_form(form, output, as_json)
    begin, end = period(month, since, until, now_ms())
    dimensions = tuple(dict.fromkeys(name for names in by for name in names))
    with opened(READING_S) as here:
        lines = reports.report(here.database, begin, end, dimensions)
    if form is not None:
        write_rows(reports.rows(dimensions, lines), reports.columns(dimensions), form, output)
        return
    document = {"since": begin, "until": end, "by": list(dimensions), "lines": [_line_document(line) for line in lines], "total": _line_document(_sum(lines))}
    named = f"{moment(begin)} to {moment(end)}"
    emit(as_json, document, lambda: _report_lines(dimensions, lines, named) if lines else [f"Nothing was booked from {named}."])


def _report_lines(by: Sequence[str], lines: Sequence[Line], named: str) -> list[str]:
    numbers = ("CALLS", "INPUT TOKENS", "OUTPUT TOKENS", "USD", "COST")
    total = ("total", *("" for _ in by[1:]), *_numbers(_sum(lines)))
    rows = [*((*line.names.values(), *_numbers(line)) for line in lines), total]
    return [f"Booked from {named}:", "", *table((*(name.upper() for name in by), *numbers), rows, right=numbers)]


def _numbers(line: Line) -> tuple[object, ...]:
    tokens = (sum(line.buckets[bucket] for bucket in buckets) for buckets in (INPUT_BUCKETS, OUTPUT_BUCKETS))
    return line.calls, *tokens, usd(line.amount), usd(line.cost)


def _sum(lines: Sequence[Line]) -> Line:
    buckets = {bucket: sum(line.buckets[bucket] for line in lines) for bucket in BUCKETS}
    return Line({}, {}, sum(line.calls for line in lines), buckets, sum(line.amount for line in lines), sum(line.cost for line in lines))


def _line_document(line: Line) -> dict[str, Any]:
    return {
        **line.names,
        **{f"{name}_id": value for name, value in line.ids.items()},
        "calls": line.calls,
        "tokens": dict(line.buckets),
        "amount_usd": usd(line.amount),
        "amount_nano_usd": line.amount,
        "cost_nano_usd": line.cost,
    }


@click.group()
def route() -> None:
    """Routes: where a call would go."""


@route.command("explain")
@click.option("--key", "reference", required=True, metavar="KEY", help="Whose call it is: a key's id, label or last characters.")
@click.option("--model", "model_name", required=True, metavar="MODEL", help="The model that is asked for.")
@click.option("--endpoint", default="/chat/completions", metavar="PATH", help="A path below /v1. Default: /chat/completions.")
@json_option
def explain(reference: str, model_name: str, endpoint: str, as_json: bool) -> None:
    """Show which deployments a call would be offered to, in which order, and which not, and why. Calls nobody."""
    dialects = _dialects()
    path = "/" + endpoint.removeprefix("/v1").strip("/")
    if path not in dialects:
        raise click.UsageError(f"there is no endpoint {endpoint}; known: {', '.join(dialects)}")
    with opened() as here:
        at = now_ms()
        found = routes.explain(here.database, here.secrets().vault, here.settings, reference, model_name, path, dialects[path], at)
    emit(as_json, _explanation_document(found), lambda: _explanation_lines(found, path))
    if found.refusal:
        click.get_current_context().exit(FAILED if found.found else NOT_FOUND)


def _dialects() -> dict[str, str]:
    from gateway.api.openai import ENDPOINTS  # brings Flask along, which no other command needs

    return {endpoint.path: endpoint.dialect for endpoint in ENDPOINTS}


def _explanation_lines(found: Explanation, path: str) -> list[str]:
    title = f"{path} for {found.model}, with key {found.key.id} ({shown(found.key)}) of {found.key.user_name}:"
    headings = ("TRY", "DEPLOYMENT", "BACKEND", "UPSTREAM MODEL", "PRIORITY", "WEIGHT", "PRICE (USD PER MILLION)")
    rows = [(number, *_candidate_row(item)) for number, item in enumerate(found.candidates, 1)]
    lines = [title, "", *(table(headings, rows, right=("TRY", "PRIORITY", "WEIGHT")) if rows else ["No deployment would be asked."])]
    if found.excluded:
        excluded = [(item.deployment, item.reason, item.detail) for item in found.excluded]
        lines += ["", *table(("EXCLUDED", "REASON", "DETAIL"), excluded)]
    if found.refusal:
        lines += ["", f"The client would be told: {found.refusal}"]
    elif len({item.deployment.priority for item in found.candidates}) < len(found.candidates):
        lines += ["", "Among equal priorities the policy chooses, so their order changes from call to call."]
    return lines


def _candidate_row(item: Candidate) -> tuple[object, ...]:
    row = item.deployment
    return row.place, row.backend_name, item.model, row.priority, row.weight, _price(item.price)


def _price(price: Price | None) -> str:
    if price is None:
        return "none: free and flagged"
    return f"{usd_per_million(price.rates.get('input_uncached', 0))} in, {usd_per_million(price.rates.get('output_text', 0))} out"


def _explanation_document(found: Explanation) -> dict[str, Any]:
    return {
        "key": found.key.id,
        "model": found.model,
        "candidates": [
            {
                "deployment": item.deployment.name,
                "credential": item.deployment.credential,
                "backend": item.deployment.backend_name,
                "upstream_model": item.model,
                "priority": item.deployment.priority,
                "weight": item.deployment.weight,
                "price": None if item.price is None else item.price.id,
                "rates_pico_usd": None if item.price is None else dict(item.price.rates),
            }
            for item in found.candidates
        ],
        "excluded": [{"deployment": item.deployment, "reason": item.reason, "detail": item.detail} for item in found.excluded],
        "refusal": found.refusal or None,
    }
