"""What `gateway serve` and `gateway migrate` do before the server runs: directories, migrations, secrets, the first key."""

from __future__ import annotations

import errno
import hmac
import importlib.util
import os
import socket
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from gateway import plugins
from gateway.backend import Secret
from gateway.core.globs import is_glob
from gateway.operations import api_server, chatgpt_to_api
from gateway.operations.keys import MintedKey, insert_key
from gateway.operations.prices import completed
from gateway.secrets import KeyHasher, Secrets, SecretsError, load_secrets, mint_key
from gateway.settings import Settings
from gateway.store import accounts, catalog, pools
from gateway.store.accounts import ApiKey, User
from gateway.store.database import Conflict, Database

ECHO = "echo"
FIRST_USER, FIRST_LABEL = "admin", "first"
UNTOUCHED = 1
"""The generation of a database in which nothing was ever configured."""


class NotReady(Exception):
    """This installation, as it stands, cannot do what was asked; one line that says what to change."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """`applied`: names of the migrations. `seeded`: the model echo was made, since the database was new. `notes`: what else is worth knowing."""

    applied: tuple[str, ...]
    secrets: Secrets
    seeded: bool
    notes: tuple[str, ...] = ()


def prepare(settings: Settings, database: Database, at: int) -> Prepared:
    """Make or bring up to date what a worker needs: the data directory, the schema, the secrets. May be run at any time, by several at once.

    Raises NotReady, SecretsError, CannotOpen, SchemaMismatch, StoreUnavailable.
    """
    _make_directory(settings.data_dir.resolve(), "GATEWAY_DATA_DIR")
    _make_directory(settings.run_path, "GATEWAY_RUN_DIR")
    applied = tuple(database.migrate())
    in_use = database.read(lambda: (bool(accounts.list_keys()), bool(pools.list_credentials())))
    secrets = _secrets(settings, keys_in_use=in_use[0], credentials_in_use=in_use[1])
    database.write(lambda: accounts.note_pepper(secrets.hasher.mark))
    check_pepper(database, secrets)
    try:
        seeded = database.write(lambda: _seed(at))
    except Conflict:  # another process, at this very moment
        seeded = False
    notes = chatgpt_to_api.take_over(settings, database, secrets, at) + api_server.take_over(settings, database, secrets, at)
    return Prepared(applied, secrets, seeded, notes)


def _make_directory(path: Path, setting: str) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NotReady(f"cannot make the directory {path}: {error.strerror}; set {setting} to a place that can be written") from error
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        raise NotReady(f"the directory {path} cannot be written; set {setting} to one that can")


def _secrets(settings: Settings, *, keys_in_use: bool, credentials_in_use: bool) -> Secrets:
    """The secrets, made where nothing depends on them yet. New ones beside old rows would lock out every key, and no credential would open."""
    missing = missing_secrets(settings)
    lost = [path for path, in_use in ((missing.pepper, keys_in_use), (missing.master, credentials_in_use)) if path is not None and in_use]
    if lost:
        rows = "API keys" if lost[0] == missing.pepper else "credentials"
        raise SecretsError(f"{lost[0]} is missing, and the database holds {rows} made with it; restore your copy of it: a new one could not read them")
    return load_secrets(settings.secrets_path, revealed(settings.master_key), revealed(settings.pepper), create=True)


def check_pepper(database: Database, secrets: Secrets) -> None:
    """Raises SecretsError for a pepper with which no key of this database would be recognised."""
    noted = database.read(accounts.pepper_mark)
    if noted is not None and not hmac.compare_digest(noted, secrets.hasher.mark):
        raise SecretsError("the pepper is not the one that this database's API keys were made with: none would be recognised; restore your copy of it")


@dataclass(frozen=True, slots=True)
class MissingSecrets:
    """The file of each secret that is neither there nor given by the environment."""

    master: Path | None
    pepper: Path | None


def missing_secrets(settings: Settings) -> MissingSecrets:
    def missing(name: str, given: Secret | None) -> Path | None:
        path = settings.secrets_path / name
        return path if given is None and not _exists(path) else None

    return MissingSecrets(missing("master.key", settings.master_key), missing("pepper.key", settings.pepper))


def _exists(path: Path) -> bool:
    """A directory that this user may not enter is no proof that the file is missing."""
    try:
        return path.exists()
    except PermissionError:
        return True


def revealed(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()


def _seed(at: int) -> bool:
    """A model that answers without a key and without a network, at the price of nothing; once, in a database that is new."""
    if catalog.generation() != UNTOUCHED:
        return False
    model = catalog.create_model(ECHO, at)
    catalog.create_deployment(ECHO, model.id, ECHO, at)
    catalog.add_price(ECHO, 0, completed({}), at, source="seed")
    return True


def first_key(database: Database, hasher: KeyHasher, at: int) -> MintedKey | None:
    """At the first start a user and its key, both or neither; None where there is a user, but for those that older programs had."""
    secret = mint_key()

    def create() -> ApiKey | None:
        if _own_users():
            return None
        return insert_key(secret, hasher, accounts.create_user(FIRST_USER, at).id, at, FIRST_LABEL, None)

    try:
        key = database.write(create)
    except Conflict:  # another process, at this very moment
        key = None
    return None if key is None else MintedKey(key, Secret(secret))


def example_user(database: Database) -> str:
    """A user whom a printed command can name."""
    return next((user.name for user in database.read(_own_users)), FIRST_USER)


def _own_users() -> list[User]:
    """All but those who have keys of one family of the API only. For use inside a database work."""
    keys = accounts.list_keys()
    of_a_family = {key.user_id for key in keys if key.family is not None} - {key.user_id for key in keys if key.family is None}
    return [user for user in accounts.list_users() if user.id not in of_a_family]


def example_model(database: Database) -> str:
    """A model for the printed request: echo, while it is there."""
    names = [model.name for model in database.read(catalog.list_models)]
    exact = [name for name in names if not is_glob(name)]
    return ECHO if ECHO in names or not exact else exact[0]


def reachable_host(host: str) -> str:
    """Where this host itself reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  nothing is bound here


