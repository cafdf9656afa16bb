from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from gateway.dialects.events import Usage
from gateway.errors import BadRequest
from gateway.operations import keys, ledger, users
from gateway.secrets import Secrets
from gateway.store.database import Database
from gateway.store.ledger import SEALED, Entry, booked_rows, sealed_text
from gateway.store.models import database as bound
from tests.unit.operations.booked import book, seal
from tests.unit.operations.times import AT


def entry(exchange: str, at: int = AT, **members: Any) -> Entry:
    plain: dict[str, Any] = {
        "kind": "usage",
        "attempt": 1,
        "api_key": 1,
        "user": 1,
        "amount": 8_517_500,
        "cost": 7,
        "usage": Usage(1, 2, raw={"total_tokens": 3}),
    }
    words = {"ending": "complete", "usage_source": "provider", "model_asked": "m", "model_served": "m-1", "deployment": "d", "total_ms": 5}
    return Entry(exchange, at=at, **(plain | words | members))


def test_an_export_has_every_column_of_an_entry_exactly_and_the_names_that_go_with_it(database: Database, secrets: Secrets) -> None:
    users.create_user(database, "ann", AT)
    keys.create_key(database, secrets.hasher, "ann", AT, label="laptop")
    book(database, entry("x", AT + 7, flags=("unpriced",), rates={"output_text": 10}, windows=(3, 4), note="by hand"))

    (row,) = ledger.export(database, AT, AT + 8)
    assert tuple(row) == ledger.COLUMNS
    assert (row["at"], row["at_ms"]) == ("2027-01-15T08:00:00.007+00:00", AT + 7)
    assert (row["key_id"], row["key"], row["user_id"], row["user"], row["team_id"], row["team"]) == (1, "laptop", 1, "ann", None, None)
    assert (row["amount_usd"], row["amount_nano_usd"]) == (Decimal("0.008517500"), 8_517_500)
    assert (row["usage_raw"], row["flags"], row["rates"], row["windows"]) == ({"total_tokens": 3}, ["unpriced"], {"output_text": 10}, [3, 4])
    assert (row["input_uncached"], row["cache_read"], row["note"], row["model_served"]) == (1, 2, "by hand", "m-1")


def test_the_seal_comes_along_and_fits_the_row(database: Database) -> None:
    book(database, entry("x"))
    (row,) = ledger.export(database, AT, AT + 1)
    (stored,) = database.read(lambda: booked_rows(AT, AT + 1, (AT, 0), 10))
    assert row["seal"] == seal(sealed_text([stored[name] for name in SEALED]))


def test_pages_follow_each_other_without_a_gap_or_a_double(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among them several of the same moment, and one that was booked late."""
    monkeypatch.setattr(ledger, "EXPORT_PAGE", 3)
    moments = [1, 2, 2, 2, 2, 2, 3, 0, 5]
    book(database, *(entry(f"x{number}", AT + moment) for number, moment in enumerate(moments)))
    found = [row["exchange"] for row in ledger.export(database, AT, AT + 4)]
    assert found == ["x7", "x0", "x1", "x2", "x3", "x4", "x5", "x6"]


def test_entries_that_are_booked_between_pages_harm_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "EXPORT_PAGE", 1)
    book(database, entry("x1", AT), entry("x3", AT + 2))
    rows = ledger.export(database, AT, AT + 9)
    first = next(rows)
    book(database, entry("x0", AT - 1), entry("x2", AT + 1))
    assert [first["exchange"], *(row["exchange"] for row in rows)] == ["x1", "x2", "x3"]


def test_a_row_that_somebody_wrote_over_is_shown_as_it_stands(database: Database) -> None:
    book(database, entry("x"))

    def write_over() -> None:
        bound.execute_sql("DROP TRIGGER entry_keeps_updates_out")
        bound.execute_sql("UPDATE entry SET rates = 'no json', usage_raw = '{'")

    database.write(write_over)
    (row,) = ledger.export(database, AT, AT + 1)
    assert (row["rates"], row["usage_raw"]) == ("no json", "{")


def test_a_period_that_ends_before_it_begins_is_refused_at_once(database: Database) -> None:
    with pytest.raises(BadRequest, match="ends before"):
        ledger.export(database, AT, AT)
