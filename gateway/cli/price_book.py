"""`gateway price import` and `gateway price rerate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, table
from gateway.cli.values import MOMENT, NAMES
from gateway.core.pricing import usd
from gateway.operations import price_book
from gateway.operations.price_book import STATES, Book, Change
from gateway.operations.prices import usd_per_million
from gateway.operations.rerate import Difference, rerate


@click.command("import")
@click.option("--provider", "providers", type=NAMES, default="openai", metavar="NAMES", help="Whose prices, one or more, the first before the next.")
@click.option("--models", "globs", type=NAMES, default="", metavar="GLOBS", help="Which models, such as 'gpt-*'. Default: all of the provider.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@json_option
def import_prices(providers: tuple[str, ...], globs: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Bring the prices that are shipped into yours, each from the day on that it holds. Prices that you set yourself stay in force."""
    book = price_book.load_book()
    with opened() as here:
        changes = price_book.import_prices(here.database, book, providers, globs, now_ms(), dry_run=dry_run)
    counts = {state: sum(change.state == state for change in changes) for state in STATES}
    document = {"source": book.label, "dry_run": dry_run, "counts": counts, "prices": [_change_document(change) for change in changes]}
    missing = price_book.left_out(book, providers, globs)
    emit(as_json, document | {"left_out": missing}, lambda: _import_lines(f"{_title(book)}, {', '.join(providers)}", changes, counts, missing, dry_run))


def _title(book: Book) -> str:
    return f"{book.label} of {moment(book.date)[:10]}"


def _import_lines(title: str, changes: Sequence[Change], counts: Mapping[str, int], missing: Mapping[str, str], dry_run: bool) -> list[str]:
    headings = ("MODEL", "FROM", "INPUT", "OUTPUT", "STATE", "NOTE")
    shown = [_row(change) for change in changes if change.state != "kept"]
    lines = [*table(headings, shown, right=("INPUT", "OUTPUT")), ""] if shown else []
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    done = "A dry run: nothing is written." if dry_run else "Written." if counts["new"] or counts["changed"] else "Nothing was to be written."
    lines.append(f"{title}, in USD per million tokens: {told}. {done}")
    if missing:
        lines.append(f"Without a price, since they are billed by other things than tokens: {', '.join(missing)}.")
    return lines


def _row(change: Change) -> tuple[object, ...]:
    rates = change.wanted.rates
    start = moment(change.valid_from) if change.valid_from else "always"
    return change.wanted.model, start, usd_per_million(rates["input_uncached"]), usd_per_million(rates["output_text"]), change.state, change.note


def _change_document(change: Change) -> dict[str, Any]:
    return {
        "model": change.wanted.model,
        "valid_from": change.valid_from,
        "usd_per_million_tokens": {bucket: usd_per_million(rate) for bucket, rate in change.wanted.rates.items()},
        "state": change.state,
        "note": change.note,
    }


@click.command("rerate")
@click.option("--since", type=MOMENT, required=True, metavar="TIME", help="From when on, such as 2026-11-01, UTC.")
@click.option("--until", type=MOMENT, metavar="TIME", help="Up to when, that moment not included. Default: now.")
@click.option("--model", "glob", default="*", metavar="GLOB", help="Only these, by their upstream's name. Default: all.")
@click.option("--apply", is_flag=True, help="Book the differences. Without it they are only shown.")
@json_option
def rerate_entries(since: int, until: int | None, glob: str, apply: bool, as_json: bool) -> None:
    """What was booked since then, at the prices as they are now: what differs, and with --apply entries that make up for it."""
    with opened() as here:
        now = now_ms()
        end = now + 1 if until is None else until
        seal = here.secrets().hasher.hash if apply else None
        differences = rerate(here.database, since, end, glob, now, seal)
    whole = _sum(differences)
    document = {"since": since, "until": end, "applied": apply, "models": [_document(each) for each in differences], "total": _document(whole)}
    period = f"{moment(since)} to {moment(end)}"
    emit(as_json, document, lambda: _rerate_lines(differences, whole, period, apply) if differences else [f"Nothing was charged from {period}."])


def _rerate_lines(differences: Sequence[Difference], whole: Difference, period: str, apply: bool) -> list[str]:
    numbers = ("CALLS", "CHANGED", "CHARGED", "NOW", "DIFFERENCE", "COST", "COST NOW")
    lines = table(("MODEL", *numbers), [_numbers(each) for each in (*differences, whole)], right=numbers)
    if not whole.changed:
        done = "Nothing differs."
    elif apply:
        done = f"Booked {whole.changed} corrections."
    else:
        done = f"{whole.changed} entries differ; nothing is booked yet: add --apply to book the differences."
    return [f"Charged from {period}, and at the prices of now, in USD:", "", *lines, "", done]


def _numbers(each: Difference) -> tuple[object, ...]:
    money = (each.amount_before, each.amount_after, each.amount_after - each.amount_before, each.cost_before, each.cost_after)
    return each.model, each.calls, each.changed, *(usd(nano) for nano in money)


def _sum(differences: Sequence[Difference]) -> Difference:
    whole = Difference("total")
    for each in differences:
        whole = whole.and_also(each)
    return whole


def _document(each: Difference) -> dict[str, Any]:
    return asdict(each) | {"amount_difference": each.amount_after - each.amount_before, "unit": "nano-USD"}
