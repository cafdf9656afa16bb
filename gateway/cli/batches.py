"""`gateway key bulk` and `gateway key report`: keys that belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from gateway.cli.accounts import EXPIRY, key_document, permitted, restrictions, shown
from gateway.cli.budgets import AMOUNT
from gateway.cli.export import check_form, format_option, output_option, write_rows
from gateway.cli.opened import READING_S, now_ms, opened
from gateway.cli.printing import emit, json_option, moment, table
from gateway.core.pricing import usd
from gateway.dialects.events import INPUT_BUCKETS, OUTPUT_BUCKETS
from gateway.operations import batches
from gateway.operations.batches import KEYS, KeyLine, Owner
from gateway.operations.keys import MintedKey, key_state
from gateway.operations.prices import usd_decimal
from gateway.store.accounts import KeyFields

SHEET = ("label", "key", "id", "user", "models", "budget_usd", "expires")
REPORT = ("label", "key", "key_id", "calls", "input_tokens", "output_tokens", "amount_usd", "left_usd", "last_used", "state")
"""The columns of both as rows for other programs."""


@click.command("bulk")
@click.option("--batch", "name", required=True, metavar="NAME", help="What they are together, such as workshop-nov; their labels begin with it.")
@click.option("--count", type=click.IntRange(1, KEYS), required=True, help="How many.")
@click.option("--user", "user_name", default="", metavar="NAME", help="Whose keys they are. Default: a new user's, who is called like the batch.")
@click.option("--team", default="", metavar="NAME", help="The team of the new user. Default: none.")
@click.option("--expires", type=EXPIRY, metavar="4h|2026-12-31", help="When they end. Default: never.")
@click.option("--budget", "budget_nano", type=AMOUNT, metavar="USD", help="What each may spend in total. Default: no budget of its own.")
@restrictions()
@format_option()
@output_option
@json_option
def create_batch(
    name: str,
    count: int,
    user_name: str,
    team: str,
    expires: int | None,
    budget_nano: int | None,
    fields: KeyFields,
    form: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Create many keys at once, each with its own budget. The secrets are shown once, now: as a sheet to be cut up, or for another program."""
    check_form(form, output, as_json)
    if user_name and team:
        raise click.UsageError("name --user or --team: the team is that of a new user")

    def made() -> Iterator[MintedKey]:
        with opened() as here:
            hasher, owner = here.secrets().hasher, Owner(user_name, team)
            yield from batches.create_batch(here.database, hasher, name, count, owner, now_ms(), budget_nano=budget_nano, expires_at=expires, **fields)

    if form is not None:  # a file that cannot be written is found out before there are keys whose secrets it should hold
        write_rows((_sheet_row(one, budget_nano) for one in made()), SHEET, form, output)
        return
    minted = list(made())
    document = [{**key_document(one.key, one.key.created_at), "key": one.secret.reveal(), "budget_nano_usd": budget_nano} for one in minted]
    emit(as_json, document, lambda: _sheet(minted, budget_nano))


def _sheet_row(one: MintedKey, budget_nano: int | None) -> dict[str, Any]:
    budget = None if budget_nano is None else usd_decimal(budget_nano)
    values = (one.key.label, one.secret.reveal(), one.key.id, one.key.user_name, " ".join(one.key.models), budget, moment(one.key.expires_at))
    return dict(zip(SHEET, values, strict=True))


def _sheet(minted: Sequence[MintedKey], budget_nano: int | None) -> Iterator[str]:
    budget = "" if budget_nano is None else f", {usd(budget_nano)} USD in total"
    for one in minted:
        yield from ("-" * 72, f"{one.key.label}: {permitted(one.key)}{budget}, until {moment(one.key.expires_at, 'it is revoked')}", "")
        yield from (f"    {one.secret.reveal()}", "")
    yield "-" * 72


@click.command("report")
@click.option("--batch", "name", required=True, metavar="NAME", help="The batch.")
@format_option()
@output_option
@json_option
def report_batch(name: str, form: str | None, output: Path | None, as_json: bool) -> None:
    """Show what each key of a batch used, from the ledger, and what is left of its budget."""
    check_form(form, output, as_json)
    at = now_ms()
    with opened(READING_S) as here:
        lines = batches.batch_report(here.database, name, at)
    if form is not None:
        write_rows((_report_row(line, at) for line in lines), REPORT, form, output)
        return
    rows = [_row(line, at) for line in lines]
    headings = ("LABEL", "KEY", "CALLS", "INPUT TOKENS", "OUTPUT TOKENS", "USD", "LEFT", "LAST USED", "STATE")
    document = {"batch": name, "keys": [_document(line, at) for line in lines]}
    emit(as_json, document, lambda: table(headings, [*rows, _total(lines)], right=headings[2:7]))


def _report_row(line: KeyLine, at: int) -> dict[str, Any]:
    left: Decimal | None = None if line.left is None else usd_decimal(line.left)
    last_used = moment(line.used.last_at)
    values = (line.key.label, shown(line.key), line.key.id, *_numbers(line), usd_decimal(line.used.amount), left, last_used, key_state(line.key, at))
    return dict(zip(REPORT, values, strict=True))


def _row(line: KeyLine, at: int) -> tuple[object, ...]:
    left = "" if line.left is None else usd(line.left)
    return (line.key.label, shown(line.key), *_numbers(line), usd(line.used.amount), left, moment(line.used.last_at, "never"), key_state(line.key, at))


def _numbers(line: KeyLine) -> tuple[int, int, int]:
    """Calls, tokens in, tokens out."""
    return line.used.calls, sum(line.used.buckets[bucket] for bucket in INPUT_BUCKETS), sum(line.used.buckets[bucket] for bucket in OUTPUT_BUCKETS)


def _total(lines: Sequence[KeyLine]) -> tuple[object, ...]:
    calls, tokens_in, tokens_out = (sum(numbers) for numbers in zip(*map(_numbers, lines), strict=True))
    used = sum(1 for line in lines if line.used.calls)
    return "total", f"{used} of {len(lines)} used", calls, tokens_in, tokens_out, usd(sum(line.used.amount for line in lines)), "", "", ""


def _document(line: KeyLine, at: int) -> dict[str, Any]:
    return {
        **key_document(line.key, at),
        "calls": line.used.calls,
        "tokens": line.used.buckets,
        "amount_nano_usd": line.used.amount,
        "cost_nano_usd": line.used.cost,
        "left_nano_usd": line.left,
        "last_used_at": line.used.last_at,
    }
