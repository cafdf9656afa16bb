"""Credentials: what the gateway presents upstream. Their secrets go in sealed and never come out here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gateway.backend import Proxy, Secret
from gateway.core.upstream_secrets import checked, expiry, fingerprint, hint
from gateway.errors import BadRequest, NotFound
from gateway.operations.limits import MOST
from gateway.operations.names import check_name
from gateway.secrets import Secrets, Vault
from gateway.store import catalog, pools
from gateway.store.catalog import Deployment
from gateway.store.database import Conflict, Database
from gateway.store.pools import Credential, CredentialFields, NewCredential, credential_place, credential_proxy_place, extras_place

PUID = "puid"
"""The extra that goes along as a cookie."""
MAX_WEIGHT, MAX_TAGS, MAX_NOTES = 1_000_000, 20, 2_000
_NUMBERS = (("weight", MAX_WEIGHT), ("rpm", MOST), ("tpm", MOST), ("concurrency", MOST), ("per_day", MOST))


@dataclass(frozen=True, slots=True)
class UsedCredential:
    """A credential and the names of the deployments that use it."""

    credential: Credential
    deployments: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialWishes:
    """What an operator wants of a credential besides its secret. None: not named. 0, "" or (): back to the default.

    `pool`: where it stands. `proxy` is a URL, which may hold a password. `extras`: what is presented beside the secret ("puid", "refresh_token").
    """

    pool: str | None = None
    weight: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    per_day: int | None = None
    proxy: Secret | None = None
    extras: dict[str, Secret] | None = None
    expires_at: int | None = None
    tags: tuple[str, ...] | None = None
    notes: str | None = None


def create_credential(database: Database, secrets: Secrets, label: str, secret: Secret, at: int, wishes: CredentialWishes | None = None) -> Credential:
    """Raises BadRequest for a label or a secret that cannot be one, Conflict for a label that is taken."""
    check_name("credential", label)
    new = new_credential(secrets, secret, wishes or CredentialWishes())

    def create() -> Credential:
        if pools.find_credential(label) is not None:
            raise Conflict(f"there is a credential {label} already; `gateway credential replace` gives it another secret")
        (made,) = pools.create_credentials([replace(new, label=label, pool=new.pool or label)], at)
        return made

    return database.write(create)


def new_credential(secrets: Secrets, secret: Secret, wishes: CredentialWishes) -> NewCredential:
    """A credential that is checked and only wants its label, and its pool where none was wished. Raises BadRequest, which does not repeat the secret."""
    plain, fields = checked(secret), _fields(wishes)
    fields.setdefault("expires_at", expiry(plain))
    fields["fingerprint"] = fingerprint(secrets.hasher, plain)
    for extra in (wishes.extras or {}).values():
        checked(extra)

    def seal(number: int) -> tuple[bytes, CredentialFields]:
        return secrets.vault.seal(plain, credential_place(number)), _sealed(secrets.vault, number, wishes)

    return NewCredential("", wishes.pool or "", hint(plain), fields, seal)


def replace_secret(database: Database, secrets: Secrets, label: str, secret: Secret) -> Credential:
    """The deployments that use it present the new secret within a second. Raises BadRequest, NotFound."""
    plain = checked(secret)

    def replace() -> Credential:
        seal = lambda number: secrets.vault.seal(plain, credential_place(number))  # noqa: E731
        found, mark = required_credential(label), fingerprint(secrets.hasher, plain)
        return pools.replace_secret(found.id, hint(plain), seal, expires_at=expiry(plain), replaced_at=None, fingerprint=mark)

    return database.write(replace)


def set_credential(database: Database, vault: Vault, label: str, wishes: CredentialWishes) -> Credential:
    """Change what is named, and nothing else. Raises BadRequest, NotFound."""
    fields = _fields(wishes)
    if wishes == CredentialWishes():
        raise BadRequest("nothing to change was named")

    def change() -> Credential:
        found = required_credential(label)
        if wishes.pool:
            found = pools.move_credential(found.id, wishes.pool)
        changed: CredentialFields = {**fields, **_sealed(vault, found.id, wishes)}
        return pools.set_credential(found.id, **changed) if changed else found

    return database.write(change)


def set_extra(database: Database, vault: Vault, label: str, name: str, value: Secret | None) -> Credential:
    """What is presented beside the secret ("puid", "refresh_token"); None takes it away. Raises BadRequest, NotFound."""
    check_name("extra", name)
    plain = None if value is None else checked(value)

    return database.write(lambda: change_extra(vault, required_credential(label), name, plain))


def change_extra(vault: Vault, item: Credential, name: str, plain: str | None) -> Credential:
    """One extra of those that a credential has; the others stay. For use inside a database work."""
    kept: dict[str, str] = {} if item.extras is None else json.loads(vault.open(item.extras, extras_place(item.id)))
    changed = {each: text for each, text in {**kept, name: plain}.items() if text is not None}
    if changed == kept:
        return item
    return pools.set_credential(item.id, extras=vault.seal(json.dumps(changed), extras_place(item.id)) if changed else None)


def drain_credential(database: Database, label: str, at: int | None) -> Credential:
    """Give it no new conversation; those that are bound to it go on. None ends that. Raises NotFound."""
    return database.write(lambda: pools.set_credential(required_credential(label).id, draining_at=at))


def _fields(wishes: CredentialWishes) -> CredentialFields:
    """The store's fields for what was named, but for what is sealed. Raises BadRequest."""
    fields: CredentialFields = {}
    for name, most in _NUMBERS:
        value = getattr(wishes, name)
        if value is not None and not 0 <= value <= most:
            raise BadRequest(f"{name} must be from 0 to {most}")
        if value is not None:
            fields[name] = value if name == "weight" else value or None  # type: ignore[literal-required]
    if wishes.pool is not None:
        check_name("pool", wishes.pool)
    if wishes.expires_at is not None:
        fields["expires_at"] = wishes.expires_at or None
    if wishes.tags is not None:
        for tag in wishes.tags:
            check_name("tag", tag)
        if len(wishes.tags) > MAX_TAGS:
            raise BadRequest(f"a credential has at most {MAX_TAGS} tags")
        fields["tags"] = sorted(set(wishes.tags)) or None
    if wishes.notes is not None:
        if len(wishes.notes) > MAX_NOTES or not all(each.isprintable() or each == "\n" for each in wishes.notes):
            raise BadRequest(f"the notes must be printable, and of at most {MAX_NOTES} characters")
        fields["notes"] = wishes.notes or None
    if wishes.proxy:
        Proxy.parse(wishes.proxy.reveal().strip())
    return fields


def _sealed(vault: Vault, number: int, wishes: CredentialWishes) -> CredentialFields:
    fields: CredentialFields = {}
    if wishes.proxy is not None:
        proxy = Proxy.parse(wishes.proxy.reveal().strip()) if wishes.proxy else None
        fields["proxy"] = None if proxy is None else str(proxy)
        fields["proxy_sealed"] = None if proxy is None else vault.seal(proxy.url, credential_proxy_place(number))
    if wishes.extras is not None:
        plain = {name: checked(value) for name, value in wishes.extras.items()}
        fields["extras"] = vault.seal(json.dumps(plain), extras_place(number)) if plain else None
    return fields


def list_credentials(database: Database) -> list[UsedCredential]:
    rows = database.read(catalog.load)
    return [UsedCredential(item, _users(rows.deployments, item)) for item in rows.credentials]


def _users(deployments: Iterable[Deployment], item: Credential) -> tuple[str, ...]:
    return tuple(row.name for row in deployments if row.credential_id == item.id or row.pool_id == item.pool_id)


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
