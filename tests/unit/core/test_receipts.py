from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core.exchange import Attempt, Ending, Exchange, Reservation
from gateway.core.metering import Metered, Source
from gateway.core.receipts import Receipts
from gateway.dialects.events import Usage
from gateway.errors import ModelNotFound
from gateway.store.database import Database
from tests.factories import Books, exchange, migrated, price, principal


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with migrated(tmp_path) as database:
        yield database


def of(key_id: int, user_id: int) -> Exchange:
    made = exchange()
    made.principal = principal(key_id, user_id)
    return made


def answered(database: Database, tmp_path: Path, key_id: int = 1, user_id: int = 1) -> Exchange:
    made = of(key_id, user_id)
    made.candidates, made.status = ["a", "d"], 200
    made.attempts = [Attempt("a", "a-key", "m", 0.0, "upstream_timeout", None, 0.1), Attempt("d", "d-key", "m", 0.1, "answered", 200, 0.2)]
    made.reservation = Reservation({"d": price(rate=1000, output_text=2000)})
    Books(database, tmp_path).ledger.settle(made, Ending.COMPLETE, Metered(Usage(input_uncached=3, output_text=4), Source.PROVIDER))
    return made


def test_receipt_tells_the_whole_way_and_what_was_booked(database: Database, tmp_path: Path) -> None:
    made = answered(database, tmp_path)
    receipt = Receipts(database).find(made.id, principal())
    assert receipt is not None
    assert (receipt["id"], receipt["status"], receipt["ending"], receipt["candidates"]) == (made.id, 200, "complete", ["a", "d"])
    assert [(each["deployment"], each["outcome"], each["ms"]) for each in receipt["attempts"]] == [("a", "upstream_timeout", 100), ("d", "answered", 100)]
    booked = receipt["booked"]
    assert (booked["amount_nano_usd"], booked["usage_source"], booked["flags"], booked["model_served"]) == (11, "provider", [], "m")
    assert (booked["usage"]["input_uncached"], booked["usage"]["output_text"], booked["rates_pico_usd"]["output_text"]) == (3, 4, 2000)


def test_refused_call_has_a_receipt_with_nothing_booked(database: Database, tmp_path: Path) -> None:
    made = of(1, 1)
    Books(database, tmp_path).ledger.close(made, ModelNotFound("no"))
    receipt = Receipts(database).find(made.id, principal())
    assert receipt is not None
    assert (receipt["ending"], receipt["status"], receipt["error"], receipt["booked"]) == ("refused", 404, "model_not_found", None)


def test_another_key_of_the_same_user_sees_it(database: Database, tmp_path: Path) -> None:
    made = answered(database, tmp_path, key_id=1, user_id=1)
    assert Receipts(database).find(made.id, principal(key_id=2, user_id=1)) is not None


def test_another_user_sees_nothing(database: Database, tmp_path: Path) -> None:
    made = answered(database, tmp_path, key_id=1, user_id=1)
    assert Receipts(database).find(made.id, principal(key_id=1, user_id=2)) is None


@pytest.mark.parametrize("exchange_id", ["", "01ABC", "' OR 1=1 --", "a\0b", "\ud800", "x" * 5000])
def test_what_is_no_exchange_has_no_receipt(database: Database, tmp_path: Path, exchange_id: str) -> None:
    answered(database, tmp_path)
    assert Receipts(database).find(exchange_id, principal()) is None
