"""The tokens of accounts that sign in: which credential of the pool is an account's own, through which proxy it asks, and where a new token goes."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.backend import Proxy, Secret
from gateway.core.upstream_secrets import checked, email, expiry, fingerprint, issued
from gateway.errors import BadRequest
from gateway.operations.accounts_file import Account
from gateway.operations.chatgpt_to_api import POOL
from gateway.operations.credentials import PUID, CredentialWishes, create_credential, replace_secret, set_extra
from gateway.operations.import_formats import as_label
from gateway.operations.token_files import PROXIES, read_if_there, read_proxies
from gateway.secrets import Secrets, SecretsError, Vault
from gateway.store import pools
from gateway.store.database import Database
from gateway.store.pools import Credential, credential_place, credential_proxy_place

WEEK_MS = 7 * 86_400_000
APART_MS = 600_000
"""Between two sign-ins of one account, whatever its token says of its life."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a sign-in gave: an access token, and the cookie `_puid` where the service set one."""

    token: Secret
    puid: Secret | None = None


def owners(vault: Vault, stored: Iterable[Credential]) -> dict[str, str]:
    """By a credential's place, whose its token says that it is, in lower case; empty where it says nothing. Of the pool's."""
    return {item.place: email(opened(vault, item)).lower() for item in stored if item.pool_name == POOL}


def opened(vault: Vault, item: Credential) -> str:
    """A credential's token; empty where it does not open."""
    try:
        return vault.open(item.sealed, credential_place(item.id))
    except SecretsError:
        return ""


def own_credential(account: Account, place: str, stored: Sequence[Credential], owned: Mapping[str, str]) -> Credential | None:
    """The credential at `place`; where there is none, one whose token or label says that it is the account's. `owned`: `owners` that may be taken for it."""
    at_place = next((item for item in stored if place and item.place == place), None)
    if at_place is not None:
        return at_place
    free = [item for item in stored if item.place in owned]
    said = next((item for item in free if owned[item.place] == account.email.lower()), None)
    return said or next((item for item in free if not owned[item.place] and item.label == as_label(account.email)), None)


def keep_token(database: Database, secrets: Secrets, account: Account, own: Credential | None, session: Session, proxy: Proxy | None, at: int) -> Credential:
    """Another secret for the account's own credential, whose limits stay; a new credential of the pool where it has none, with this proxy of proxies.txt.

    Raises BadRequest for a token that cannot be one, Conflict for a label that was taken at this very moment, NotFound, StoreUnavailable.
    """
    ends = expiry(checked(session.token))
    if ends is not None and ends <= at:
        raise BadRequest("the token that it was given has expired already; is this host's clock right?")
    if own is None:
        label = _free_label(account, {item.label for item in database.read(pools.list_credentials)})
        extras = {PUID: session.puid} if session.puid is not None else None
        wishes = CredentialWishes(pool=POOL, extras=extras, proxy=None if proxy is None else Secret(proxy.url))
        return create_credential(database, secrets, label, session.token, at, wishes)
    kept = own
    if own.fingerprint != fingerprint(secrets.hasher, checked(session.token)):
        kept = replace_secret(database, secrets, own.label, session.token)
    return kept if session.puid is None else set_extra(database, secrets.vault, own.label, PUID, session.puid)


def _free_label(account: Account, taken: Collection[str]) -> str:
    """The address as a label, or with a number behind it."""
    wish = as_label(account.email) or POOL
    labels = itertools.chain((wish,), (f"{wish[:57]}-{number}" for number in itertools.count(2)))
    return next(label for label in labels if label not in taken)


def again_at(token: str, at: int) -> int:
    """When to sign in again, in Unix milliseconds: a week after `at`, or when four fifths of the token's life are over, where it says when it ends."""
    due, end = at + WEEK_MS, expiry(token)
    if end is not None:
        start = min(issued(token) or at, end)
        due = min(due, start + (end - start) * 4 // 5)
    return max(due, at + APART_MS)


def opened_proxy(vault: Vault, item: Credential) -> Proxy | None:
    """The credential's own. Raises SecretsError."""
    return None if item.proxy_sealed is None else Proxy.parse(vault.open(item.proxy_sealed, credential_proxy_place(item.id)))


def next_proxy(directory: Path, number: int) -> Proxy | None:
    """Of proxies.txt, the one whose turn it is for the pool's credential of this number; None where it names none that can be used."""
    try:
        proxies = read_proxies(read_if_there(directory / PROXIES) or b"")
    except BadRequest:
        return None  # the next start tells what is wrong with it
    return proxies[number % len(proxies)] if proxies else None
