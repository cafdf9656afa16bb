"""Accounts with their limits and budgets: what an operator sets, and what is on a key's path. To be called inside a work of `Database`.

holds.py has what calls do to a budget's windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peewee import chunked

from gateway.errors import NotFound
from gateway.store.generation import raise_generation
from gateway.store.models_money import AccountRow, BudgetRow, BudgetWindowRow

KINDS = ("key", "user", "team", "global")
"""Of accounts; `subject` is the id of such a row, 0 for global."""
PERIODS = ("day", "month", "total")
CHUNK = 200
"""Rows of one statement: a database bounds its parameters."""


@dataclass(frozen=True, slots=True)
class Budget:
    """`limit_nano` nano-USD for each `period` (day, month, total), which begins in `timezone` (an IANA name). `soft`: refuses nothing."""

    id: int
    kind: str
    subject: int
    period: str
    timezone: str
    limit_nano: int
    soft: bool
    created_at: int
    ended_at: int | None = None


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """Requests and tokens per minute, and calls at once, of an account; None: unlimited."""

    kind: str
    subject: int
    rpm: int | None
    tpm: int | None
    concurrency: int | None


@dataclass(frozen=True, slots=True)
class AccountPath:
    """What is in force for a key: its own, its user's, its team's, and everybody's."""

    budgets: tuple[Budget, ...] = ()
    limits: tuple[AccountLimits, ...] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """One period of a budget; `ends_at` None for a total. Amounts are nano-USD."""

    id: int
    budget_id: int
    starts_at: int
    ends_at: int | None
    limit_nano: int
    spent: int
    held: int

    @property
    def remaining(self) -> int:
        """May be negative: a call can cost more than was held for it."""
        return self.limit_nano - self.spent - self.held


def account_path(key_id: int, user_id: int, team_id: int | None) -> AccountPath:
    """The budgets in the order key, user, team, global, and for each account day, month, total."""
    where = (AccountRow.kind == "global") | ((AccountRow.kind == "key") & (AccountRow.subject == key_id))
    where |= (AccountRow.kind == "user") & (AccountRow.subject == user_id)
    if team_id is not None:
        where |= (AccountRow.kind == "team") & (AccountRow.subject == team_id)
    accounts = sorted(AccountRow.select().where(where), key=lambda row: KINDS.index(row.kind))
    if not accounts:
        return AccountPath()
    rows = BudgetRow.select().where(BudgetRow.account.in_([row.id for row in accounts]) & BudgetRow.ended_at.is_null())
    budgets = [_budget(row, account) for account in accounts for row in rows if row.__data__["account"] == account.id]
    budgets.sort(key=lambda budget: (KINDS.index(budget.kind), PERIODS.index(budget.period)))
    return AccountPath(tuple(budgets), tuple(_limits(row) for row in accounts if (row.rpm, row.tpm, row.concurrency) != (None, None, None)))


def set_budget(kind: str, subject: int, period: str, timezone: str, limit_nano: int, at: int, *, soft: bool = False) -> Budget:
    """Begin a budget, or change the one of this account and period: its open window follows at once.

    Another time zone would move the window's ends, so it begins a new budget, which counts from now.
    """
    account = _account(kind, subject)
    row = BudgetRow.get_or_none((BudgetRow.account == account) & (BudgetRow.period == period) & BudgetRow.ended_at.is_null())
    if row is not None and row.timezone != timezone:
        BudgetRow.update(ended_at=at).where(BudgetRow.id == row.id).execute()
        row = None
    if row is None:
        row = BudgetRow.create(account=account, period=period, timezone=timezone, limit_nano=limit_nano, soft=soft, created_at=at)
    else:
        BudgetRow.update(limit_nano=limit_nano, soft=soft).where(BudgetRow.id == row.id).execute()
        still_open = BudgetWindowRow.ends_at.is_null() | (BudgetWindowRow.ends_at > at)
        BudgetWindowRow.update(limit_nano=limit_nano).where((BudgetWindowRow.budget == row.id) & still_open).execute()
    raise_generation()
    return _budget(BudgetRow.get_by_id(row.id), account)


