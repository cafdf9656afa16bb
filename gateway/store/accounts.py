"""Users and their API keys: queries for the CLI, the operations and identity. To be called inside a work of `Database`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peewee import Expression

from gateway.errors import NotFound
from gateway.store.generation import raise_generation
from gateway.store.models import ApiKeyRow, MarkRow, UserRow

_ONLY_MARK = "pepper"


def pepper_mark() -> str | None:
    """By what the pepper is recognised with which the keys' hashes were made; None where none was noted yet."""
    row = MarkRow.get_or_none(MarkRow.name == _ONLY_MARK)
    return None if row is None else row.value


def note_pepper(mark: str) -> None:
    """The first mark stays while there is a key that depends on it."""
    if not ApiKeyRow.select().exists():
        MarkRow.delete().where(MarkRow.name == _ONLY_MARK).execute()
    MarkRow.insert(name=_ONLY_MARK, value=mark).on_conflict_ignore().execute()


@dataclass(frozen=True, slots=True)
class User:
    """Times are milliseconds since 1970 UTC."""

    id: int
    name: str
    created_at: int
    disabled_at: int | None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key in any state, without its hash: whoever asks judges the times. `models` empty: all are allowed."""

    id: int
    user_id: int
    user_name: str
    user_disabled: bool
    label: str
    prefix: str
    suffix: str
    models: tuple[str, ...]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    successor_id: int | None


def create_user(name: str, at: int) -> User:
    """Raises Conflict for a name that is taken."""
    row = UserRow.create(name=name, created_at=at)
    raise_generation()
    return _user(row)


def find_user(name: str) -> User | None:
    row = UserRow.get_or_none(UserRow.name == name)
    return None if row is None else _user(row)


def list_users() -> list[User]:
    return [_user(row) for row in UserRow.select().order_by(UserRow.id)]


def set_user_disabled(user_id: int, at: int | None) -> User:
    """None enables the user again. Raises NotFound."""
    if not UserRow.update(disabled_at=at).where(UserRow.id == user_id).execute():
        raise NotFound(f"There is no user {user_id}.")
    raise_generation()
    return _user(UserRow.get_by_id(user_id))


def create_key(
    user_id: int, hash: str, at: int, *, prefix: str, suffix: str, label: str = "", models: Sequence[str] = (), expires_at: int | None = None
) -> ApiKey:
    """Raises Conflict for a user that does not exist."""
    row = ApiKeyRow.create(
        user=user_id, hash=hash, label=label, prefix=prefix, suffix=suffix, models=list(models), created_at=at, expires_at=expires_at, revoked_at=None
    )
    raise_generation()
    return _existing(row.id)


def list_keys(user_id: int | None = None) -> list[ApiKey]:
    return _keys(None if user_id is None else ApiKeyRow.user == user_id)


def find_key(hash: str) -> ApiKey | None:
    """The key with this hash, whatever its state."""
    return _first(_keys(ApiKeyRow.hash == hash))


def find_key_by_id(key_id: int) -> ApiKey | None:
    return _first(_keys(ApiKeyRow.id == key_id))


def search_keys(text: str) -> list[ApiKey]:
    """The keys that an operator may mean by `text`: an id, a label, or the first characters of a key."""
    named = (ApiKeyRow.label == text) | (ApiKeyRow.prefix == text)
    return _keys(named | (ApiKeyRow.id == int(text)) if text.isascii() and text.isdigit() and len(text) < 10 else named)


def revoke_key(key_id: int, at: int) -> ApiKey:
    """Raises NotFound. A key that is revoked already keeps its time."""
    key = _existing(key_id)
    if key.revoked_at is None:
        ApiKeyRow.update(revoked_at=at).where(ApiKeyRow.id == key_id).execute()
        raise_generation()
    return _existing(key_id)


def expire_key(key_id: int, at: int, *, successor_id: int | None = None) -> ApiKey:
    """Let the key end at `at`; a rotation names the key that follows it. Raises NotFound."""
    if not ApiKeyRow.update(expires_at=at, successor=successor_id).where(ApiKeyRow.id == key_id).execute():
        raise NotFound(f"There is no key {key_id}.")
    raise_generation()
    return _existing(key_id)


def _user(row: UserRow) -> User:
    return User(row.id, row.name, row.created_at, row.disabled_at)


def _keys(where: Expression | None) -> list[ApiKey]:
    query = ApiKeyRow.select(ApiKeyRow, UserRow).join(UserRow, on=ApiKeyRow.user == UserRow.id).order_by(ApiKeyRow.id)
    return [_key(row) for row in (query if where is None else query.where(where))]


def _first(keys: Sequence[ApiKey]) -> ApiKey | None:
    return keys[0] if keys else None


def _existing(key_id: int) -> ApiKey:
    key = find_key_by_id(key_id)
    if key is None:
        raise NotFound(f"There is no key {key_id}.")
    return key


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        user_id=row.user.id,
        user_name=row.user.name,
        user_disabled=row.user.disabled_at is not None,
        label=row.label,
        prefix=row.prefix,
        suffix=row.suffix,
        models=tuple(row.models),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        successor_id=row.__data__["successor"],
    )
