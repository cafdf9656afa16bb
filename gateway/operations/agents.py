"""Agents: the tokens that let them in, and what becomes served where one connects. A token leaves here once, in an Enrolled; the database holds its hash."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.backend import Secret
from gateway.core.globs import is_glob, is_model, matches, matches_any
from gateway.errors import BadRequest, NotFound
from gateway.operations.keys import check_expiry
from gateway.operations.names import check_model_name, check_name
from gateway.secrets import KeyHasher, key_prefix, key_suffix, mint_key
from gateway.state.agents import Holder
from gateway.store import agents, catalog, pools
from gateway.store.agents import Agent, Enrolment
from gateway.store.catalog import CatalogRows, Deployment
from gateway.store.database import Conflict, Database
from gateway.store.pools import Credential, Pool

log = logging.getLogger(__name__)
KIND, BACKEND, POOL = "agent", "agent", "agents"
OPEN = "api-server"
"""Of the enrolment of agents that have no token, its pool, its one model and its deployment. It stands in the place of a token's hash, shorter than any."""
NAME_CHARACTERS = 48
"""The most of an enrolment's name: agents' labels begin with it."""
GLOBS = 100
"""The most names and globs that a token may be scoped to."""
MODELS = 500
"""The most that agents may make in a pool by announcing them."""
AGENTS = 100_000


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A new token, which is kept nowhere. `notes`: one line each on what the operator should know."""

    enrolment: Enrolment
    token: Secret
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ListedAgent:
    """`holder`: its connection, now or a moment ago; None where there is none, or where nobody can tell."""

    agent: Agent
    credential: Credential
    holder: Holder | None


@dataclass(frozen=True, slots=True)
class ListedEnrolment:
    enrolment: Enrolment
    agents: tuple[ListedAgent, ...]


def enrol(
    database: Database,
    hasher: KeyHasher,
    name: str,
    models: Sequence[str],
    at: int,
    *,
    pool: str = POOL,
    expires_at: int | None = None,
    max_agents: int | None = None,
) -> Enrolled:
    """A token for agents that may serve these models: names, each of which is served from now on, or globs. The pool is created where it does not exist.

    Raises BadRequest, and Conflict for a name that is taken or a pool behind which something else stands.
    """
    models = _checked(name, models)
    check_name("pool", pool)
    check_expiry(expires_at, at)
    if max_agents is not None and not 1 <= max_agents <= AGENTS:
        raise BadRequest(f"the agents under one token: write a number from 1 to {AGENTS}")
    token = mint_key(KIND)

    def create() -> Enrolled:
        if agents.find_enrolment_by_name(name) is not None:
            raise Conflict(f"there is an enrolment {name} already; `gateway agent rotate {name}` gives it another token")
        place, before = _place(pool, None, "soft"), catalog.load()
        made = agents.create_enrolment(name, hasher.hash(token), place.id, models, at, shown=_shown(token), expires_at=expires_at, max_agents=max_agents)
        exact = [model for model in models if not is_glob(model)]
        own = {row.model_id for row in before.deployments if row.pool_id == place.id}
        served = {model.name for model in before.models if model.id in own}
        _serve([model for model in exact if model not in served], place, at)
        return Enrolled(made, Secret(token), tuple(_shared(before, place, exact)))

    return database.write(create)


def ensure_open_enrolment(database: Database, at: int) -> Enrolment:
    """That of agents without a token, in any state; made when it is first asked for, with its pool and its deployment. Raises StoreUnavailable."""
    found = database.read(lambda: agents.find_enrolment(OPEN))
    if found is not None:
        return found

    def create() -> Enrolment:
        place = _place(OPEN, "longest_unused", "hard")
        model = catalog.find_model(OPEN)
        if model is None or all(row.model_id != model.id for row in catalog.list_deployments()):
            _serve([OPEN], place, at)
        return agents.create_enrolment(OPEN, OPEN, place.id, (OPEN,), at, shown=("", ""))

    try:
        return database.write(create)
    except Conflict:  # another worker, at this very moment
        found = database.read(lambda: agents.find_enrolment(OPEN))
        if found is None:
            raise
        return found


def ensure_deployments(database: Database, enrolment: Enrolment, models: Iterable[str], at: int, passed: Sequence[str] = ()) -> tuple[str, ...]:
    """See to it that what an agent announces is served from its pool, as far as its token covers it; which of them are.

    A name that somebody else serves is left out, and logged: no agent captures it. Behind a glob everything is somebody else's, but
    for what the token names, or covers by a narrower glob. `passed`: globs that are served besides the catalog's. Raises StoreUnavailable.
    """
    names = [name for name in dict.fromkeys(models) if is_model(name) and not is_glob(name) and matches_any(name, enrolment.models)]
    sorted_out = database.read(lambda: _sorted_out(enrolment, names, passed))
    if sorted_out.new:
        try:
            sorted_out = database.write(lambda: _made(enrolment, names, passed, at))
        except Conflict:  # another worker made one at this very moment
            sorted_out = database.read(lambda: _sorted_out(enrolment, names, passed))
    if sorted_out.refused:
        some = ", ".join(sorted_out.refused[:5])
        log.warning("agents of %s do not serve %s: others do, or there are %d models of theirs already", enrolment.name, some, MODELS)
    return sorted_out.served


def list_agents(database: Database, holders: Mapping[str, Holder] | None = None) -> list[ListedEnrolment]:
    """All of them. `holders`: who is connected, by credentials' places."""
    rows, connected = database.read(catalog.load), holders or {}
    credentials = {item.id: item for item in rows.credentials}
    listed = {enrolment.id: list[ListedAgent]() for enrolment in rows.enrolments}
    for agent in rows.agents:
        credential = credentials[agent.credential]
        listed[agent.enrolment].append(ListedAgent(agent, credential, connected.get(credential.place)))
    return [ListedEnrolment(enrolment, tuple(listed[enrolment.id])) for enrolment in rows.enrolments]