def check_address(host: str, port: int) -> None:
    """Raises NotReady where the server could not listen."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gunicorn does: a closed connection's remains do not count
            probe.bind(address)
    except (socket.gaierror, UnicodeError) as error:
        raise NotReady(f"{host!r} is not an address of this host; set GATEWAY_HOST") from error
    except OSError as error:
        raise NotReady(_bind_failure(host, port, error)) from error


def _bind_failure(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; set GATEWAY_PORT"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is not allowed to this user; set GATEWAY_PORT to 1024 or more"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host!r} is not an address of this host; set GATEWAY_HOST"
    return f"cannot listen on port {port} of {host}: {error.strerror}"


def check_policy(settings: Settings) -> None:
    """Raises PluginError for a policy that workers could not load."""
    plugins.resolve(plugins.POLICIES, settings.policy)


def server_command() -> list[str]:
    """The command that becomes the server: gunicorn with the configuration that is shipped. Raises NotReady."""
    return [sys.executable, "-m", "gunicorn", "-c", str(_gunicorn_config())]


def _gunicorn_config() -> Path:
    """Beside wsgi.py in a source tree, under share/ where a wheel was installed."""
    spec = importlib.util.find_spec("wsgi")
    if spec is None or spec.origin is None:
        raise NotReady("the module wsgi is missing: install the gateway again")
    own, here = Path(spec.origin).resolve(), Path("wsgi.py").resolve()
    if here.exists() and here != own:
        raise NotReady(f"{here} would be served in the gateway's place; start in another directory")
    shares = [Path(root) / "share" / "chat-gateway" for root in dict.fromkeys((sysconfig.get_path("data"), sys.prefix))]
    found = next((path for place in (own.parent, *shares) if (path := place / "gunicorn.conf.py").is_file()), None)
    if found is None:
        raise NotReady("gunicorn.conf.py was not installed with the gateway: install it again")
    return found
