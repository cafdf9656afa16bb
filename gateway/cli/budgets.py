"""`gateway budget` and `gateway credit`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, moment, table
from gateway.cli.values import Parsed
from gateway.core.exchange import new_id
from gateway.core.pricing import usd
from gateway.operations import budgets
from gateway.operations.budgets import ListedBudget, Subject
from gateway.operations.prices import nano_usd

AMOUNT = Parsed("USD", nano_usd)


def of_subject(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say whose: the command is given a Subject in their place."""

    @click.option("--key", "key", metavar="KEY", help="A key's.")
    @click.option("--user", "user", metavar="NAME", help="A user's: all keys together.")
    @click.option("--team", "team", metavar="NAME", help="A team's: all users together.")
    @click.option("--global", "everybody", is_flag=True, help="Everybody's together.")
    @functools.wraps(command)
    def taking(key: str | None, user: str | None, team: str | None, everybody: bool, **others: Any) -> None:
        named = (("key", key), ("user", user), ("team", team), ("global", "" if everybody else None))
        subjects = [Subject(kind, reference) for kind, reference in named if reference is not None]
        if len(subjects) != 1:
            raise click.UsageError(f"name {'only ' if subjects else ''}one of --key, --user, --team and --global")
        command(subjects[0], **others)

    return taking


@click.group()
def budget() -> None:
    """Budgets: what a key, a user, a team or everybody may spend. They are never overrun: a call that may cost too much is refused before it is sent."""


@budget.command("set")
@of_subject
@click.option("--period", type=click.Choice(("day", "month", "total")), required=True, help="When it begins anew; a total never does.")
@click.option("--limit", type=AMOUNT, required=True, metavar="USD", help="Such as 20 or 0.50. 0 leaves no room but for what costs nothing.")
@click.option("--timezone", metavar="ZONE", help="Where its days and months begin, such as Europe/Berlin. Default: as it is, or UTC.")
@click.option("--soft/--hard", default=None, help="Count, and refuse nothing; or refuse. Default: as it is, or hard.")
@json_option
def set_budget(subject: Subject, period: str, limit: int, timezone: str | None, soft: bool | None, as_json: bool) -> None:
    """Begin a budget, or change it. It counts from now on."""
    with opened() as here:
        made = budgets.set_budget(here.database, subject, period, limit, now_ms(), timezone=timezone, soft=soft)
        listed = next(each for each in budgets.list_budgets(here.database, now_ms()) if each.budget.id == made.id)
    zone = "" if period == "total" else f", time zone {made.timezone}"
    line = f"budget {made.id}: {usd(made.limit_nano)} USD {'in total' if period == 'total' else f'a {period}'}"
    emit(as_json, _document(listed), lambda: [f"{line} for {listed.whose}{zone}{', soft' if made.soft else ''}"])


@click.group()
def credit() -> None:
    """Credits: what somebody paid in advance, or is given."""


@credit.command("add")
@of_subject
@click.option("--amount", type=AMOUNT, required=True, metavar="USD", help="Such as 5 or 0.50.")
@click.option("--note", default="", help="Why, such as 'invoice 17'.")
@json_option
def add_credit(subject: Subject, amount: int, note: str, as_json: bool) -> None:
    """Make room in an account's budget of the period "total"."""
    at = now_ms()
    with opened() as here:
        entry = budgets.add_credit(here.database, subject, amount, note, at, new_id(at), here.secrets().hasher.hash)
    emit(as_json, {"id": entry.exchange, "amount_nano_usd": amount, "note": note, "at": at}, lambda: [f"credit of {usd(amount)} USD booked ({entry.exchange})"])


@credit.command("list")
@json_option
def list_credits(as_json: bool) -> None:
    """List the credits."""
    with opened() as here:
        found = budgets.list_credits(here.database)
    rows = [
        (each.id, each.kind, each.whose, usd(each.amount_nano), moment(each.at), each.note, "taken back" if each.taken_back else "booked") for each in found
    ]
    document = [
        {
            "id": each.id,
            "kind": each.kind,
            "name": each.whose,
            "amount_nano_usd": each.amount_nano,
            "note": each.note,
            "at": each.at,
            "taken_back": each.taken_back,
        }
        for each in found
    ]
    empty = ["No credits yet. Give one: gateway credit add --user NAME --amount 5"]
    emit(as_json, document, lambda: table(("ID", "OF", "WHO", "USD", "BOOKED", "NOTE", "STATE"), rows, right=("USD",)) if rows else empty)


@credit.command("void")
@click.argument("credit_id", metavar="ID")
@json_option
def void_credit(credit_id: str, as_json: bool) -> None:
    """Take a credit back. Both entries stay in the books."""
    with opened() as here:
        void = budgets.void_credit(here.database, credit_id, now_ms(), here.secrets().hasher.hash)
    emit(as_json, {"id": credit_id, "amount_nano_usd": void.amount, "taken_back": True}, lambda: [f"credit of {usd(void.amount)} USD taken back"])


@budget.command("list")
@json_option
def list_budgets(as_json: bool) -> None:
    """List the budgets in force, with what is spent, and held by calls under way."""
    with opened() as here:
        found = budgets.list_budgets(here.database, now_ms())
    headings = ("ID", "OF", "WHO", "PERIOD", "LIMIT", "SPENT", "HELD", "LEFT", "BEGINS ANEW")
    empty = ["No budgets yet. Set one: gateway budget set --user NAME --period month --limit 20"]
    emit(as_json, [_document(item) for item in found], lambda: table(headings, map(_row, found), right=headings[4:8]) if found else empty)


@budget.command("end")
@click.argument("budget_id", type=int, metavar="ID")
@json_option
def end_budget(budget_id: int, as_json: bool) -> None:
    """End a budget: it refuses and counts nothing more; what it counted stays in the books."""
    with opened() as here:
        ended = budgets.end_budget(here.database, budget_id, now_ms())
    left = f"; {usd(_amounts(ended)[2])} USD were left of it, which no new one has" if ended.budget.period == "total" else ""
    emit(as_json, {**_document(ended), "ended": True}, lambda: [f"budget {budget_id} of {ended.whose} ended: it refuses nothing from now on{left}"])


def _amounts(item: ListedBudget) -> tuple[int, int, int]:
    """Spent, held, left."""
    spent, held = (item.window.spent, item.window.held) if item.window else (0, 0)
    return spent, held, item.budget.limit_nano - spent - held


def _row(item: ListedBudget) -> tuple[object, ...]:
    one = item.budget
    period = one.period + (", soft" if one.soft else "")
    return one.id, one.kind, item.whose, period, usd(one.limit_nano), *map(usd, _amounts(item)), moment(item.resets_at, "never")


def _document(item: ListedBudget) -> dict[str, Any]:
    one = item.budget
    spent, held, left = _amounts(item)
    return {
        "id": one.id,
        "kind": one.kind,
        "subject": one.subject,
        "name": item.whose,
        "period": one.period,
        "timezone": one.timezone,
        "soft": one.soft,
        "limit_nano_usd": one.limit_nano,
        "spent_nano_usd": spent,
        "held_nano_usd": held,
        "remaining_nano_usd": left,
        "resets_at": item.resets_at,
    }
