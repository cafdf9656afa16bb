"""Users and their API keys: queries for the CLI, the operations and identity. To be called inside a work of `Database`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from peewee import JOIN, Expression, chunked

from gateway.errors import NotFound
from gateway.store.generation import raise_generation
from gateway.store.models import ApiKeyRow, MarkRow, TeamRow, UserRow

_ONLY_MARK = "pepper"
EVERYBODY = "everybody"
CHUNK = 200
"""Rows of one statement: a database bounds its parameters."""


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
    team_id: int | None = None
    team_name: str | None = None


@dataclass(frozen=True, slots=True)
class Team:
    """`markup_ppm`: what its users are charged above the cost, in millionths of it; negative for a discount."""

    id: int
    name: str
    markup_ppm: int
    created_at: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key in any state, without its hash: whoever asks judges the times. `models` empty: all are allowed, but for `denied_models`.

    `scopes` None: every one. `networks` empty: it may be used from anywhere. `batch`: the keys that were made together.
    `team_id` and `markup_ppm` are its user's team's. `family`: the family of the API that it opens; None for the gateway's own.
    """

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
    team_id: int | None = None
    markup_ppm: int = 0
    denied_models: tuple[str, ...] = ()
    scopes: tuple[str, ...] | None = None
    networks: tuple[str, ...] = ()
    batch: str | None = None
    family: str | None = None


@dataclass(frozen=True, slots=True)
class NewKey:
    """One of several keys that are made together: what tells it from the others."""

    hash: str
    prefix: str
    suffix: str
    label: str


class KeyFields(TypedDict, total=False):
    """What can be set of a key, at its creation and later. Empty lists stand for no restriction."""

    models: Sequence[str]
    denied_models: Sequence[str]
    scopes: Sequence[str] | None
    networks: Sequence[str]
    batch: str | None


def create_team(name: str, at: int, markup_ppm: int = 0) -> Team:
    """Raises Conflict for a name that is taken."""
    row = TeamRow.create(name=name, markup_ppm=markup_ppm, created_at=at)
    raise_generation()
    return _team(row)


def find_team(name: str) -> Team | None:
    row = TeamRow.get_or_none(TeamRow.name == name)
    return None if row is None else _team(row)


def list_teams() -> list[Team]:
    return [_team(row) for row in TeamRow.select().order_by(TeamRow.id)]


def set_team_markup(team_id: int, markup_ppm: int) -> Team:
    """Raises NotFound."""
    if not TeamRow.update(markup_ppm=markup_ppm).where(TeamRow.id == team_id).execute():
        raise NotFound(f"There is no team {team_id}.")
    raise_generation()
    return _team(TeamRow.get_by_id(team_id))


def set_user_team(user_id: int, team_id: int | None) -> User:
    """None takes the user out of every team. Raises NotFound, or Conflict for a team that does not exist."""
    if not UserRow.update(team=team_id).where(UserRow.id == user_id).execute():
        raise NotFound(f"There is no user {user_id}.")
    raise_generation()
    return _user(UserRow.get_by_id(user_id))


def create_user(name: str, at: int) -> User:
    """Raises Conflict for a name that is taken."""
    row = UserRow.create(name=name, created_at=at)
    raise_generation()
    return _user(row)


def find_user(name: str) -> User | None:
    row = UserRow.get_or_none(UserRow.name == name)
    return None if row is None else _user(row)


def list_users() -> list[User]:
    query = UserRow.select(UserRow, TeamRow).join(TeamRow, JOIN.LEFT_OUTER, on=UserRow.team == TeamRow.id)
    return [_user(row) for row in query.order_by(UserRow.id)]


def set_user_disabled(user_id: int, at: int | None) -> User:
    """None enables the user again. Raises NotFound."""
    if not UserRow.update(disabled_at=at).where(UserRow.id == user_id).execute():
        raise NotFound(f"There is no user {user_id}.")
    raise_generation()
    return _user(UserRow.get_by_id(user_id))


def create_key(
    user_id: int, hash: str, at: int, *, prefix: str, suffix: str, label: str = "", expires_at: int | None = None, **given: Unpack[KeyFields]
) -> ApiKey:
    """Raises Conflict for a user that does not exist."""
    plain = {"label": label, "prefix": prefix, "suffix": suffix, "created_at": at, "expires_at": expires_at, "revoked_at": None}
    row = ApiKeyRow.create(user=user_id, hash=hash, **plain, **_columns({"models": (), **given}))
    raise_generation()
    return _existing(row.id)


def create_batch(user_id: int, minted: Sequence[NewKey], name: str, at: int, *, expires_at: int | None = None, **given: Unpack[KeyFields]) -> list[ApiKey]:
    """Keys that are alike but for what NewKey says, in the batch `name`. Raises Conflict for a user that does not exist."""
    fields: KeyFields = {"models": (), **given, "batch": name}
    alike = {"user": user_id, "created_at": at, "expires_at": expires_at, "revoked_at": None, **_columns(fields)}
    rows = [{"hash": one.hash, "prefix": one.prefix, "suffix": one.suffix, "label": one.label, **alike} for one in minted]
    for some in chunked(rows, CHUNK):
        ApiKeyRow.insert_many(some).execute()
    raise_generation()
    return list_keys(batch=name)


