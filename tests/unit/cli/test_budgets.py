from __future__ import annotations

import pytest

from tests.unit.cli.conftest import Typed


@pytest.fixture
def ann(installed: Typed) -> Typed:
    assert installed("user", "create", "ann").code == 0
    assert installed("key", "create", "--user", "ann", "--label", "laptop").code == 0
    return installed


def test_an_empty_list_says_what_to_do_next(installed: Typed) -> None:
    assert "gateway budget set" in installed("budget", "list").out


def test_a_budget_is_set_listed_changed_and_ended(ann: Typed) -> None:
    made = ann("budget", "set", "--user", "ann", "--period", "month", "--limit", "20", "--timezone", "Europe/Berlin", "--json").json()
    assert (made["kind"], made["name"], made["limit_nano_usd"], made["remaining_nano_usd"]) == ("user", "ann", 20 * 10**9, 20 * 10**9)
    assert made["resets_at"] > 0
    changed = ann("budget", "set", "--user", "ann", "--period", "month", "--limit", "0.000000001", "--json").json()
    assert (changed["id"], changed["timezone"], changed["limit_nano_usd"]) == (made["id"], "Europe/Berlin", 1)
    assert "ann" in ann("budget", "list").out
    assert ann("budget", "end", str(made["id"])).code == 0
    assert ann("budget", "list", "--json").json() == []
    assert ann("budget", "end", str(made["id"])).code == 3


def test_a_key_and_everybody_can_have_one(ann: Typed) -> None:
    assert ann("budget", "set", "--key", "laptop", "--period", "day", "--limit", "1").code == 0
    assert "everybody" in ann("budget", "set", "--global", "--period", "total", "--limit", "100", "--soft").out
    assert [(item["kind"], item["soft"]) for item in ann("budget", "list", "--json").json()] == [("key", False), ("global", True)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--user", "ann", "--limit", "-5"), "-5"),
        (("--user", "ann", "--limit", "0.0000000001"), "at most 9 decimal places"),
        (("--user", "ann", "--limit", "1e3"), "not an amount of USD"),
        (("--user", "ann", "--limit", "1000000"), "too large"),
        (("--user", "ann", "--limit", "5", "--timezone", "Europe/Berln"), "did you mean Europe/Berlin?"),
        (("--user", "eve", "--limit", "5"), "there is no user 'eve'"),
        (("--team", "blue", "--limit", "5"), "there is no team 'blue'"),
        (("--limit", "5"), "name one of --key, --user, --team and --global"),
        (("--user", "ann", "--global", "--limit", "5"), "name only one of --key, --user, --team and --global"),
        (("--user", "ann", "--team", "blue", "--limit", "5"), "name only one of --key, --user, --team and --global"),
    ],
)
def test_what_cannot_be_a_budget_is_told_in_a_line_and_changes_nothing(ann: Typed, words: tuple[str, ...], told: str) -> None:
    result = ann("budget", "set", "--period", "day", *words)
    assert result.code in (2, 3)
    assert told in result.err
    assert result.err.count("\n") == 1
    assert ann("budget", "list", "--json").json() == []


def test_an_untouched_ledger_is_verified(ann: Typed) -> None:
    assert ann("ledger", "verify").out == "0 entries, 0 budget windows, 0 open holds: 0 differences\n"
    assert ann("ledger", "rebuild").out == "every counter was right\n"


def test_a_credit_makes_room_in_a_prepaid_balance(ann: Typed) -> None:
    assert "gateway budget set" in ann("credit", "add", "--user", "ann", "--amount", "5").err
    ann("budget", "set", "--user", "ann", "--period", "total", "--limit", "0")
    assert "5.00 USD" in ann("credit", "add", "--user", "ann", "--amount", "5", "--note", "invoice 17").out
    (listed,) = ann("budget", "list", "--json").json()
    assert (listed["spent_nano_usd"], listed["remaining_nano_usd"]) == (-5 * 10**9, 5 * 10**9)
    assert ann("ledger", "verify").out == "1 entries, 1 budget windows, 0 open holds: 0 differences\n"


