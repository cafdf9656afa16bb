"""Admission: whether a call may begin, and at which prices. A call without a limit or a budget on its path pays nothing for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.core.catalog import Catalog
from gateway.core.exchange import Exchange, Reservation
from gateway.core.holds import Holds
from gateway.core.limits import CallLimits
from gateway.core.routing import Candidate
from gateway.errors import AWAY_S, Draining, StoreUnavailable


class Admission:
    """`draining`: this worker is told to leave, and readiness says so. It still admits, until it is told to stop.

    `stuck`: whether neither the database nor the journal can be written, as when the disk is full.
    """

    def __init__(self, limits: CallLimits, holds: Holds, catalog: Catalog, serves_without_database: bool, stuck: Callable[[], bool] = lambda: False) -> None:
        self._limits, self._holds, self._catalog = limits, holds, catalog
        self._serves_without_database, self._stuck = serves_without_database, stuck
        self.draining = self._stopped = False

    def drain(self) -> None:
        self.draining = True

    def stop(self) -> None:
        self.draining = self._stopped = True

    def admit(self, exchange: Exchange, candidates: Sequence[Candidate]) -> Reservation:
        """Limits first, as they may have the call wait. Raises Draining, RateLimited, BudgetExceeded, IdempotencyKeyInUse, StoreUnavailable, Cancelled.

        A refused call consumes nothing: what it took of its limits before a budget refused it, its exchange gives back.
        """
        if self._stopped:
            raise draining()
        if not self._catalog.reachable and not self._serves_without_database:
            raise StoreUnavailable("The database does not answer, so the call could not be booked. Try again.", retry_after_s=AWAY_S)
        if self._stuck():
            raise StoreUnavailable("The gateway cannot write its ledger, so the call could not be booked. Try again.", retry_after_s=2.0)
        self._limits.admit(exchange)
        prices = {candidate.deployment.name: candidate.price for candidate in candidates}
        held = bool(exchange.principal.budgets or exchange.claim) and self._holds.reserve(
            exchange, candidates, self._catalog.snapshot.max_output(exchange.model_asked)
        )
        return Reservation(prices, held)


def draining() -> Draining:
    """What a client is told whose call this worker cannot begin, or had to give up before its answer began."""
    return Draining("This worker is shutting down; try again.", retry_after_s=1.0)
