"""The api-server family's users and its admin key; the users of the program before are taken over with their tokens."""

from __future__ import annotations

import hmac
import logging
import re
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gateway.backend import Secret
from gateway.core.identity import API_SERVER
from gateway.secrets import Secrets, SecretsError, Vault
from gateway.settings import Settings
from gateway.store import accounts, family_keys
from gateway.store.database import Conflict, Database
from gateway.store.family_keys import FamilyKey, key_place

log = logging.getLogger(__name__)
OLD_DATABASE = "Data/auth.db"
OLD_USERS = 100_000
"""The most that are taken over."""
AT_ONCE = 200
_USER_ID = re.compile(r"[A-Za-z0-9._-]{1,48}")
_TOKEN = re.compile(r"[!-~]{8,128}")


@dataclass(frozen=True, slots=True)
class NamedToken:
    """A user of the family, and the token that lets it in."""

    user_id: str
    token: Secret


@dataclass(frozen=True, slots=True)
class ListedUser:
    """`token` as it is told: whole, or masked."""

    user_id: str
    token: str


def is_admin_key(settings: Settings, shown: str) -> bool:
    """Nothing is, where GATEWAY_ADMIN_KEY is not set."""
    if settings.admin_key is None:
        return False
    return hmac.compare_digest(shown.encode("utf-8", "surrogatepass"), settings.admin_key.reveal().encode("utf-8", "surrogatepass"))


def add_user(database: Database, secrets: Secrets, at: int) -> NamedToken:
    """A user with a token of its own. Raises StoreUnavailable."""
    made = NamedToken(str(uuid.uuid4()), Secret(str(uuid.uuid4())))
    database.write(lambda: _create(secrets, made, at))
    return made


def delete_user(database: Database, user_id: str, at: int) -> None:
    """Its token works no more. No error where there is no such user. Raises StoreUnavailable."""

    def delete() -> None:
        user = accounts.find_user(_name(user_id)) if _USER_ID.fullmatch(user_id) else None
        for key in [] if user is None else accounts.list_keys(user.id):
            if key.family == API_SERVER:
                accounts.revoke_key(key.id, at)

    database.write(delete)


def list_users(database: Database, vault: Vault, settings: Settings) -> list[ListedUser]:
    """Those whose tokens work, with their tokens, masked where AGENT_LIST_TOKENS is 0. Raises StoreUnavailable."""
    found = database.read(lambda: family_keys.list_family_keys(API_SERVER))
    working = [key for key in found if key.revoked_at is None]
    return [ListedUser(key.user_name.removeprefix(f"{API_SERVER}-"), _told(key, vault, settings)) for key in working]


def _told(key: FamilyKey, vault: Vault, settings: Settings) -> str:
    masked = f"{key.prefix}...{key.suffix}"
    if not settings.agent_list_tokens:
        return masked
    try:
        return vault.open(key.sealed, key_place(key.id))
    except SecretsError as error:  # another master key: the token lets its user in all the same
        log.warning("a token cannot be listed: %s", error)
        return masked


def take_over(settings: Settings, database: Database, secrets: Secrets, at: int) -> tuple[str, ...]:
    """Let the users of the program before in with the tokens that they have, from Data/auth.db in the data directory; those that are known stay as they are.

    Returns what the operator should know, a line each. Raises StoreUnavailable.
    """
    path = settings.data_dir.resolve() / OLD_DATABASE
    if not path.is_file():
        return ()
    try:
        found = list(_old_users(path))
    except sqlite3.Error as error:
        return (f"{OLD_DATABASE} cannot be read ({error}); no user is taken from it",)
    known = database.read(lambda: family_keys.known_hashes(API_SERVER))
    new = [each for each in found if secrets.hasher.hash(each.token.reveal()) not in known]
    taken = 0
    for start in range(0, len(new), AT_ONCE):
        taken += _taken(database, secrets, new[start : start + AT_ONCE], at)
    return (f"{OLD_DATABASE}: {taken} users let in with the tokens that they have",) if taken else ()


def _taken(database: Database, secrets: Secrets, some: Sequence[NamedToken], at: int) -> int:
    def create() -> int:
        fresh = [each for each in some if accounts.find_user(_name(each.user_id)) is None]
        for each in fresh:
            _create(secrets, each, at)
        return len(fresh)

    try:
        return database.write(create)
    except Conflict:  # another process, at this very moment
        log.debug("users of %s are there already", OLD_DATABASE)
        return 0


def _old_users(path: Path) -> Iterator[NamedToken]:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as old:
        for user_id, token in old.execute("SELECT user_id, token FROM tokens ORDER BY rowid LIMIT ?", (OLD_USERS,)):
            if isinstance(user_id, str) and isinstance(token, str) and _USER_ID.fullmatch(user_id) and _TOKEN.fullmatch(token):
                yield NamedToken(user_id, Secret(token))


def _create(secrets: Secrets, made: NamedToken, at: int) -> None:
    token = made.token.reveal()
    shown, digest = (token[:4], token[-4:]), secrets.hasher.hash(token)
    family_keys.create_family_key(_name(made.user_id), API_SERVER, digest, at, shown, lambda number: secrets.vault.seal(token, key_place(number)))


def _name(user_id: str) -> str:
    return f"{API_SERVER}-{user_id}"
