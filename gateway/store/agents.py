"""Agents, which connect in, and the enrolments whose tokens let them in. An agent is a credential. To be called inside a work of `Database`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peewee import JOIN, Expression, chunked

from gateway.errors import BadRequest, NotFound
from gateway.store.generation import raise_generation
from gateway.store.models import CredentialRow, DeploymentRow, PoolRow, database
from gateway.store.models_agents import AgentRow, EnrolmentRow
from gateway.store.pools import CHUNK, Credential, CredentialFields, NewCredential, create_credentials, delete_credentials, find_credential_by_id
from gateway.store.statements import locked

MOST_AGENTS = 1000
"""Under one token, where its enrolment does not say."""
SEEN_EVERY_MS = 60_000
UNSEEN_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A token without its hash, in any state. `models`: names and globs that its agents may serve; they stand in the pool. Times are Unix milliseconds."""

    id: int
    name: str
    prefix: str
    suffix: str
    models: tuple[str, ...]
    pool_id: int
    pool_name: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    max_agents: int | None = None

    def state(self, at: int) -> str:
        """ "active", "revoked" or "expired"."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= at else "active"


@dataclass(frozen=True, slots=True)
class Announced:
    """What an agent says of itself. `name`: "" for the one agent of a token; `models`: those that its token covers."""

    name: str
    models: tuple[str, ...]
    protocol: int
    software: str
    concurrency: int


@dataclass(frozen=True, slots=True)
class Agent:
    """A credential that is an agent. `enrolment`: the id of the token's row; `announced`: what it said last; `seen_at` is a minute late at most."""

    credential: int
    enrolment: int
    announced: Announced
    seen_at: int


def create_enrolment(
    name: str, hash: str, pool_id: int, models: Sequence[str], at: int, *, shown: tuple[str, str], expires_at: int | None = None, max_agents: int | None = None
) -> Enrolment:
    """`shown`: the first and the last characters of the token. Raises Conflict for a name that is taken."""
    plain = {"prefix": shown[0], "suffix": shown[1], "created_at": at, "expires_at": expires_at, "revoked_at": None, "max_agents": max_agents}
    row = EnrolmentRow.create(name=name, hash=hash, pool=pool_id, models=list(models), **plain)
    raise_generation()
    return _existing(row.id)


def find_enrolment(hash: str) -> Enrolment | None:
    """The one whose token has this hash, whatever its state."""
    return _first(EnrolmentRow.hash == hash)


def find_enrolment_by_name(name: str) -> Enrolment | None:
    return _first(EnrolmentRow.name == name)


def find_enrolment_by_id(enrolment_id: int) -> Enrolment | None:
    return _first(EnrolmentRow.id == enrolment_id)


def list_enrolments() -> list[Enrolment]:
    return _enrolments(None)


def revoke_enrolment(enrolment_id: int, at: int) -> Enrolment:
    """One that is revoked already keeps its time. Raises NotFound."""
    found = _existing(enrolment_id)
    if found.revoked_at is None:
        EnrolmentRow.update(revoked_at=at).where(EnrolmentRow.id == enrolment_id).execute()
        raise_generation()
    return _existing(enrolment_id)


def replace_token(enrolment_id: int, hash: str, shown: tuple[str, str]) -> Enrolment:
    """Raises NotFound."""
    _existing(enrolment_id)
    EnrolmentRow.update(hash=hash, prefix=shown[0], suffix=shown[1]).where(EnrolmentRow.id == enrolment_id).execute()
    raise_generation()
    return _existing(enrolment_id)


def delete_enrolment(enrolment_id: int) -> list[int]:
    """With its agents, whose credentials' ids it returns. Its pool stays. Raises NotFound, or Conflict while a deployment presents one of them alone."""
    _existing(enrolment_id)
    gone = [row.credential for row in AgentRow.select(AgentRow.credential).where(AgentRow.enrolment == enrolment_id)]
    delete_credentials(gone)
    EnrolmentRow.delete().where(EnrolmentRow.id == enrolment_id).execute()
    raise_generation()
    return gone


def list_agents(enrolment_id: int | None = None) -> list[Agent]:
    """All of them, or those of one token."""
    query = AgentRow.select().order_by(AgentRow.credential)
    return [_agent(row) for row in (query if enrolment_id is None else query.where(AgentRow.enrolment == enrolment_id))]


def find_agent(enrolment_id: int, name: str) -> Agent | None:
    row = AgentRow.get_or_none((AgentRow.enrolment == enrolment_id) & (AgentRow.name == name))
    return None if row is None else _agent(row)


