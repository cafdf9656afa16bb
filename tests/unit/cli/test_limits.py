from __future__ import annotations

import pytest

from tests.unit.cli.conftest import Typed


@pytest.fixture
def ann(installed: Typed) -> Typed:
    assert installed("user", "create", "ann").code == 0
    assert installed("key", "create", "--user", "ann", "--label", "laptop").code == 0
    return installed


def test_an_empty_list_says_what_to_do_next(installed: Typed) -> None:
    assert "gateway limit set" in installed("limit", "list").out


def test_limits_are_set_one_by_one_listed_and_taken_away(ann: Typed) -> None:
    assert ann("limit", "set", "--user", "ann", "--rpm", "60").out == "limits of ann: 60 requests a minute\n"
    made = ann("limit", "set", "--user", "ann", "--concurrency", "4", "--json").json()
    assert (made["kind"], made["name"], made["requests"], made["concurrency"], made["tokens"]) == ("user", "ann", 60, 4, None)
    assert ann("limit", "set", "--user", "ann", "--rpm", "0").out == "limits of ann: 4 calls at once\n"
    assert ann("limit", "set", "--key", "laptop", "--tpm", "100000").code == 0
    assert [item["kind"] for item in ann("limit", "list", "--json").json()] == ["user", "key"]
    assert "100000" in ann("limit", "list").out
    assert ann("limit", "clear", "--user", "ann").code == 0
    assert [item["kind"] for item in ann("limit", "list", "--json").json()] == ["key"]
    assert ann("limit", "clear", "--user", "ann").code == 3


def test_a_models_limits_and_its_queue_are_set_with_the_model(installed: Typed) -> None:
    changed = installed("model", "set", "echo", "--rpm", "600", "--queue", "50", "--queue-for", "10s", "--on-client-gone", "drain", "--json").json()
    assert (changed["rpm"], changed["queue"], changed["queue_s"], changed["on_client_gone"]) == (600, 50, 10.0, "drain")
    assert installed("model", "set", "echo", "--queue", "0", "--json").json()["queue"] is None
    assert [(item["kind"], item["name"], item["requests"]) for item in installed("limit", "list", "--json").json()] == [("model", "echo", 600)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("limit", "set", "--user", "ann", "--rpm", "-1"), "-1 is not in the range"),
        (("limit", "set", "--user", "ann", "--rpm", "9999999999"), "the requests a minute: write a number from 1 to 1000000000"),
        (("limit", "set", "--user", "ann"), "name a limit that is to change"),
        (("limit", "set", "--rpm", "5"), "name one of --key, --user, --team and --global"),
        (("limit", "set", "--user", "eve", "--rpm", "5"), "there is no user 'eve'"),
        (("model", "set", "echo", "--queue", "20000"), "the calls that may wait: write a number from 1 to 10000"),
        (("model", "set", "echo"), "name what is to change"),
        (("model", "set", "echo", "--on-client-gone", "run"), "'run' is not one of"),
        (("model", "set", "nothing", "--rpm", "5"), "there is no model 'nothing'"),
    ],
)
def test_what_makes_no_sense_is_told_and_changes_nothing(ann: Typed, words: tuple[str, ...], told: str) -> None:
    typed = ann(*words)
    assert typed.code != 0
    assert told in typed.err
    assert ann("limit", "list", "--json").json() == []
