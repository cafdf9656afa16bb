"""Models, deployments and prices, and `load`: all that a worker's snapshot is built from. To be called inside a work of `Database`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

from gateway.dialects.events import BUCKETS
from gateway.errors import NotFound
from gateway.store.agents import Agent, Enrolment, list_agents, list_enrolments
from gateway.store.generation import generation, raise_generation
from gateway.store.models import DeploymentRow, ModelRow, PriceRow
from gateway.store.pools import Credential, Pool, list_credentials, list_pools

__all__ = [
    "CatalogRows",
    "Deployment",
    "DeploymentFields",
    "Model",
    "ModelFields",
    "Price",
    "Tier",
    "add_price",
    "create_deployment",
    "create_model",
    "delete_deployment",
    "delete_model",
    "delete_price",
    "find_deployment",
    "find_model",
    "generation",
    "list_deployments",
    "list_models",
    "list_prices",
    "load",
    "proxy_place",
    "set_deployment",
    "set_model",
]


@dataclass(frozen=True, slots=True)
class Model:
    """A public name, or a glob of names. `on_client_gone`: "cancel" or "drain"; what the rest means stands in the row's docstring."""

    id: int
    name: str
    on_client_gone: str
    created_at: int
    max_output: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    queue_size: int | None = None
    queue_s: float | None = None


class ModelFields(TypedDict, total=False):
    """What can be set of a model."""

    on_client_gone: str
    max_output: int | None
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    queue_size: int | None
    queue_s: float | None


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where a model is served, with one credential, or any of a pool. The lower `priority` is tried first; seconds that are None are the settings' default.

    `proxy`: its URL without the password; `proxy_sealed`: the whole, sealed at `proxy_place`.
    """

    id: int
    name: str
    model_id: int
    backend: str
    base_url: str
    upstream_model: str | None
    credential_id: int | None
    priority: int
    weight: int
    connect_s: float | None
    first_byte_s: float | None
    idle_s: float | None
    total_s: float | None
    include_usage: bool
    options: Mapping[str, Any]
    enabled: bool
    created_at: int
    proxy: str | None = None
    proxy_sealed: bytes | None = field(default=None, repr=False)
    pool_id: int | None = None


class DeploymentFields(TypedDict, total=False):
    """What can be set of a deployment, at its creation and later."""

    base_url: str
    upstream_model: str | None
    credential_id: int | None
    pool_id: int | None
    priority: int
    weight: int
    connect_s: float | None
    first_byte_s: float | None
    idle_s: float | None
    total_s: float | None
    include_usage: bool
    options: Mapping[str, Any]
    enabled: bool
    proxy: str | None
    proxy_sealed: bytes | None


@dataclass(frozen=True, slots=True)
class Tier:
    """The rates of a whole call whose input is more than `above` tokens. `variants`: as a Price's."""

    above: int
    rates: Mapping[str, int]
    variants: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Price:
    """What an upstream's model (a name or a glob) costs from `valid_from` on: pico-USD per token of a bucket, nano-USD per call.

    `tiers`: by `above`, rising. `variants`: the rates of a service tier ("batch", "flex", "priority") in place of the plain ones.
    """

    id: int
    model: str
    valid_from: int
    rates: Mapping[str, int]
    per_call_nano: int
    source: str
    created_at: int
    tiers: tuple[Tier, ...] = ()
    variants: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CatalogRows:
    """One state of the configuration. `agents`: what the credentials among the `credentials` announced that are agents."""

    generation: int
    models: tuple[Model, ...]
    deployments: tuple[Deployment, ...]
    credentials: tuple[Credential, ...]
    prices: tuple[Price, ...]
    pools: tuple[Pool, ...] = ()
    enrolments: tuple[Enrolment, ...] = ()
    agents: tuple[Agent, ...] = ()


def proxy_place(deployment_id: int) -> str:
    """The place that a sealed proxy is bound to: it opens nowhere else."""
    return f"deployment:{deployment_id}:proxy_sealed"


def load() -> CatalogRows:
    """In one `Database.read`, and so of one moment."""
    rows = (tuple(list_models()), tuple(list_deployments()), tuple(list_credentials()), tuple(list_prices()), tuple(list_pools()))
    return CatalogRows(generation(), *rows, enrolments=tuple(list_enrolments()), agents=tuple(list_agents()))


def create_model(name: str, at: int, *, on_client_gone: str = "cancel") -> Model:
    """Raises Conflict for a name that is taken."""
    row = ModelRow.create(name=name, on_client_gone=on_client_gone, created_at=at)
    raise_generation()
    return _model(row)


def list_models() -> list[Model]:
    return [_model(row) for row in ModelRow.select().order_by(ModelRow.id)]


def find_model(name: str) -> Model | None:
    row = ModelRow.get_or_none(ModelRow.name == name)
    return None if row is None else _model(row)


def set_model(model_id: int, **changed: Unpack[ModelFields]) -> Model:
    """Raises NotFound."""
    unknown = set(changed) - set(ModelFields.__annotations__)
    if unknown or not changed:
        raise TypeError(f"not a model's field: {', '.join(sorted(unknown)) or 'none named'}")
    _apply(ModelRow.update(**changed).where(ModelRow.id == model_id).execute(), "model", model_id)
    return _model(ModelRow.get_by_id(model_id))


