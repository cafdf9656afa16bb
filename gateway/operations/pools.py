"""Pools: which credentials stand in for each other, and by what policy one of them is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from gateway import plugins
from gateway.errors import BadRequest, NotFound, PluginError
from gateway.operations.names import check_name
from gateway.store import catalog, pools
from gateway.store.database import Conflict, Database
from gateway.store.pools import Credential, Pool

AFFINITIES = ("none", "soft", "hard")


@dataclass(frozen=True, slots=True)
class FilledPool:
    """A pool, its credentials, and the names of the deployments that any of them may answer for."""

    pool: Pool
    credentials: tuple[Credential, ...]
    deployments: tuple[str, ...]


def create_pool(database: Database, name: str) -> Pool:
    """Raises BadRequest, Conflict."""
    check_name("pool", name)

    def create() -> Pool:
        if pools.find_pool(name) is not None:
            raise Conflict(f"there is a pool {name} already")
        return pools.create_pool(name)

    return database.write(create)


def list_pools(database: Database) -> list[FilledPool]:
    rows = database.read(catalog.load)
    return [
        FilledPool(
            pool,
            tuple(item for item in rows.credentials if item.pool_id == pool.id),
            tuple(row.name for row in rows.deployments if row.pool_id == pool.id),
        )
        for pool in rows.pools
    ]


def find_pool(database: Database, name: str) -> FilledPool:
    """Raises NotFound."""
    found = next((item for item in list_pools(database) if item.pool.name == name), None)
    if found is None:
        raise NotFound(_unknown(name))
    return found


def set_pool(database: Database, name: str, policy: str | None = None, affinity: str | None = None) -> Pool:
    """Change what is named; "" is the gateway's policy. Raises BadRequest, NotFound."""
    if policy is None and affinity is None:
        raise BadRequest("nothing to change was named")
    if affinity is not None and affinity not in AFFINITIES:
        raise BadRequest(f"the affinity is one of {', '.join(AFFINITIES)}")
    if policy:
        try:
            plugins.resolve(plugins.POLICIES, policy)
        except PluginError as error:
            raise BadRequest(str(error)) from error

    def change() -> Pool:
        pool = required_pool(name)
        bound = pool.affinity if affinity is None else None if affinity == "none" else affinity
        return pools.set_pool(pool.id, pool.policy if policy is None else policy or None, bound)

    return database.write(change)


def delete_pool(database: Database, name: str) -> Pool:
    """Raises NotFound, and Conflict while it has credentials, deployments or enrolments."""

    def delete() -> Pool:
        pool, rows = required_pool(name), catalog.load()
        inside = [item.label for item in rows.credentials if item.pool_id == pool.id]
        inside += [row.name for row in rows.deployments if row.pool_id == pool.id] + [row.name for row in rows.enrolments if row.pool_id == pool.id]
        if inside:
            raise Conflict(f"the pool {name} is used by {', '.join(inside[:10])}; move or delete those first")
        pools.delete_pool(pool.id)
        return pool

    return database.write(delete)


def required_pool(name: str) -> Pool:
    """For use inside a database work. Raises NotFound."""
    pool = pools.find_pool(name)
    if pool is None:
        raise NotFound(_unknown(name))
    return pool


def _unknown(name: str) -> str:
    return f"there is no pool {name!r}; `gateway pool list` shows them"