def begin_totals(kind: str, subjects: Sequence[int], limit_nano: int, at: int) -> None:
    """A budget of the period "total" for each of these, which have no account yet. Raises Conflict where one has."""
    for some in chunked(subjects, CHUNK):
        AccountRow.insert_many([{"kind": kind, "subject": subject} for subject in some]).execute()
        rows = AccountRow.select(AccountRow.id).where((AccountRow.kind == kind) & AccountRow.subject.in_(some))
        alike = {"period": "total", "timezone": "UTC", "limit_nano": limit_nano, "soft": False, "created_at": at}
        BudgetRow.insert_many([{"account": row.id, **alike} for row in rows]).execute()
    raise_generation()


def end_budget(budget_id: int, at: int) -> None:
    """From now on it refuses and counts nothing; what it counted stays. Raises NotFound."""
    if not BudgetRow.update(ended_at=at).where((BudgetRow.id == budget_id) & BudgetRow.ended_at.is_null()).execute():
        raise NotFound(f"There is no budget {budget_id}.")
    raise_generation()


def list_budgets(*, ended: bool = False) -> list[Budget]:
    query = BudgetRow.select(BudgetRow, AccountRow).join(AccountRow, on=BudgetRow.account == AccountRow.id).order_by(BudgetRow.id)
    return [_budget(row, row.account) for row in (query if ended else query.where(BudgetRow.ended_at.is_null()))]


def current_budgets(kind: str, subject: int, period: str) -> list[int]:
    """The ids of an account's budgets of this period that are in force: one at most."""
    ours = (AccountRow.kind == kind) & (AccountRow.subject == subject)
    query = BudgetRow.select(BudgetRow.id).join(AccountRow, on=BudgetRow.account == AccountRow.id)
    return [row.id for row in query.where(ours & (BudgetRow.period == period) & BudgetRow.ended_at.is_null())]


def set_limits(kind: str, subject: int, rpm: int | None, tpm: int | None, concurrency: int | None) -> AccountLimits:
    """None: unlimited."""
    account = _account(kind, subject)
    AccountRow.update(rpm=rpm, tpm=tpm, concurrency=concurrency).where(AccountRow.id == account.id).execute()
    raise_generation()
    return _limits(AccountRow.get_by_id(account.id))


def list_limits() -> list[AccountLimits]:
    """Of the accounts that have any."""
    found = [_limits(row) for row in AccountRow.select().order_by(AccountRow.id)]
    return [limits for limits in found if (limits.rpm, limits.tpm, limits.concurrency) != (None, None, None)]


def windows_of(budget_ids: Sequence[int], at: int) -> list[Window]:
    """Their windows that are open at that moment; a budget that nobody has used yet has none."""
    is_open = (BudgetWindowRow.starts_at <= at) & (BudgetWindowRow.ends_at.is_null() | (BudgetWindowRow.ends_at > at))
    query = BudgetWindowRow.select().where(BudgetWindowRow.budget.in_(list(budget_ids)) & is_open).order_by(BudgetWindowRow.id)
    return [_window(row) for row in query]


def _account(kind: str, subject: int) -> AccountRow:
    if kind not in KINDS:
        raise ValueError(f"an account is one of {', '.join(KINDS)}")
    found: AccountRow | None = AccountRow.get_or_none((AccountRow.kind == kind) & (AccountRow.subject == subject))
    return found or AccountRow.create(kind=kind, subject=subject)


def _budget(row: BudgetRow, account: AccountRow) -> Budget:
    return Budget(row.id, account.kind, account.subject, row.period, row.timezone, row.limit_nano, row.soft, row.created_at, row.ended_at)


def _limits(row: AccountRow) -> AccountLimits:
    return AccountLimits(row.kind, row.subject, row.rpm, row.tpm, row.concurrency)


def _window(row: BudgetWindowRow) -> Window:
    return Window(row.id, row.__data__["budget"], row.starts_at, row.ends_at, row.limit_nano, row.spent, row.held)
