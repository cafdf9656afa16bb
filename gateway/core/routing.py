"""Routing: which deployments may answer a call, from the snapshot alone, without I/O."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.catalog import Catalog, Deployment
from gateway.core.exchange import Exchange
from gateway.errors import BadRequest, ModelNotFound, NoDeploymentAvailable, PermissionDenied, StoreUnavailable
from gateway.store.catalog import Price


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment that may answer. `model` is the name it knows the model by; `price` is the one in force when the call began."""

    deployment: Deployment
    model: str
    price: Price | None

    @property
    def key(self) -> str:
        """The same for every call of this deployment with this credential."""
        return f"{self.deployment.subject}|{self.deployment.credential_subject}"

    @property
    def way(self) -> str:
        """What being out of reach is held against: the deployment through its proxy. A pool's credentials may have proxies of their own."""
        return self.deployment.subject if self.deployment.proxy is None else f"{self.deployment.subject}@{self.deployment.proxy}"

    @property
    def blamed(self) -> str:
        """What an upstream's own failures are held against: its deployment, or where a pool stands behind that, the one that was called."""
        return self.way if self.deployment.pool is None else f"{self.deployment.credential_subject}:{self.model}"


class Router:
    """`unpriced` is "free" or "refuse": what becomes of a candidate without a price."""

    def __init__(self, catalog: Catalog, unpriced: str) -> None:
        self._catalog, self._unpriced = catalog, unpriced

    def candidates(self, exchange: Exchange) -> list[Candidate]:
        """Every deployment that may answer, by priority. Notes on the exchange who was excluded and why.

        Raises ModelNotFound, PermissionDenied, BadRequest where no deployment of the model serves the endpoint, NoDeploymentAvailable
        where each has a problem of its own, and StoreUnavailable before the first catalog.
        """
        model, call = exchange.model_asked, exchange.call
        snapshot = self._catalog.snapshot
        if snapshot.generation < 0:  # a worker that began while the database was away, or not migrated: it cannot tell what exists
            raise not_loaded()
        deployments = snapshot.find(exchange.served_by or model)
        if not deployments:
            raise ModelNotFound(f"The model '{model}' does not exist here; GET /v1/models lists those that your key may use.", param="model")
        if not exchange.principal.may_use(model):
            raise PermissionDenied(f"Your key may not use the model '{model}'.", code="model_not_allowed", param="model")
        found = [Candidate(item, item.upstream_name(model), snapshot.price(item.upstream_name(model), exchange.at)) for item in deployments]
        configured = snapshot.model(exchange.served_by or model)
        exchange.drains = configured is not None and configured.on_client_gone == "drain"
        exchange.candidates = list(dict.fromkeys([candidate.deployment.name for candidate in found]))
        for candidate in found:
            if reason := self._exclusion(candidate, call.dialect):
                exchange.excluded[candidate.deployment.place] = reason
        usable = [candidate for candidate in found if candidate.deployment.place not in exchange.excluded]
        if not usable:
            raise _nothing_usable(model, exchange)
        return sorted(usable, key=lambda candidate: candidate.deployment.priority)

    def _exclusion(self, candidate: Candidate, dialect: str) -> str:
        deployment = candidate.deployment
        if deployment.problem or deployment.backend is None:
            return "unusable"
        if dialect not in deployment.backend.dialects:
            return "endpoint_not_served"
        return "no_price" if candidate.price is None and self._unpriced == "refuse" else ""


def _nothing_usable(model: str, exchange: Exchange) -> Exception:
    reasons = set(exchange.excluded.values())
    if reasons == {"endpoint_not_served"}:
        return BadRequest(f"The model '{model}' does not serve {exchange.endpoint}.", code="endpoint_not_served", param="model")
    if "no_price" in reasons:
        return PermissionDenied(f"The model '{model}' has no price, and this gateway refuses unpriced models.", code="model_not_priced", param="model")
    return NoDeploymentAvailable(f"No deployment of the model '{model}' is usable; the operator finds the reason with `gateway doctor`.")


def not_loaded() -> StoreUnavailable:
    """What is told before the first catalog."""
    return StoreUnavailable("The configuration is not loaded yet: the database did not answer, or is not migrated. Try again.", retry_after_s=1.0)