@pytest.mark.parametrize("words", [("--amount", "0"), ("--amount", "-1"), ("--amount", "1", "--note", "a\nb")])
def test_what_is_no_credit_is_refused_and_nothing_is_booked(ann: Typed, words: tuple[str, ...]) -> None:
    ann("budget", "set", "--user", "ann", "--period", "total", "--limit", "0")
    assert ann("credit", "add", "--user", "ann", *words).code == 2
    assert ann("ledger", "verify", "--json").json()["entries"] == 0


def test_a_model_s_longest_answer_is_set_and_unset(ann: Typed) -> None:
    assert ann("model", "set", "echo", "--max-output", "100", "--json").json()["max_output"] == 100
    assert ann("model", "set", "echo", "--max-output", "0", "--json").json()["max_output"] is None
    assert ann("model", "set", "echo", "--max-output", "-1").code == 2
    assert ann("model", "set", "nothing", "--max-output", "1").code == 3


def test_a_team_has_a_budget_and_credits(ann: Typed) -> None:
    ann("team", "create", "blue")
    made = ann("budget", "set", "--team", "blue", "--period", "total", "--limit", "0", "--json").json()
    assert (made["kind"], made["name"]) == ("team", "blue")
    assert ann("credit", "add", "--team", "blue", "--amount", "5").code == 0
    (listed,) = ann("budget", "list", "--json").json()
    assert listed["remaining_nano_usd"] == 5 * 10**9
    assert ann("ledger", "verify").out == "1 entries, 1 budget windows, 0 open holds: 0 differences\n"


def test_a_rotated_key_keeps_its_budget(ann: Typed) -> None:
    made = ann("budget", "set", "--key", "laptop", "--period", "day", "--limit", "1", "--json").json()
    for _ in range(2):
        assert ann("key", "rotate", "laptop").code == 0
    changed = ann("budget", "set", "--key", "laptop", "--period", "day", "--limit", "2", "--json").json()
    assert (changed["id"], changed["subject"]) == (made["id"], 1)


def test_a_soft_budget_stays_soft_until_it_is_made_hard(ann: Typed) -> None:
    of_ann = ("budget", "set", "--user", "ann", "--period", "month", "--json")
    assert [ann(*of_ann, "--limit", "5", *words).json()["soft"] for words in (("--soft",), (), ("--hard",), ())] == [True, True, False, False]


def test_a_balance_outlasts_a_time_zone_and_is_named_when_it_ends(ann: Typed) -> None:
    made = ann("budget", "set", "--user", "ann", "--period", "total", "--limit", "0", "--json").json()
    assert ann("credit", "add", "--user", "ann", "--amount", "5", "--note", "invoice 17").code == 0
    refused = ann("budget", "set", "--user", "ann", "--period", "total", "--limit", "0", "--timezone", "Europe/Berlin")
    assert (refused.code, "it has no time zone" in refused.err) == (2, True)
    assert ann("budget", "list", "--json").json()[0]["remaining_nano_usd"] == 5 * 10**9
    assert "5.00 USD were left of it" in ann("budget", "end", str(made["id"])).out


def test_a_credit_is_listed_and_taken_back_once(ann: Typed) -> None:
    assert "gateway credit add" in ann("credit", "list").out
    assert ann("budget", "set", "--user", "ann", "--period", "total", "--limit", "0").code == 0
    assert ann("credit", "add", "--user", "ann", "--amount", "500").code == 0
    (listed,) = ann("credit", "list", "--json").json()
    assert (listed["name"], listed["amount_nano_usd"], listed["taken_back"]) == ("ann", 500 * 10**9, False)
    assert ann("credit", "void", listed["id"]).out == "credit of 500.00 USD taken back\n"
    assert (ann("credit", "void", listed["id"]).code, ann("credit", "void", "nothing").code) == (2, 3)
    assert ann("budget", "list", "--json").json()[0]["remaining_nano_usd"] == 0
    assert "taken back" in ann("credit", "list").out
    assert ann("ledger", "verify").code == 0


def test_a_credit_that_finds_no_budget_says_which_to_begin(ann: Typed) -> None:
    assert "gateway budget set --user ann --period total --limit 0" in ann("credit", "add", "--user", "ann", "--amount", "5").err
