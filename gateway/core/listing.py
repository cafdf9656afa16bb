"""The names of the models a key may use: those of the catalog, and behind a glob those that its upstreams list."""

from __future__ import annotations

import fnmatch
import logging
import threading
import time
from collections.abc import Callable, Sequence

from gateway.backend import ListsModels, Target
from gateway.concurrency import spawn
from gateway.core.catalog import Catalog, Deployment, is_glob
from gateway.core.identity import Principal
from gateway.errors import UpstreamError

log = logging.getLogger(__name__)
DEADLINE_S = 2.0
KEEP_S = 300.0
KEEP_FAILURE_S = 15.0


class Listing:
    """Upstream lists are kept for 5 minutes; one that cannot be had within 2 s is left out, and asked for again later."""

    def __init__(self, catalog: Catalog, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog, self._clock = catalog, clock
        self._known: dict[str, tuple[float, tuple[str, ...]]] = {}

    def names(self, principal: Principal) -> list[str]:
        """Sorted; at most 2 s late."""
        snapshot = self._catalog.snapshot
        names = {name for name, deployments in snapshot.deployments.items() if not is_glob(name) and _usable(deployments)}
        behind = [(glob, deployment) for glob in snapshot.globs for deployment in _usable(snapshot.deployments[glob])]
        self._ask([deployment for _, deployment in behind])
        for glob, deployment in behind:
            _, listed = self._known.get(deployment.subject, (0.0, ()))
            if deployment.upstream_model is None:  # else every name goes to one model, and none is worth listing
                names.update(name for name in listed if fnmatch.fnmatchcase(name, glob))
        return sorted(name for name in names if principal.may_use(name))

    def _ask(self, deployments: Sequence[Deployment]) -> None:
        now = self._clock()
        stale = [deployment for deployment in deployments if self._known.get(deployment.subject, (0.0, ()))[0] <= now]
        done = [threading.Event() for _ in stale]
        for deployment, event in zip(stale, done, strict=True):
            spawn(_asking(self, deployment, now + DEADLINE_S, event), "list-models")
        for event in done:
            event.wait(max(now + DEADLINE_S - self._clock(), 0.0))

    def fetch(self, deployment: Deployment, deadline: float) -> None:
        """Ask one upstream. After a failure its names are left out for a while."""
        backend = deployment.backend
        if not isinstance(backend, ListsModels):
            self._known[deployment.subject] = (self._clock() + KEEP_S, ())
            return
        try:
            names = backend.models(Target(deployment.base_url, "", deployment.secret, deployment.deadlines), deadline)
            self._known[deployment.subject] = (self._clock() + KEEP_S, tuple(names))
        except UpstreamError as error:
            log.warning("the models of %s could not be listed: %s", deployment.name, error)
            self._known[deployment.subject] = (self._clock() + KEEP_FAILURE_S, ())


def _usable(deployments: Sequence[Deployment]) -> list[Deployment]:
    return [deployment for deployment in deployments if not deployment.problem]


def _asking(listing: Listing, deployment: Deployment, deadline: float, done: threading.Event) -> Callable[[], None]:
    def ask() -> None:
        try:
            listing.fetch(deployment, deadline)
        finally:
            done.set()

    return ask
