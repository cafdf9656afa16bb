"""Whose a key is while owners die, hosts are out of sight and the database is away; and which requests are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backend import Deadlines
from gateway.core import idempotency
from gateway.core.claim import Claim
from gateway.core.exchange import Ending, Exchange, Reservation, new_id
from gateway.core.holds import GRACE_S
from gateway.core.idempotency import OFFLOAD_BYTES, Idempotency, Kept, in_use
from gateway.core.ledger import Ledger
from gateway.errors import AnswerNotKept, GatewayError, IdempotencyKeyInUse, SettleFailed, StoreUnavailable
from gateway.metrics import Metrics
from gateway.presence import Presence
from gateway.secrets import Vault
from gateway.store import holds, ledger
from gateway.store.database import Database
from gateway.store.ledger import Entry
from tests.factories import Books, Clock, StillClient, call, candidate, exchange, form_call, migrated, now_ms, principal
from tests.unit.core.stages import USED, Failing, Fickle

SEEN = (("content-type", "text/plain"), ("set-cookie", "a=b"))
AWAY = StoreUnavailable("away", retry_after_s=1.0)


class OutOfSight:
    """A database that several hosts share, of which this is one."""

    shared = True

    def __init__(self, database: Database) -> None:
        self.read = database.read


class Answerless:
    """A database that commits, and whose answer is lost."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, work: Any) -> Any:
        self._database.write(work)
        raise AWAY


class Stage:
    """A worker that looks keys up, and what another one does to them."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database, self.directory = database, directory
        self.presence, self.other = Presence(directory / "run"), Presence(directory / "run")
        self.presence.start()
        self.other.start()
        self.books = Books(database, directory, owner=self.other.owner)
        self.vault = Vault({1: b"m" * 32}, 1)
        self.idempotency = self.looking(database)

    def looking(self, database: Any) -> Idempotency:
        return Idempotency(database, self.books.journal, self.presence, self.vault, Metrics())

    def recall(self) -> Claim | Kept:
        return self.idempotency.recall("k", call(), principal())

    def begun(self, books: Books | None = None, total_s: float = 1) -> Exchange:
        """The other's call, which has claimed the key."""
        made = exchange(client=StillClient())
        claim = self.recall()
        assert isinstance(claim, Claim)
        made.claim, made.reservation = claim, Reservation({})
        (books or self.books).holds.reserve(made, [candidate(deadlines=Deadlines(total_s=total_s))], None)
        return made

    def answered(self, made: Exchange, books: Books | None = None) -> None:
        assert made.claim is not None
        made.claim.answered(200, SEEN)
        made.claim.keep_last(b"words")
        (books or self.books).ledger.settle(made, Ending.COMPLETE, USED)

    def away(self) -> Books:
        """The other's books while the database does not answer."""
        return Books(Failing(AWAY), self.directory, owner=self.other.owner)

    def replayed(self) -> int:
        return self.books.journal.replay(self.books.ledger.book, lambda owner: False)

    def entries(self) -> list[Entry]:
        return self.database.read(lambda: ledger.entries(0, 2**62, 0, 100))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with migrated(tmp_path) as database:
        stage = Stage(database, tmp_path)
        yield stage
        stage.presence.close()
        stage.other.close()


def test_an_answer_is_given_again_with_the_headers_that_say_what_it_is(stage: Stage) -> None:
    made = stage.begun()
    with pytest.raises(IdempotencyKeyInUse) as caught:
        stage.recall()
    assert made.id in str(caught.value)
    stage.answered(made)
    assert stage.recall() == Kept(made.id, 200, SEEN[:1], b"words")


def test_the_call_of_an_owner_that_lives_is_left_alone_and_of_one_that_died_taken_over(stage: Stage) -> None:
    lost = stage.begun()
    with pytest.raises(IdempotencyKeyInUse):
        stage.recall()
    stage.other.close()
    taken = stage.begun()
    assert taken.claim is not None
    assert taken.claim.replaces == lost.id
    stage.answered(taken)
    assert stage.recall() == Kept(taken.id, 200, SEEN[:1], b"words")


def test_what_a_dead_owner_has_in_its_journal_is_no_lost_call(stage: Stage) -> None:
    made = stage.begun()
    stage.answered(made, stage.away())
    stage.other.close()
    with pytest.raises(IdempotencyKeyInUse):
        stage.recall()
    assert stage.replayed() == 1
    with pytest.raises(AnswerNotKept) as caught:
        stage.recall()
    assert made.id in str(caught.value)
    assert len(stage.entries()) == 1


@pytest.mark.parametrize("late", [True, False])
def test_the_call_of_another_host_is_taken_over_after_its_lease(stage: Stage, late: bool) -> None:
    made = stage.begun(Books(stage.database, stage.directory, owner="elsewhere-1"), total_s=-GRACE_S - 1 if late else 0)
    looking = stage.looking(OutOfSight(stage.database))
    if late:
        claim = looking.recall("k", call(), principal())
        assert isinstance(claim, Claim)
        assert claim.replaces == made.id
    else:
        with pytest.raises(IdempotencyKeyInUse):
            looking.recall("k", call(), principal())


