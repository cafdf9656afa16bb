"""The names of the models a key may use: those of the catalog, and behind a glob those that its upstreams list."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from gateway.backend import ListsModels
from gateway.concurrency import spawn
from gateway.core.catalog import Catalog, Deployment, Snapshot
from gateway.core.globs import is_glob, matches
from gateway.core.identity import Principal
from gateway.core.routing import not_loaded
from gateway.errors import GatewayError

log = logging.getLogger(__name__)
DEADLINE_S = 2.0
KEEP_S = 300.0
KEEP_FAILURE_S = 15.0


class Listing:
    """Upstream lists are kept for 5 minutes; one that cannot be had within 2 s is left out, and asked for again later.

    `unpriced` is the Router's: what it refuses is not listed.
    """

    def __init__(self, catalog: Catalog, unpriced: str = "free", clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog, self._unpriced, self._clock = catalog, unpriced, clock
        self._known: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._under_way: dict[str, threading.Event] = {}
        self._guard = threading.Lock()

    def names(self, principal: Principal) -> list[str]:
        """Sorted; at most 2 s late. Raises StoreUnavailable before the first catalog: an empty list would say that there is nothing."""
        snapshot = self._catalog.snapshot
        if snapshot.generation < 0:
            raise not_loaded()
        names = {name for name in snapshot.deployments if not is_glob(name)}
        behind = [(glob, deployment) for glob in snapshot.globs for deployment in _usable(snapshot.deployments[glob])]
        self._ask([deployment for _, deployment in behind])
        for glob, deployment in behind:
            _, listed = self._known.get(deployment.subject, (0.0, ()))
            if deployment.upstream_model is None:  # else every name goes to one model, and none is worth listing
                names.update(name for name in listed if matches(name, glob))
        return sorted(name for name in names if principal.may_use(name) and self._is_served(snapshot, name))

    def _is_served(self, snapshot: Snapshot, name: str) -> bool:
        """Whether a call of that name would find a deployment: another than the one that listed it may stand before it."""
        usable = _usable(snapshot.find(name))
        if self._unpriced == "free":
            return bool(usable)
        now_ms = time.time_ns() // 1_000_000
        return any(snapshot.price(deployment.upstream_name(name), now_ms) is not None for deployment in usable)

    def _ask(self, deployments: Sequence[Deployment]) -> None:
        now = self._clock()
        stale = [deployment for deployment in deployments if self._known.get(deployment.subject, (0.0, ()))[0] <= now]
        asked = [(deployment, self._question(deployment, now + DEADLINE_S)) for deployment in stale]
        for deployment, done in asked:
            if not done.wait(max(now + DEADLINE_S - self._clock(), 0.0)):
                self._known[deployment.subject] = (self._clock() + KEEP_FAILURE_S, ())

    def _question(self, deployment: Deployment, deadline: float) -> threading.Event:
        """Set when the answer is there. However many clients ask at once, the upstream is asked once."""
        with self._guard:
            done = self._under_way.get(deployment.subject)
            if done is not None:
                return done
            done = self._under_way[deployment.subject] = threading.Event()

        def ask() -> None:
            try:
                self.fetch(deployment, deadline)
            finally:
                del self._under_way[deployment.subject]
                done.set()

        spawn(ask, "list-models")
        return done

    def fetch(self, deployment: Deployment, deadline: float) -> None:
        """Ask one upstream. After a failure its names are left out for a while."""
        backend = deployment.backend
        if not isinstance(backend, ListsModels):
            self._known[deployment.subject] = (self._clock() + KEEP_S, ())
            return
        try:
            names = backend.models(deployment.target(""), deadline)
            self._known[deployment.subject] = (self._clock() + KEEP_S, tuple(names))
        except Exception as error:  # the thread's outermost edge, and a backend may be a stranger's
            reason = str(error) if isinstance(error, GatewayError) else type(error).__name__
            log.warning("the models of %s could not be listed: %s", deployment.name, reason)
            self._known[deployment.subject] = (self._clock() + KEEP_FAILURE_S, ())


def _usable(deployments: Sequence[Deployment]) -> list[Deployment]:
    return [deployment for deployment in deployments if not deployment.problem]
