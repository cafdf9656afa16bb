"""`gateway limit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from gateway.cli.budgets import of_subject
from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, table
from gateway.operations import limits
from gateway.operations.budgets import Subject
from gateway.operations.limits import ListedLimits
from gateway.presence import Presence
from gateway.state.base import CONCURRENCY, REQUESTS, TOKENS, Limit, Standing, StateUnavailable
from gateway.state.sqlite import SqliteLimits, untouched

NUMBER = click.IntRange(min=0)


@click.group()
def limit() -> None:
    """Limits: how many requests and tokens a minute, and calls at once. Exact over all workers; a refused call consumes nothing.

    Those of a model are set by `gateway model set`.
    """


@limit.command("set")
@of_subject
@click.option("--rpm", type=NUMBER, metavar="N", help="Requests a minute. 0: unlimited.")
@click.option("--tpm", type=NUMBER, metavar="N", help="Tokens a minute. 0: unlimited.")
@click.option("--concurrency", type=NUMBER, metavar="N", help="Calls at once. 0: unlimited.")
@json_option
def set_limits(subject: Subject, as_json: bool, **named: int | None) -> None:
    """Change what is named, and nothing else."""
    wishes = {name: number or None for name, number in named.items() if number is not None}
    with opened() as here:
        listed = limits.set_limits(here.database, subject, now_ms(), **wishes)
    emit(as_json, _document(listed), lambda: [f"limits of {listed.whose}: {_words(listed.limit)}"])


@limit.command("clear")
@of_subject
@json_option
def clear_limits(subject: Subject, as_json: bool) -> None:
    """Take all limits away."""
    with opened() as here:
        limits.clear_limits(here.database, subject, now_ms())
    emit(as_json, {"kind": subject.kind, "cleared": True}, lambda: ["limits taken away"])


@limit.command("list")
@json_option
def list_limits(as_json: bool) -> None:
    """List the limits, with what is left of them now."""
    with opened() as here:
        state = SqliteLimits(here.settings.run_path, "", Presence(here.settings.run_path).alive)
        found = limits.list_limits(here.database, lambda wanted: _left(state, wanted))
        state.close()
    headings = ("OF", "WHO", "REQUESTS/MIN", "LEFT", "TOKENS/MIN", "LEFT", "AT ONCE", "LEFT")
    empty = ["No limits yet. Set one: gateway limit set --user NAME --rpm 60"]
    emit(as_json, [_document(item) for item in found], lambda: table(headings, map(_row, found), right=headings[2:]) if found else empty)


def _left(state: SqliteLimits, wanted: Sequence[Limit]) -> tuple[Standing, ...]:
    try:
        # Never made here: it would be this user's, not the server's. Without it nothing is used.
        return state.standings(wanted) if wanted and state.exists else tuple(unused for limit in wanted for unused in untouched(limit))
    except StateUnavailable:  # a run directory that belongs to the server's user
        return ()


def _words(limit: Limit) -> str:
    numbers = ((limit.rpm, "requests a minute"), (limit.tpm, "tokens a minute"), (limit.concurrency, "calls at once"))
    return ", ".join(f"{number} {what}" for number, what in numbers if number is not None) or "none"


def _amounts(item: ListedLimits) -> list[tuple[str, int | None, int | None]]:
    """Each limit with what is left of it; None where there is none, or nobody knows."""
    left = {standing.resource: standing.remaining for standing in item.standings}
    named = ((REQUESTS, item.limit.rpm), (TOKENS, item.limit.tpm), (CONCURRENCY, item.limit.concurrency))
    return [(resource, number, left.get(resource) if number is not None else None) for resource, number in named]


def _row(item: ListedLimits) -> tuple[object, ...]:
    cells = [cell for _, number, left in _amounts(item) for cell in ("" if number is None else number, "" if left is None else left)]
    return item.kind, item.whose, *cells


def _document(item: ListedLimits) -> dict[str, Any]:
    amounts = {f"{resource}{suffix}": value for resource, *values in _amounts(item) for suffix, value in zip(("", "_left"), values, strict=True)}
    return {"kind": item.kind, "subject": item.subject, "name": item.whose, **amounts}
