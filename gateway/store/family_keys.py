"""Keys that open one family of the API and nothing else, kept with a sealed copy for that family's list. To be called inside a work of `Database`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.store import accounts
from gateway.store.accounts import ApiKey
from gateway.store.models import ApiKeyRow, UserRow


@dataclass(frozen=True, slots=True)
class FamilyKey:
    """A key of a family in any state, and the user whose it is. `sealed` opens at `key_place`."""

    id: int
    user_name: str
    prefix: str
    suffix: str
    revoked_at: int | None
    sealed: bytes = field(repr=False)


def key_place(key_id: int) -> str:
    return f"api_key:{key_id}:sealed"


def create_family_key(user: str, family: str, hash: str, at: int, shown: tuple[str, str], seal: Callable[[int], bytes]) -> ApiKey:
    """With a new user. `shown`: the key's first and last characters; `seal(id)` gives the sealed key. Raises Conflict for a user or a key that is there."""
    made = accounts.create_key(accounts.create_user(user, at).id, hash, at, prefix=shown[0], suffix=shown[1], label=family)
    ApiKeyRow.update(family=family, sealed=seal(made.id)).where(ApiKeyRow.id == made.id).execute()
    return accounts.list_keys(made.user_id)[0]


def list_family_keys(family: str) -> list[FamilyKey]:
    """In the order in which they were made."""
    query = ApiKeyRow.select(ApiKeyRow, UserRow).join(UserRow, on=ApiKeyRow.user == UserRow.id).where(ApiKeyRow.family == family)
    return [_family_key(row) for row in query.order_by(ApiKeyRow.id)]


def known_hashes(family: str) -> frozenset[str]:
    """Of all keys of a family, those that were revoked among them."""
    return frozenset(row.hash for row in ApiKeyRow.select(ApiKeyRow.hash).where(ApiKeyRow.family == family))


def _family_key(row: ApiKeyRow) -> FamilyKey:
    return FamilyKey(row.id, row.user.name, row.prefix, row.suffix, row.revoked_at, bytes(row.sealed or b""))
