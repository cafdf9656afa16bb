"""The catalog: models, deployments, credentials and prices in memory, as one frozen snapshot. Refreshed when the generation moves."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from gateway import plugins
from gateway.backend import Backend, Deadlines, Proxy, Secret, Services, Target
from gateway.concurrency import every
from gateway.core.globs import is_glob, matches
from gateway.errors import BadRequest, GatewayError, PluginError
from gateway.frames import Frames, HostsAgents
from gateway.secrets import SecretsError, Vault
from gateway.state.base import Limit
from gateway.store import catalog as store_catalog
from gateway.store.catalog import CatalogRows, Price, proxy_place
from gateway.store.database import Database, SchemaMismatch
from gateway.store.pools import Credential, Pool, credential_place, credential_proxy_place, extras_place

log = logging.getLogger(__name__)
POLL_S = 0.5
REMINDER_S = 60.0
"""How often a failure that lasts is told again."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment with one credential, ready to be called: with a pool of five it is there five times, under one name.

    `problem` says why it cannot be called, or is empty; `owner` is "database" or "environment". `subject` and `credential_subject` are the names
    under which conditions know it and its credential (one of its own where it has none); the second changes when the secret does.
    `share`: of the deployment's calls, what this credential is to have. `limit`: of the credential. `expires_at`: of its secret, Unix milliseconds.
    """

    name: str
    model: str
    backend_name: str
    backend: Backend | None
    base_url: str
    upstream_model: str | None
    credential: str | None
    secret: Secret
    priority: int
    weight: int
    deadlines: Deadlines
    include_usage: bool
    owner: str
    subject: str
    credential_subject: str
    problem: str = ""
    proxy: Proxy | None = None
    extras: Mapping[str, Secret] = field(default_factory=dict, repr=False)
    pool: Pool | None = None
    share: float = 1.0
    limit: Limit | None = None
    expires_at: int | None = None
    draining: bool = False

    @property
    def place(self) -> str:
        """Deployment and credential, where one of several is meant."""
        return f"{self.name}/{self.credential}" if self.pool is not None and self.credential else self.name

    def target(self, model: str) -> Target:
        """Where an attempt goes. `model` is the upstream's name."""
        return Target(self.base_url, model, self.secret, self.deadlines, self.proxy, self.extras, self.credential_place)

    @property
    def credential_place(self) -> str:
        """What its credential is called, whatever its secret is now; empty where it has none."""
        return self.credential_subject.rpartition(".")[0] if self.credential is not None and self.owner == "database" else ""

    @property
    def hosted(self) -> bool:
        """Whether its upstreams are agents, which connect in."""
        return isinstance(self.backend, HostsAgents)

    def upstream_name(self, asked: str) -> str:
        return self.upstream_model or asked


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that routing reads. `deployments` by model name or glob, `prices` by upstream model, newest first;
    `globs` and `price_globs`: which of these names are globs, the longest first."""

    generation: int
    deployments: Mapping[str, Sequence[Deployment]]
    globs: Sequence[str]
    prices: Mapping[str, Sequence[Price]]
    price_globs: Sequence[str] = ()
    models: Mapping[str, store_catalog.Model] = field(default_factory=dict)

    def everyone(self) -> list[Deployment]:
        """Each deployment with each credential that it may present."""
        return [deployment for deployments in self.deployments.values() for deployment in deployments]

    def find(self, model: str) -> Sequence[Deployment]:
        """The deployments of a model: those of the exact name, else of the longest glob that matches."""
        if model in self.deployments:  # a name may hold what a glob does: "claude[1m]"
            return self.deployments[model]
        glob = next((glob for glob in self.globs if matches(model, glob)), None)
        return self.deployments[glob] if glob is not None else ()

    def serves(self, model: str, pool_id: int) -> bool:
        """Whether there is a deployment of exactly this model over the pool."""
        return any(deployment.pool is not None and deployment.pool.id == pool_id for deployment in self.deployments.get(model, ()))

    def model(self, asked: str) -> store_catalog.Model | None:
        """What is configured for a model: under its exact name, else under the longest glob that matches. None for the environment's."""
        if asked in self.models:
            return self.models[asked]
        return next((self.models[glob] for glob in self.globs if glob in self.models and matches(asked, glob)), None)

    def max_output(self, asked: str) -> int | None:
        """Tokens that an answer of this model may have, where the operator said so."""
        model = self.model(asked)
        return None if model is None else model.max_output

    def price(self, upstream_model: str, at: int) -> Price | None:
        """The price in force at that moment (Unix milliseconds); an exact name before the longest glob."""
        globs = (glob for glob in self.price_globs if matches(upstream_model, glob))  # looked at only where the exact name has no price
        for name in chain((upstream_model,), globs):
            price = next((price for price in self.prices.get(name, ()) if price.valid_from <= at), None)
            if price is not None:
                return price
        return None


def price_book(prices: Iterable[Price]) -> Snapshot:
    """A snapshot of these prices alone."""
    by_model = _by_model(prices)
    return Snapshot(-1, {}, (), by_model, _globs(by_model))


