"""The doctor: looks at everything that a working gateway needs and says what is wrong and what to do. Changes nothing, calls no upstream.

`doctor_host` looks at the machine, `doctor_url` at the public address; here are the installation and its database.
"""

from __future__ import annotations

import http.client
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway import plugins
from gateway.core.catalog import Snapshot
from gateway.errors import PluginError, SettingsError, StoreUnavailable
from gateway.operations.doctor_host import look_at_host
from gateway.operations.doctor_url import Site
from gateway.operations.findings import Finding, Verdict, ok, problem, warning
from gateway.operations.routes import loaded_catalog
from gateway.operations.server import NotReady, check_address, check_pepper, check_policy, missing_secrets, reachable_host, revealed
from gateway.secrets import Secrets, SecretsError, load_secrets
from gateway.settings import Settings
from gateway.store import accounts, audit, catalog, ledger
from gateway.store import server as database_server
from gateway.store.database import CannotOpen, Database, SchemaMismatch
from gateway.store.pools import credential_place
from gateway.store.server import ServerFacts

__all__ = ["Finding", "Verdict", "examine", "local_site"]

DAY_MS = 86_400_000
SAMPLE = 10_000
"""How many entries of the last day are looked at."""
VERIFIED_ENTRIES = 20_000
SHOWN = 5
"""How many differences of the ledger are told each by itself."""
SKEW_MS = 2_000
AHEAD_MS = 60_000
OLDEST_POSTGRES = 120_000
CONNECTIONS_A_WORKER = 3
"""A writer and two readers."""


def examine(settings: Settings, open_database: Callable[[Settings], Database], at: int) -> Iterator[Finding]:
    """Every finding, in an order in which they can be put right; `at` is now, in Unix milliseconds."""
    yield from _settings(settings)
    yield from _directories(settings)
    yield from _address(settings)
    yield from look_at_host(settings, Path.cwd())
    yield from _plugins(settings)
    secrets, finding = _secrets(settings)
    yield finding
    database = open_database(settings)
    try:
        yield from _database(settings, database, secrets, at)
    finally:
        database.close()


def _settings(settings: Settings) -> Iterator[Finding]:
    yield from (warning("settings", text) for text in settings.warnings)
    if not settings.warnings:
        yield ok("settings", "every setting is known and well formed")


def _directories(settings: Settings) -> Iterator[Finding]:
    for setting, path in (("GATEWAY_DATA_DIR", settings.data_dir.resolve()), ("GATEWAY_SECRETS_DIR", settings.secrets_path)):
        if not path.is_dir():
            yield warning("directories", f"{setting} {path} does not exist; `gateway migrate` makes it")
        elif _open_to_others(path):
            yield warning("directories", f"{setting} {path} is open to other users; chmod 700 {path}")
        else:
            yield ok("directories", f"{setting} {path}")


def _open_to_others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def _address(settings: Settings) -> Iterator[Finding]:
    place = f"port {settings.port} on {settings.host}"
    try:
        check_address(settings.host, settings.port)
    except NotReady as error:
        yield ok("address", f"a gateway answers at {place}") if _answers(settings) else problem("address", str(error))
    else:
        yield ok("address", f"{place} is free")


def local_site(settings: Settings) -> Site | None:
    """Where this host itself reaches the gateway that runs on it."""
    host = reachable_host(settings.host)
    return Site(f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}") if _answers(settings) else None


