"""Calls that wait for an agent: one that is busy, or that was lost a moment ago. Bounded, and in turns over all workers, as the waiting room is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.core.catalog import Catalog
from gateway.core.exchange import Exchange, attempt_id
from gateway.core.rests import RECONNECTING
from gateway.core.routing import Candidate
from gateway.core.waiting import Outcome, WaitingRoom
from gateway.state.base import CONCURRENCY, QUEUE, Full, Limits, StateUnavailable

SIZE, WAIT_S = 100, 30.0
"""Of a model's queue for agents, where the operator gave it none of its own (`gateway model set --queue`)."""
WAITED_FOR = frozenset({CONCURRENCY, QUEUE, RECONNECTING})


class AgentQueue:
    """Of one worker."""

    def __init__(self, room: WaitingRoom, state: Limits, catalog: Catalog) -> None:
        self._room, self._state, self._catalog = room, state, catalog

    def wait(self, exchange: Exchange, untried: Sequence[Candidate], lease: Callable[[], Candidate | None]) -> Candidate | None:
        """The candidate that `lease` got in this call's turn; None where none came free in time, or none can any more. Raises Cancelled."""
        if exchange.queue is None or not _may_wait(exchange, untried):
            return None
        queue, call, got = exchange.queue, attempt_id(exchange), list[Candidate]()
        model = self._catalog.snapshot.model(exchange.model_asked)
        size = SIZE if model is None or not model.queue_size else model.queue_size
        seconds = WAIT_S if model is None or model.queue_s is None else model.queue_s

        def attempt() -> Outcome:
            if not got:  # else the state broke after it was leased
                candidate = lease()
                if candidate is None:
                    return Full(queue if _may_wait(exchange, untried) else "", QUEUE, size, 1.0)
                got.append(candidate)
            self._state.leave(queue, call)
            return ()

        try:
            self._room.wait(queue, call, exchange.principal.key_id, size, seconds, attempt, exchange.call.cancel)
        except StateUnavailable:
            return got[0] if got else None
        return got[0] if got else None


def queue_of(exchange: Exchange, candidates: Sequence[Candidate]) -> str | None:
    """In which queue a call waits for its agents: those of a model, or the only one that it may have. None where it has none."""
    hosted = [candidate for candidate in candidates if candidate.deployment.hosted]
    if not hosted:
        return None
    return f"agent:{hosted[0].deployment.credential_place}" if len(hosted) == 1 else f"agents:{exchange.served_by or exchange.model_asked}"


def _may_wait(exchange: Exchange, untried: Sequence[Candidate]) -> bool:
    """As the last look at them left it."""
    return any(each.deployment.hosted and exchange.excluded.get(each.deployment.place) in WAITED_FOR for each in untried)