def revoke(database: Database, name: str, at: int) -> Enrolment:
    """Its agents are cut off within a second, and none comes in: with OPEN none that has no token, also where none came yet. Raises NotFound."""
    if name == OPEN:
        ensure_open_enrolment(database, at)
    return database.write(lambda: agents.revoke_enrolment(_required(name).id, at))


def rotate(database: Database, hasher: KeyHasher, name: str, at: int) -> Enrolled:
    """Another token for the same agents; the one before lets nobody in from now on. Raises NotFound, BadRequest."""
    token = mint_key(KIND)

    def exchange() -> Enrolment:
        found = _required(name)
        if found.name == OPEN:
            raise BadRequest(f"the agents of {OPEN} have no token")
        if found.state(at) != "active":
            raise BadRequest(f"the enrolment {name} is {found.state(at)}; delete it, and enrol anew")
        return agents.replace_token(found.id, hasher.hash(token), _shown(token))

    return Enrolled(database.write(exchange), Secret(token))


def delete(database: Database, name: str) -> ListedEnrolment:
    """With its agents. A pool that is left empty, and that no other token is for, goes too, with its agents' deployments.

    Raises NotFound, and Conflict while one of its agents is the only credential of a deployment.
    """

    def delete() -> ListedEnrolment:
        found, rows = _required(name), catalog.load()
        own = {agent.credential: agent for agent in rows.agents if agent.enrolment == found.id}
        users = [row.name for row in rows.deployments if row.credential_id in own]
        if users:
            raise Conflict(f"agents of {name} are used by {', '.join(users)}; delete those first, or give them another credential")
        agents.delete_enrolment(found.id)
        _tidy(found)
        return ListedEnrolment(found, tuple(ListedAgent(own[item.id], item, None) for item in rows.credentials if item.id in own))

    return database.write(delete)


@dataclass(frozen=True, slots=True)
class _SortedOut:
    """Names that agents announce: those that are served from their pool, those that may be, those that may not."""

    served: tuple[str, ...]
    new: tuple[str, ...]
    refused: tuple[str, ...]


def _sorted_out(enrolment: Enrolment, names: Sequence[str], passed: Sequence[str]) -> _SortedOut:
    rows = catalog.load()
    own = {row.model_id for row in rows.deployments if _is_own(row, enrolment.pool_id)}
    others = {row.model_id for row in rows.deployments if not _is_own(row, enrolment.pool_id)}
    served = {model.name for model in rows.models if model.id in own}
    theirs = {model.name for model in rows.models if model.id in others}
    globs = [*(name for name in theirs if is_glob(name)), *passed]
    free = [name for name in names if name not in served and name not in theirs and _may_be_made(enrolment, name, globs)]
    new = free[: max(0, MODELS - len(own))]
    return _SortedOut(tuple(name for name in names if name in served), tuple(new), tuple(name for name in names if name not in served and name not in new))


