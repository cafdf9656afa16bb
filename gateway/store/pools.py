"""Credentials, and the pools they stand in. Secrets come and go sealed: this module never sees one. To be called inside a work of `Database`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

from peewee import Expression, chunked

from gateway.errors import NotFound
from gateway.store.generation import raise_generation
from gateway.store.models import CredentialRow, DeploymentRow, PoolRow, database
from gateway.store.models_agents import AgentRow, EnrolmentRow
from gateway.store.models_pools import FAILED, REFUSED, ConversationRow, RefreshRow
from gateway.store.statements import executemany, locked

CHUNK = 200
"""How many credentials share a statement: SQLite bounds the parameters of one."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Credentials that stand in for each other. What the rest means stands in the row's docstring."""

    id: int
    name: str
    policy: str | None = None
    affinity: str | None = None


class CredentialFields(TypedDict, total=False):
    """What can be set of a credential, besides its secret."""

    weight: int | None
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    per_day: int | None
    proxy: str | None
    proxy_sealed: bytes | None
    extras: bytes | None
    expires_at: int | None
    replaced_at: int | None
    draining_at: int | None
    tags: list[str] | None
    notes: str | None
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A credential to be made. `seal(id)` gives its sealed secret, and what else of it is bound to its id, once the id is known."""

    label: str
    pool: str
    hint: str
    fields: CredentialFields = field(repr=False)
    seal: Callable[[int], tuple[bytes, CredentialFields]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Credential:
    """`hint`: the last characters of the secret. `version` counts its replacements, from 1. What the rest means stands in the row's docstring."""

    id: int
    pool_id: int
    pool_name: str
    label: str
    sealed: bytes = field(repr=False)
    hint: str
    version: int
    created_at: int
    disabled_at: int | None
    weight: int = 1
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    per_day: int | None = None
    proxy: str | None = None
    proxy_sealed: bytes | None = field(default=None, repr=False)
    extras: bytes | None = field(default=None, repr=False)
    expires_at: int | None = None
    replaced_at: int | None = None
    draining_at: int | None = None
    tags: tuple[str, ...] = ()
    notes: str = ""
    fingerprint: str | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """Under what its limits are counted. SQLite gives the id of one that was deleted to another, which must inherit nothing."""
        return f"credential:{self.id}-{self.created_at}"

    @property
    def subject(self) -> str:
        """Under what its conditions are kept: another secret begins anew."""
        return f"{self.place}.{self.version}"


def credential_place(credential_id: int) -> str:
    """The place that a credential's sealed secret is bound to: it opens nowhere else."""
    return f"credential:{credential_id}:sealed"


def extras_place(credential_id: int) -> str:
    return f"credential:{credential_id}:extras"


def credential_proxy_place(credential_id: int) -> str:
    return f"credential:{credential_id}:proxy_sealed"


def list_pools() -> list[Pool]:
    return [_pool(row) for row in PoolRow.select().order_by(PoolRow.id)]


def find_pool(name: str) -> Pool | None:
    row = PoolRow.get_or_none(PoolRow.name == name)
    return None if row is None else _pool(row)


def create_pool(name: str) -> Pool:
    """Raises Conflict for a name that is taken."""
    row = PoolRow.create(name=name)
    raise_generation()
    return _pool(row)


def set_pool(pool_id: int, policy: str | None, affinity: str | None) -> Pool:
    """Raises NotFound."""
    if not PoolRow.update(policy=policy, affinity=affinity).where(PoolRow.id == pool_id).execute():
        raise NotFound(f"There is no pool {pool_id}.")
    raise_generation()
    return _pool(PoolRow.get_by_id(pool_id))


def delete_pool(pool_id: int) -> None:
    """Raises NotFound, or Conflict while it has credentials, deployments or enrolments."""
    if not PoolRow.delete().where(PoolRow.id == pool_id).execute():
        raise NotFound(f"There is no pool {pool_id}.")
    raise_generation()


def create_credential(label: str, hint: str, at: int, seal: Callable[[int], bytes], pool: str | None = None, **given: Unpack[CredentialFields]) -> Credential:
    """`seal(id)` gives the sealed secret. `pool`: its own label where None. The rest as in `create_credentials`."""
    (made,) = create_credentials([NewCredential(label, pool or label, hint, given, lambda number: (seal(number), {}))], at)
    return made


def create_credentials(new: Sequence[NewCredential], at: int) -> list[Credential]:
    """All of them or none, in the order of their ids. A pool that does not exist is created. Raises Conflict for a label that is taken."""
    places = {name: _place(name).id for name in dict.fromkeys(each.pool for each in new)}
    made: list[Credential] = []
    for some in chunked(new, CHUNK):
        CredentialRow.insert_many([_values(each, places[each.pool], at) for each in some]).execute()
        labels = {each.label: each for each in some}
        rows = CredentialRow.select(CredentialRow.id, CredentialRow.label).where(CredentialRow.label.in_(list(labels)))
        executemany(database, _SEAL, [_sealed(labels[row.label], row.id) for row in rows])
        made += _credentials(CredentialRow.label.in_(list(labels)))
    raise_generation()
    return made


_SEAL = 'UPDATE "credential" SET "sealed" = ?, "extras" = ?, "proxy" = ?, "proxy_sealed" = ? WHERE "id" = ?'


def _sealed(new: NewCredential, number: int) -> tuple[Any, ...]:
    sealed, bound = new.seal(number)
    fields = {**new.fields, **bound}
    return sealed, fields.get("extras"), fields.get("proxy"), fields.get("proxy_sealed"), number


def _values(new: NewCredential, pool_id: int, at: int) -> dict[str, Any]:
    blank = dict.fromkeys(CredentialFields.__annotations__)
    return {**blank, **new.fields, "pool": pool_id, "label": new.label, "sealed": b"", "hint": new.hint, "version": 1, "created_at": at}


