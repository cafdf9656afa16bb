"""Explains a route without calling anybody: which deployments a key's call of a model would be offered to, and which not, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.backend import Body, Call, Cancellation, Services
from gateway.core.catalog import Backends, Catalog, EnvironmentDeployment
from gateway.core.exchange import Exchange, OpenExchanges
from gateway.core.identity import INFERENCE, principal_of
from gateway.core.routing import Candidate, Router
from gateway.dialects.document import Fields
from gateway.errors import GatewayError, ModelNotFound, StoreUnavailable
from gateway.operations.keys import find_key, key_state
from gateway.secrets import Vault
from gateway.settings import Settings
from gateway.store.accounts import ApiKey
from gateway.store.budgets import AccountPath
from gateway.store.database import Database


@dataclass(frozen=True, slots=True)
class Excluded:
    """A deployment of the model that would not be asked. `detail` is for the operator, and may be empty."""

    deployment: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`candidates` in the order of their priority. `refusal` is what the client would be told instead of an answer, or empty."""

    key: ApiKey
    model: str
    candidates: tuple[Candidate, ...]
    excluded: tuple[Excluded, ...]
    refusal: str
    found: bool


class _NoClient:
    """Nobody waits for the answer to this call."""

    def on_leave(self, callback: Callable[[], None]) -> None:
        del callback

    def disarm(self) -> None:
        return


def loaded_catalog(database: Database, vault: Vault, settings: Settings) -> tuple[Catalog, Backends]:
    """The catalog as a worker would build it now. The caller closes the Backends. Raises StoreUnavailable."""
    backends = Backends(Services(allow_networks=settings.allow_networks or ()))
    key = settings.openai_api_key
    environment = None if key is None else EnvironmentDeployment(key, settings.openai_base_url)
    catalog = Catalog(database, vault, backends, settings.deadlines, environment, lambda *secrets: None)
    catalog.refresh()
    if catalog.generation < 0:
        raise StoreUnavailable("The database did not answer.")
    return catalog, backends


def explain(database: Database, vault: Vault, settings: Settings, reference: str, model: str, endpoint: str, dialect: str, at: int) -> Explanation:
    """What the router would do with a call of `endpoint` (a path below /v1) at `at` (Unix milliseconds). Raises NotFound for the key."""
    key = find_key(database, reference, at)
    catalog, backends = loaded_catalog(database, vault, settings)
    try:
        return _explained(catalog, settings.unpriced, key, model, _exchange(key, model, endpoint, dialect, at), at)
    finally:
        backends.close()


def _explained(catalog: Catalog, unpriced: str, key: ApiKey, model: str, exchange: Exchange, at: int) -> Explanation:
    candidates: list[Candidate] = []
    refusal, found = "", True
    try:
        candidates = Router(catalog, unpriced).candidates(exchange)
    except GatewayError as error:
        refusal, found = error.message, not isinstance(error, ModelNotFound)
    if key_state(key, at) != "active":
        refusal = f"The key is refused: {key_state(key, at)}."
    elif key.scopes is not None and INFERENCE not in key.scopes:
        refusal = f"The key is refused: it has no scope '{INFERENCE}'."
    problems = {deployment.place: deployment.problem for deployment in catalog.snapshot.find(model)}
    return Explanation(key, model, tuple(candidates), _excluded(exchange.excluded, problems), refusal, found)


def _excluded(reasons: Mapping[str, str], problems: Mapping[str, str]) -> tuple[Excluded, ...]:
    return tuple(Excluded(name, reason, problems.get(name, "")) for name, reason in reasons.items())


def _exchange(key: ApiKey, model: str, endpoint: str, dialect: str, at: int) -> Exchange:
    call = Call(dialect, "POST", endpoint, "", (), Body.of(b""), Fields(model=model), dict, False, math.inf, Cancellation())
    principal = principal_of(key, AccountPath())
    return OpenExchanges("explain", now_ms=lambda: at).begin(call, principal, _NoClient(), endpoint, model)
