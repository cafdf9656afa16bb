"""The books as an operator checks them."""

from __future__ import annotations

import contextlib

from gateway.store import audit
from gateway.store.audit import Audit
from gateway.store.database import Database
from gateway.store.ledger import Seal

PATIENCE_S = 3600.0
"""The whole ledger is read in one transaction."""


def verify(database_url: str, seal: Seal) -> Audit:
    """Recompute every counter from the entries, and check each entry's seal. Raises StoreUnavailable."""
    with contextlib.closing(Database(database_url, timeout_s=PATIENCE_S)) as database:
        database.bind()
        return database.read(lambda: audit.audit(seal))


def rebuild(database_url: str) -> int:
    """Put every budget window's counters right; how many were wrong. Calls wait meanwhile. Raises StoreUnavailable."""
    with contextlib.closing(Database(database_url, timeout_s=PATIENCE_S)) as database:
        database.bind()
        return database.write(audit.rebuild)
