"""What keys used and were charged altogether, from the ledger. To be called inside a work of `Database`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peewee import Case, chunked, fn

from gateway.dialects.events import BUCKETS
from gateway.store.models_money import EntryRow

CHUNK = 500


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """Amounts are nano-USD, without credits; `buckets` are tokens; `last_at` is None where nothing was booked."""

    calls: int
    buckets: dict[str, int]
    amount: int
    cost: int
    last_at: int | None


NOTHING = KeyUsage(0, dict.fromkeys(BUCKETS, 0), 0, 0, None)


def key_usage(key_ids: Sequence[int]) -> dict[int, KeyUsage]:
    """By the key's id, those left out of which nothing was booked. Corrections count in the sums, not as calls."""
    calls = Case(None, (((EntryRow.kind == "usage") & EntryRow.corrects.is_null(), 1),), 0)
    sums = [fn.SUM(column) for column in (calls, EntryRow.amount, EntryRow.cost, *(getattr(EntryRow, name) for name in BUCKETS))]
    found: dict[int, KeyUsage] = {}
    for some in chunked(key_ids, CHUNK):
        booked = EntryRow.api_key.in_(some) & (EntryRow.model_asked != "")
        rows: Any = EntryRow.select(EntryRow.api_key, fn.MAX(EntryRow.at), *sums).where(booked).group_by(EntryRow.api_key).tuples()
        for key_id, last_at, *numbers in rows:
            count, amount, cost, *tokens = (int(number or 0) for number in numbers)  # PostgreSQL sums into decimals
            found[key_id] = KeyUsage(count, dict(zip(BUCKETS, tokens, strict=True)), amount, cost, last_at)
    return found