def set_credential(credential_id: int, **changed: Unpack[CredentialFields]) -> Credential:
    """With other extras, a refresh that failed or was refused is forgotten: it may be asked for with these. Raises NotFound."""
    unknown = set(changed) - set(CredentialFields.__annotations__)
    if unknown or not changed:
        raise TypeError(f"not a credential's field: {', '.join(sorted(unknown)) or 'none named'}")
    if "extras" in changed:
        RefreshRow.delete().where((RefreshRow.credential == credential_id) & RefreshRow.state.in_((FAILED, REFUSED))).execute()
    _apply(CredentialRow.update(**changed).where(CredentialRow.id == credential_id).execute(), credential_id)
    return _existing(credential_id)


def move_credential(credential_id: int, pool: str) -> Credential:
    """Into another pool, created where it does not exist; a pool that is left empty, and that nothing names, goes. Raises NotFound."""
    left = _existing(credential_id).pool_id
    place = _place(pool)
    _apply(CredentialRow.update(pool=place.id).where(CredentialRow.id == credential_id).execute(), credential_id)
    _tidy(left)
    return _existing(credential_id)


def replace_secret(credential_id: int, hint: str, seal: Callable[[int], bytes], version: int | None = None, **changed: Unpack[CredentialFields]) -> Credential:
    """With a `version`, only where that is still the current one. Raises NotFound, also where it is not."""
    query = CredentialRow.update(sealed=seal(credential_id), hint=hint, version=CredentialRow.version + 1, **changed)
    where = (CredentialRow.id == credential_id) & (True if version is None else CredentialRow.version == version)
    _apply(query.where(where).execute(), credential_id)
    return _existing(credential_id)


def list_credentials() -> list[Credential]:
    return _credentials(None)


def find_credential(label: str) -> Credential | None:
    found = _credentials(CredentialRow.label == label)
    return found[0] if found else None


def find_credential_by_id(credential_id: int) -> Credential:
    """Raises NotFound."""
    return _existing(credential_id)


def locked_credential(credential_id: int) -> Credential | None:
    """Nobody changes it until the transaction ends."""
    found = locked(database, "SELECT id FROM credential WHERE id = ?", (credential_id,))
    return _existing(credential_id) if found else None


def expiring_credentials() -> list[Credential]:
    """Those in use whose secrets end at a known time, and that have extras."""
    return _credentials(CredentialRow.expires_at.is_null(False) & CredentialRow.extras.is_null(False) & CredentialRow.disabled_at.is_null())


def set_credential_disabled(credential_id: int, at: int | None) -> Credential:
    """None enables it again. Raises NotFound."""
    _apply(CredentialRow.update(disabled_at=at).where(CredentialRow.id == credential_id).execute(), credential_id)
    return _existing(credential_id)


def delete_credential(credential_id: int) -> None:
    """A pool that is left empty, and that nothing names, goes with it. Raises NotFound, or Conflict while a deployment uses it."""
    pool_id = _existing(credential_id).pool_id
    delete_credentials([credential_id])
    _tidy(pool_id)


def delete_credentials(credential_ids: Sequence[int]) -> None:
    """And what was kept of them: their conversations are bound to nobody, agents forgotten. Their pools stay. Raises Conflict while a deployment uses one."""
    for some in chunked(credential_ids, CHUNK):
        ids = list(some)
        for kept in (RefreshRow, ConversationRow, AgentRow):  # SQLite may give an id to another
            kept.delete().where(kept.credential.in_(ids)).execute()
        CredentialRow.delete().where(CredentialRow.id.in_(ids)).execute()
    raise_generation()


def _place(name: str) -> PoolRow:
    return PoolRow.get_or_none(PoolRow.name == name) or PoolRow.create(name=name)


def _tidy(pool_id: int) -> None:
    if not any(table.select().where(table.pool == pool_id).exists() for table in (CredentialRow, DeploymentRow, EnrolmentRow)):
        PoolRow.delete().where(PoolRow.id == pool_id).execute()


def _apply(changed: int, credential_id: int) -> None:
    if not changed:
        raise NotFound(f"There is no credential {credential_id}.")
    raise_generation()


def _existing(credential_id: int) -> Credential:
    found = _credentials(CredentialRow.id == credential_id)
    if not found:
        raise NotFound(f"There is no credential {credential_id}.")
    return found[0]


def _credentials(where: Expression | None) -> list[Credential]:
    query = CredentialRow.select(CredentialRow, PoolRow).join(PoolRow, on=CredentialRow.pool == PoolRow.id).order_by(CredentialRow.id)
    return [_credential(row) for row in (query if where is None else query.where(where))]


def _credential(row: CredentialRow) -> Credential:
    return Credential(
        id=row.id,
        pool_id=row.pool.id,
        pool_name=row.pool.name,
        label=row.label,
        sealed=bytes(row.sealed),
        hint=row.hint,
        version=row.version,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        weight=1 if row.weight is None else row.weight,
        rpm=row.rpm,
        tpm=row.tpm,
        concurrency=row.concurrency,
        per_day=row.per_day,
        proxy=row.proxy,
        proxy_sealed=None if row.proxy_sealed is None else bytes(row.proxy_sealed),
        extras=None if row.extras is None else bytes(row.extras),
        expires_at=row.expires_at,
        replaced_at=row.replaced_at,
        draining_at=row.draining_at,
        tags=tuple(row.tags or ()),
        notes=row.notes or "",
        fingerprint=row.fingerprint,
    )


def _pool(row: PoolRow) -> Pool:
    return Pool(row.id, row.name, row.policy, row.affinity)
