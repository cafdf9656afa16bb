"""Credentials, and the pools they stand in. Secrets come and go sealed: this module never sees one.

A pool has one credential for now, and its name. To be called inside a work of `Database`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from peewee import Expression

from gateway.errors import NotFound
from gateway.store.generation import raise_generation
from gateway.store.models import CredentialRow, PoolRow


@dataclass(frozen=True, slots=True)
class Credential:
    """`hint`: the last characters of the secret. `version` counts its replacements, from 1."""

    id: int
    pool_id: int
    pool_name: str
    label: str
    sealed: bytes = field(repr=False)
    hint: str
    version: int
    created_at: int
    disabled_at: int | None


def credential_place(credential_id: int) -> str:
    """The place that a credential's sealed secret is bound to: it opens nowhere else."""
    return f"credential:{credential_id}:sealed"


def create_credential(label: str, hint: str, at: int, seal: Callable[[int], bytes]) -> Credential:
    """`seal(id)` gives the sealed secret, once the id is known. Raises Conflict for a label that is taken."""
    pool = PoolRow.create(name=label)
    row = CredentialRow.create(pool=pool.id, label=label, sealed=b"", hint=hint, version=1, created_at=at)
    CredentialRow.update(sealed=seal(row.id)).where(CredentialRow.id == row.id).execute()
    raise_generation()
    return _existing(row.id)


def replace_secret(credential_id: int, hint: str, seal: Callable[[int], bytes]) -> Credential:
    """Raises NotFound."""
    changed = CredentialRow.update(sealed=seal(credential_id), hint=hint, version=CredentialRow.version + 1)
    _apply(changed.where(CredentialRow.id == credential_id).execute(), credential_id)
    return _existing(credential_id)


def list_credentials() -> list[Credential]:
    return _credentials(None)


def find_credential(label: str) -> Credential | None:
    found = _credentials(CredentialRow.label == label)
    return found[0] if found else None


def set_credential_disabled(credential_id: int, at: int | None) -> Credential:
    """None enables it again. Raises NotFound."""
    _apply(CredentialRow.update(disabled_at=at).where(CredentialRow.id == credential_id).execute(), credential_id)
    return _existing(credential_id)


def delete_credential(credential_id: int) -> None:
    """Its pool goes with it. Raises NotFound, or Conflict while a deployment uses it."""
    pool_id = _existing(credential_id).pool_id
    CredentialRow.delete().where(CredentialRow.id == credential_id).execute()
    if not CredentialRow.select().where(CredentialRow.pool == pool_id).exists():
        PoolRow.delete().where(PoolRow.id == pool_id).execute()
    raise_generation()


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
    )
