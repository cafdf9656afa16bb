"""Batches: keys that are made, revoked and accounted for together, such as those of a workshop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

from gateway.backend import Secret
from gateway.errors import BadRequest, NotFound
from gateway.operations.keys import MintedKey, check_expiry, checked
from gateway.operations.names import check_label, check_name
from gateway.operations.teams import required_team
from gateway.operations.users import required_user
from gateway.secrets import KeyHasher, key_prefix, key_suffix, mint_key
from gateway.store import accounts, budgets, key_usage
from gateway.store.accounts import ApiKey, KeyFields, NewKey
from gateway.store.database import Conflict, Database
from gateway.store.key_usage import KeyUsage

KEYS = 1000
"""The most in one batch: they are made in one transaction, for which calls wait."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose keys: a user's; or with `user` "" a new user's, who is called like the batch and belongs to `team`, or to none ("")."""

    user: str = ""
    team: str = ""


@dataclass(frozen=True, slots=True)
class KeyLine:
    """What a key of a batch used. `left`: nano-USD of its own budget in total, without what is held; None where it has none."""

    key: ApiKey
    used: KeyUsage
    left: int | None


def create_batch(
    database: Database,
    hasher: KeyHasher,
    name: str,
    count: int,
    owner: Owner,
    at: int,
    *,
    budget_nano: int | None = None,
    expires_at: int | None = None,
    **fields: Unpack[KeyFields],
) -> list[MintedKey]:
    """`count` keys, labelled with the batch's name and a number, each with a budget of its own in total; all of them, or none.

    Raises BadRequest, NotFound for the user or the team, Conflict where there is a batch of this name, or a user who would be made.
    """
    check_name("batch", name)
    if not 1 <= count <= KEYS:
        raise BadRequest(f"a batch has 1 to {KEYS} keys")
    labels = [f"{name}-{number:0{max(len(str(count)), 2)}}" for number in range(1, count + 1)]
    check_label(labels[-1])
    if not owner.user:
        check_name("user", name)
    fields = checked(fields)
    check_expiry(expires_at, at)
    secrets = [mint_key() for _ in labels]
    minted = [NewKey(hasher.hash(secret), key_prefix(secret), key_suffix(secret), label) for secret, label in zip(secrets, labels, strict=True)]

    def create() -> list[ApiKey]:
        if accounts.list_keys(batch=name):
            raise Conflict(f"there is a batch {name} already")
        keys = accounts.create_batch(_owner_id(owner, name, at), minted, name, at, expires_at=expires_at, **fields)
        if budget_nano is not None:
            budgets.begin_totals("key", [key.id for key in keys], budget_nano, at)
        return keys

    made = {key.label: key for key in database.write(create)}
    return [MintedKey(made[label], Secret(secret)) for label, secret in zip(labels, secrets, strict=True)]


def _owner_id(owner: Owner, batch: str, at: int) -> int:
    if owner.user:
        return required_user(owner.user).id
    if accounts.find_user(batch) is not None:
        raise Conflict(f"there is a user {batch} already; if the keys are to be theirs, name them with --user")
    team_id = required_team(owner.team).id if owner.team else None
    user = accounts.create_user(batch, at)
    return user.id if team_id is None else accounts.set_user_team(user.id, team_id).id


def revoke_batch(database: Database, name: str, at: int) -> int:
    """How many keys were revoked that were not before. Raises NotFound."""

    def revoke() -> int:
        _required(name)
        return accounts.revoke_batch(name, at)

    return database.write(revoke)


def batch_report(database: Database, name: str, at: int) -> list[KeyLine]:
    """Key by key, those that took another's place among them. Raises NotFound."""

    def read() -> tuple[list[ApiKey], dict[int, KeyUsage], Mapping[int, int]]:
        keys = _required(name)
        return keys, key_usage.key_usage([key.id for key in keys]), _left(keys, at)

    keys, used, left = database.read(read)
    return [KeyLine(key, used.get(key.id, key_usage.NOTHING), left.get(key.id)) for key in keys]


def _left(keys: Sequence[ApiKey], at: int) -> dict[int, int]:
    """What each key's budget in total has left, by the key's id. A key that took another's place has that one's budget."""
    firsts: dict[int, int] = {}
    for key in keys:  # a successor is younger, so it comes after
        firsts.setdefault(key.id, key.id)
        if key.successor_id is not None:
            firsts[key.successor_id] = firsts[key.id]
    totals = {each.subject: each for each in budgets.list_budgets() if (each.kind, each.period) == ("key", "total") and each.subject in firsts}
    windows = {window.budget_id: window for window in budgets.windows_of([each.id for each in totals.values()], at)}
    left = {subject: each.limit_nano - (windows[each.id].spent if each.id in windows else 0) for subject, each in totals.items()}
    return {key.id: left[firsts[key.id]] for key in keys if firsts[key.id] in left}


def _required(name: str) -> list[ApiKey]:
    keys = accounts.list_keys(batch=name)
    if not keys:
        raise NotFound(f"there is no batch {name!r}; `gateway key list --json` shows each key's")
    return keys
