"""Refreshes: of a crowd one asks, what was got outlives everybody, and an operator's secret is never overwritten."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest

from gateway.store import pools, refreshes
from gateway.store.database import Database
from gateway.store.models_pools import ASKED, FAILED, GOT, RefreshRow
from gateway.store.pools import Credential
from gateway.store.refreshes import Refresh, Replacement

LEASE_MS = 60_000


@pytest.fixture
def made(database: Database) -> Credential:
    return database.write(lambda: pools.create_credential("main", "old", 1, lambda _: b"old", extras=b"extras", expires_at=2))


def begin(database: Database, made: Credential, owner: str = "owner", seen: Refresh | None = None, lease_ms: int = LEASE_MS) -> Credential | None:
    return database.write(partial(refreshes.begin, made.id, made.version, owner, lease_ms, seen))


def got(database: Database, made: Credential, owner: str = "owner", sealed: bytes = b"given") -> bool:
    return database.write(partial(refreshes.got, made.id, made.version, owner, sealed))


def renewed(credential: Credential, sealed: bytes) -> Replacement:
    return Replacement(b"new:" + sealed, "hint", "print", b"other extras", 9, 5)


def done(database: Database, made: Credential) -> Credential | None:
    return database.write(partial(refreshes.done, made.id, renewed))


def failed(database: Database, made: Credential, wait_ms: int, owner: str = "owner") -> bool:
    return database.write(partial(refreshes.failed, made.id, made.version, owner, wait_ms))


def refused(database: Database, made: Credential, owner: str = "owner") -> bool:
    return database.write(partial(refreshes.refused, made.id, made.version, owner))


def rows(database: Database) -> list[Refresh]:
    return database.read(refreshes.under_way)


def states(database: Database) -> list[tuple[str, str, bool]]:
    return [(row.owner, row.state, row.late) for row in rows(database)]


def current(database: Database) -> Credential:
    found = database.read(lambda: pools.find_credential("main"))
    assert found is not None
    return found


def test_a_refresh_is_written_then_kept_then_in_force(database: Database, made: Credential) -> None:
    assert begin(database, made) == made
    assert states(database) == [("owner", ASKED, False)]
    assert got(database, made)
    assert states(database) == [("owner", GOT, False)]
    assert current(database) == made
    new = done(database, made)
    assert new == current(database)
    assert new is not None
    assert (new.sealed, new.hint, new.version, new.extras, new.expires_at, new.replaced_at) == (b"new:given", "hint", 2, b"other extras", 9, 5)
    assert rows(database) == []


def test_of_a_crowd_one_asks(database: Database, made: Credential) -> None:
    with ThreadPoolExecutor(16) as pool:
        begun = list(pool.map(lambda number: begin(database, made, f"owner-{number % 4}"), range(200)))
    assert [each for each in begun if each is not None] == [made]


def test_of_those_that_saw_one_dead_refresh_one_takes_it_over(database: Database, made: Credential) -> None:
    begin(database, made, "dead", lease_ms=-1)
    (seen,) = rows(database)
    assert seen.late
    with ThreadPoolExecutor(16) as pool:
        begun = list(pool.map(lambda number: begin(database, made, f"owner-{number}", seen), range(50)))
    assert [each for each in begun if each is not None] == [made]
    assert [(state, late) for _, state, late in states(database)] == [(ASKED, False)]


def test_who_comes_after_the_secret_was_replaced_does_not_ask(database: Database, made: Credential) -> None:
    begin(database, made)
    got(database, made)
    done(database, made)
    assert begin(database, made, "slow") is None
    assert rows(database) == []


def test_who_waits_for_the_row_of_a_refresh_that_ends_finds_it_ended(postgres_url: str, opened: Callable[..., Database]) -> None:
    """The second begins while the first's last transaction is open: it sees what that one commits, not what it began with."""
    database = opened(postgres_url)
    made = database.write(lambda: pools.create_credential("main", "old", 1, lambda _: b"old"))
    begin(database, made)
    got(database, made)
    with psycopg.connect(postgres_url) as first, ThreadPoolExecutor(1) as pool:
        first.execute("SELECT 1 FROM refresh FOR UPDATE")
        first.execute("UPDATE credential SET version = 2")
        first.execute("DELETE FROM refresh")
        second = pool.submit(begin, database, made, "second")
        waiting = threading.Event()
        while not waiting.wait(0.01):
            with psycopg.connect(postgres_url) as watch:
                row = watch.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone()
                if row == (1,):
                    waiting.set()
        first.commit()
        assert second.result(5) is None
    assert rows(database) == []


