"""The path of a call, on one screen: begin, route, admit, dispatch, relay; and the one exit for every failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from gateway.backend import Call
from gateway.concurrency import every
from gateway.core.admission import Admission, draining
from gateway.core.agents import Agents
from gateway.core.catalog import Catalog
from gateway.core.dispatch import Dispatcher
from gateway.core.drains import Drains
from gateway.core.exchange import Client, Exchange, OpenExchanges
from gateway.core.housekeeping import Housekeeping
from gateway.core.identity import Principal
from gateway.core.ledger import Ledger
from gateway.core.relay import Relay
from gateway.core.routing import Candidate, Router
from gateway.core.transitions import Transitions
from gateway.errors import Cancelled
from gateway.metrics import Metrics
from gateway.presence import Presence

LAST_WORDS_S = 1.0
"""How long before the end of a drain the calls that are left are given up, so that each can still say so."""
FLUSH_S = 2.0
"""How long the end of a worker waits for the database to take its last transitions."""


class Gateway:
    """Built once per worker by app.py. `start` after the fork, `drain` when the worker is told to end."""

    def __init__(
        self,
        *,
        exchanges: OpenExchanges,
        router: Router,
        admission: Admission,
        dispatcher: Dispatcher,
        ledger: Ledger,
        housekeeping: Housekeeping,
        catalog: Catalog,
        presence: Presence,
        metrics: Metrics,
        transitions: Transitions,
        agents: Agents,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.exchanges, self.router, self.admission, self.dispatcher = exchanges, router, admission, dispatcher
        self.housekeeping, self.transitions, self.agents = housekeeping, transitions, agents
        self.ledger, self.catalog, self.presence, self.metrics, self._clock = ledger, catalog, presence, metrics, clock
        self._drains = Drains()
        self._stop_metrics: Callable[[], None] | None = None

    def begin(self, call: Call, principal: Principal, client: Client, endpoint: str, model: str, client_request_id: str | None = None) -> Exchange:
        """Open the call's exchange, and watch its client. The caller passes it to `handle` next, come what may."""
        return self.exchanges.begin(call, principal, client, endpoint, model, client_request_id)

    def handle(self, exchange: Exchange, candidates: Sequence[Candidate] = ()) -> Relay:
        """Answer a call. The caller iterates the Relay and closes it, whatever happens.

        `candidates`: where the client brought its own credential, the only one that may be asked; the router is then not.
        Raises GatewayError; the exchange is then recorded and released.
        """
        try:
            if candidates:
                exchange.candidates = [candidate.deployment.name for candidate in candidates]
            else:
                candidates = self.router.candidates(exchange)
            exchange.reservation = self.admission.admit(exchange, candidates)
            return Relay(self.dispatcher.send(exchange, candidates), exchange, self.ledger, self._drains)
        except BaseException as error:
            given_up = isinstance(error, Cancelled) and not exchange.left
            told = draining() if given_up else error
            self.ledger.close(exchange, told)
            if given_up:  # the client is still there, and may ask another worker
                raise told from error
            raise

    def start(self) -> None:
        """Take this worker's presence, load the catalog, and begin to poll. Waits for no upstream."""
        self.presence.start()
        self.catalog.start()
        self.transitions.seed()
        self.housekeeping.start()
        self.agents.start()
        self.metrics.sample(self._observe)
        self._stop_metrics = every(1.0, self.metrics.refresh, "metrics")

    def _observe(self) -> None:
        """What this worker's state looks like now, for the metrics."""
        self.metrics.open.set(len(self.exchanges))
        self.metrics.agents.set(len(self.agents))
        self.metrics.catalog(self.catalog.generation, self.catalog.confirmed_at, self.catalog.reachable)
        rests = self.dispatcher.resting(self.catalog.snapshot.everyone())
        quarantined = {deployment.credential_subject for deployment, rest in rests if rest.reason == "quarantined"}
        self.metrics.resting([(deployment.name, rest.reason) for deployment, rest in rests], len(quarantined))

    def drain(self, deadline: float) -> None:
        """Let calls finish until shortly before `deadline` (monotonic), then give up those that are left.

        What arrives meanwhile, on connections that were open, is served: refused, it would be lost. Its answer says that the
        connection ends. The server may end the process as soon as no connection is left.
        """
        self.admission.drain()
        self.agents.drain_beside(deadline)
        while self._clock() < deadline - LAST_WORDS_S:
            time.sleep(0.05)
        self.admission.stop()
        self.exchanges.give_up("draining")
        while len(self.exchanges) and self._clock() < deadline:
            time.sleep(0.05)

    def close(self) -> None:
        """End the polls and give up the presence, when no call is left. Idempotent."""
        if self._stop_metrics is not None:
            self._stop_metrics()
            self.metrics.refresh()
        self.agents.close()
        self.housekeeping.close()
        self.transitions.flush(FLUSH_S)
        self.catalog.close()
        self.presence.close()
