"""The chatgpt-to-api family's configuration: its files and settings become a pool and a deployment, and its admin routes change them.

The database is what counts: a file or a setting is taken over when it changed, so what an operator did to the pool since is not undone.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.backend import Proxy, Secret
from gateway.core.upstream_secrets import checked, fingerprint
from gateway.errors import BadRequest
from gateway.operations import import_formats, imports
from gateway.operations.accounts_file import told_of_accounts
from gateway.operations.catalog import Wishes, create_deployment, set_deployment
from gateway.operations.credentials import PUID, CredentialWishes, create_credential, replace_secret, set_credential, set_extra
from gateway.operations.import_formats import Found
from gateway.operations.imports import Import, Outcome
from gateway.operations.token_files import PROXIES, TOKENS, AccessToken, read_if_there, read_proxies, write_tokens
from gateway.secrets import Secrets
from gateway.settings import Settings
from gateway.store import catalog, pools
from gateway.store.database import Conflict, Database
from gateway.store.pools import Credential, credential_place, extras_place

log = logging.getLogger(__name__)
POOL = "access-tokens"
NAME = "chatgpt-to-api"
"""Of the family's user, its model and its deployment."""
OFFICIAL_KEY, PASSWORD = "official-api-key", "chatgpt-to-api-password"
_SEEN = ".chatgpt-to-api.seen"
"""Fingerprints of what was taken over last, a line each: in the data directory, with the files themselves."""


def take_over(settings: Settings, database: Database, secrets: Secrets, at: int) -> tuple[str, ...]:
    """Take over the family's files and settings that changed since the last time. Returns what the operator should know, a line each.

    What is wrong with a file leaves the pool as it is. Raises StoreUnavailable.
    """
    directory, notes = settings.data_dir.resolve(), list[str]()
    seen = _seen(directory)
    sources = _sources(settings, directory, secrets, notes)
    now: dict[str, str] = {}
    for name, (mark, raw) in sources.items():
        if seen.get(name) == mark or _taken(database, secrets, settings, name, raw, at, notes):
            now[name] = mark
    _take_proxies(database, secrets, directory, seen, now, notes)
    notes += told_of_accounts(directory, secrets.hasher)
    if (settings.openai_email is None) != (settings.openai_password is None):
        notes.append("OPENAI_EMAIL and OPENAI_PASSWORD: one of them alone signs nobody in")
    if members(database):
        serve_pool(database, secrets, settings, at)
    if now != seen and (now or seen):
        _note_seen(directory, now)
    return tuple(notes)


def _sources(settings: Settings, directory: Path, secrets: Secrets, notes: list[str]) -> dict[str, tuple[str, bytes]]:
    """By name, what tokens come from, with the fingerprint of each."""
    sources: dict[str, bytes] = {}
    try:
        if raw := read_if_there(directory / TOKENS):
            sources[TOKENS] = raw
    except BadRequest as error:
        notes.append(f"{error}; the pool {POOL} stays as it is")
    if settings.access_tokens is not None:
        tokens = [each.strip() for each in settings.access_tokens.reveal().split(",") if each.strip()]
        sources["ACCESS_TOKENS"] = json.dumps(tokens).encode()
    return {name: (fingerprint(secrets.hasher, raw.hex()), raw) for name, raw in sources.items()}


def _with_puid(found: Found, puid: Secret | None) -> Found:
    """PUID goes along with tokens that have no other. A number is another program's: containers know a user's id by this name."""
    if puid is None or puid.reveal().isdecimal() or found.wishes.extras:
        return found
    return replace(found, wishes=replace(found.wishes, extras={PUID: puid}))


def _taken(database: Database, secrets: Secrets, settings: Settings, name: str, raw: bytes, at: int, notes: list[str]) -> bool:
    try:
        found = [_with_puid(one, settings.puid) for one in import_formats.of_json(import_formats.parsed(raw), only_tokens=True)]
        results = imports.import_credentials(database, secrets, found, Import(pool=POOL, jwt=True), at)
    except (BadRequest, Conflict) as error:  # a conflict: another process took over the same at this very moment
        notes.append(f"{name}: {error}; none of its tokens is taken, and the pool {POOL} stays as it is")
        return False
    created = sum(each.outcome is Outcome.CREATED for each in results)
    if created:
        notes.append(f"{name}: {created} new tokens in the pool {POOL}")
    notes += [f"{name}, {each.where} is not taken: {each.detail}" for each in results if each.outcome is Outcome.REFUSED]
    return True