def test_who_ends_after_its_place_was_taken_is_charged_nothing_and_shown_nothing(stage: Stage) -> None:
    late = stage.begun()
    stage.other.close()
    taken = stage.begun()
    stage.answered(taken)
    stage.answered(late)
    assert (taken.amount_nano, late.amount_nano) == (0, 0)  # unpriced
    assert [entry.flags for entry in stage.entries()] == [(), ("displaced",)]
    assert stage.recall() == Kept(taken.id, 200, SEEN[:1], b"words")


def test_who_reads_until_its_claim_is_others_pays_all_the_same(stage: Stage) -> None:
    """A client that takes its answer by the drop, until another host believes its worker gone, gets no answer for nothing."""
    clock = Clock()
    books = Books(stage.database, stage.directory, clock=clock, owner=stage.other.owner)
    slow = stage.begun(books)
    clock.now += 1 + GRACE_S
    stage.other.close()
    taken = stage.begun()
    stage.answered(taken)
    stage.answered(slow, books)
    assert [(entry.exchange, entry.flags) for entry in stage.entries()] == [(taken.id, ()), (slow.id, ())]
    assert stage.recall() == Kept(taken.id, 200, SEEN[:1], b"words")


def test_an_answer_whose_end_was_withheld_is_not_given_away_later(stage: Stage) -> None:
    """It is booked with the amount 0, so its key is free, as that of every call that cost nothing."""
    made = stage.begun()
    database = Fickle(AWAY)
    books = Books(database, Path("/dev/null"), owner=stage.other.owner)
    with pytest.raises(SettleFailed):
        stage.answered(made, books)
    database.back = stage.database
    assert books.ledger.retry() == 1
    assert [(entry.amount, entry.flags) for entry in stage.entries()] == [(0, ("withheld",))]
    assert isinstance(stage.recall(), Claim)


def test_who_comes_a_moment_too_late_for_a_claim_is_told_to_ask_again(stage: Stage) -> None:
    late = exchange(client=StillClient())
    late.claim = stage.recall()  # type: ignore[assignment]
    stage.begun()
    with pytest.raises(IdempotencyKeyInUse) as caught:
        stage.books.holds.reserve(late, [candidate()], None)
    assert caught.value.retry_after_s == 1.0
    assert late.claim is not None
    assert not late.claim.begun
    stage.books.ledger.close(late, caught.value)
    with pytest.raises(IdempotencyKeyInUse):
        stage.recall()


def refused(stage: Stage, made: Exchange, through: Ledger, error: GatewayError) -> None:
    through.close(made, error)
    assert made.ending is Ending.REFUSED


def test_a_call_that_failed_frees_its_key_also_while_the_database_is_away(stage: Stage) -> None:
    made = stage.begun()
    refused(stage, made, stage.away().ledger, GatewayError("failed"))
    with pytest.raises(IdempotencyKeyInUse):
        stage.recall()
    assert stage.replayed() == 1
    assert isinstance(stage.recall(), Claim)


def test_a_claim_of_which_nobody_knows_whether_it_was_made_is_freed(stage: Stage) -> None:
    made = exchange(client=StillClient())
    made.claim = stage.recall()  # type: ignore[assignment]
    books = Books(Answerless(stage.database), stage.directory, owner=stage.other.owner)
    with pytest.raises(StoreUnavailable) as caught:
        books.holds.reserve(made, [candidate()], None)
    with pytest.raises(IdempotencyKeyInUse):
        stage.recall()
    refused(stage, made, books.ledger, caught.value)
    assert stage.replayed() == 1
    assert isinstance(stage.recall(), Claim)
    assert stage.database.read(holds.owners) == set()


@pytest.mark.parametrize(("age_ms", "wait_s"), [(-5_000, 1), (300, 1), (4_000, 4), (90_000, 10)])
def test_the_wait_is_as_long_as_the_call_has_taken_within_bounds(age_ms: int, wait_s: int) -> None:
    now = now_ms()
    assert in_use(new_id(now - age_ms), now).retry_after_s == wait_s


def test_large_requests_are_told_apart_as_well(stage: Stage) -> None:
    raw = b'{"model":"m","x":"' + b"x" * OFFLOAD_BYTES + b'%d"}'
    fingerprints = [stage.idempotency.recall("k", call(raw % number), principal()).fingerprint for number in (1, 1, 2)]  # type: ignore[union-attr]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_form_s_fields_files_and_kind_count(stage: Stage) -> None:
    calls = [form_call({"model": "m"}, b"a"), form_call({"model": "m"}, b"b"), form_call({"model": "n"}, b"a"), form_call({"model": "m"}, b"a", "/other")]
    assert len({idempotency._fingerprint(made) for made in calls}) == 4


@given(st.lists(st.text("ab-", max_size=9)), st.text("ab-", min_size=1, max_size=4))
def test_a_mark_is_found_wherever_the_blocks_are_cut(blocks: list[str], mark: str) -> None:
    found = b"".join(idempotency._without([block.encode() for block in blocks], mark.encode()))
    assert found == "".join(blocks).encode().replace(mark.encode(), b"\0")
