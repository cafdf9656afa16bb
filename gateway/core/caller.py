"""Deployments of the clients' own: the upstream is the operator's choice, the credential is what the client brought with its call."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.backend import Backend, Deadlines, Proxy, Secret
from gateway.core.catalog import Deployment
from gateway.core.routing import Candidate
from gateway.store.catalog import Price

CALLER = "caller"
"""The owner of such a deployment. Dispatch makes one attempt with it, blames nobody, and hides nothing of a refusal."""


@dataclass(frozen=True, slots=True)
class CallersUpstream:
    """Where clients are led who bring a credential. `name` is what receipts and reports call it."""

    name: str
    backend_name: str
    backend: Backend
    base_url: str
    deadlines: Deadlines
    proxy: Proxy | None = None

    def candidate(self, secret: Secret, model: str, price: Price | None) -> Candidate:
        """The one candidate of a call with this credential. `model` may be empty: not every call is of one."""
        deployment = Deployment(
            name=self.name,
            model=model,
            backend_name=self.backend_name,
            backend=self.backend,
            base_url=self.base_url,
            upstream_model=None,
            credential=None,
            secret=secret,
            priority=0,
            weight=1,
            deadlines=self.deadlines,
            include_usage=False,  # the body stays as the client sent it
            owner=CALLER,
            subject=f"caller:{self.name}",
            credential_subject=f"caller:{self.name}",
            proxy=self.proxy,
        )
        return Candidate(deployment, model, price)
