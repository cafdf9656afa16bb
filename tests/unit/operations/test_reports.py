from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from gateway.dialects.events import Usage
from gateway.errors import BadRequest
from gateway.operations import keys, reports, users
from gateway.secrets import Secrets
from gateway.store import accounts, budgets, ledger
from gateway.store.database import Database
from gateway.store.exchanges import ExchangeRow
from tests import factories
from tests.unit.operations.times import AT


def book(database: Database, number: int, key: int, user: int, model: str, amount: int, at: int = AT, team: int | None = None) -> None:
    name = f"exchange-{number}"
    entry = ledger.Entry(
        exchange=name,
        kind="usage",
        attempt=1,
        api_key=key,
        user=user,
        amount=amount,
        cost=amount,
        usage=Usage(input_uncached=10, output_text=2),
        ending="complete",
        usage_source="provider",
        model_asked=model,
        model_served=model,
        deployment="d",
        total_ms=5,
        at=at,
        team=team,
    )
    row = ExchangeRow(id=name, owner="o", api_key=key, user=user, model=model, status=200, ending="complete", receipt=json.dumps({}), at=at)
    factories.booked(database, entry, row)


@pytest.fixture
def booked(database: Database, secrets: Secrets) -> Database:
    users.create_user(database, "ann", AT)
    users.create_user(database, "bob", AT)
    first = keys.create_key(database, secrets.hasher, "ann", AT, label="laptop").key
    second = keys.create_key(database, secrets.hasher, "bob", AT).key
    book(database, 1, first.id, first.user_id, "m", 100)
    book(database, 2, first.id, first.user_id, "m", 50)
    book(database, 3, second.id, second.user_id, "n", 7)
    book(database, 4, 99, 99, "n", 1)
    return database


def test_a_report_has_names_and_sums(booked: Database) -> None:
    lines = reports.report(booked, AT, AT + 1, ("model",))
    assert [(dict(line.names), line.calls, line.amount, line.buckets["input_uncached"]) for line in lines] == [
        ({"model": "m"}, 2, 150, 20),
        ({"model": "n"}, 2, 8, 20),
    ]


def test_users_and_keys_are_named_and_who_is_gone_by_the_id(booked: Database) -> None:
    lines = reports.report(booked, AT, AT + 1, ("user", "key"))
    (unlabelled,) = [key for key in booked.read(accounts.list_keys) if not key.label]
    assert [tuple(line.names.values()) for line in lines] == [("#99", "#99"), ("ann", "laptop (#1)"), ("bob", f"{unlabelled.prefix} (#2)")]
    assert lines[1].ids == {"user": 1, "key": 1}


def test_a_period_has_its_beginning_and_not_its_end(booked: Database) -> None:
    assert reports.report(booked, AT + 1, AT + 2, ("model",)) == []
    assert reports.report(booked, AT - 1, AT, ("model",)) == []


def test_days_are_utc(booked: Database) -> None:
    assert [line.names for line in reports.report(booked, AT, AT + 1, ("day", "ending"))] == [{"day": "2027-01-15", "ending": "complete"}]


@pytest.mark.parametrize("by", [("colour",), (), ("model", "colour")])
def test_a_dimension_that_does_not_exist_is_refused_with_those_that_do(booked: Database, by: tuple[str, ...]) -> None:
    with pytest.raises(BadRequest, match="user, key, model"):
        reports.report(booked, AT, AT + 1, by)


def test_a_period_that_ends_before_it_begins_is_refused(booked: Database) -> None:
    with pytest.raises(BadRequest, match="ends before"):
        reports.report(booked, AT, AT, ("model",))


def test_a_report_by_team_has_its_name_and_who_had_none_under_none(booked: Database, secrets: Secrets) -> None:
    team = booked.write(lambda: accounts.create_team("research", AT))
    book(booked, 5, 1, 1, "m", 1_000, team=team.id)
    book(booked, 6, 1, 1, "m", 10, team=99)
    lines = reports.report(booked, AT, AT + 1, ("team",))
    assert [(dict(line.names), dict(line.ids), line.calls, line.amount) for line in lines] == [
        ({"team": ""}, {}, 4, 158),
        ({"team": "#99"}, {"team": 99}, 1, 10),
        ({"team": "research"}, {"team": team.id}, 1, 1_000),
    ]


def test_rows_for_other_programs_have_every_bucket_and_exact_amounts(booked: Database) -> None:
    by = ("user", "day")
    *_, row = reports.rows(by, reports.report(booked, AT, AT + 1, by))
    assert tuple(row) == reports.columns(by)
    assert (row["user"], row["user_id"], row["day"], row["calls"], row["input_uncached"], row["audio_in"]) == ("bob", 2, "2027-01-15", 1, 10, 0)
    assert (row["amount_usd"], row["amount_nano_usd"]) == (Decimal("0.000000007"), 7)


def test_what_is_on_nobodys_account_is_the_operators_and_credits_are_no_calls(booked: Database) -> None:
    book(booked, 9, 0, 0, "m", 3)
    booked.write(lambda: budgets.set_budget("user", 1, "total", "UTC", 0, AT))
    credit = booked.write(lambda: ledger.book_credit("user", 1, 1_000, AT, "c1", "", factories.seal))
    known = next(entry for entry in booked.read(ledger.credits) if entry.exchange == credit.exchange)
    booked.write(lambda: ledger.book_corrections([replace(known, id=None, kind="void", corrects=known.id, amount=400, at=AT)], factories.seal))
    by_user = {line.names["user"]: line.amount for line in reports.report(booked, AT, AT + 1, ("user",))}
    assert by_user == {"ann": 150, "bob": 7, "#99": 1, "(operator)": 3}
    assert {line.names["key"] for line in reports.report(booked, AT, AT + 1, ("key",))} >= {"(operator)", "#99"}
