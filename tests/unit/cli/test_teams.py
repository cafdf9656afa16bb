from __future__ import annotations

import pytest

from tests.unit.cli.conftest import Typed


def test_an_empty_list_says_what_to_do_next(installed: Typed) -> None:
    assert "gateway team create" in installed("team", "list").out


def test_a_team_is_created_joined_changed_and_left(installed: Typed) -> None:
    assert "gateway user create USER --team blue" in installed("team", "create", "blue", "--markup", "12.5").out
    assert installed("user", "create", "ann", "--team", "blue", "--json").json()["team"] == "blue"
    assert installed("user", "create", "bob").code == 0
    assert "team blue now" in installed("user", "set", "bob", "--team", "blue").out
    assert "-10 % above the cost" in installed("team", "set", "blue", "--markup", "-10").out
    (listed,) = installed("team", "list", "--json").json()
    assert (listed["markup_ppm"], listed["users"]) == (-100_000, ["ann", "bob"])
    assert "ann, bob" in installed("team", "list").out
    assert "no team now" in installed("user", "set", "ann", "--team", "").out
    assert [item["team"] for item in installed("user", "list", "--json").json()] == [None, "blue"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("team", "create", "red", "--markup", "1001"), 2, "from -100 (free) to 1000 per cent"),
        (("team", "create", "red", "--markup", "much"), 2, "not a markup"),
        (("team", "create", "blue"), 4, "there is a team blue already"),
        (("team", "create", "a b"), 2, "team's name"),
        (("team", "set", "red", "--markup", "1"), 3, "there is no team 'red'"),
        (("user", "create", "eve", "--team", "red"), 3, "there is no team 'red'"),
        (("user", "set", "eve", "--team", "blue"), 3, "there is no user 'eve'"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line_and_changes_nothing(installed: Typed, words: tuple[str, ...], code: int, told: str) -> None:
    installed("team", "create", "blue")
    result = installed(*words)
    assert (result.code, told in result.err, result.err.count("\n")) == (code, True, 1)
    assert [item["name"] for item in installed("team", "list", "--json").json()] == ["blue"]
    assert installed("user", "list", "--json").json() == []
