from __future__ import annotations

import pytest

from gateway.errors import BadRequest, NotFound
from gateway.operations import keys, teams, users
from gateway.operations.budgets import Subject, set_budget
from gateway.operations.teams import markup_ppm, percent
from gateway.secrets import Secrets
from gateway.store import accounts, budgets
from gateway.store.database import Conflict, Database
from tests.unit.operations.times import AT


@pytest.mark.parametrize(
    ("text", "ppm", "shown"),
    [
        ("0", 0, "0"),
        ("15", 150_000, "15"),
        ("+2.50%", 25_000, "2.5"),
        ("-10", -100_000, "-10"),
        ("0.0001", 1, "0.0001"),
        ("-0.5", -5_000, "-0.5"),
        ("-100", -1_000_000, "-100"),
        ("1000", 10_000_000, "1000"),
    ],
)
def test_a_markup_is_exact_millionths(text: str, ppm: int, shown: str) -> None:
    assert markup_ppm(text) == ppm
    assert percent(ppm) == shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("-100.0001", "-100 .free. to 1000"),
        ("1000.0001", "1000 per cent"),
        ("0.00001", "too fine"),
        *((text, "not a markup") for text in ("", "x", "1e3", ".5", "9" * 99, "٣")),
    ],
)
def test_what_is_no_markup_is_told_in_a_line(text: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told) as error:
        markup_ppm(text)
    assert "\n" not in str(error.value)


def test_a_team_is_created_listed_and_changed(database: Database) -> None:
    blue = teams.create_team(database, "blue", AT, markup_ppm=150_000)
    assert (blue.name, blue.markup_ppm) == ("blue", 150_000)
    users.create_user(database, "ann", AT, team="blue")
    users.create_user(database, "bob", AT)
    (listed,) = teams.list_teams(database)
    assert (listed.team, listed.users) == (blue, ("ann",))
    assert teams.set_team_markup(database, "blue", -1).markup_ppm == -1


def test_a_team_s_name_is_given_once_and_can_be_one(database: Database) -> None:
    teams.create_team(database, "blue", AT)
    with pytest.raises(Conflict, match="there is a team blue already"):
        teams.create_team(database, "blue", AT)
    with pytest.raises(BadRequest, match="team's name"):
        teams.create_team(database, "two words", AT)
    with pytest.raises(NotFound, match="'red'"):
        teams.set_team_markup(database, "red", 0)


def test_a_user_is_put_into_a_team_and_out_of_it(database: Database) -> None:
    blue = teams.create_team(database, "blue", AT)
    users.create_user(database, "ann", AT)
    assert users.set_user_team(database, "ann", "blue").team_id == blue.id
    assert [user.team_name for user in users.list_users(database)] == ["blue"]
    with pytest.raises(NotFound, match="'red'"):
        users.set_user_team(database, "ann", "red")
    assert users.list_users(database)[0].team_name == "blue"
    assert users.set_user_team(database, "ann", "").team_id is None


def test_nobody_is_created_for_a_team_that_does_not_exist(database: Database) -> None:
    with pytest.raises(NotFound, match="'red'"):
        users.create_user(database, "ann", AT, team="red")
    assert users.list_users(database) == []


def test_a_team_s_budget_and_markup_reach_its_users_keys(database: Database, secrets: Secrets) -> None:
    blue = teams.create_team(database, "blue", AT, markup_ppm=5)
    users.create_user(database, "ann", AT, team="blue")
    made = set_budget(database, Subject("team", "blue"), "month", 7, AT)
    key = keys.create_key(database, secrets.hasher, "ann", AT).key
    assert (key.team_id, key.markup_ppm) == (blue.id, 5)
    assert database.read(lambda: budgets.account_path(key.id, key.user_id, key.team_id)).budgets == (made,)
    users.set_user_team(database, "ann", "")
    found = database.read(lambda: accounts.find_key_by_id(key.id))
    assert found is not None
    assert (found.team_id, found.markup_ppm) == (None, 0)
