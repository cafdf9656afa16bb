"""Receipts: what became of a call, for whoever owns the key that made it."""

from __future__ import annotations

import json
from typing import Any

from gateway.core.identity import Principal
from gateway.store import exchanges, ledger
from gateway.store.database import Database
from gateway.store.exchanges import ExchangeRow
from gateway.store.ledger import Entry


class Receipts:
    """Reads what the ledger wrote."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, exchange_id: str, principal: Principal) -> dict[str, Any] | None:
        """The whole receipt with what was booked; None where there is no such exchange, or it is another user's."""
        row, entry = self._database.read(lambda: (exchanges.find_exchange(exchange_id), ledger.find_entry(exchange_id)))
        if row is None or row.user != principal.user_id:
            return None
        return _receipt(row, entry)


def _receipt(row: ExchangeRow, entry: Entry | None) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads(row.receipt)
    booked = None
    if entry is not None:
        booked = {
            "amount_nano_usd": entry.amount,
            "usage": entry.usage.buckets(),
            "usage_source": entry.usage_source,
            "flags": list(entry.flags),
            "rates_pico_usd": dict(entry.rates),
            "model_served": entry.model_served,
        }
    return {**receipt, "booked": booked}
