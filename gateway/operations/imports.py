"""Imports of credentials: what a file holds becomes credentials, all in one transaction; what is there already is recognised by its fingerprint."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from gateway.backend import Deadlines, ListsModels
from gateway.core.catalog import Deployment
from gateway.core.upstream_secrets import email, fingerprint, is_jwt
from gateway.errors import BadRequest, Blame, GatewayError, UpstreamRefused
from gateway.operations.credentials import PUID, change_extra, new_credential
from gateway.operations.import_formats import Found, as_label
from gateway.operations.names import check_name
from gateway.operations.routes import loaded_catalog
from gateway.secrets import Secrets, SecretsError, Vault
from gateway.settings import Settings
from gateway.store import catalog, pools
from gateway.store.database import Database
from gateway.store.pools import Credential, NewCredential, credential_place

POOL = "imported"
"""Where credentials stand for which neither the file nor the operator named a pool."""
PROBE_S = 10.0


class Outcome(enum.StrEnum):
    """What became of an entry: REFUSED ones are well formed, but cannot be used."""

    CREATED = "created"
    KNOWN = "known"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Imported:
    """An entry of the file. `label`: the credential's, also where it was there already; empty where it was refused. `detail` says why."""

    where: str
    outcome: Outcome
    label: str = ""
    pool: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Probed:
    """A credential was shown to its upstream. `problem` is empty where it was taken; `invalid`: the upstream says that the secret itself is bad."""

    label: str
    deployment: str
    problem: str = ""
    invalid: bool = False


@dataclass(frozen=True, slots=True)
class _Ready:
    """An entry that was checked, but for what only the database knows."""

    found: Found
    new: NewCredential
    email: str

    @property
    def mark(self) -> str:
        return self.new.fields["fingerprint"] or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """How to import: `pool` for entries that name none, `prefix` of the labels for those that have none, `jwt`: take nothing but JWTs."""

    pool: str = POOL
    prefix: str = ""
    jwt: bool = False


def import_credentials(
    database: Database, secrets: Secrets, found: Sequence[Found], how: Import, at: int, told: Callable[[int], None] = lambda done: None
) -> list[Imported]:
    """One result for each entry, in order; all credentials are made or none. `told` hears how many entries were checked.

    Raises BadRequest for the first entry that cannot be a credential, and StoreUnavailable.
    """
    ready = list(_checked(secrets, found, how, told))

    def create() -> list[Imported]:
        planned = _plan(secrets, ready, how, at)
        made = [replace(one.new, label=result.label) for one, result in zip(ready, planned, strict=True) if result.outcome is Outcome.CREATED]
        if made:
            pools.create_credentials(made, at)
        return planned

    return database.write(create)


def plan_import(
    database: Database, secrets: Secrets, found: Sequence[Found], how: Import, at: int, told: Callable[[int], None] = lambda done: None
) -> list[Imported]:
    """What an import would do now. Changes nothing. Raises as `import_credentials` does."""
    ready = list(_checked(secrets, found, how, told))
    return database.read(lambda: _plan(secrets, ready, how, at))


def replace_pool(database: Database, secrets: Secrets, found: Sequence[Found], pool: str, at: int) -> list[Credential]:
    """Let a pool hold these and no others, in one transaction. What it holds of them already stays as it is, but for its cookie.

    A credential that a deployment names by itself stays too. Raises BadRequest for the first entry that cannot be one, StoreUnavailable.
    """
    ready = list({one.mark: one for one in _checked(secrets, found, Import(pool=pool), lambda done: None)}.values())

    def change() -> list[Credential]:
        stored = pools.list_credentials()
        kept = {mark: item for item in stored if item.pool_name == pool and (mark := _mark(secrets, item))}
        free = _Labels({item.label for item in stored})
        new = [replace(one.new, label=free.named(one.email) if one.email else free.numbered(pool)) for one in ready if one.mark not in kept]
        if new:
            pools.create_credentials(new, at)
        for one in ready:
            if (item := kept.get(one.mark)) is not None:
                puid = (one.found.wishes.extras or {}).get(PUID)
                change_extra(secrets.vault, item, PUID, None if puid is None else puid.reveal())
        marks, named = {one.mark for one in ready}, {row.credential_id for row in catalog.list_deployments()}
        pools.delete_credentials([item.id for mark, item in kept.items() if mark not in marks and item.id not in named])
        return [item for item in pools.list_credentials() if item.pool_name == pool]

    return database.write(change)