def set_key(key_id: int, **changed: Unpack[KeyFields]) -> ApiKey:
    """Raises NotFound."""
    _existing(key_id)
    if changed:
        ApiKeyRow.update(**_columns(changed)).where(ApiKeyRow.id == key_id).execute()
        raise_generation()
    return _existing(key_id)


def _columns(given: KeyFields) -> dict[str, object]:
    """The row's columns. Raises TypeError for a name that cannot be set."""
    unknown = set(given) - set(KeyFields.__annotations__)
    if unknown:
        raise TypeError(f"not a key's field: {', '.join(sorted(unknown))}")
    return {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in given.items()}


def list_keys(user_id: int | None = None, batch: str | None = None) -> list[ApiKey]:
    """All keys, those of a user, those of a batch, or those of both."""
    of_user = None if user_id is None else ApiKeyRow.user == user_id
    of_batch = None if batch is None else ApiKeyRow.batch == batch
    return _keys(of_batch if of_user is None else of_user if of_batch is None else of_user & of_batch)


def find_key(hash: str) -> ApiKey | None:
    """The key with this hash, whatever its state."""
    return _first(_keys(ApiKeyRow.hash == hash))


def find_key_by_id(key_id: int) -> ApiKey | None:
    return _first(_keys(ApiKeyRow.id == key_id))


def first_key_id(key_id: int) -> int:
    """The key from which this one came by rotations: whose budgets and limits are its own, so that a new secret is no new budget."""
    first = key_id
    while (before := ApiKeyRow.get_or_none(ApiKeyRow.successor == first)) is not None:
        first = before.id
    return first


def ensure_key(user: str, hash: str, at: int, label: str) -> None:
    """See to it that this user exists and has a key with this hash, whatever its state; what is there stays as it is.

    Raises Conflict where somebody else did the same just now: then it is there as well.
    """
    if find_key(hash) is None:
        owner = find_user(user) or create_user(user, at)
        create_key(owner.id, hash, at, prefix=label, suffix=label, label=label)


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


def revoke_batch(batch: str, at: int) -> int:
    """How many keys were revoked; those that were before keep their time."""
    changed: int = ApiKeyRow.update(revoked_at=at).where((ApiKeyRow.batch == batch) & ApiKeyRow.revoked_at.is_null()).execute()
    raise_generation()
    return changed


def expire_key(key_id: int, at: int, *, successor_id: int | None = None) -> ApiKey:
    """Let the key end at `at`; a rotation names the key that follows it. Raises NotFound."""
    if not ApiKeyRow.update(expires_at=at, successor=successor_id).where(ApiKeyRow.id == key_id).execute():
        raise NotFound(f"There is no key {key_id}.")
    raise_generation()
    return _existing(key_id)


def account_names() -> dict[tuple[str, int], str]:
    """What people call each account, by its kind ("key", "user", "team", "global") and the id of that row."""
    names = {("global", 0): EVERYBODY} | {("user", user.id): user.name for user in list_users()}
    return names | {("key", key.id): _key_name(key) for key in list_keys()} | {("team", team.id): team.name for team in list_teams()}


def account_name(kind: str, subject: int) -> str:
    """Of one of them."""
    if kind == "global":
        return EVERYBODY
    if kind == "key":
        key = find_key_by_id(subject)
        return f"#{subject}" if key is None else _key_name(key)
    table = TeamRow if kind == "team" else UserRow
    row = table.get_or_none(table.id == subject)
    return f"#{subject}" if row is None else str(row.name)


def _key_name(key: ApiKey) -> str:
    return f"{key.label or key.prefix} (#{key.id})"


def _user(row: UserRow) -> User:
    team = row.team
    return User(row.id, row.name, row.created_at, row.disabled_at, None if team is None else team.id, None if team is None else team.name)


def _team(row: TeamRow) -> Team:
    return Team(row.id, row.name, row.markup_ppm, row.created_at)


def _keys(where: Expression | None) -> list[ApiKey]:
    query = ApiKeyRow.select(ApiKeyRow, UserRow, TeamRow).join(UserRow, on=ApiKeyRow.user == UserRow.id)
    query = query.join(TeamRow, JOIN.LEFT_OUTER, on=UserRow.team == TeamRow.id).order_by(ApiKeyRow.id)
    return [_key(row) for row in (query if where is None else query.where(where))]


def _first(keys: Sequence[ApiKey]) -> ApiKey | None:
    return keys[0] if keys else None


def _existing(key_id: int) -> ApiKey:
    key = find_key_by_id(key_id)
    if key is None:
        raise NotFound(f"There is no key {key_id}.")
    return key


def _key(row: ApiKeyRow) -> ApiKey:
    team = row.user.team
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
        team_id=None if team is None else team.id,
        markup_ppm=0 if team is None else team.markup_ppm,
        denied_models=tuple(row.denied_models or ()),
        scopes=None if row.scopes is None else tuple(row.scopes),
        networks=tuple(row.networks or ()),
        batch=row.batch,
        family=row.family,
    )