def _is_own(row: Deployment, pool_id: int) -> bool:
    return row.pool_id == pool_id and row.backend == BACKEND


def _may_be_made(enrolment: Enrolment, name: str, globs: Collection[str]) -> bool:
    scopes = [scope for scope in enrolment.models if matches(name, scope)]
    behind = [glob for glob in globs if matches(name, glob)]
    return all(any(scope != glob and matches(scope, glob) for scope in scopes) for glob in behind)


def _made(enrolment: Enrolment, names: Sequence[str], passed: Sequence[str], at: int) -> _SortedOut:
    found = _sorted_out(enrolment, names, passed)
    _serve(found.new, Pool(enrolment.pool_id, enrolment.pool_name), at)
    return _SortedOut(tuple(name for name in names if name in found.served or name in found.new), (), found.refused)


def _serve(models: Iterable[str], pool: Pool, at: int) -> None:
    for name in models:
        model = catalog.find_model(name) or catalog.create_model(name, at)
        catalog.create_deployment(_free_name(pool.name, name), model.id, BACKEND, at, pool_id=pool.id)


def _free_name(pool: str, model: str) -> str:
    """Of a deployment. A model's name may have characters that a deployment's may not."""
    plain = f"{pool}-{model}" if model != pool else pool
    name = re.sub(r"[^A-Za-z0-9._-]", "-", plain)
    if name == plain and len(name) <= 64 and catalog.find_deployment(name) is None:
        return name
    return f"{name[:55]}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def _shared(before: CatalogRows, pool: Pool, models: Sequence[str]) -> Iterable[str]:
    for name in models:
        known = next((model for model in before.models if model.name == name), None)
        others = [row.name for row in before.deployments if known is not None and row.model_id == known.id and row.pool_id != pool.id]
        if others:
            yield f"{name} is served by {', '.join(others)} too: calls are shared; `gateway deployment set --priority` says who goes first"


def _place(name: str, policy: str | None, affinity: str) -> Pool:
    """The pool; a new one has this policy and affinity. Raises Conflict where agents cannot stand behind it."""
    found = pools.find_pool(name)
    if found is None:
        return pools.set_pool(pools.create_pool(name).id, policy, affinity)
    others = [row.name for row in catalog.list_deployments() if row.pool_id == found.id and row.backend != BACKEND]
    if others:
        raise Conflict(f"the pool {name} is behind {', '.join(others[:5])}, to which agents are of no use; name another pool")
    return found


def _tidy(gone: Enrolment) -> None:
    """Where nobody is left who could serve a deployment of the pool."""
    members = [item.pool_id for item in pools.list_credentials()]
    if gone.pool_id in members or gone.pool_id in [item.pool_id for item in agents.list_enrolments()]:
        return
    left = [row for row in catalog.list_deployments() if row.pool_id == gone.pool_id]
    for row in left:
        if row.backend == BACKEND:
            catalog.delete_deployment(row.id)
    if all(row.backend == BACKEND for row in left):
        pools.delete_pool(gone.pool_id)


def _checked(name: str, models: Sequence[str]) -> tuple[str, ...]:
    """The models, each once. Raises BadRequest."""
    check_name("enrolment", name)
    if len(name) > NAME_CHARACTERS:
        raise BadRequest(f"an enrolment's name has at most {NAME_CHARACTERS} characters")
    if name == OPEN:
        raise BadRequest(f"{OPEN!r} is the name of the agents without a token; choose another")
    if not 1 <= len(models) <= GLOBS:
        raise BadRequest(f"name 1 to {GLOBS} models that its agents may serve")
    for model in models:
        check_model_name(model)
    return tuple(dict.fromkeys(models))


def _shown(token: str) -> tuple[str, str]:
    return key_prefix(token), key_suffix(token)


def _required(name: str) -> Enrolment:
    found = agents.find_enrolment_by_name(name)
    if found is None:
        raise NotFound(f"there is no enrolment {name!r}; `gateway agent list` shows them")
    return found
