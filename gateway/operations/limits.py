"""Limits: requests and tokens a minute, and calls at once, of a key, a user, a team or everybody. A change reaches every worker within a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway.core.limits import limit_of_account, limit_of_model
from gateway.errors import BadRequest, NotFound
from gateway.operations.budgets import Subject, subject_id
from gateway.state.base import Limit, Standing
from gateway.store import accounts, budgets, catalog
from gateway.store.budgets import AccountLimits
from gateway.store.database import Database

MOST = 1_000_000_000
"""Of any limit."""
_WHAT: Mapping[str, str] = {"rpm": "the requests a minute", "tpm": "the tokens a minute", "concurrency": "the calls at once"}


@dataclass(frozen=True, slots=True)
class ListedLimits:
    """`whose` is for people; `standings`: how much of each is left now, where that is known."""

    kind: str
    subject: int
    whose: str
    limit: Limit
    standings: tuple[Standing, ...] = ()


def set_limits(database: Database, subject: Subject, at: int, **wishes: int | None) -> ListedLimits:
    """Change what is named of `rpm`, `tpm` and `concurrency`, and nothing else; None: unlimited. Raises BadRequest, NotFound."""
    for name, number in wishes.items():
        if number is not None and not 1 <= number <= MOST:
            raise BadRequest(f"{_WHAT[name]}: write a number from 1 to {MOST}")
    if not wishes:
        raise BadRequest("name a limit that is to change: requests or tokens a minute, or calls at once")

    def work() -> ListedLimits:
        id = subject_id(subject, at)
        before = next((each for each in budgets.list_limits() if (each.kind, each.subject) == (subject.kind, id)), None)
        known = {name: getattr(before, name, None) for name in _WHAT} | wishes
        made = budgets.set_limits(subject.kind, id, known["rpm"], known["tpm"], known["concurrency"])
        return _listed(made, accounts.account_names().get((subject.kind, id), f"#{id}"))

    return database.write(work)


def clear_limits(database: Database, subject: Subject, at: int) -> None:
    """Raises NotFound, also where there is none."""

    def work() -> None:
        id = subject_id(subject, at)
        if all((each.kind, each.subject) != (subject.kind, id) for each in budgets.list_limits()):
            raise NotFound("there is no such limit; `gateway limit list` shows them")
        budgets.set_limits(subject.kind, id, None, None, None)

    database.write(work)


def list_limits(database: Database, standings: Callable[[Sequence[Limit]], tuple[Standing, ...]]) -> list[ListedLimits]:
    """Of accounts and of models. `standings` says how much of them is left."""

    def work() -> list[ListedLimits]:
        names = accounts.account_names()
        found = [_listed(each, names.get((each.kind, each.subject), f"#{each.subject}")) for each in budgets.list_limits()]
        models = [(each, limit_of_model(each)) for each in catalog.list_models()]
        return found + [ListedLimits("model", each.id, each.name, limit) for each, limit in models if limit is not None]

    listed = database.read(work)
    known = standings([each.limit for each in listed])
    return [ListedLimits(each.kind, each.subject, each.whose, each.limit, tuple(one for one in known if one.subject == each.limit.subject)) for each in listed]


def _listed(limits: AccountLimits, whose: str) -> ListedLimits:
    return ListedLimits(limits.kind, limits.subject, whose, limit_of_account(limits))
