"""`gateway pool`: credentials that stand in for each other."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.condition_words import condition_document, state_words
from gateway.cli.credentials import limits_of, shown, state_of
from gateway.cli.opened import now_ms, opened
from gateway.cli.printing import emit, json_option, table
from gateway.operations import conditions, pools
from gateway.operations.pools import FilledPool
from gateway.store.pools import Pool


@click.group()
def pool() -> None:
    """Pools: credentials that stand in for each other behind a deployment."""


@pool.command("create")
@click.argument("name")
@json_option
def create_pool(name: str, as_json: bool) -> None:
    """Create an empty pool."""
    with opened() as here:
        created = pools.create_pool(here.database, name)
    emit(as_json, _document(created), lambda: [f"pool {name} created; next: gateway credential create LABEL --pool {name}"])


@pool.command("list")
@json_option
def list_pools(as_json: bool) -> None:
    """List the pools."""
    with opened() as here:
        found = pools.list_pools(here.database)
    rows = [(item.pool.name, len(item.credentials), _policy(item.pool), item.pool.affinity or "none", ", ".join(item.deployments) or "none") for item in found]
    empty = ["No pools yet. Create one with its first credential: gateway credential create LABEL --pool POOL"]
    headings = ("NAME", "CREDENTIALS", "POLICY", "AFFINITY", "DEPLOYMENTS")
    emit(as_json, [_filled(item) for item in found], lambda: table(headings, rows, right=("CREDENTIALS",)) if rows else empty)


@pool.command("set")
@click.argument("name")
@click.option("--policy", metavar="POLICY", help="How one of its credentials is chosen: `gateway plugins` lists them. '': the gateway's.")
@click.option("--affinity", type=click.Choice(pools.AFFINITIES), help="Whether a conversation keeps to one credential: as long as it is fit, or come what may.")
@json_option
def set_pool(name: str, policy: str | None, affinity: str | None, as_json: bool) -> None:
    """Change what is named of a pool, and nothing else."""
    with opened() as here:
        changed = pools.set_pool(here.database, name, policy, affinity)
    emit(as_json, _document(changed), lambda: [f"pool {name}: policy {_policy(changed)}, affinity {changed.affinity or 'none'}"])


@pool.command("delete")
@click.argument("name")
@json_option
def delete_pool(name: str, as_json: bool) -> None:
    """Delete a pool that nothing uses."""
    with opened() as here:
        deleted = pools.delete_pool(here.database, name)
    emit(as_json, {**_document(deleted), "deleted": True}, lambda: [f"pool {name} deleted"])


@pool.command("show")
@click.argument("name")
@json_option
def show_pool(name: str, as_json: bool) -> None:
    """Show a pool: each credential, its limits and its condition."""
    with opened() as here:
        found, now = pools.find_pool(here.database, name), now_ms()
        in_force = conditions.conditions_in_force(here.database, now)
    resting = {item.label: conditions.of_credential(in_force, item) for item in found.credentials}
    rows = [(item.label, shown(item), item.weight, limits_of(item), state_words(resting[item.label], state_of(item, now))) for item in found.credentials]
    head = f"pool {name}: policy {_policy(found.pool)}, affinity {found.pool.affinity or 'none'}, behind {', '.join(found.deployments) or 'no deployment'}"
    empty = [f"It is empty. Fill it: gateway credential create LABEL --pool {name}"]
    headings = ("LABEL", "SECRET", "WEIGHT", "LIMITS", "STATE")
    document = {**_filled(found), "conditions": {label: [condition_document(row) for row in rows] for label, rows in resting.items()}}
    emit(as_json, document, lambda: [head, *(table(headings, rows, right=("WEIGHT",)) if rows else empty)])


def _policy(item: Pool) -> str:
    return item.policy or "the gateway's"


def _document(item: Pool) -> dict[str, Any]:
    return {"id": item.id, "name": item.name, "policy": item.policy, "affinity": item.affinity}


def _filled(item: FilledPool) -> dict[str, Any]:
    return {**_document(item.pool), "credentials": [each.label for each in item.credentials], "deployments": list(item.deployments)}
