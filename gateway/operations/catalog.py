"""Models and their deployments. A change reaches every running worker within a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Unpack
from urllib.parse import urlsplit

from gateway.backend import Proxy, Secret
from gateway.errors import BadRequest, NotFound
from gateway.operations.credentials import required_credential
from gateway.operations.limits import MOST
from gateway.operations.names import check_model_name, check_name
from gateway.operations.options import build_options, find_backend
from gateway.operations.pools import required_pool
from gateway.secrets import Vault
from gateway.store import catalog
from gateway.store.catalog import CatalogRows, Deployment, DeploymentFields, Model, ModelFields
from gateway.store.database import Conflict, Database

MAX_DEADLINE_S = 86_400.0
MAX_NUMBER = 1_000_000
"""Bound of priorities and weights."""
ENDINGS_OF_THE_GONE = ("cancel", "drain")
_MODEL_NUMBERS: Mapping[str, tuple[str, int]] = {
    "max_output": ("the most that an answer may have", 10_000_000),
    "rpm": ("the requests a minute", MOST),
    "tpm": ("the tokens a minute", MOST),
    "concurrency": ("the calls at once", MOST),
    "queue_size": ("the calls that may wait", 10_000),
    "queue_s": ("the seconds that they may wait", 3600),
}
_NUMBERS: tuple[Literal["priority", "weight"], ...] = ("priority", "weight")
_SWITCHES: tuple[Literal["include_usage", "enabled"], ...] = ("include_usage", "enabled")
_DEADLINES: tuple[Literal["connect_s", "first_byte_s", "idle_s", "total_s"], ...] = ("connect_s", "first_byte_s", "idle_s", "total_s")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model and the names of its deployments."""

    model: Model
    deployments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlacedDeployment:
    """A deployment with the names that its ids stand for. `notes`: one line each on what the operator should know about it."""

    deployment: Deployment
    model: str
    credential: str | None
    notes: tuple[str, ...] = ()
    pool: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What an operator wants of a deployment. None: not named. "", or 0 for the seconds: back to the default.

    `proxy` is a URL, which may hold a password: to name one, the operations need the vault.
    `options` are texts, converted by the backend's Options; an empty one takes the option away.
    """

    base_url: str | None = None
    upstream_model: str | None = None
    credential: str | None = None
    pool: str | None = None
    proxy: Secret | None = None
    priority: int | None = None
    weight: int | None = None
    connect_s: float | None = None
    first_byte_s: float | None = None
    idle_s: float | None = None
    total_s: float | None = None
    include_usage: bool | None = None
    enabled: bool | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def create_model(database: Database, name: str, at: int) -> Model:
    """Raises BadRequest, Conflict."""
    check_model_name(name)

    def create() -> Model:
        if catalog.find_model(name) is not None:
            raise Conflict(f"there is a model {name} already")
        return catalog.create_model(name, at)

    return database.write(create)


def list_models(database: Database) -> list[ServedModel]:
    rows = database.read(catalog.load)
    return [ServedModel(model, tuple(row.name for row in rows.deployments if row.model_id == model.id)) for model in rows.models]


def set_model(database: Database, name: str, **wishes: Unpack[ModelFields]) -> Model:
    """Change what is named, and nothing else; None: the default, or unlimited. Raises NotFound, BadRequest."""
    for name_of, (what, most) in _MODEL_NUMBERS.items():
        number = wishes.get(name_of)
        if isinstance(number, (int, float)) and not 0 < number <= most:
            raise BadRequest(f"{what}: write a number from 1 to {most}")
    if wishes.get("on_client_gone", "cancel") not in ENDINGS_OF_THE_GONE:
        raise BadRequest(f"when a client is gone a call is to {' or '.join(ENDINGS_OF_THE_GONE)}")

    def change() -> Model:
        model = catalog.find_model(name)
        if model is None:
            raise NotFound(f"there is no model {name!r}; `gateway model list` shows them")
        return catalog.set_model(model.id, **wishes)

    return database.write(change)


def delete_model(database: Database, name: str) -> Model:
    """Raises NotFound, and Conflict while it has deployments."""

    def delete() -> Model:
        model = catalog.find_model(name)
        if model is None:
            raise NotFound(f"there is no model {name!r}; `gateway model list` shows them")
        left = [row.name for row in catalog.list_deployments() if row.model_id == model.id]
        if left:
            raise Conflict(f"the model {name} has deployments ({', '.join(left)}); delete those first")
        catalog.delete_model(model.id)
        return model

    return database.write(delete)


def create_deployment(database: Database, name: str, model: str, backend: str, at: int, wishes: Wishes, vault: Vault | None = None) -> PlacedDeployment:
    """The model is created with it where it does not exist. Raises BadRequest, NotFound for the credential, Conflict."""
    check_name("deployment", name)
    check_model_name(model)
    needs_secret = find_backend(backend).needs_secret
    fields: DeploymentFields = {**_checked(wishes), "options": build_options(backend, wishes.options, {})}
    proxy = _checked_proxy(wishes)

    def create() -> PlacedDeployment:
        if catalog.find_deployment(name) is not None:
            raise Conflict(f"there is a deployment {name} already; `gateway deployment set` changes it")
        known = catalog.find_model(model)
        served = known or catalog.create_model(model, at)
        row = catalog.create_deployment(name, served.id, backend, at, **_with_credential(fields, wishes))
        if proxy is not None:
            row = catalog.set_deployment(row.id, **_proxy_fields(row.id, proxy, vault))
        notes = () if known else (f"the model {model} did not exist and was created",)
        return PlacedDeployment(row, model, wishes.credential or None, (*notes, *_missing_secret(row, needs_secret)), wishes.pool or None)

    return database.write(create)


def set_deployment(database: Database, name: str, wishes: Wishes, vault: Vault | None = None) -> PlacedDeployment:
    """Change what is named, and nothing else. Raises BadRequest, NotFound for the deployment or the credential."""
    fields = _checked(wishes)
    if wishes.options:
        before = database.read(lambda: _required(name))
        fields["options"] = build_options(before.backend, wishes.options, before.options)
    proxy = _checked_proxy(wishes)
    if not fields and (wishes.credential, wishes.pool, wishes.proxy) == (None, None, None):
        raise BadRequest("nothing to change was named")

    def change() -> PlacedDeployment:
        row = _required(name)
        through: DeploymentFields = {} if wishes.proxy is None else _proxy_fields(row.id, proxy, vault)
        catalog.set_deployment(row.id, **_with_credential({**fields, **through}, wishes))
        return _placed(catalog.load(), name)

    return database.write(change)


def list_deployments(database: Database) -> list[PlacedDeployment]:
    """By model, then in the order in which they are tried."""
    rows = database.read(catalog.load)
    placed = [_placed(rows, row.name) for row in rows.deployments]
    return sorted(placed, key=lambda item: (item.model, item.deployment.priority, -item.deployment.weight, item.deployment.name))


def delete_deployment(database: Database, name: str) -> PlacedDeployment:
    """Calls under way finish; its model stays. Raises NotFound."""

    def delete() -> PlacedDeployment:
        row = _required(name)
        placed = _placed(catalog.load(), name)
        catalog.delete_deployment(row.id)
        return placed

    return database.write(delete)


def _required(name: str) -> Deployment:
    row = catalog.find_deployment(name)
    if row is None:
        raise NotFound(f"there is no deployment {name!r}; `gateway deployment list` shows them")
    return row


def _placed(rows: CatalogRows, name: str) -> PlacedDeployment:
    row = next(row for row in rows.deployments if row.name == name)
    model = next(model.name for model in rows.models if model.id == row.model_id)
    credential = next((item.label for item in rows.credentials if item.id == row.credential_id), None)
    return PlacedDeployment(row, model, credential, pool=next((item.name for item in rows.pools if item.id == row.pool_id), None))


def _missing_secret(row: Deployment, needs_secret: bool) -> Sequence[str]:
    if not needs_secret or row.credential_id is not None or row.pool_id is not None:
        return ()
    return (f"the backend {row.backend} needs a credential: `gateway credential create LABEL`, then `gateway deployment set {row.name} --credential LABEL`",)


def _with_credential(fields: DeploymentFields, wishes: Wishes) -> DeploymentFields:
    """A credential takes a pool's place, and a pool a credential's. For use inside a database work. Raises BadRequest, NotFound."""
    if wishes.credential and wishes.pool:
        raise BadRequest("a deployment presents one credential, or any of a pool: name one of the two")
    if wishes.credential:
        return {**fields, "credential_id": required_credential(wishes.credential).id, "pool_id": None}
    if wishes.pool:
        return {**fields, "credential_id": None, "pool_id": required_pool(wishes.pool).id}
    emptied: DeploymentFields = {}
    if wishes.credential is not None:
        emptied["credential_id"] = None
    if wishes.pool is not None:
        emptied["pool_id"] = None
    return {**fields, **emptied}


def _checked_proxy(wishes: Wishes) -> Proxy | None:
    """Raises BadRequest, which does not repeat it."""
    return Proxy.parse(wishes.proxy.reveal().strip()) if wishes.proxy else None


def _proxy_fields(deployment_id: int, proxy: Proxy | None, vault: Vault | None) -> DeploymentFields:
    if proxy is None:
        return {"proxy": None, "proxy_sealed": None}
    if vault is None:
        raise TypeError("a proxy is kept sealed: that takes the vault")
    return {"proxy": str(proxy), "proxy_sealed": vault.seal(proxy.url, catalog.proxy_place(deployment_id))}


def _checked(wishes: Wishes) -> DeploymentFields:
    """The store's fields for what was named, but for the options, the credential and the proxy. Raises BadRequest."""
    fields: DeploymentFields = {}
    if wishes.base_url is not None:
        fields["base_url"] = checked_base_url(wishes.base_url) if wishes.base_url else ""
    if wishes.upstream_model is not None:
        if wishes.upstream_model:
            check_model_name(wishes.upstream_model)
        fields["upstream_model"] = wishes.upstream_model or None
    for number in _NUMBERS:
        value = getattr(wishes, number)
        if value is not None and not 0 <= value <= MAX_NUMBER:
            raise BadRequest(f"the {number} must be from 0 to {MAX_NUMBER}")
    for name in (*_NUMBERS, *_SWITCHES):
        if getattr(wishes, name) is not None:
            fields[name] = getattr(wishes, name)
    for deadline in _DEADLINES:
        if getattr(wishes, deadline) is not None:
            fields[deadline] = _deadline(deadline, getattr(wishes, deadline))
    return fields


def _deadline(name: str, value: float) -> float | None:
    if value == 0:
        return None
    if not 0.01 <= value <= MAX_DEADLINE_S:
        raise BadRequest(f"{name} must be from 0.01 to {MAX_DEADLINE_S:.0f} seconds, or 0 for the setting's default")
    return value


def checked_base_url(text: str) -> str:
    """The URL without a slash at its end. Raises BadRequest, which does not repeat it: it may hold a password."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise BadRequest("the base URL is malformed") from None
    if parts.scheme not in ("http", "https") or not host or not text.isascii() or not text.isprintable() or " " in text:
        raise BadRequest("the base URL must begin with http:// or https:// and name a host")
    if "@" in parts.netloc:
        raise BadRequest("the base URL must not hold a user name or a password: put the secret into a credential")
    if "?" in text or "#" in text:
        raise BadRequest("the base URL must not have a query or a fragment")
    return text.rstrip("/")
