from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from gateway.core.exchange import Ending, Exchange
from gateway.core.ledger import REFUSALS_A_MINUTE, Ledger, RefusalQuota
from gateway.core.metering import NOTHING, Metered, Source
from gateway.dialects.events import Usage
from gateway.errors import Cancelled, GatewayError, ModelNotFound, NoDeploymentAvailable, SettleFailed, StoreUnavailable, UpstreamError, UpstreamTimeout
from gateway.store.ledger import Entry
from tests.factories import Books, Clock, migrated, price
from tests.unit.core.stages import USED, Bookkeeping, Ended, Failing, Fickle, lines


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Bookkeeping]:
    with migrated(tmp_path) as database:
        yield Bookkeeping(database, tmp_path)


# a commit that fails


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("closed"), OverflowError("too large")])
def test_failed_commit_withholds_the_end_and_logs_the_complete_entry(stage: Bookkeeping, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    made = stage.answered(price(rate=1000, id=9))
    with pytest.raises(SettleFailed) as caught:
        stage.failing(error).settle(made, Ending.COMPLETE, USED)
    cause = caught.value.__cause__
    assert caught.value.status == 500
    assert cause is not None
    assert error in (cause, cause.__cause__)
    (line,) = lines(caplog, "entry not committed")
    assert (line["level"], line["exchange"]) == ("critical", made.id)
    logged = line["entry"]
    counts: dict[str, Any] = {name: tuple(value) if name == "flags" else value for name, value in logged["usage"].items()}
    rebuilt = Entry(**{**logged, "usage": Usage(**counts), "flags": tuple(logged["flags"]), "windows": tuple(logged["windows"])})
    stage.ledger.settle(again := stage.answered(price(rate=1000, id=9)), Ending.COMPLETE, USED)
    (booked,) = stage.entries()
    assert _comparable(rebuilt) == _comparable(booked) | {"exchange": made.id, "at": made.at}
    assert again.id == booked.exchange


def test_what_the_database_does_not_take_the_journal_does(tmp_path: Path, stage: Bookkeeping) -> None:
    away = Books(Failing(StoreUnavailable("away")), tmp_path, stage.metrics, stage.clock)
    made = stage.answered(price(rate=1000, id=9))
    away.ledger.settle(made, Ending.COMPLETE, USED)
    assert (made.amount_nano, stage.entries()) == (60, [])
    assert stage.books.journal.replay(stage.ledger.book, lambda owner: False) == 1
    (booked,) = stage.entries()
    assert (booked.exchange, booked.amount) == (made.id, 60)
    assert stage.count("gateway_journaled_total") == 1


def _comparable(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in Entry.__slots__ if name != "id"} | {"rates": dict(entry.rates)}


def test_failed_commit_is_counted_releases_and_is_not_tried_again(stage: Bookkeeping) -> None:
    made = stage.answered(price())
    failing = stage.failing(StoreUnavailable("away"))
    with pytest.raises(SettleFailed):
        failing.settle(made, Ending.COMPLETE, USED)
    failing.settle(made, Ending.CLIENT_GONE, NOTHING)
    assert made.released is None
    assert stage.count("gateway_settle_failures_total") == 1
    assert stage.count("gateway_amount_usd_total") == 0


def withheld(stage: Bookkeeping, error: BaseException) -> tuple[Ledger, Fickle, Exchange]:
    """A call whose end could be booked nowhere."""
    database = Fickle(error)
    books = Books(database, Path("/dev/null"), stage.metrics, stage.clock)
    made = stage.answered(price(rate=1000))
    with pytest.raises(SettleFailed):
        books.ledger.settle(made, Ending.COMPLETE, USED)
    return books.ledger, database, made


def test_call_whose_end_was_withheld_is_booked_later_and_costs_its_client_nothing(stage: Bookkeeping) -> None:
    ledger, database, made = withheld(stage, StoreUnavailable("away"))
    assert ledger.stuck
    with pytest.raises(StoreUnavailable):
        ledger.retry()
    assert ledger.stuck
    database.back = stage.database
    assert (ledger.retry(), ledger.stuck) == (1, False)
    (entry,) = stage.entries()
    assert (entry.exchange, entry.ending, entry.amount, entry.cost, entry.flags) == (made.id, "complete", 0, 60, ("withheld",))
    assert ledger.retry() == 0


def test_entry_that_nothing_takes_is_given_up_and_blocks_nobody(stage: Bookkeeping, caplog: pytest.LogCaptureFixture) -> None:
    ledger, database, _ = withheld(stage, OverflowError("too large"))
    assert (ledger.stuck, ledger.retry()) == (False, 0)
    assert len(lines(caplog, "an entry cannot be booked at all: OverflowError")) == 1
    database.back = stage.database
    assert (ledger.retry(), stage.entries()) == (0, [])


def test_log_says_why_an_entry_was_not_committed(stage: Bookkeeping, caplog: pytest.LogCaptureFixture) -> None:
    withheld(stage, StoreUnavailable("away"))
    assert lines(caplog, "entry not committed")[0]["msg"] == "entry not committed: NotADirectoryError (Not a directory) after StoreUnavailable"


def test_amount_that_is_not_booked_is_shown_nowhere(stage: Bookkeeping, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = stage.answered(price())
    with pytest.raises(SettleFailed):
        stage.failing(StoreUnavailable("away")).settle(made, Ending.COMPLETE, USED)
    assert made.amount_nano is None
    (line,) = lines(caplog, "exchange")
    assert (line["amount_nano"], line["error"]) == (None, "settle_failed")


def test_greenlet_that_is_ended_during_the_commit_leaves_its_entry_in_the_log(stage: Bookkeeping, caplog: pytest.LogCaptureFixture) -> None:
    made = stage.answered(price())
    with pytest.raises(Ended):
        stage.failing(Ended()).settle(made, Ending.COMPLETE, USED)
    assert lines(caplog, "entry not committed")[0]["entry"]["exchange"] == made.id
    assert made.released is None


def test_usage_that_cannot_be_priced_ends_the_exchange_all_the_same(stage: Bookkeeping, caplog: pytest.LogCaptureFixture) -> None:
    made = stage.answered(price())
    broken: Any = Metered(Usage(output_text="many"), Source.PROVIDER)  # type: ignore[arg-type]
    with pytest.raises(SettleFailed):
        stage.ledger.settle(made, Ending.COMPLETE, broken)
    assert made.released is None
    assert "many" in json.dumps(lines(caplog, "entry not committed"))


def test_usage_in_a_mapping_that_cannot_be_copied_is_logged_all_the_same(stage: Bookkeeping, caplog: pytest.LogCaptureFixture) -> None:
    raw: Mapping[str, Any] = MappingProxyType({"prompt_tokens": 30})
    with pytest.raises(SettleFailed):
        stage.ledger.settle(stage.answered(price()), Ending.COMPLETE, Metered(Usage(output_text=3, raw=raw), Source.PROVIDER))
    (line,) = lines(caplog, "entry not committed")
    assert line["entry"]["usage"]["output_text"] == 3


def test_log_of_a_lost_entry_holds_no_key_and_no_secret(stage: Bookkeeping, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SettleFailed):
        stage.failing(StoreUnavailable("away")).settle(stage.answered(price()), Ending.COMPLETE, USED)
    assert lines(caplog, "entry not committed")[0]["entry"]["credential"] == "d-key"
    assert "sk-" not in caplog.text


# calls that failed before an answer


@pytest.mark.parametrize(
    ("error", "status", "code", "ending"),
    [
        (UpstreamError("no"), 502, "upstream_error", "upstream_error"),
        (UpstreamTimeout("late", phase="first_byte"), 504, "upstream_timeout", "timeout"),
        (Cancelled("client_gone"), 499, "cancelled", "upstream_error"),
        (KeyError("bug"), 500, "internal_error", "upstream_error"),
    ],
)
def test_call_that_failed_after_its_first_attempt_has_an_entry_of_nothing(stage: Bookkeeping, error: Exception, status: int, code: str, ending: str) -> None:
    made = stage.answered(price(per_call_nano=40))
    stage.ledger.close(made, error)
    (entry,) = stage.entries()
    assert (entry.amount, entry.ending, entry.usage_source) == (0, ending, "none")
    assert (made.status, made.error, made.amount_nano) == (status, code, 0)
    row = stage.row(made)
    assert row is not None
    assert (row.status, row.ending) == (status, ending)


def test_client_that_left_before_the_answer_is_nobodys_failure(stage: Bookkeeping) -> None:
    made = stage.answered(price())
    made.left = True
    stage.ledger.close(made, Cancelled("client_gone"))
    assert stage.entries()[0].ending == "client_gone"


@pytest.mark.parametrize("error", [NoDeploymentAvailable("none"), ModelNotFound("no"), KeyError("bug")])
def test_refused_call_leaves_a_row_and_no_entry(stage: Bookkeeping, error: Exception) -> None:
    made = stage.begun()
    stage.ledger.close(made, error)
    assert stage.entries() == []
    row = stage.row(made)
    assert row is not None
    assert (row.ending, row.status) == ("refused", error.status if isinstance(error, GatewayError) else 500)
    assert made.amount_nano is None
    assert made.released is None


def test_refusals_of_a_key_leave_ten_rows_a_minute_and_then_a_count(stage: Bookkeeping) -> None:
    made = [stage.begun() for _ in range(REFUSALS_A_MINUTE + 3)]
    for each in made:
        stage.ledger.close(each, ModelNotFound("no"))
    assert [stage.row(each) is not None for each in made] == [True] * 10 + [False] * 3
    assert stage.count("gateway_refusals_unrecorded_total") == 3
    assert all(each.released is None for each in made)
    other = stage.begun(key_id=8)
    stage.ledger.close(other, ModelNotFound("no"))
    assert stage.row(other) is not None
    stage.clock.now += 60
    later = stage.begun()
    stage.ledger.close(later, ModelNotFound("no"))
    assert stage.row(later) is not None


def test_refusal_quota_forgets_the_keys_of_the_minute_before() -> None:
    clock = Clock(0)
    quota = RefusalQuota(clock)
    assert [quota.take(1) for _ in range(11)] == [True] * 10 + [False]
    clock.now = 59.9
    assert not quota.take(1)
    assert quota.take(2)
    clock.now = 60
    assert quota.take(1)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ValueError("odd")])
@pytest.mark.parametrize("prepare", [Bookkeeping.begun, Bookkeeping.answered])
def test_closing_never_raises_and_always_releases(stage: Bookkeeping, error: Exception, prepare: Callable[[Bookkeeping], Exchange]) -> None:
    made = prepare(stage)
    stage.failing(error).close(made, ModelNotFound("no"))
    assert made.released is None
    assert made.status == 404
