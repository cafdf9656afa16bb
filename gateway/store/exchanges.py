"""What became of each call, with its receipt. Carries no money; retention may delete it. To be called inside a work of `Database`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

from gateway.store.models import ExchangeTableRow, database, storable
from gateway.store.statements import executemany, insert_sql


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    """`receipt` is JSON text. `api_key` and `user` are ids, None where the call was refused before they were known."""

    id: str
    owner: str | None
    api_key: int | None
    user: int | None
    model: str | None
    status: int
    ending: str
    receipt: str
    at: int


_NAMES = tuple(item.name for item in fields(ExchangeRow))
_VALUES = attrgetter(*_NAMES)
_UPSERT = insert_sql("exchange", _NAMES, "(id) DO UPDATE SET " + ", ".join(f'"{name}" = excluded."{name}"' for name in _NAMES[1:]))


def save(rows: Sequence[ExchangeRow]) -> None:
    """Insert, or replace what is stored under the same id."""
    executemany(database, _UPSERT, [storable(_VALUES(row)) for row in rows])


def find_exchange(exchange_id: str) -> ExchangeRow | None:
    (clean,) = storable((exchange_id,))
    row = ExchangeTableRow.get_or_none(ExchangeTableRow.id == clean)
    return None if row is None else ExchangeRow(*(getattr(row, name) for name in _NAMES))
