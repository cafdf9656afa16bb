"""What commands work on: the settings, the database of this installation, its secrets, the time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.operations.server import NotReady, revealed
from gateway.secrets import Secrets, load_secrets
from gateway.settings import Settings
from gateway.store.database import Database

PATIENCE_S, READING_S = 5.0, 3600.0
"""How long a command waits for the database: an ordinary one, and one that sums up the ledger's entries, of which there may be millions."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def bound_database(settings: Settings, patience_s: float | None = None) -> Database:
    """The process's database. The caller closes it."""
    database = Database(settings.database, timeout_s=PATIENCE_S if patience_s is None else patience_s)
    database.bind()
    return database


def load_existing_secrets(settings: Settings) -> Secrets:
    """Raises SecretsError where they are missing: only `migrate` and `serve` make them."""
    return load_secrets(settings.secrets_path, revealed(settings.master_key), revealed(settings.pepper), create=False)


@dataclass(frozen=True, slots=True)
class Opened:
    """An installation whose database is up to date."""

    settings: Settings
    database: Database

    def secrets(self) -> Secrets:
        return load_existing_secrets(self.settings)


@contextlib.contextmanager
def opened(patience_s: float | None = None) -> Iterator[Opened]:
    """Raises SettingsError, StoreUnavailable, SchemaMismatch, and NotReady while migrations are pending."""
    settings = Settings.load()
    database = bound_database(settings, patience_s)
    try:
        pending = database.pending()
        if pending:
            raise NotReady(f"migrations are pending ({', '.join(pending)}); run `gateway migrate`")
        yield Opened(settings, database)
    finally:
        database.close()
