"""Entries as calls leave them."""

from __future__ import annotations

from gateway.store import ledger
from gateway.store.database import Database
from gateway.store.exchanges import ExchangeRow
from gateway.store.ledger import Entry


def book(database: Database, *entries: Entry) -> None:
    """Originals and corrections alike; no budget's window is moved."""
    items = [(entry, ExchangeRow(entry.exchange, "w", entry.api_key, entry.user, "m", 200, entry.ending, "{}", entry.at)) for entry in entries]
    database.write(lambda: ledger.record(items))
