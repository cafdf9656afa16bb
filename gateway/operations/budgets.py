"""Budgets: what a key, a user, a team or everybody may spend in a day, a month or altogether. A change reaches every worker within a second."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from zoneinfo import available_timezones

from gateway.core.periods import known_zone, window
from gateway.errors import BadRequest, NotFound
from gateway.operations.keys import required_key
from gateway.operations.names import check_label
from gateway.operations.teams import required_team
from gateway.operations.users import required_user
from gateway.store import accounts, budgets, corrections, ledger
from gateway.store.budgets import Budget, Window
from gateway.store.database import Database
from gateway.store.ledger import Entry, Seal


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose budget: `reference` is a user's or a team's name, a key's id or label, or "" for everybody ("global")."""

    kind: str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class ListedBudget:
    """`whose` is for people. `window` None: nothing was spent or held in the period that is open, which ends at `resets_at`."""

    budget: Budget
    whose: str
    window: Window | None
    resets_at: int | None


@dataclass(frozen=True, slots=True)
class ListedCredit:
    """`id` is the credit's own; `whose` is for people."""

    id: str
    kind: str
    whose: str
    amount_nano: int
    note: str
    at: int
    taken_back: bool


def set_budget(database: Database, subject: Subject, period: str, limit_nano: int, at: int, *, timezone: str | None = None, soft: bool | None = None) -> Budget:
    """Begin a budget or change it. None: as it is, else UTC, and hard. Raises BadRequest, NotFound."""
    if period not in budgets.PERIODS:
        raise BadRequest(f"a budget is for a {', '.join(budgets.PERIODS)}, not {period!r}")
    if timezone is not None and period == "total":
        raise BadRequest("a budget in total begins once and for all: it has no time zone")
    if timezone is not None and not known_zone(timezone):
        close = difflib.get_close_matches(timezone, available_timezones(), 1)
        raise BadRequest(f"there is no time zone {timezone!r}" + (f"; did you mean {close[0]}?" if close else "; write one such as Europe/Berlin"))

    def work() -> Budget:
        id = subject_id(subject, at)
        known = next((each for each in budgets.list_budgets() if (each.kind, each.subject, each.period) == (subject.kind, id, period)), None)
        zone = timezone or (known.timezone if known else "UTC")
        hardness = soft if soft is not None else known is not None and known.soft
        return budgets.set_budget(subject.kind, id, period, zone, limit_nano, at, soft=hardness)

    return database.write(work)


def list_budgets(database: Database, at: int) -> list[ListedBudget]:
    """Those in force, with what is spent and held in the open period."""
    return database.read(lambda: _listed(at))


def _listed(at: int) -> list[ListedBudget]:
    """For use inside a database work."""
    found, names = budgets.list_budgets(), accounts.account_names()
    windows = {each.budget_id: each for each in budgets.windows_of([each.id for each in found], at)}
    return [
        ListedBudget(each, names.get((each.kind, each.subject), f"#{each.subject}"), windows.get(each.id), window(each.period, each.timezone, at)[1])
        for each in found
    ]


def add_credit(database: Database, subject: Subject, amount_nano: int, note: str, at: int, credit_id: str, seal: Seal) -> Entry:
    """Give an account so much in its budget of the period "total". Raises BadRequest where it has none, or for nothing; NotFound."""
    if amount_nano <= 0:
        raise BadRequest("a credit is more than 0 USD")
    check_label(note)

    def work() -> Entry:
        id = subject_id(subject, at)
        if not budgets.current_budgets(subject.kind, id, "total"):
            whose = f"--{subject.kind}{f' {subject.reference}' if subject.reference else ''}"
            raise BadRequest(f"there is no budget that a credit could make room in; begin one: gateway budget set {whose} --period total --limit 0")
        return ledger.book_credit(subject.kind, id, amount_nano, at, credit_id, note, seal)

    return database.write(work)


def list_credits(database: Database) -> list[ListedCredit]:
    """The oldest first, with those that were taken back."""

    def work() -> list[ListedCredit]:
        names, found = accounts.account_names(), ledger.credits()
        taken_back = corrections.corrected([entry.id for entry in found if entry.id is not None])
        return [_listed_credit(entry, names, entry.id in taken_back) for entry in found]

    return database.read(work)


def void_credit(database: Database, credit_id: str, at: int, seal: Seal) -> Entry:
    """Take a credit back: its room is gone, also where it is spent already. Raises NotFound, and BadRequest where it was taken back before."""

    def work() -> Entry:
        entry = next((each for each in ledger.credits() if each.exchange == credit_id), None)
        if entry is None or entry.id is None:
            raise NotFound(f"there is no credit {credit_id!r}; `gateway credit list` shows them")
        corrections.lock_entries([entry.id])
        if corrections.corrected([entry.id]):
            raise BadRequest(f"the credit {credit_id} was taken back before")
        void = replace(entry, id=None, kind="void", corrects=entry.id, amount=-entry.amount, at=at, note=None)
        ledger.book_corrections([void], seal)
        return void

    return database.write(work)


def _listed_credit(entry: Entry, names: Mapping[tuple[str, int], str], taken_back: bool) -> ListedCredit:
    owners = (("key", entry.api_key), ("user", entry.user), ("team", entry.team or 0))
    kind, subject = next((owner for owner in owners if owner[1]), ("global", 0))
    return ListedCredit(entry.exchange, kind, names.get((kind, subject), f"#{subject}"), -entry.amount, entry.note or "", entry.at, taken_back)


def end_budget(database: Database, budget_id: int, at: int) -> ListedBudget:
    """It refuses and counts nothing more; what was left of it. Raises NotFound."""

    def work() -> ListedBudget:
        listed = {each.budget.id: each for each in _listed(at)}
        budgets.end_budget(budget_id, at)
        return listed[budget_id]

    return database.write(work)


def subject_id(subject: Subject, at: int) -> int:
    """For use inside a database work. Raises NotFound, BadRequest."""
    if subject.kind == "key":
        return accounts.first_key_id(required_key(subject.reference, at).id)
    if subject.kind == "team":
        return required_team(subject.reference).id
    return required_user(subject.reference).id if subject.kind == "user" else 0