def _take_proxies(database: Database, secrets: Secrets, directory: Path, seen: Mapping[str, str], now: dict[str, str], notes: list[str]) -> None:
    """The pool's credentials take the file's proxies in turn."""
    try:
        raw = read_if_there(directory / PROXIES)
        proxies = read_proxies(raw) if raw else ()
    except BadRequest as error:
        notes.append(f"{error}; no proxy is changed")
        return
    tokens = members(database)
    mark = fingerprint(secrets.hasher, f"{[each.url for each in proxies]} {[item.id for item in tokens]}")
    if not proxies:
        return
    now[PROXIES] = mark
    if seen.get(PROXIES) != mark:
        for number, item in enumerate(tokens):
            proxy = Secret(proxies[number % len(proxies)].url)
            set_credential(database, secrets.vault, item.label, CredentialWishes(proxy=proxy))
        notes.append(f"{PROXIES}: {len(proxies)} proxies for {len(tokens)} tokens")


def members(database: Database) -> list[Credential]:
    """The pool's. Raises StoreUnavailable."""
    return [item for item in database.read(pools.list_credentials) if item.pool_name == POOL]


def serve_pool(database: Database, secrets: Secrets, settings: Settings, at: int) -> None:
    """Make the family's deployment, or bring it in line with the settings. Raises StoreUnavailable."""
    place, proxy = web_place(settings), usable_proxy(settings)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in place.options.items()}
    wishes = Wishes(base_url=place.base_url, pool=POOL, proxy=Secret("" if proxy is None else proxy.url), options=texts)
    if database.read(lambda: catalog.find_deployment(NAME)) is not None:
        set_deployment(database, NAME, wishes, secrets.vault)
        return
    try:
        create_deployment(database, NAME, NAME, "access_token", at, wishes, secrets.vault)
    except Conflict:  # another process, at this very moment
        log.debug("the deployment %s is there already", NAME)


def serve_pool_once(database: Database, secrets: Secrets, settings: Settings, at: int) -> None:
    """Make the family's deployment where it is missing. Raises StoreUnavailable."""
    if database.read(lambda: catalog.find_deployment(NAME)) is None:
        serve_pool(database, secrets, settings, at)


@dataclass(frozen=True, slots=True)
class WebPlace:
    """Where conversations are asked for, and the options of the backend that does."""

    base_url: str
    options: Mapping[str, Any]


def web_place(settings: Settings) -> WebPlace:
    base_url, _, last = (settings.conversation_url or f"{settings.chatgpt_base_url}/backend-api/conversation").rpartition("/")
    return WebPlace(base_url, {"conversation_path": f"/{last}", "history": settings.history})


def usable_proxy(settings: Settings) -> Proxy | None:
    """The proxy that the environment names, told without its password; None where there is none, or one that cannot be used."""
    if settings.http_proxy is None:
        return None
    try:
        proxy = Proxy.parse(settings.http_proxy.reveal())
    except BadRequest as error:
        log.warning("http_proxy is not used: %s", error)
        return None
    log.info("http_proxy: %s goes through %s", NAME, proxy)
    return proxy


def replace_tokens(database: Database, secrets: Secrets, settings: Settings, document: Any, at: int) -> int:
    """PATCH /admin/tokens: the whole pool and the file. Raises BadRequest, StoreUnavailable."""
    found = import_formats.of_json(document, only_tokens=True)
    if not found:
        raise BadRequest("an empty list would leave no token")
    imports.replace_pool(database, secrets, found, POOL, at)
    serve_pool(database, secrets, settings, at)
    tokens = [AccessToken(each.secret, (each.wishes.extras or {}).get(PUID, Secret(""))) for each in found]
    _mirror(secrets, settings.data_dir.resolve(), tokens)
    return len(found)


