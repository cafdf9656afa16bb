"""Why a candidate is not fit now, and what knows that of agents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.core.routing import Candidate
from gateway.state.base import Limit
from gateway.state.conditions import FOREVER

NOT_CONNECTED, RECONNECTING, LEFT, NOT_SERVED = "not_connected", "reconnecting", "leaving", "model_not_served"
"""Of agents; who was lost a moment ago is likely to be back."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Why a candidate is not fit, and until when (monotonic)."""

    reason: str
    until: float


class Hosts(Protocol):
    """What is known of agents, without I/O: `gateway.core.agents` is it."""

    def rest(self, candidate: Candidate) -> Rest | None:
        """Why the agent cannot be asked now."""

    def limit(self, place: str, own: Limit | None) -> Limit | None:
        """Of its credential, which may have limits of its own."""

    def used_at(self, place: str, own: float) -> float:
        """When it was last sent a request (monotonic), by any worker or at this one's `own` moment."""


class NoHosts:
    """Of a process that no agent can reach."""

    def rest(self, candidate: Candidate) -> Rest | None:
        return Rest(NOT_CONNECTED, FOREVER)

    def limit(self, place: str, own: Limit | None) -> Limit | None:
        return own

    def used_at(self, place: str, own: float) -> float:
        return own
