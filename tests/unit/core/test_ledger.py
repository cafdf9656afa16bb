from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core.exchange import Attempt, Ending, Reservation
from gateway.core.metering import NOTHING, Metered, Source
from gateway.dialects.events import BUCKETS, Usage
from gateway.errors import UpstreamError
from gateway.store import catalog, ledger
from tests.factories import StillClient, migrated, price
from tests.unit.core.stages import USED, Bookkeeping, lines


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Bookkeeping]:
    with migrated(tmp_path) as database:
        yield Bookkeeping(database, tmp_path)


# settling


def test_answered_call_has_one_entry_with_all_that_made_it(stage: Bookkeeping) -> None:
    made = stage.answered(price(rate=1000, output_text=2000, per_call_nano=5, id=9), attempts=2)
    made.first_byte = stage.clock.now + 0.25
    stage.clock.now += 0.5
    stage.ledger.settle(made, Ending.COMPLETE, USED)
    (entry,) = stage.entries()
    assert (entry.exchange, entry.kind, entry.attempt) == (made.id, "usage", 2)
    assert (entry.api_key, entry.user, entry.at) == (7, 3, made.at)
    assert (entry.amount, entry.cost) == (10 + 20 + 60 + 5, 95)
    assert (entry.usage.input_uncached, entry.usage.cache_read, entry.usage.output_text) == (10, 20, 30)
    assert entry.usage.raw == {"prompt_tokens": 30}
    assert (entry.ending, entry.usage_source, entry.flags) == ("complete", "provider", ())
    assert (entry.model_asked, entry.model_served, entry.deployment, entry.credential) == ("m", "real", "d", "d-key")
    assert (entry.price, entry.rates["output_text"]) == (9, 2000)
    assert (entry.first_byte_ms, entry.total_ms) == (250, 500)
    assert made.amount_nano == 95


def test_receipt_is_written_with_the_entry(stage: Bookkeeping) -> None:
    made = stage.answered(price())
    stage.ledger.settle(made, Ending.COMPLETE, USED)
    row = stage.row(made)
    assert row is not None
    assert (row.owner, row.api_key, row.user, row.model, row.status, row.ending, row.at) == ("owner", 7, 3, "m", 200, "complete", made.at)
    assert [each["deployment"] for each in json.loads(row.receipt)["attempts"]] == ["d"]


def test_second_settlement_does_nothing(stage: Bookkeeping) -> None:
    made = stage.answered(price())
    stage.ledger.settle(made, Ending.COMPLETE, USED)
    stage.ledger.settle(made, Ending.CLIENT_GONE, NOTHING)
    stage.ledger.close(made, UpstreamError("late"))
    (entry,) = stage.entries()
    assert (entry.ending, made.ending, made.status) == ("complete", Ending.COMPLETE, 200)
    assert stage.count("gateway_exchange_seconds_count") == 1


def test_price_is_the_one_of_the_beginning(stage: Bookkeeping) -> None:
    made = stage.answered(price(rate=1000))
    stage.database.write(lambda: catalog.add_price("real", 0, dict.fromkeys(BUCKETS, 9_000_000), 0))
    stage.ledger.settle(made, Ending.COMPLETE, USED)
    assert stage.entries()[0].amount == 60


def test_price_is_the_one_of_the_deployment_that_answered(stage: Bookkeeping) -> None:
    made = stage.answered(attempts=2)
    made.reservation = Reservation({"other": price(rate=9000), "d": price(rate=1000)})
    stage.ledger.settle(made, Ending.COMPLETE, USED)
    assert stage.entries()[0].amount == 60


def test_unpriced_call_is_free_and_flagged(stage: Bookkeeping) -> None:
    stage.ledger.settle(stage.answered(None), Ending.COMPLETE, USED)
    (entry,) = stage.entries()
    assert (entry.amount, entry.flags, entry.price, dict(entry.rates)) == (0, ("unpriced",), None, {})
    assert stage.count("gateway_flagged_entries_total", flag="unpriced") == 1


def test_price_of_nothing_is_no_missing_price(stage: Bookkeeping) -> None:
    stage.ledger.settle(stage.answered(price(rate=0)), Ending.COMPLETE, USED)
    (entry,) = stage.entries()
    assert (entry.amount, entry.flags) == (0, ())


