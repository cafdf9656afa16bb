"""API keys: made, rotated and revoked. A secret leaves here once, in a MintedKey; the database holds its hash."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Unpack

from gateway.backend import Secret
from gateway.core.identity import SCOPES
from gateway.errors import BadRequest, NotFound
from gateway.operations.names import check_label, check_model_name
from gateway.operations.users import required_user
from gateway.secrets import KeyHasher, key_prefix, key_suffix, mint_key
from gateway.store import accounts
from gateway.store.accounts import ApiKey, KeyFields
from gateway.store.database import Database

NETWORKS = 100
"""The most that a key may have: each call is judged by them."""


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new key and its secret, which is kept nowhere."""

    key: ApiKey
    secret: Secret


@dataclass(frozen=True, slots=True)
class Rotated:
    """`old` works until its `expires_at`; `new` works now."""

    old: ApiKey
    new: MintedKey


def create_key(
    database: Database, hasher: KeyHasher, user: str, at: int, *, label: str = "", expires_at: int | None = None, **fields: Unpack[KeyFields]
) -> MintedKey:
    """Times are Unix milliseconds. Raises BadRequest for a field that cannot be one, NotFound for the user."""
    check_label(label)
    fields = checked(fields)
    check_expiry(expires_at, at)
    secret = mint_key()

    def create() -> ApiKey:
        return insert_key(secret, hasher, required_user(user).id, at, label, expires_at, **fields)

    return MintedKey(database.write(create), Secret(secret))


def set_key(database: Database, reference: str, at: int, **fields: Unpack[KeyFields]) -> ApiKey:
    """Change these, and nothing else. Raises BadRequest for a field that cannot be one, NotFound for the key."""
    fields = checked(fields)
    return database.write(lambda: accounts.set_key(required_key(reference, at).id, **fields))


def checked(fields: KeyFields) -> KeyFields:
    """The same, each network in its usual form; no scopes at all stand for every one. Raises BadRequest."""
    for model in (*fields.get("models", ()), *fields.get("denied_models", ())):
        check_model_name(model)
    found = fields.copy()
    if "scopes" in found:
        found["scopes"] = _checked_scopes(found["scopes"] or ()) or None
    if "networks" in found:
        if len(found["networks"]) > NETWORKS:
            raise BadRequest(f"a key may have at most {NETWORKS} networks")
        found["networks"] = tuple(dict.fromkeys(map(_network, found["networks"])))
    return found


def _checked_scopes(scopes: Sequence[str]) -> tuple[str, ...]:
    for scope in scopes:
        if scope not in SCOPES:
            close = difflib.get_close_matches(scope, SCOPES, 1)
            raise BadRequest(f"there is no scope {scope!r}" + (f"; did you mean {close[0]}?" if close else f"; known: {', '.join(SCOPES)}"))
    return tuple(dict.fromkeys(scopes))


def _network(text: str) -> str:
    try:
        return str(ip_network(text))
    except ValueError:
        raise BadRequest(f"{text!r} is no network: write an address, or one such as 10.0.0.0/8 or 2001:db8::/32, without bits behind its length") from None


def list_keys(database: Database, user: str | None = None, batch: str | None = None) -> list[ApiKey]:
    """All keys, or one user's, or a batch's, revoked and expired ones among them. Raises NotFound for the user."""
    return database.read(lambda: accounts.list_keys(None if user is None else required_user(user).id, batch))


def rotate_key(database: Database, hasher: KeyHasher, reference: str, at: int, *, overlap_ms: int, expires_at: int | None = None) -> Rotated:
    """A new key with the same user, label and restrictions. The old one works for `overlap_ms` more, at most until its own expiry.

    The new key expires at `expires_at`, or when the old one would have. Raises BadRequest for a key that no longer works
    or was rotated before, NotFound.
    """
    check_expiry(expires_at, at)
    secret = mint_key()

    def rotate() -> tuple[ApiKey, ApiKey]:
        old = required_key(reference, at)
        if key_state(old, at) not in ("active", "user disabled"):
            raise BadRequest(f"key {old.id} is {key_state(old, at)}; make a new one with `gateway key create`")
        if old.family is not None:
            raise BadRequest(f"key {old.id} opens the {old.family} family only, which makes its keys itself")
        if old.successor_id is not None:
            raise BadRequest(f"key {old.id} was rotated before; key {old.successor_id} took its place")
        new = insert_key(secret, hasher, old.user_id, at, old.label, expires_at or old.expires_at, **_restrictions(old))
        end = at + overlap_ms if old.expires_at is None else min(at + overlap_ms, old.expires_at)
        return accounts.expire_key(old.id, end, successor_id=new.id), new

    old, new = database.write(rotate)
    return Rotated(old, MintedKey(new, Secret(secret)))


def revoke_key(database: Database, reference: str, at: int) -> ApiKey:
    """Refused from now on, within a second in every worker. Raises NotFound, and BadRequest where several working keys are meant."""
    return database.write(lambda: accounts.revoke_key(required_key(reference, at, past_rotation=False).id, at))


def find_key(database: Database, reference: str, at: int) -> ApiKey:
    """The key with this id, or the one with this label, or these first or last characters. Raises NotFound, BadRequest where it is not the only one."""
    return database.read(lambda: required_key(reference, at))


def required_key(reference: str, at: int, *, past_rotation: bool = True) -> ApiKey:
    """For use inside a database work. Of several with the same label those that still work are meant; with `past_rotation`
    also not those that another key has replaced (a revocation must not overlook one that still works)."""
    suffix = reference.rpartition("…")[2]  # as `gateway key list` shows keys; the first characters of all are much the same
    found = accounts.search_keys(reference) or [key for key in accounts.list_keys() if key.suffix == suffix]
    by_id = [key for key in found if str(key.id) == reference]
    if by_id:
        return by_id[0]
    working = [key for key in found if key_state(key, at) in ("active", "user disabled")]
    current = [key for key in working if key.successor_id is None or not past_rotation]
    meant = current or working or found
    if not meant:
        raise NotFound(f"there is no key {reference!r}; `gateway key list` shows them")
    if len(meant) > 1:
        ids = ", ".join(str(key.id) for key in meant)
        raise BadRequest(f"{reference!r} may be any of the keys {ids}; name one by its id")
    return meant[0]


def key_state(key: ApiKey, at: int) -> str:
    """ "active", "revoked", "expired" or "user disabled"."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= at:
        return "expired"
    return "user disabled" if key.user_disabled else "active"


def _restrictions(key: ApiKey) -> KeyFields:
    return {"models": key.models, "denied_models": key.denied_models, "scopes": key.scopes, "networks": key.networks, "batch": key.batch}


def check_expiry(expires_at: int | None, at: int) -> None:
    if expires_at is not None and expires_at <= at:
        raise BadRequest("the time of expiry is in the past")


def insert_key(secret: str, hasher: KeyHasher, user_id: int, at: int, label: str, expires_at: int | None, **fields: Unpack[KeyFields]) -> ApiKey:
    """For use inside a database work, which is given the secret: it may run twice, and must then make the same key."""
    shown = {"prefix": key_prefix(secret), "suffix": key_suffix(secret)}
    return accounts.create_key(user_id, hasher.hash(secret), at, label=label, expires_at=expires_at, **shown, **fields)