def mirror_pool(database: Database, secrets: Secrets, settings: Settings, at: int) -> bool:
    """Write the pool's tokens to access_tokens.json, once what was put there since the last time is taken over. Whether it is written.

    A file that cannot be taken over is left as it is. Raises StoreUnavailable, and SecretsError for a token that does not open.
    """
    directory, notes = settings.data_dir.resolve(), list[str]()
    source = _sources(replace(settings, access_tokens=None), directory, secrets, notes).get(TOKENS)
    readable = not notes
    known = readable and (source is None or _seen(directory).get(TOKENS) == source[0])
    fit = known or (source is not None and _taken(database, secrets, settings, TOKENS, source[1], at, notes))
    for note in notes:
        log.warning("%s", note)
    return fit and _mirror(secrets, directory, [_opened(secrets, item) for item in members(database)])


def _opened(secrets: Secrets, item: Credential) -> AccessToken:
    extras = {} if item.extras is None else json.loads(secrets.vault.open(item.extras, extras_place(item.id)))
    return AccessToken(Secret(secrets.vault.open(item.sealed, credential_place(item.id))), Secret(extras.get(PUID, "")))


def _mirror(secrets: Secrets, directory: Path, tokens: Sequence[AccessToken]) -> bool:
    """Whether it is written."""
    try:
        write_tokens(directory, tokens)
        raw = read_if_there(directory / TOKENS) or b""
        _note_seen(directory, {**_seen(directory), TOKENS: fingerprint(secrets.hasher, raw.hex())})
    except OSError as error:
        log.warning("%s is not written (%s); the pool %s is what counts", TOKENS, error.strerror, POOL)
        return False
    return True


def set_puid(database: Database, secrets: Secrets, puid: Secret) -> None:
    """PATCH /admin/puid: the cookie of every token of the pool. Raises BadRequest, StoreUnavailable."""
    checked(puid)
    for item in members(database):
        set_extra(database, secrets.vault, item.label, PUID, puid)


def set_official_key(database: Database, secrets: Secrets, key: Secret, at: int) -> None:
    """PATCH /admin/openai. Raises BadRequest, StoreUnavailable."""
    _keep(database, secrets, OFFICIAL_KEY, key, at)


def official_key(database: Database, secrets: Secrets, settings: Settings) -> Secret | None:
    """The one that was patched in, else the setting's."""
    kept = _kept(database, secrets, OFFICIAL_KEY)
    return settings.official_api_key if kept is None else kept


def set_password(database: Database, secrets: Secrets, settings: Settings, password: Secret, at: int) -> None:
    """PATCH /admin/password: it counts until the setting changes. Raises BadRequest, StoreUnavailable."""
    label = _password_label(secrets, settings)
    _keep(database, secrets, label, password, at)


def is_admin(database: Database, secrets: Secrets, settings: Settings, shown: str) -> bool:
    """Whether this is the admin's password. Nothing is, where ADMIN_PASSWORD is not set. Raises StoreUnavailable."""
    if settings.admin_password is None:
        return False
    password = _kept(database, secrets, _password_label(secrets, settings)) or settings.admin_password
    return hmac.compare_digest(shown.encode("latin-1", "replace"), password.reveal().encode())


def _password_label(secrets: Secrets, settings: Settings) -> str:
    """Of the setting's password: another setting finds nothing kept, and counts again."""
    setting = "" if settings.admin_password is None else settings.admin_password.reveal()
    return f"{PASSWORD}-{fingerprint(secrets.hasher, setting)[:12]}"


def _keep(database: Database, secrets: Secrets, label: str, secret: Secret, at: int) -> None:
    if database.read(lambda: pools.find_credential(label)) is None:
        try:
            create_credential(database, secrets, label, secret, at)
            return
        except Conflict:  # another worker, at this very moment
            log.debug("the credential %s is there already", label)
    replace_secret(database, secrets, label, secret)


def _kept(database: Database, secrets: Secrets, label: str) -> Secret | None:
    found = database.read(lambda: pools.find_credential(label))
    return None if found is None else Secret(secrets.vault.open(found.sealed, credential_place(found.id)))


def _seen(directory: Path) -> dict[str, str]:
    try:
        lines = (directory / _SEEN).read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: mark for name, _, mark in (line.partition(" ") for line in lines) if mark}


def _note_seen(directory: Path, marks: Mapping[str, str]) -> None:
    """Not kept where the directory cannot be written: the same is found again, and is there already."""
    try:
        (directory / _SEEN).write_text("".join(f"{name} {mark}\n" for name, mark in sorted(marks.items())), "ascii")
    except OSError as error:
        log.warning("%s cannot be written: %s", _SEEN, error.strerror)
