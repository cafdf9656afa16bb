"""Credentials: what the gateway presents upstream. Their secrets go in sealed and never come out here."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.backend import Secret
from gateway.errors import BadRequest, NotFound
from gateway.operations.names import check_name
from gateway.secrets import Vault
from gateway.store import catalog, pools
from gateway.store.database import Conflict, Database
from gateway.store.pools import Credential, credential_place

HINT_CHARACTERS = 4
HINTED_FROM = 16
"""A shorter secret is not hinted at: 4 characters of it would be too large a part."""


@dataclass(frozen=True, slots=True)
class UsedCredential:
    """A credential and the names of the deployments that use it."""

    credential: Credential
    deployments: tuple[str, ...]


def create_credential(database: Database, vault: Vault, label: str, secret: Secret, at: int) -> Credential:
    """Raises BadRequest for a label or a secret that cannot be one, Conflict for a label that is taken."""
    check_name("credential", label)
    plain = _checked(secret)

    def create() -> Credential:
        if pools.find_credential(label) is not None:
            raise Conflict(f"there is a credential {label} already; `gateway credential replace` gives it another secret")
        return pools.create_credential(label, _hint(plain), at, lambda number: vault.seal(plain, credential_place(number)))

    return database.write(create)


def replace_secret(database: Database, vault: Vault, label: str, secret: Secret) -> Credential:
    """The deployments that use it present the new secret within a second. Raises BadRequest, NotFound."""
    plain = _checked(secret)
    return database.write(lambda: pools.replace_secret(required_credential(label).id, _hint(plain), lambda number: vault.seal(plain, credential_place(number))))


def list_credentials(database: Database) -> list[UsedCredential]:
    rows = database.read(catalog.load)
    return [UsedCredential(item, tuple(row.name for row in rows.deployments if row.credential_id == item.id)) for item in rows.credentials]


def disable_credential(database: Database, label: str, at: int) -> Credential:
    """Raises NotFound."""
    return database.write(lambda: pools.set_credential_disabled(required_credential(label).id, at))


def enable_credential(database: Database, label: str) -> Credential:
    """Raises NotFound."""
    return database.write(lambda: pools.set_credential_disabled(required_credential(label).id, None))


def delete_credential(database: Database, label: str) -> Credential:
    """Raises NotFound, and Conflict while deployments use it."""

    def delete() -> Credential:
        credential = required_credential(label)
        users = [row.name for row in catalog.list_deployments() if row.credential_id == credential.id]
        if users:
            raise Conflict(f"the credential {label} is used by {', '.join(users)}; delete those first, or give them another")
        pools.delete_credential(credential.id)
        return credential

    return database.write(delete)


def required_credential(label: str) -> Credential:
    """For use inside a database work. Raises NotFound."""
    credential = pools.find_credential(label)
    if credential is None:
        raise NotFound(f"there is no credential {label!r}; `gateway credential list` shows them")
    return credential


def _checked(secret: Secret) -> str:
    """The secret as it goes into a header, where a line break would begin another."""
    plain = secret.reveal().strip()
    if not plain:
        raise BadRequest("the secret is empty")
    if not plain.isascii() or not plain.isprintable() or " " in plain:
        raise BadRequest("the secret must be printable ASCII characters without spaces or line breaks")
    return plain


def _hint(plain: str) -> str:
    return plain[-HINT_CHARACTERS:] if len(plain) >= HINTED_FROM else ""