def test_flags_of_the_usage_are_kept(stage: Bookkeeping) -> None:
    usage = Usage(output_text=1, flags=("clamped", "inconsistent"))
    stage.ledger.settle(stage.answered(None), Ending.COMPLETE, Metered(usage, Source.PROVIDER))
    assert stage.entries()[0].flags == ("unpriced", "clamped", "inconsistent")


def test_price_of_a_call_is_charged_where_it_is_complete_even_without_tokens(stage: Bookkeeping) -> None:
    stage.ledger.settle(stage.answered(price(per_call_nano=40)), Ending.COMPLETE, NOTHING)
    assert stage.entries()[0].amount == 40


@pytest.mark.parametrize("ending", [Ending.UPSTREAM_ERROR, Ending.TIMEOUT, Ending.CLIENT_GONE, Ending.UPSTREAM_TRUNCATED])
def test_answer_of_which_nothing_was_delivered_costs_nothing(stage: Bookkeeping, ending: Ending) -> None:
    stage.ledger.settle(stage.answered(price(per_call_nano=40)), ending, NOTHING)
    (entry,) = stage.entries()
    assert (entry.amount, entry.cost, entry.usage_source) == (0, 0, "none")


@pytest.mark.parametrize("ending", [Ending.CLIENT_GONE, Ending.UPSTREAM_TRUNCATED, Ending.TIMEOUT])
def test_what_was_delivered_before_an_early_end_is_charged(stage: Bookkeeping, ending: Ending) -> None:
    stage.ledger.settle(stage.answered(price(rate=1000)), ending, Metered(Usage(output_text=5), Source.ESTIMATED))
    (entry,) = stage.entries()
    assert (entry.amount, entry.ending, entry.usage_source) == (5, str(ending), "estimated")


def test_settling_releases_what_the_call_held(stage: Bookkeeping) -> None:
    client = StillClient()
    made = stage.answered(price())
    made.client = client
    stage.ledger.settle(made, Ending.COMPLETE, USED)
    assert client.disarmed == 1
    assert made.released is None


def test_tokens_and_amounts_are_counted(stage: Bookkeeping) -> None:
    stage.ledger.settle(stage.answered(price(rate=1000)), Ending.COMPLETE, USED)
    assert stage.count("gateway_tokens_total", bucket="cache_read") == 20
    assert stage.count("gateway_tokens_total", bucket="output_text") == 30
    assert stage.count("gateway_amount_usd_total", deployment="d") == 60e-9
    assert stage.count("gateway_exchanges_total", ending="complete", status="200") == 1


def test_every_exchange_is_one_line_of_the_log(stage: Bookkeeping, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = stage.answered(price(rate=1000))
    stage.ledger.settle(made, Ending.COMPLETE, USED)
    stage.ledger.close(made, UpstreamError("late"))
    (line,) = lines(caplog, "exchange")
    assert (line["exchange"], line["key"], line["model"], line["status"], line["ending"]) == (made.id, 7, "m", 200, "complete")
    assert (line["deployment"], line["attempts"], line["amount_nano"], line["error"]) == ("d", 1, 60, None)


def test_what_a_provider_bills_for_a_failed_attempt_is_the_operators(stage: Bookkeeping) -> None:
    made = stage.answered(price(rate=7), attempts=2)
    made.attempts[0] = Attempt("d", "d-key", "real", stage.clock.now, "upstream_error", 500, stage.clock.now, Usage(input_uncached=10, output_text=-3))
    stage.ledger.settle(made, Ending.COMPLETE, USED)
    booked = {(entry.kind, entry.attempt): entry for entry in stage.entries()}
    assert set(booked) == {("usage", 2), ("attempt", 1)}
    failed = booked["attempt", 1]
    assert (failed.api_key, failed.user, failed.team, failed.amount, failed.cost) == (0, 0, None, 0, 1)
    assert (failed.ending, failed.usage_source, failed.usage.input_uncached, failed.usage.output_text) == ("upstream_error", "provider", 10, 0)
    assert booked["usage", 2].amount == booked["usage", 2].cost > 0
    assert [(total.calls, total.cost) for total in stage.database.read(lambda: ledger.totals(0, 2**62, ("model",)))] == [
        (1, failed.cost + booked["usage", 2].cost)
    ]
