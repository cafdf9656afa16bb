from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from gateway.secrets import looks_like_key
from tests.unit.cli.conftest import Typed


def test_a_sheet_shows_every_secret_once(installed: Typed) -> None:
    made = installed("key", "bulk", "--batch", "nov", "--count", "3", "--expires", "4h", "--budget", "1", "--models", "echo")
    secrets = re.findall(r"gw_user_\w+", made.out)
    assert len(set(secrets)) == 3
    assert all(map(looks_like_key, secrets))
    assert re.search(r"nov-01: for echo, 1\.00 USD in total, until \d{4}-", made.out)
    listed = installed("key", "list", "--batch", "nov")
    assert [word in listed.out for word in ("nov-01", "nov-03", secrets[0])] == [True, True, False]
    assert [item["limit_nano_usd"] for item in installed("budget", "list", "--json").json()] == [10**9] * 3


def test_csv_and_json_have_the_same(installed: Typed) -> None:
    made = installed("key", "bulk", "--batch", "nov", "--count", "2", "--models", "a,b", "--format", "csv")
    first, second = csv.DictReader(made.out.splitlines())
    assert looks_like_key(first["key"])
    assert (first["label"], second["label"], first["models"], first["budget_usd"], first["user"]) == ("nov-01", "nov-02", "a b", "", "nov")
    documents = installed("key", "bulk", "--batch", "dec", "--count", "1", "--user", "nov", "--budget", "0.5", "--json").json()
    assert looks_like_key(documents[0]["key"])
    assert (documents[0]["batch"], documents[0]["user"], documents[0]["budget_nano_usd"]) == ("dec", "nov", 5 * 10**8)


def test_a_batch_is_revoked_and_reported(installed: Typed) -> None:
    installed("key", "bulk", "--batch", "nov", "--count", "2", "--budget", "1")
    assert installed("key", "revoke", "--batch", "nov").out == "2 keys of batch nov revoked\n"
    report = installed("key", "report", "--batch", "nov")
    assert re.search(r"nov-02 +gw_user_\S+ +0 +0 +0 +0\.00 +1\.00 +never +revoked", report.out)
    assert re.search(r"total +0 of 2 used +0", report.out)
    assert [line["left_nano_usd"] for line in installed("key", "report", "--batch", "nov", "--json").json()["keys"]] == [10**9] * 2
    assert installed("key", "report", "--batch", "nov", "--format", "csv").out.startswith("label,key,key_id,calls,")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("bulk", "--batch", "nov", "--count", "0"), 2, "--count"),
        (("bulk", "--batch", "nov", "--count", "1001"), 2, "--count"),
        (("bulk", "--batch", "nov", "--count", "1", "--budget", "-1"), 2, "not an amount of USD"),
        (("bulk", "--batch", "nov", "--count", "1", "--user", "a", "--team", "b"), 2, "name --user or --team"),
        (("bulk", "--batch", "n v", "--count", "1"), 2, "batch's name"),
        (("report", "--batch", "nov"), 3, "there is no batch 'nov'"),
        (("revoke", "--batch", "nov"), 3, "there is no batch 'nov'"),
        (("revoke",), 2, "name a key, or a --batch"),
        (("revoke", "1", "--batch", "nov"), 2, "name a key, or a --batch"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(installed: Typed, words: tuple[str, ...], code: int, told: str) -> None:
    result = installed("key", *words)
    assert (result.code, told in result.err, result.err.count("\n")) == (code, True, 1)
    assert "No such keys." in installed("key", "list", "--batch", "nov").out


def test_no_cell_of_a_batch_s_csv_is_a_formula(installed: Typed) -> None:
    made = installed("key", "bulk", "--batch=-course", "--count", "1", "--models", "=HYPERLINK(1)", "--format", "csv").out
    assert ("\n'-course-01," in made, ",'=HYPERLINK(1)," in made) == (True, True)
    assert "\n'-course-01," in installed("key", "report", "--batch=-course", "--format", "csv").out


def test_a_sheet_that_cannot_be_written_leaves_no_keys(installed: Typed, tmp_path: Path) -> None:
    made = installed("key", "bulk", "--batch", "nov", "--count", "2", "--format", "csv", "-o", str(tmp_path / "nowhere" / "sheet.csv"))
    assert (made.code, "sheet.csv" in made.err) == (1, True)
    assert "No such keys." in installed("key", "list", "--batch", "nov").out
    assert installed("key", "bulk", "--batch", "nov", "--count", "2", "--format", "csv", "-o", str(tmp_path / "sheet.csv")).code == 0
    assert (tmp_path / "sheet.csv").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "sheet.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("flag", ["--models", "--deny", "--scopes", "--from"])
def test_an_unset_variable_makes_no_key_without_its_restriction(installed: Typed, flag: str) -> None:
    for words in (("bulk", "--batch", "nov", "--count", "1"), ("create", "--user", "first")):
        refused = installed("key", *words, flag, "")
        assert (refused.code, f"{flag} names nothing" in refused.err) == (2, True)
    assert installed("key", "bulk", "--batch", "nov", "--count", "1").code == 0
    assert installed("key", "set", "nov-01", flag, "").code == 0
