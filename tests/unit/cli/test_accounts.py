from __future__ import annotations

import re

import pytest

from gateway.secrets import looks_like_key
from tests.unit.cli.conftest import Typed


@pytest.fixture
def ann(installed: Typed) -> Typed:
    assert installed("user", "create", "ann").code == 0
    return installed


def test_empty_lists_say_what_to_do_next(installed: Typed) -> None:
    assert "gateway user create" in installed("user", "list").out
    assert "gateway key create" in installed("key", "list").out
    assert installed("key", "list", "--json").json() == []


def test_a_user_is_shown_with_the_state(ann: Typed) -> None:
    assert re.search(r"ann +\d{4}-\d\d-\d\d .*active", ann("user", "list").out)
    assert ann("user", "disable", "ann").code == 0
    assert "disabled 2" in ann("user", "list").out
    assert ann("user", "enable", "ann", "--json").json()["disabled_at"] is None


def test_the_secret_is_shown_once(ann: Typed) -> None:
    made = ann("key", "create", "--user", "ann", "--label", "laptop")
    (secret,) = re.findall(r"gw_user_\w+", made.out)
    assert looks_like_key(secret)
    assert secret not in ann("key", "list").out + ann("key", "list", "--json").out


def test_json_has_the_secret_of_a_new_key_and_of_no_other(ann: Typed) -> None:
    made = ann("key", "create", "--user", "ann", "--models", "a,gpt-*", "--expires", "30d", "--json").json()
    assert looks_like_key(made["key"])
    assert (made["models"], made["expires_at"] - made["created_at"] > 29 * 86_400_000, made["state"]) == (["a", "gpt-*"], True, "active")
    assert "key" not in ann("key", "list", "--json").json()[0]


def test_a_key_that_ends_in_the_past_is_refused(ann: Typed) -> None:
    result = ann("key", "create", "--user", "ann", "--expires", "2020-01-01")
    assert (result.code, "past" in result.err) == (2, True)


def test_a_key_s_restrictions_are_typed_shown_and_lifted(ann: Typed) -> None:
    words = ("--models", "gpt-*", "--deny", "gpt-4*", "--scopes", "inference", "--from", "10.0.0.0/8,192.0.2.1")
    made = ann("key", "create", "--user", "ann", "--label", "laptop", *words)
    assert "for gpt-* but gpt-4*, restricted to inference, from 10.0.0.0/8,192.0.2.1/32 only, expires never" in made.out
    (row,) = re.findall(r"laptop +gw_user_\S+ +(.+)", ann("key", "list").out)
    assert re.split("  +", row)[:3] == ["gpt-* but gpt-4*", "inference", "10.0.0.0/8,192.0.2.1/32"]
    assert "for every model now" in ann("key", "set", "laptop", "--models", "", "--deny", "", "--scopes", "", "--from", "").out
    document = ann("key", "set", "laptop", "--deny", "x", "--json").json()
    assert (document["models"], document["denied_models"], document["scopes"], document["networks"]) == ([], ["x"], None, [])


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("laptop",), 2, "name what to change"),
        (("laptop", "--from", "10.0.0.1/8"), 2, "is no network"),
        (("laptop", "--scopes", "usage"), 2, "there is no scope 'usage'"),
        (("tablet", "--models", "a"), 3, "there is no key 'tablet'"),
    ],
)
def test_what_cannot_be_set_of_a_key_is_told_in_a_line(ann: Typed, words: tuple[str, ...], code: int, told: str) -> None:
    ann("key", "create", "--user", "ann", "--label", "laptop")
    result = ann("key", "set", *words)
    assert (result.code, told in result.err, result.err.count("\n")) == (code, True, 1)


def test_a_rotation_shows_the_new_secret_and_the_end_of_the_old(ann: Typed) -> None:
    ann("key", "create", "--user", "ann", "--label", "laptop")
    rotated = ann("key", "rotate", "laptop", "--overlap", "1h", "--json").json()
    assert looks_like_key(rotated["key"])
    assert (rotated["replaces"]["id"], rotated["replaces"]["successor_id"]) == (1, 2)
    assert "active, replaced by 2" in ann("key", "list").out


def test_a_revoked_key_is_listed_as_such(ann: Typed) -> None:
    ann("key", "create", "--user", "ann", "--label", "laptop")
    assert "key 1 (gw_user_" in ann("key", "revoke", "laptop").out
    assert ann("key", "list", "--json", "--user", "ann").json()[0]["state"] == "revoked"