def _by_model(prices: Iterable[Price]) -> dict[str, list[Price]]:
    found: dict[str, list[Price]] = {}
    for price in sorted(prices, key=lambda price: -price.valid_from):
        found.setdefault(price.model, []).append(price)
    return found


def _globs(names: Iterable[str]) -> list[str]:
    return sorted((name for name in names if is_glob(name)), key=len, reverse=True)


@dataclass(frozen=True, slots=True)
class EnvironmentDeployment:
    """What OPENAI_API_KEY makes: a deployment `*` that is never written to the database."""

    secret: Secret
    base_url: str


class Backends:
    """The backend instances of this worker: one for each backend and options, built when first named, kept until the end.

    `frames`: the way to agents, for backends that host some.
    """

    def __init__(self, services: Services, frames: Frames | None = None) -> None:
        self._services, self._frames = services, frames
        self._instances: dict[tuple[str, str], Backend] = {}

    def get(self, name: str, options: Mapping[str, Any]) -> Backend:
        """Raises PluginError where the backend cannot be built."""
        key = (name, json.dumps(options, sort_keys=True))
        if key not in self._instances:
            cls = plugins.resolve(plugins.BACKENDS, name)
            if not issubclass(cls, Backend):
                raise PluginError(f"'{name}' is not a Backend.")
            try:
                backend = cls(cls.Options(**options), self._services)
                if self._frames is not None and isinstance(backend, HostsAgents):
                    backend.attach(self._frames)
                self._instances[key] = backend
            except Exception as error:  # a stranger's constructor: this deployment is out, the rest goes on
                raise PluginError(f"The backend '{name}' refuses its options: {error}") from error
        return self._instances[key]

    def close(self) -> None:
        """Close each of them once, whatever another's close raises."""
        while self._instances:
            (name, _), backend = self._instances.popitem()
            try:
                backend.close()
            except Exception:  # a stranger's: the others close all the same
                log.exception("the backend %s did not close", name)


