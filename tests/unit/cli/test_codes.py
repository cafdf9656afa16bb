from __future__ import annotations

import re

import pytest

from gateway.secrets import looks_like_key
from tests.unit.cli.conftest import Typed


def test_an_empty_list_says_what_to_do_next(installed: Typed) -> None:
    assert "gateway code create" in installed("code", "list").out


def test_codes_are_shown_once_listed_and_revoked(installed: Typed) -> None:
    made = installed("code", "create", "--amount", "5", "--count", "2", "--expires", "30d", "--note", "prize")
    shown = re.findall(r"gw_code_\w+", made.out)
    assert len(shown) == 2
    assert all(map(looks_like_key, shown))
    assert "2 of 5.00 USD, good until 2" in made.out
    listed = installed("code", "list").out
    assert re.search(rf"1 +…{shown[0][-4:]} +5\.00 +prize .* open", listed)
    assert shown[0] not in listed + installed("code", "list", "--json").out
    assert installed("code", "revoke", shown[0][-4:]).out == f"code 1 (…{shown[0][-4:]}) revoked\n"
    assert [item["state"] for item in installed("code", "list", "--json").json()] == ["revoked", "open"]


def test_json_has_the_secret_of_a_new_code(installed: Typed) -> None:
    (made,) = installed("code", "create", "--amount", "0.5", "--json").json()
    assert looks_like_key(made["code"])
    assert (made["amount_nano_usd"], made["state"], made["expires_at"]) == (5 * 10**8, "open", None)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("create", "--amount", "0"), 2, "more than 0 USD"),
        (("create", "--amount", "-5"), 2, "not an amount of USD"),
        (("create", "--amount", "5", "--count", "0"), 2, "--count"),
        (("create", "--amount", "5", "--expires", "2020-01-01"), 2, "past"),
        (("revoke", "9"), 3, "there is no code '9'"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(installed: Typed, words: tuple[str, ...], code: int, told: str) -> None:
    result = installed("code", *words)
    assert (result.code, told in result.err, result.err.count("\n")) == (code, True, 1)
    assert installed("code", "list", "--json").json() == []