def test_a_secret_that_an_operator_replaced_meanwhile_stays_and_the_extras_are_kept(database: Database, made: Credential) -> None:
    begin(database, made)
    database.write(lambda: pools.replace_secret(made.id, "ops", lambda _: b"operator's"))
    assert got(database, made)
    done(database, made)
    kept = current(database)
    assert (kept.sealed, kept.version, kept.extras, kept.expires_at) == (b"operator's", 2, b"other extras", 2)
    assert rows(database) == []


def test_what_was_got_late_takes_the_row_from_who_asked_again(database: Database, made: Credential) -> None:
    begin(database, made, "slow", lease_ms=-1)
    (seen,) = rows(database)
    begin(database, made, "second", seen)
    assert got(database, made, "slow", b"late")
    assert not refused(database, made, "second")
    assert not failed(database, made, 1, "second")
    assert not got(database, made, "second", b"too late")
    new = done(database, made)
    assert new is not None
    assert new.sealed == b"new:late"
    assert not got(database, made, "second", b"too late")


@pytest.mark.parametrize("ending", [refused, lambda database, made: failed(database, made, 60_000)])
def test_what_was_got_late_is_kept_after_a_refusal_and_a_failure(database: Database, made: Credential, ending: Callable[..., bool]) -> None:
    begin(database, made)
    assert ending(database, made)
    assert got(database, made, "slow")
    assert states(database) == [("slow", GOT, False)]


def test_a_failure_is_tried_again_after_its_wait_and_remembers_its_beginning(database: Database, made: Credential) -> None:
    begin(database, made)
    database.write(lambda: RefreshRow.update(at=RefreshRow.at - 10_000).execute())
    assert failed(database, made, 60_000)
    assert states(database) == [("owner", FAILED, False)]
    assert refused(database, made) is False
    database.write(lambda: RefreshRow.update(deadline=RefreshRow.deadline - 61_000).execute())
    (seen,) = rows(database)
    assert seen.late
    assert begin(database, made, "other", seen) == made
    (again,) = rows(database)
    assert (again.state, again.age_ms >= 10_000) == (ASKED, True)


def test_for_another_version_it_is_the_first_try(database: Database, made: Credential) -> None:
    begin(database, made)
    database.write(lambda: RefreshRow.update(at=RefreshRow.at - 10_000).execute())
    refused(database, made)
    replaced = database.write(lambda: pools.replace_secret(made.id, "", lambda _: b"new"))
    (seen,) = rows(database)
    assert begin(database, replaced, "owner", seen) == replaced
    (again,) = rows(database)
    assert (again.version, again.age_ms < 10_000) == (2, True)


@pytest.mark.parametrize(("ending", "left"), [("failed", []), ("refused", []), ("asked", [ASKED]), ("got", [GOT])])
def test_with_other_extras_a_refresh_in_vain_is_forgotten_and_no_other(database: Database, made: Credential, ending: str, left: list[str]) -> None:
    begin(database, made)
    {"failed": lambda: failed(database, made, 60_000), "refused": lambda: refused(database, made), "got": lambda: got(database, made)}.get(
        ending, lambda: True
    )()
    database.write(lambda: pools.set_credential(made.id, notes="x"))
    assert len(rows(database)) == 1
    database.write(lambda: pools.set_credential(made.id, extras=b"more"))
    assert [row.state for row in rows(database)] == left


def test_a_deleted_credential_leaves_nothing_to_the_next_of_its_number(database: Database, made: Credential) -> None:
    begin(database, made)
    got(database, made)
    database.write(lambda: pools.delete_credential(made.id))
    assert done(database, made) is None
    assert begin(database, made) is None
    assert rows(database) == []


def test_what_cannot_be_put_in_force_stays_kept(database: Database, made: Credential) -> None:
    begin(database, made)
    got(database, made)

    def closed(credential: Credential, sealed: bytes) -> Replacement:
        raise ValueError("does not open")

    with pytest.raises(ValueError, match="does not open"):
        database.write(partial(refreshes.done, made.id, closed))
    assert states(database) == [("owner", GOT, False)]
    assert current(database) == made


def test_only_credentials_in_use_whose_end_is_known_expire(database: Database, made: Credential) -> None:
    others = [("no-end", {"extras": b"x"}), ("no-extras", {"expires_at": 3}), ("off", {"extras": b"x", "expires_at": 3})]
    for label, fields in others:
        database.write(lambda label=label, fields=fields: pools.create_credential(label, "", 1, lambda _: b"", **fields))  # type: ignore[misc]
    off = database.read(lambda: pools.find_credential("off"))
    assert off is not None
    database.write(lambda: pools.set_credential_disabled(off.id, 5))
    assert database.read(pools.expiring_credentials) == [made]


def test_what_is_sealed_is_in_no_repr(database: Database, made: Credential) -> None:
    begin(database, made)
    got(database, made, sealed=b"given-token")
    assert "given-token" not in f"{rows(database)} {renewed(made, b'given-token')}"
