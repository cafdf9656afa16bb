"""Idempotency-Keys: one call for each key, whoever asks at the same time, and one charge, whoever was thought to be gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from gateway.store import accounts, holds, idempotency, ledger
from gateway.store.database import Batched, Database
from gateway.store.holds import Period, Refused
from gateway.store.idempotency import DONE, FREE, KEEP_MS, RUNNING, Claim, Completion, Known, Opening, Taken
from gateway.store.ledger import Booking
from gateway.store.models_money import IdempotencyRow
from tests.factories import seal
from tests.unit.store.test_holds import ENTRY, WANTED, budget, window

PLACE = (1, "k")
CLAIM = Claim(PLACE, "print", "a", "owner", 60)


def begin(database: Database, claim: Claim, amount: int = 0, *periods: Period) -> Refused | Taken | None:
    wanted = replace(WANTED, id=claim.exchange, amount=amount, periods=periods) if periods else None
    return database.write(Batched(idempotency.begin, Opening(claim, wanted)))


def known(database: Database, place: tuple[int, str] = PLACE) -> Known | None:
    return database.read(lambda: idempotency.find(*place))[1]


def ended(database: Database, state: str, exchange: str = "a", amount: int = 7, **more: object) -> list[bool]:
    """The call that has the claim is booked."""
    completion = Completion(PLACE, exchange, state, **more)  # type: ignore[arg-type]
    booking = Booking(replace(ENTRY, exchange=exchange, amount=amount, cost=amount), None, claim=completion)
    return list(database.write(lambda: ledger.record([booking], seal)))


def aged(exchange: str, milliseconds: int) -> None:
    IdempotencyRow.update(at=IdempotencyRow.at - milliseconds).where(IdempotencyRow.exchange == exchange).execute()


def charged(database: Database) -> dict[str, int]:
    return {entry.exchange: entry.amount for entry in database.read(lambda: ledger.entries(0, 2**62, 0, 100))}


def test_a_claim_is_there_until_its_call_ends_and_then_has_its_answer(database: Database) -> None:
    assert begin(database, CLAIM) is None
    assert known(database) == Known("a", "owner", "print", RUNNING, False, None, None, None)
    assert ended(database, DONE, status=201, headers="[]", body=b"\0sealed") == [True]
    assert known(database) == Known("a", "owner", "print", DONE, False, 201, "[]", b"\0sealed")
    assert charged(database) == {"a": 7}


def test_a_key_has_one_call(database: Database) -> None:
    begin(database, CLAIM)
    assert begin(database, replace(CLAIM, exchange="b")) == Taken()
    assert begin(database, replace(CLAIM, exchange="c", place=(2, "k"))) is None
    assert begin(database, replace(CLAIM, exchange="d", place=(1, "K"))) is None


def test_of_a_crowd_one_gets_the_key_and_it_alone_holds(database: Database) -> None:
    period = budget(database, 1000)
    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(lambda number: begin(database, replace(CLAIM, exchange=f"x{number}"), 10, period), range(50)))
    assert outcomes.count(None) == 1
    assert window(database, period).held == 10


def test_keys_in_one_batch_are_decided_each_for_itself(database: Database) -> None:
    period = budget(database, 25)
    claims = [replace(CLAIM, exchange=name, place=(1, key)) for name, key in (("a", "2"), ("b", "1"), ("c", "2"), ("d", "3"))]
    items = [Opening(claim, replace(WANTED, id=claim.exchange, amount=10, periods=(period,))) for claim in claims]
    outcomes = database.write(lambda: idempotency.begin(items))
    assert outcomes == [None, None, Taken(), Refused(period.budget_id, 25, 0, 20, None)]
    assert known(database, (1, "3")) is None
    assert window(database, period).held == 20


def test_who_lost_its_key_by_being_slow_is_charged_and_whose_booking_was_late_is_not(database: Database) -> None:
    begin(database, CLAIM)
    begin(database, replace(CLAIM, exchange="b", replaces="a"))
    begin(database, replace(CLAIM, exchange="c", replaces="b"))
    assert ended(database, DONE, "a", overran=True) == [True]
    assert ended(database, DONE, "b") == [False]
    assert ended(database, DONE, "c") == [True]
    assert charged(database) == {"a": 7, "b": 0, "c": 7}


def test_what_has_no_room_leaves_the_key_free(database: Database) -> None:
    period = budget(database, 5)
    assert isinstance(begin(database, CLAIM, 10, period), Refused)
    assert known(database) is None


def test_what_is_freed_may_be_claimed_again(database: Database) -> None:
    begin(database, CLAIM)
    ended(database, FREE, amount=0)
    assert known(database) is None
    assert begin(database, replace(CLAIM, exchange="b")) is None


def test_freeing_what_was_never_claimed_leaves_nothing_and_takes_nobody_s(database: Database) -> None:
    database.write(lambda: idempotency.complete([Completion(PLACE, "never", FREE)]))
    assert known(database) is None
    begin(database, CLAIM)
    database.write(lambda: idempotency.complete([Completion(PLACE, "never", FREE)]))
    assert known(database) is not None


def test_the_place_of_one_that_is_gone_is_taken_once(database: Database) -> None:
    begin(database, CLAIM)
    takers = [replace(CLAIM, exchange=name, owner="other", replaces="a") for name in ("b", "c", "d")]
    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(lambda claim: begin(database, claim), takers))
    assert outcomes.count(None) == 1
    found = known(database)
    assert found is not None
    assert (found.exchange, found.owner) == (takers[outcomes.index(None)].exchange, "other")


def test_what_has_ended_is_taken_over_by_nobody(database: Database) -> None:
    begin(database, CLAIM)
    ended(database, DONE)
    assert begin(database, replace(CLAIM, exchange="b", replaces="a")) == Taken()


def test_who_lost_the_key_is_charged_nothing_and_what_it_cost_stays_the_operator_s(database: Database) -> None:
    begin(database, CLAIM)
    begin(database, replace(CLAIM, exchange="b", replaces="a"))
    assert ended(database, DONE, "b") == [True]
    assert ended(database, DONE, "a", body=b"late") == [False]
    assert charged(database) == {"a": 0, "b": 7}
    assert [entry.cost for entry in database.read(lambda: ledger.entries(0, 2**62, 0, 10))] == [7, 7]
    found = known(database)
    assert found is not None
    assert (found.exchange, found.body) == ("b", None)


def test_who_lost_the_key_gives_its_hold_back(database: Database) -> None:
    period = budget(database, 100)
    begin(database, CLAIM, 40, period)
    begin(database, replace(CLAIM, exchange="b", replaces="a"), 40, period)
    booking = Booking(replace(ENTRY, exchange="a", amount=7), None, held=True, claim=Completion(PLACE, "a", DONE))
    database.write(lambda: ledger.record([booking], seal))
    assert (window(database, period).spent, window(database, period).held) == (0, 40)


def test_an_end_that_is_told_again_changes_nothing(database: Database) -> None:
    begin(database, CLAIM)
    ended(database, DONE, body=b"sealed")
    assert ended(database, DONE) == [True]  # as a journal tells it: without the body
    found = known(database)
    assert found is not None
    assert found.body == b"sealed"
    assert charged(database) == {"a": 7}


@pytest.mark.parametrize(("lease_s", "late"), [(60, False), (-1, True)])
def test_a_claim_is_late_after_its_lease_in_the_database_s_time(database: Database, lease_s: int, late: bool) -> None:
    begin(database, replace(CLAIM, lease_s=lease_s))
    found = known(database)
    assert found is not None
    assert found.late is late


def test_a_rotated_key_and_its_successor_share_their_keys(database: Database) -> None:
    def rotated() -> list[int]:
        user = accounts.create_user("ann", 0)
        made = [accounts.create_key(user.id, name, 0, prefix=name, suffix=name).id for name in ("first", "successor", "other")]
        accounts.expire_key(made[0], 1, successor_id=made[1])
        return made

    first, successor, other = database.write(rotated)
    places = [database.read(partial(idempotency.find, key, "k"))[0] for key in (first, successor, other)]
    assert places == [(first, "k"), (first, "k"), (other, "k")]


def test_keys_are_forgotten_after_a_day(database: Database) -> None:
    for number, age in enumerate((KEEP_MS + 60_000, KEEP_MS + 60_000, KEEP_MS - 60_000)):
        begin(database, replace(CLAIM, exchange=str(number), place=(1, str(number))))
        ended(database, DONE, str(number))
        database.write(partial(aged, str(number), age))
    assert [database.write(lambda: idempotency.forget(1)) for _ in range(3)] == [1, 1, 0]
    assert [known(database, (1, str(number))) is None for number in range(3)] == [True, True, False]


def test_a_hold_and_its_claim_are_there_together_or_not_at_all(database: Database) -> None:
    period = budget(database, 1000)
    database.write(lambda: holds.reserve([replace(WANTED, id="a", amount=1, periods=(period,))]))
    with pytest.raises(Exception, match="already exists"):
        begin(database, CLAIM, 1, period)
    assert known(database) is None