class Catalog:
    """Holds the current snapshot. `start` loads it and polls; until then it is empty."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        backends: Backends,
        defaults: Deadlines,
        environment: EnvironmentDeployment | None,
        learn_secrets: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database, self._vault, self._backends, self._defaults = database, vault, backends, defaults
        self._environment, self._learn_secrets = environment, learn_secrets
        self._stop: Callable[[], None] | None = None
        self._clock = clock
        self._told: float | None = None
        """When it was last told that a refresh failed; None while none does."""
        self.snapshot = Snapshot(-1, {}, (), {})
        self.reachable, self.confirmed_at = True, 0.0
        """Whether the database answered the last look, and when (Unix seconds) the snapshot was last known to be the newest."""

    @property
    def generation(self) -> int:
        """-1 before the first load."""
        return self.snapshot.generation

    def start(self) -> None:
        """Load, then look for a new generation every 0.5 s. A database that does not answer leaves the last snapshot in force."""
        self.refresh()
        self._stop = every(POLL_S, self.refresh, "catalog")

    def close(self) -> None:
        """End the poll, and close the backends."""
        if self._stop is not None:
            self._stop()
        self._backends.close()

    def refresh(self) -> None:
        """Load the rows if the generation moved. Never raises: what goes wrong is in the log, and the last snapshot stays."""
        try:
            if self.generation < 0 and not self._fits():
                return
            if self._database.read(store_catalog.generation) != self.generation:
                self.snapshot = self._built(self._database.read(store_catalog.load))
            self.reachable, self.confirmed_at = True, time.time()
        except GatewayError as error:
            self.reachable = False
            self._tell(f"the catalog was not refreshed: {error}", None)
        except Exception as error:  # the poll's outermost edge: it must go on
            self._tell("the catalog was not refreshed", error)
        else:
            self._tell_the_end()

    def _fits(self) -> bool:
        """Whether the database's schema is this program's. Asked before the first load only: a newer program may migrate while this one still serves."""
        try:
            pending = self._database.pending()
        except SchemaMismatch as error:
            self._tell(str(error), None)
            return False
        if pending:
            self._tell(f"migrations are pending ({', '.join(pending)}); run `gateway migrate`", None)
        return not pending

    def _tell(self, text: str, error: Exception | None) -> None:
        """At once, then once in a while: what lasts must not fill the log."""
        if self._told is None or self._clock() - self._told >= REMINDER_S:
            self._told = self._clock()
            log.log(logging.WARNING if error is None else logging.ERROR, "%s", text, exc_info=error)

    def _tell_the_end(self) -> None:
        if self._told is not None:
            self._told = None
            log.info("the catalog is refreshed again")

    def _built(self, rows: CatalogRows) -> Snapshot:
        names = {model.id: model.name for model in rows.models}
        by_model: dict[str, list[Deployment]] = {name: [] for name in names.values()}
        for row in rows.deployments:
            if row.enabled:
                by_model[names[row.model_id]] += self._deployments(row, names[row.model_id], rows)
        if self._environment is not None:
            by_model.setdefault("*", []).append(self._from_environment(self._environment))
        made = [deployment for deployments in by_model.values() for deployment in deployments]
        self._learn_secrets(
            *(deployment.secret.reveal() for deployment in made),
            *(extra.reveal() for deployment in made for extra in deployment.extras.values()),
            *(each.proxy.password for each in made if each.proxy is not None),
        )
        prices = _by_model(rows.prices)
        return Snapshot(rows.generation, by_model, _globs(by_model), prices, _globs(prices), {model.name: model for model in rows.models})

    def _deployments(self, row: store_catalog.Deployment, model: str, rows: CatalogRows) -> list[Deployment]:
        """One for each credential that it may present."""
        pool = next((pool for pool in rows.pools if pool.id == row.pool_id), None)
        if pool is None:
            own = next((item for item in rows.credentials if item.id == row.credential_id), None)
            return [self._deployment(row, model, own, None, 1.0)]
        members = [item for item in rows.credentials if item.pool_id == pool.id and item.disabled_at is None]
        if not members:
            empty = self._deployment(row, model, None, None, 1.0)
            return [
                replace(
                    empty,
                    problem=f"no agent of its pool {pool.name} has come yet" if empty.hosted else f"its pool {pool.name} has no credential that may be used",
                )
            ]
        total = sum(item.weight for item in members)
        return [self._deployment(row, model, item, pool, item.weight / total if total else 1 / len(members)) for item in members]

    def _deployment(self, row: store_catalog.Deployment, model: str, credential: Credential | None, pool: Pool | None, share: float) -> Deployment:
        backend, secret, proxy, extras, problem = None, Secret(""), None, dict[str, Secret](), ""
        try:
            backend = self._backends.get(row.backend, row.options)
            if credential is not None and credential.disabled_at is not None:
                problem = "its credential is disabled"
            elif isinstance(backend, HostsAgents):
                pass  # agents present themselves: nothing is to be opened for each of them and each of their models
            elif credential is not None:
                secret = Secret(self._vault.open(credential.sealed, credential_place(credential.id)))
                extras = self._extras(credential)
            elif backend.needs_secret:
                problem = "it needs a credential and has none"
            proxy = self._proxy(row, credential)
        except (PluginError, SecretsError, BadRequest) as error:
            problem = str(error)
        if problem:
            log.warning("deployment %s cannot be used: %s", row.name, problem)
        return Deployment(
            name=row.name,
            model=model,
            backend_name=row.backend,
            backend=backend,
            base_url=row.base_url or (backend.default_base_url if backend else ""),
            upstream_model=row.upstream_model,
            credential=credential.label if credential else None,
            secret=secret,
            priority=row.priority,
            weight=row.weight,
            deadlines=_deadlines(row, self._defaults),
            include_usage=row.include_usage,
            owner="database",
            subject=f"deployment:{row.id}",
            credential_subject=credential.subject if credential else f"keyless:{row.id}",
            problem=problem,
            proxy=proxy,
            extras=extras,
            pool=pool,
            share=share,
            limit=_limit(credential),
            expires_at=credential.expires_at if credential else None,
            draining=credential is not None and credential.draining_at is not None,
        )

    def _extras(self, credential: Credential) -> dict[str, Secret]:
        if credential.extras is None:
            return {}
        return {name: Secret(value) for name, value in json.loads(self._vault.open(credential.extras, extras_place(credential.id))).items()}

    def _proxy(self, row: store_catalog.Deployment, credential: Credential | None) -> Proxy | None:
        """The credential's own, else the deployment's."""
        if credential is not None and credential.proxy_sealed is not None:
            return Proxy.parse(self._vault.open(credential.proxy_sealed, credential_proxy_place(credential.id)))
        return Proxy.parse(self._vault.open(row.proxy_sealed, proxy_place(row.id))) if row.proxy_sealed is not None else None

    def _from_environment(self, source: EnvironmentDeployment) -> Deployment:
        return Deployment(
            name="environment",
            model="*",
            backend_name="openai",
            backend=self._backends.get("openai", {}),
            base_url=source.base_url,
            upstream_model=None,
            credential="OPENAI_API_KEY",
            secret=source.secret,
            priority=0,
            weight=1,
            deadlines=self._defaults,
            include_usage=True,
            owner="environment",
            subject="deployment:environment",
            credential_subject="credential:environment",
        )


def _limit(credential: Credential | None) -> Limit | None:
    """What a credential may carry; None: anything."""
    if credential is None or (credential.rpm, credential.tpm, credential.concurrency, credential.per_day) == (None,) * 4:
        return None
    return Limit(credential.place, credential.rpm, credential.tpm, credential.concurrency, credential.per_day)


def _deadlines(row: store_catalog.Deployment, defaults: Deadlines) -> Deadlines:
    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    return Deadlines(
        given(row.connect_s, defaults.connect_s),
        given(row.first_byte_s, defaults.first_byte_s),
        given(row.idle_s, defaults.idle_s),
        given(row.total_s, defaults.total_s),
    )