def delete_model(model_id: int) -> None:
    """Raises NotFound, or Conflict while it has deployments."""
    _apply(ModelRow.delete().where(ModelRow.id == model_id).execute(), "model", model_id)


def create_deployment(name: str, model_id: int, backend: str, at: int, **given: Unpack[DeploymentFields]) -> Deployment:
    """Raises Conflict for a name that is taken, or a model or credential that does not exist."""
    values = {"base_url": "", "priority": 0, "weight": 1, "include_usage": True, "options": {}, "enabled": True, **_columns(given)}
    row = DeploymentRow.create(name=name, model=model_id, backend=backend, created_at=at, **values)
    raise_generation()
    return _deployment(row)


def list_deployments() -> list[Deployment]:
    return [_deployment(row) for row in DeploymentRow.select().order_by(DeploymentRow.id)]


def find_deployment(name: str) -> Deployment | None:
    row = DeploymentRow.get_or_none(DeploymentRow.name == name)
    return None if row is None else _deployment(row)


def set_deployment(deployment_id: int, **changed: Unpack[DeploymentFields]) -> Deployment:
    """Raises NotFound, or Conflict for a credential that does not exist."""
    if changed:
        query = DeploymentRow.update(**_columns(changed)).where(DeploymentRow.id == deployment_id)
        _apply(query.execute(), "deployment", deployment_id)
    row = DeploymentRow.get_or_none(DeploymentRow.id == deployment_id)
    if row is None:
        raise NotFound(f"There is no deployment {deployment_id}.")
    return _deployment(row)


def delete_deployment(deployment_id: int) -> None:
    """Raises NotFound."""
    _apply(DeploymentRow.delete().where(DeploymentRow.id == deployment_id).execute(), "deployment", deployment_id)


def add_price(
    model: str,
    valid_from: int,
    rates: Mapping[str, int],
    at: int,
    *,
    per_call_nano: int = 0,
    source: str = "",
    tiers: Sequence[Tier] = (),
    variants: Mapping[str, Mapping[str, int]] | None = None,
) -> Price:
    """Raises Conflict if the model has a price from that moment, ValueError for rates that are not whole and positive, or of no bucket."""
    stepped = [each for tier in tiers for each in (tier.rates, *tier.variants.values())]
    for each in (rates, *stepped, *(variants or {}).values()):
        if not set(each) <= set(BUCKETS) or any(type(amount) is not int or amount < 0 for amount in (*each.values(), per_call_nano)):
            raise ValueError(f"a price is a whole number of 0 or more for each of: {', '.join(BUCKETS)}")
    rising = [_tier_document(tier) for tier in sorted(tiers, key=lambda tier: tier.above)]
    more = {"tiers": rising or None, "variants": _plain(variants) if variants else None}
    row = PriceRow.create(model=model, valid_from=valid_from, rates=dict(rates), per_call_nano=per_call_nano, source=source, created_at=at, **more)
    raise_generation()
    return _price(row)


def list_prices() -> list[Price]:
    return [_price(row) for row in PriceRow.select().order_by(PriceRow.model, PriceRow.valid_from)]


def delete_price(price_id: int) -> None:
    """Raises NotFound."""
    _apply(PriceRow.delete().where(PriceRow.id == price_id).execute(), "price", price_id)


def _plain(variants: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {name: dict(each) for name, each in variants.items()}


def _tier_document(tier: Tier) -> dict[str, Any]:
    more = {"variants": _plain(tier.variants)} if tier.variants else {}
    return {"above": tier.above, "rates": dict(tier.rates), **more}


def _apply(changed: int, kind: str, row_id: int) -> None:
    if not changed:
        raise NotFound(f"There is no {kind} {row_id}.")
    raise_generation()


def _columns(given: DeploymentFields) -> dict[str, Any]:
    """Field names of the row. Raises TypeError for a name that cannot be set."""
    unknown = set(given) - set(DeploymentFields.__annotations__)
    if unknown:
        raise TypeError(f"not a deployment's field: {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {**given}
    for name in ("credential", "pool"):
        if f"{name}_id" in values:
            values[name] = values.pop(f"{name}_id")
    return values


def _model(row: ModelRow) -> Model:
    limits = (row.max_output, row.rpm, row.tpm, row.concurrency, row.queue_size, row.queue_s)
    return Model(row.id, row.name, row.on_client_gone, row.created_at, *limits)


def _deployment(row: DeploymentRow) -> Deployment:
    return Deployment(
        id=row.id,
        name=row.name,
        model_id=row.__data__["model"],
        backend=row.backend,
        base_url=row.base_url,
        upstream_model=row.upstream_model,
        credential_id=row.__data__.get("credential"),
        priority=row.priority,
        weight=row.weight,
        connect_s=row.connect_s,
        first_byte_s=row.first_byte_s,
        idle_s=row.idle_s,
        total_s=row.total_s,
        include_usage=row.include_usage,
        options=dict(row.options),
        enabled=row.enabled,
        created_at=row.created_at,
        proxy=row.proxy,
        proxy_sealed=None if row.proxy_sealed is None else bytes(row.proxy_sealed),
        pool_id=row.__data__.get("pool"),
    )


def _price(row: PriceRow) -> Price:
    tiers = tuple(Tier(tier["above"], tier["rates"], tier.get("variants", {})) for tier in row.tiers or ())
    return Price(row.id, row.model, row.valid_from, row.rates, row.per_call_nano, row.source, row.created_at, tiers, row.variants or {})