def _answers(settings: Settings) -> bool:
    connection = http.client.HTTPConnection(reachable_host(settings.host), settings.port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        return response.status == 200 and b"alive" in response.read(1000)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _plugins(settings: Settings) -> Iterator[Finding]:
    try:
        check_policy(settings)
    except PluginError as error:
        yield problem("plugins", f"GATEWAY_POLICY: {error}")
    for group in (plugins.BACKENDS, plugins.POLICIES):
        broken = [plugin for plugin in plugins.listing(group) if plugin.problem]
        yield from (warning("plugins", plugin.problem) for plugin in broken)
        if not broken:
            yield ok("plugins", f"every plugin of {group} can be loaded")


def _secrets(settings: Settings) -> tuple[Secrets | None, Finding]:
    try:
        secrets = load_secrets(settings.secrets_path, revealed(settings.master_key), revealed(settings.pepper), create=False)
    except SecretsError as error:
        missing = missing_secrets(settings)
        new = missing.master is not None and missing.pepper is not None and not settings.data_dir.exists()
        return None, problem("secrets", "there are none yet; `gateway migrate` makes them" if new else str(error))
    return secrets, ok("secrets", "they can be read, by this user only")


def _database(settings: Settings, database: Database, secrets: Secrets | None, at: int) -> Iterator[Finding]:
    try:
        pending = database.pending()
    except (SchemaMismatch, SettingsError) as error:
        yield problem("database", str(error))
        return
    except StoreUnavailable as error:
        yield problem("database", str(error.__cause__ if isinstance(error.__cause__, CannotOpen) else error))
        return
    if pending:
        yield problem("database", f"migrations are pending ({', '.join(pending)}); run `gateway migrate`")
        return
    yield ok("database", f"{database} is up to date")
    try:
        yield from _contents(settings, database, secrets, at)
    except StoreUnavailable as error:  # what was found before it is worth telling
        yield problem("database", str(error.__cause__ or error))


def _contents(settings: Settings, database: Database, secrets: Secrets | None, at: int) -> Iterator[Finding]:
    began = time.time_ns()
    facts = database.read(database_server.facts)
    if facts is not None:
        yield from _server(facts, (began + time.time_ns()) // 2_000_000, settings.workers)
    yield from _accounts(database)
    yield from _entries(database, at)
    if secrets is not None:
        yield (pepper := _pepper(database, secrets))
        yield from _catalog(settings, database, secrets, at)
        if pepper.verdict is Verdict.OK:
            yield from _books(database, secrets)


def _server(facts: ServerFacts, here: int, workers: int) -> Iterator[Finding]:
    """A PostgreSQL server; `here` is this host's time at the moment of its."""
    release = facts.version // 10_000
    if facts.version < OLDEST_POSTGRES:
        yield problem("database", f"PostgreSQL {release} is too old; upgrade to {OLDEST_POSTGRES // 10_000} or later")
    if not facts.may_write:
        yield problem("database", "this user may not write there, or the server is a standby: grant it the tables, or name the primary in DATABASE_URL")
    if not facts.may_migrate:
        yield warning("database", "this user may not create tables: run `gateway migrate` as one who may")
    if not facts.durable:
        yield problem("database", "fsync or synchronous_commit is off: what was booked can be lost with the server; set both to on")
    if facts.connections_left < workers * CONNECTIONS_A_WORKER:
        needed = workers * CONNECTIONS_A_WORKER
        yield warning("database", f"{facts.connections_left} connections are left, {workers} workers need {needed}; raise max_connections")
    apart = here - facts.at
    if abs(apart) > SKEW_MS:
        yield warning("clock", f"this host and the database's are {abs(apart) / 1000:.0f} s apart: run chrony or systemd-timesyncd on both")
    else:
        yield ok("database", f"PostgreSQL {release}, {facts.connections_left} connections left, its clock agrees")


def _pepper(database: Database, secrets: Secrets) -> Finding:
    try:
        check_pepper(database, secrets)
    except SecretsError as error:
        return problem("secrets", str(error))
    return ok("secrets", "the pepper is this database's")


def _accounts(database: Database) -> Iterator[Finding]:
    keys = database.read(accounts.list_keys)
    if not keys:
        yield warning("keys", "there is no API key yet: gateway user create NAME, then gateway key create --user NAME")
    else:
        yield ok("keys", f"API keys: {len(keys)}")


def _catalog(settings: Settings, database: Database, secrets: Secrets, at: int) -> Iterator[Finding]:
    yield from _credentials(database, secrets)
    loaded, backends = loaded_catalog(database, secrets.vault, settings)
    try:
        yield from _models(loaded.snapshot)
        yield from _prices(loaded.snapshot, settings.unpriced, at)
    finally:
        backends.close()


def _credentials(database: Database, secrets: Secrets) -> Iterator[Finding]:
    for credential in database.read(catalog.load).credentials:
        try:
            secrets.vault.open(credential.sealed, credential_place(credential.id))
        except SecretsError as error:
            yield problem("credentials", f"{credential.label}: {error}; `gateway credential replace {credential.label}` puts it right")
        else:
            yield ok("credentials", f"{credential.label} can be read")


def _models(snapshot: Snapshot) -> Iterator[Finding]:
    if not snapshot.deployments:
        yield warning("models", "there are no models yet: gateway deployment create NAME --model MODEL --backend BACKEND")
    for model, deployments in snapshot.deployments.items():
        for deployment in [each for each in deployments if each.problem]:
            told = warning if deployment.hosted and deployment.credential is None else problem  # its agents are yet to come
            yield told("deployments", f"{deployment.place} of the model {model} cannot be used: {deployment.problem}")
        for name in dict.fromkeys(each.name for each in deployments if not each.problem):
            yield ok("deployments", f"{name} of the model {model}")
        if not deployments:
            yield warning("models", f"{model} has no deployment that is enabled")


def _prices(snapshot: Snapshot, unpriced: str, at: int) -> Iterator[Finding]:
    """A glob counts as priced where one price covers whatever it matches."""
    effect = "its calls are refused" if unpriced == "refuse" else "its calls are free and flagged"
    found = problem if unpriced == "refuse" else warning
    names = {deployment.upstream_name(model) for model, deployments in snapshot.deployments.items() for deployment in deployments}
    without = sorted(name for name in names if snapshot.price(name, at) is None)
    yield from (found("prices", f"{name} has no price ({effect}): gateway price set '{name}' --input USD --output USD") for name in without)
    if not without:
        yield ok("prices", "every model has a price")


def _entries(database: Database, at: int) -> Iterator[Finding]:
    entries = database.read(lambda: ledger.entries(at - DAY_MS, at + DAY_MS, 0, SAMPLE))
    ahead = max((entry.at for entry in entries), default=0) - at
    if ahead > AHEAD_MS:
        yield problem(
            "clock", f"the newest entry of the ledger is {ahead / 60_000:.0f} minutes ahead of this host's clock: one of them was wrong; set the clock"
        )
    calls = [entry for entry in entries if entry.kind == "usage" and entry.corrects is None]
    free = [entry for entry in calls if entry.price is None]
    if free:
        models = ", ".join(sorted({entry.model_served for entry in free})[:5])
        yield warning("ledger", f"{len(free)} of {len(calls)} calls of the last 24 hours were booked without a price ({models})")
    else:
        yield ok("ledger", f"{len(calls)} calls in the last 24 hours, none without a price")


def _books(database: Database, secrets: Secrets) -> Iterator[Finding]:
    """What `gateway ledger verify` finds, where it takes a second or two."""
    if (size := database.read(audit.newest_entry)) > VERIFIED_ENTRIES:
        yield ok("ledger", f"about {size:,} entries are too many to be verified here: gateway ledger verify")
        return
    found = database.read(lambda: audit.audit(secrets.hasher.hash))
    for difference in found.differences[:SHOWN]:
        yield problem("ledger", f'{difference.row} {difference.problem}; docs/money.md, "Checking the books", says how to read this')
    if len(found.differences) > SHOWN:
        yield problem("ledger", f"{len(found.differences) - SHOWN} more differences: gateway ledger verify")
    if not found.differences:
        yield ok("ledger", f"{found.entries} entries and {found.windows} budget windows are verified")
