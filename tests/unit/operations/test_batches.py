from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.dialects.events import Usage
from gateway.errors import BadRequest, NotFound
from gateway.operations import batches, keys, teams, users
from gateway.operations.batches import KEYS, Owner
from gateway.operations.keys import MintedKey, key_state
from gateway.secrets import Secrets
from gateway.store import accounts, budgets, ledger
from gateway.store.database import Conflict, Database
from gateway.store.ledger import Entry
from tests.unit.operations.booked import book, seal
from tests.unit.operations.times import AT

USD = 10**9


def made(database: Database, secrets: Secrets, count: int = 3, name: str = "workshop", owner: Owner | None = None, **fields: object) -> list[MintedKey]:
    return batches.create_batch(database, secrets.hasher, name, count, owner or Owner(), AT, **fields)  # type: ignore[arg-type]


def test_a_batch_is_of_different_keys_that_are_alike(database: Database, secrets: Secrets) -> None:
    minted = made(database, secrets, 12, budget_nano=USD, expires_at=AT + 5, models=("a",), scopes=("inference",))
    assert [one.key.label for one in minted] == [f"workshop-{number:02}" for number in range(1, 13)]
    for one in minted:
        assert database.read(lambda one=one: accounts.find_key(secrets.hasher.hash(one.secret.reveal()))) == one.key  # type: ignore[misc]
        (budget,) = database.read(lambda one=one: budgets.account_path(one.key.id, one.key.user_id, None)).budgets  # type: ignore[misc]
        assert (budget.kind, budget.period, budget.limit_nano) == ("key", "total", USD)
    assert {(one.key.models, one.key.scopes, one.key.expires_at, one.key.batch) for one in minted} == {(("a",), ("inference",), AT + 5, "workshop")}
    assert len({one.secret.reveal() for one in minted}) == 12


def test_a_batch_belongs_to_a_new_user_of_its_name_or_to_one_who_is_named(database: Database, secrets: Secrets) -> None:
    blue = teams.create_team(database, "blue", AT)
    (one,) = made(database, secrets, 1, owner=Owner(team="blue"))
    assert (one.key.user_name, one.key.team_id) == ("workshop", blue.id)
    users.create_user(database, "ann", AT)
    (one,) = made(database, secrets, 1, "second", Owner("ann"))
    assert one.key.user_name == "ann"


def test_a_batch_without_a_budget_has_none(database: Database, secrets: Secrets) -> None:
    made(database, secrets)
    assert database.read(budgets.list_budgets) == []


def test_what_is_no_batch_is_refused_and_nothing_of_it_is_made(database: Database, secrets: Secrets) -> None:
    users.create_user(database, "ann", AT)
    made(database, secrets, 1, "there", Owner("ann"))
    before = database.read(lambda: (accounts.list_keys(), accounts.list_users()))
    for told, kind, attempt in [
        ("1 to 1000", BadRequest, lambda: made(database, secrets, 0)),
        ("1 to 1000", BadRequest, lambda: made(database, secrets, KEYS + 1)),
        ("batch's name", BadRequest, lambda: made(database, secrets, 1, "two words")),
        ("label", BadRequest, lambda: made(database, secrets, 1, "n" * 63)),
        ("past", BadRequest, lambda: made(database, secrets, expires_at=AT)),
        ("no network", BadRequest, lambda: made(database, secrets, networks=("x",))),
        ("'bob'", NotFound, lambda: made(database, secrets, owner=Owner("bob"))),
        ("'red'", NotFound, lambda: made(database, secrets, owner=Owner(team="red"))),
        ("batch there already", Conflict, lambda: made(database, secrets, 1, "there", Owner("ann"))),
        ("name them with --user", Conflict, lambda: made(database, secrets, 1, "ann")),
    ]:
        with pytest.raises(kind, match=told):
            attempt()
    assert database.read(lambda: (accounts.list_keys(), accounts.list_users())) == before
    assert database.read(budgets.list_budgets) == []


def test_a_batch_is_revoked_with_what_took_its_keys_places(database: Database, secrets: Secrets) -> None:
    minted = made(database, secrets)
    keys.rotate_key(database, secrets.hasher, "workshop-01", AT, overlap_ms=60_000)
    keys.revoke_key(database, "workshop-02", AT)
    assert batches.revoke_batch(database, "workshop", AT + 1) == len(minted)
    assert {key_state(key, AT + 1) for key in keys.list_keys(database, batch="workshop")} == {"revoked"}
    assert batches.revoke_batch(database, "workshop", AT + 2) == 0
    with pytest.raises(NotFound, match="'other'"):
        batches.revoke_batch(database, "other", AT)


def test_a_report_says_who_used_what_and_what_is_left(database: Database, secrets: Secrets) -> None:
    first, second, third = (one.key for one in made(database, secrets, budget_nano=USD))
    entry = Entry("x1", "usage", 1, first.id, first.user_id, 300, 200, Usage(output_text=2), "complete", "provider", "m", "m", "d", 10, AT)
    book(database, entry, replace(entry, exchange="x2"), replace(entry, exchange="x3", api_key=second.id))
    new = keys.rotate_key(database, secrets.hasher, "workshop-01", AT, overlap_ms=60_000).new.key
    lines = batches.batch_report(database, "workshop", AT)
    assert [(line.key.id, line.used.calls, line.used.amount) for line in lines] == [(first.id, 2, 600), (second.id, 1, 300), (third.id, 0, 0), (new.id, 0, 0)]
    assert [line.left for line in lines] == [USD] * 4, "what was booked without a hold moved no budget's window"
    database.write(lambda: ledger.book_credit("key", first.id, 5, AT, "c", "", seal))
    assert [(line.left, line.used.amount) for line in batches.batch_report(database, "workshop", AT)] == [(USD + 5, 600), (USD, 300), (USD, 0), (USD + 5, 0)]
    assert lines[3].used.last_at is None
    with pytest.raises(NotFound):
        batches.batch_report(database, "other", AT)