def ensure_agent(enrolment: Enrolment, announced: Announced, at: int, seal: Callable[[int], bytes]) -> Credential:
    """The agent's credential, made where it says hello for the first time; what it announces is noted.

    No snapshot needs to follow that. `seal(id)` gives a sealed empty secret.

    Raises BadRequest ("too_many_agents") for one too many, NotFound where the enrolment is gone.
    """
    known = find_agent(enrolment.id, announced.name)
    if known is None:
        if not locked(database, "SELECT id FROM enrolment WHERE id = ?", (enrolment.id,)):
            raise NotFound(f"There is no enrolment {enrolment.id}.")
        known = find_agent(enrolment.id, announced.name)  # another worker may have been first
    if known is None:
        return _made(enrolment, announced, at, seal)
    if known.announced != announced or at - known.seen_at >= SEEN_EVERY_MS:
        AgentRow.update(seen_at=at, **_columns(announced)).where(AgentRow.credential == known.credential).execute()
    return find_credential_by_id(known.credential)


def note_seen(credential_ids: Sequence[int], at: int) -> None:
    """These agents are connected. Called as often as one likes: a row is written once a minute at most."""
    for some in chunked(credential_ids, CHUNK):
        AgentRow.update(seen_at=at).where(AgentRow.credential.in_(list(some)) & (AgentRow.seen_at <= at - SEEN_EVERY_MS)).execute()


def forget_agents(before: int, limit: int) -> int:
    """Delete those that were seen last before, at most so many, with what was kept of them; how many. One that a deployment presents alone stays."""
    old = AgentRow.select(AgentRow.credential).join(DeploymentRow, JOIN.LEFT_OUTER, on=DeploymentRow.credential == AgentRow.credential)
    ids = [row.credential for row in old.where((AgentRow.seen_at < before) & DeploymentRow.id.is_null()).limit(limit)]
    if ids:
        delete_credentials(ids)
    return len(ids)


def _made(enrolment: Enrolment, announced: Announced, at: int, seal: Callable[[int], bytes]) -> Credential:
    most = MOST_AGENTS if enrolment.max_agents is None else enrolment.max_agents
    if AgentRow.select().where(AgentRow.enrolment == enrolment.id).count() >= most and not _made_room(enrolment.id, at):
        raise BadRequest(f"the token {enrolment.name} lets in {most} agents, and has as many", code="too_many_agents")
    fields: CredentialFields = {}
    new = NewCredential(_free_label(enrolment.name, announced.name), enrolment.pool_name, "", fields, lambda number: (seal(number), {}))
    (made,) = create_credentials([new], at)
    AgentRow.create(credential=made.id, enrolment=enrolment.id, seen_at=at, **_columns(announced))
    return made


def _made_room(enrolment_id: int, at: int) -> bool:
    """Whether one was forgotten that was not there for an hour: names that nobody comes back under must not keep others out."""
    old = AgentRow.select(AgentRow.credential).where((AgentRow.enrolment == enrolment_id) & (AgentRow.seen_at < at - UNSEEN_MS))
    gone = [row.credential for row in old.order_by(AgentRow.seen_at).limit(1)]
    used = DeploymentRow.select().where(DeploymentRow.credential.in_(gone)).exists() if gone else True
    if not used:
        delete_credentials(gone)
    return not used


def _free_label(enrolment: str, name: str) -> str:
    """Told by the token's name and what the agent calls itself, which may be any text."""
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()
    label = f"{enrolment}-{digest[:8]}" if name else enrolment
    taken = CredentialRow.select().where(CredentialRow.label == label).exists()
    return f"{enrolment[:30]}-{digest[:32]}" if taken else label


def _columns(announced: Announced) -> dict[str, Any]:
    return {
        "name": announced.name,
        "models": list(announced.models),
        "protocol": announced.protocol,
        "software": announced.software,
        "concurrency": announced.concurrency,
    }


def _existing(enrolment_id: int) -> Enrolment:
    found = _first(EnrolmentRow.id == enrolment_id)
    if found is None:
        raise NotFound(f"There is no enrolment {enrolment_id}.")
    return found


def _first(where: Expression) -> Enrolment | None:
    found = _enrolments(where)
    return found[0] if found else None


def _enrolments(where: Expression | None) -> list[Enrolment]:
    query = EnrolmentRow.select(EnrolmentRow, PoolRow).join(PoolRow, on=EnrolmentRow.pool == PoolRow.id).order_by(EnrolmentRow.id)
    return [_enrolment(row) for row in (query if where is None else query.where(where))]


def _enrolment(row: EnrolmentRow) -> Enrolment:
    times = (row.created_at, row.expires_at, row.revoked_at)
    return Enrolment(row.id, row.name, row.prefix, row.suffix, tuple(row.models), row.pool.id, row.pool.name, *times, row.max_agents)


def _agent(row: AgentRow) -> Agent:
    announced = Announced(row.name, tuple(row.models), row.protocol, row.software, row.concurrency)
    return Agent(row.credential, row.__data__["enrolment"], announced, row.seen_at)
