"""Admission: whether a call may begin, and at which prices. Limits and budgets hang here (a call without a budget takes no hold)."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.exchange import Exchange, Reservation
from gateway.core.routing import Candidate
from gateway.errors import Draining


class Admission:
    """`draining`: this worker is told to leave, and readiness says so. It still admits, until it is told to stop."""

    def __init__(self) -> None:
        self.draining = self._stopped = False

    def drain(self) -> None:
        self.draining = True

    def stop(self) -> None:
        self.draining = self._stopped = True

    def admit(self, exchange: Exchange, candidates: Sequence[Candidate]) -> Reservation:
        """Raises Draining. A refused call consumes nothing."""
        if self._stopped:
            raise draining()
        return Reservation({candidate.deployment.name: candidate.price for candidate in candidates})


def draining() -> Draining:
    """What a client is told whose call this worker cannot begin, or had to give up before its answer began."""
    return Draining("This worker is shutting down; try again.", retry_after_s=1.0)