def _checked(secrets: Secrets, found: Iterable[Found], how: Import, told: Callable[[int], None]) -> Iterator[_Ready]:
    check_name("pool", how.pool)
    if how.prefix:
        check_name("prefix", how.prefix)
    for number, one in enumerate(found, 1):
        try:
            yield _ready(secrets, one, how)
        except BadRequest as error:
            raise BadRequest(f"{one.where}: {error}") from error
        told(number)


def _ready(secrets: Secrets, found: Found, how: Import) -> _Ready:
    plain = found.secret.reveal()
    if found.label:
        check_name("credential", found.label)
    if how.jwt and not is_jwt(plain):
        raise BadRequest("it is not an access token: those are JWTs, three parts with dots between them")
    new = new_credential(secrets, found.secret, replace(found.wishes, pool=found.wishes.pool or how.pool))
    whose = email(plain)
    return _Ready(found, new, as_label(whose) if whose else "")


def _plan(secrets: Secrets, ready: Sequence[_Ready], how: Import, at: int) -> list[Imported]:
    """For use inside a database work."""
    stored = pools.list_credentials()
    labels = {mark: item.label for item in stored if (mark := _mark(secrets, item))}
    owned = {item.label for item in stored}
    free = _Labels(owned | {one.found.label for one in ready})
    planned: list[Imported] = []
    for one in ready:
        if one.mark in labels:
            planned.append(Imported(one.found.where, Outcome.KNOWN, labels[one.mark], detail="the same secret is there already"))
            continue
        reason = _refusal(one, owned, at)
        if reason:
            planned.append(Imported(one.found.where, Outcome.REFUSED, detail=reason))
            continue
        label = one.found.label or (free.named(one.email) if one.email else free.numbered(how.prefix or how.pool))
        labels[one.mark] = label
        owned.add(label)
        planned.append(Imported(one.found.where, Outcome.CREATED, label, one.new.pool))
    return planned


def _mark(secrets: Secrets, item: Credential) -> str | None:
    """Credentials from before there were fingerprints are opened for it; what does not open cannot be compared."""
    if item.fingerprint is not None:
        return item.fingerprint
    try:
        return fingerprint(secrets.hasher, secrets.vault.open(item.sealed, credential_place(item.id)))
    except SecretsError:
        return None


def _refusal(one: _Ready, owned: set[str], at: int) -> str:
    if one.found.label in owned:
        return f"there is another credential {one.found.label}"
    expires_at = one.new.fields.get("expires_at")
    if expires_at is not None and expires_at <= at:
        return f"it expired on {datetime.fromtimestamp(expires_at // 1000, UTC).date()}"
    return ""


class _Labels:
    """Finds labels that are free. Remembers how far it counted: ten thousand entries share one prefix."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._counted: dict[str, int] = {}

    def numbered(self, prefix: str) -> str:
        """The prefix, cut where it is too long, and the next number."""
        number = self._counted.get(prefix, 0) + 1
        while (label := f"{prefix[: 63 - len(str(number))]}-{number}") in self._taken:
            number += 1
        self._counted[prefix] = number
        self._taken.add(label)
        return label

    def named(self, wish: str) -> str:
        """The wish, or the next number behind it."""
        if wish in self._taken:
            return self.numbered(wish)
        self._taken.add(wish)
        return wish


def probe_credentials(
    database: Database, vault: Vault, settings: Settings, labels: Sequence[str], clock: Callable[[], float] = time.monotonic
) -> Iterator[Probed]:
    """Show each credential to an upstream of a deployment that may present it, by asking for the list of models, which is never billed.

    Raises StoreUnavailable.
    """
    loaded, backends = loaded_catalog(database, vault, settings)
    try:
        users: dict[str, Deployment] = {}
        for deployments in loaded.snapshot.deployments.values():
            for each in deployments:
                if each.credential is not None and (each.credential not in users or not each.problem):
                    users[each.credential] = each
        for label in labels:
            yield _probed(label, users.get(label), clock)
    finally:
        backends.close()


def _probed(label: str, deployment: Deployment | None, clock: Callable[[], float]) -> Probed:
    if deployment is None:
        return Probed(label, "", "no deployment presents it")
    if deployment.problem or not isinstance(deployment.backend, ListsModels):
        return Probed(label, deployment.name, deployment.problem or f"the backend {deployment.backend_name} lists no models, so it cannot be tested for free")
    target = replace(
        deployment.target(""), deadlines=Deadlines(connect_s=deployment.deadlines.connect_s, first_byte_s=PROBE_S, idle_s=PROBE_S, total_s=PROBE_S)
    )
    try:
        deployment.backend.models(target, clock() + PROBE_S)
    except GatewayError as error:
        return Probed(label, deployment.name, str(error), isinstance(error, UpstreamRefused) and error.blame is Blame.CREDENTIAL_INVALID)
    return Probed(label, deployment.name)
