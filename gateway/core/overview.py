"""What a key may use and what is left of it, for whoever holds the key: its limits and budgets, which of them bind, and its models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.core.catalog import Catalog
from gateway.core.identity import REFUSAL, Principal
from gateway.core.limits import CallLimits, limit_of_account, limit_of_model
from gateway.core.periods import window
from gateway.errors import Unauthenticated
from gateway.state.base import Standing
from gateway.store import accounts, budgets
from gateway.store.accounts import ApiKey
from gateway.store.budgets import Budget, Window
from gateway.store.database import Database


@dataclass(frozen=True, slots=True)
class OwnLimit:
    """A limit on the key's path; `of` is key, user, team, global, or model, which is then named. `binding`: the least of this resource is left of it."""

    of: str
    model: str | None
    standing: Standing
    binding: bool


@dataclass(frozen=True, slots=True)
class OwnBudget:
    """A budget on the key's path, and what of it is spent and held in the period that is open. `binding`: it is the first to refuse."""

    budget: Budget
    spent: int
    held: int
    resets_at: int | None
    binding: bool

    @property
    def remaining(self) -> int:
        return self.budget.limit_nano - self.spent - self.held


@dataclass(frozen=True, slots=True)
class Overview:
    key: ApiKey
    team: str | None
    limits: tuple[OwnLimit, ...]
    budgets: tuple[OwnBudget, ...]


class Overviews:
    """`now_ms`: Unix time."""

    def __init__(self, database: Database, catalog: Catalog, limits: CallLimits, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._database, self._catalog, self._limits, self._now_ms = database, catalog, limits, now_ms

    def of(self, principal: Principal) -> Overview:
        """Raises StoreUnavailable."""
        at = self._now_ms()

        def work() -> tuple[ApiKey | None, str | None, list[Window]]:
            team = next((team.name for team in accounts.list_teams() if team.id == principal.team_id), None)
            return accounts.find_key_by_id(principal.key_id), team, budgets.windows_of([budget.id for budget in principal.budgets], at)

        key, team, windows = self._database.read(work)
        if key is None:
            raise Unauthenticated(REFUSAL)
        return Overview(key, team, self._own_limits(principal), _own_budgets(principal.budgets, windows, at))

    def _own_limits(self, principal: Principal) -> tuple[OwnLimit, ...]:
        of_models = {
            limit: model.name
            for model in self._catalog.snapshot.models.values()
            if principal.may_use(model.name) and (limit := limit_of_model(model)) is not None
        }
        limits = [*map(limit_of_account, principal.limits), *of_models]
        names = {limit.subject: name for limit, name in of_models.items()}
        standings = self._limits.standings(limits) if limits else ()
        binding = {_least([each for each in standings if each.resource == resource]) for resource in {each.resource for each in standings}}
        return tuple([OwnLimit(each.subject.partition(":")[0], names.get(each.subject), each, each in binding) for each in standings])


def _least(standings: Sequence[Standing]) -> Standing:
    return min(standings, key=lambda each: each.remaining / each.limit)


def _own_budgets(own: Sequence[Budget], windows: Sequence[Window], at: int) -> tuple[OwnBudget, ...]:
    known = {each.budget_id: each for each in windows}
    found = []
    for budget in own:
        spent, held = (known[budget.id].spent, known[budget.id].held) if budget.id in known else (0, 0)
        found.append(OwnBudget(budget, spent, held, window(budget.period, budget.timezone, at)[1], binding=False))
    binding = min((each for each in found if not each.budget.soft), key=lambda each: each.remaining, default=None)
    return tuple([OwnBudget(each.budget, each.spent, each.held, each.resets_at, each is binding) for each in found])
