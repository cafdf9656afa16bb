from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.provider import Provider
from tests.unit.cli.conftest import Typed
from tests.unit.operations.test_import_formats import jwt

CANARY = "sk-canary-0123456789"


def test_file_is_imported_and_counted_and_no_secret_is_shown(installed: Typed, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text(f"{CANARY}\nsk-b\n")
    result = installed("credential", "import", "keys.txt", "--pool", "team")
    assert (result.code, result.out.splitlines()[-1]) == (0, "2 created, 0 already there, 0 refused")
    assert CANARY not in result.out + result.err
    assert [item["label"] for item in installed("credential", "list", "--json").json()] == ["team-1", "team-2"]


def test_standard_input_is_imported(installed: Typed) -> None:
    document = installed("credential", "import", "-", "--json", "--prefix", "k", stdin=json.dumps(["sk-a", "sk-a"])).json()
    assert (document["created"], document["known"], document["refused"]) == (1, 1, 0)
    assert [entry["label"] for entry in document["entries"]] == ["k-1", "k-1"]


def test_dry_run_says_and_does_nothing(installed: Typed) -> None:
    result = installed("credential", "import", "-", "--dry-run", stdin="sk-a\n")
    assert result.out.splitlines()[-1] == "1 would be created, 0 already there, 0 refused"
    assert installed("credential", "list", "--json").json() == []


@pytest.mark.parametrize("text", [f'["{CANARY}", "sk', f"{CANARY}\n{CANARY} x\n", f"token,proxy\nsk-a,\n{CANARY},gopher://h:1\n", "\x00"])
def test_wrong_file_imports_nothing_and_is_told_in_one_line(installed: Typed, text: str) -> None:
    result = installed("credential", "import", "-", stdin=text)
    assert (result.code, result.err.count("\n"), CANARY in result.err) == (2, 1, False)
    assert installed("credential", "list", "--json").json() == []


def test_refused_entries_end_with_a_failure(installed: Typed) -> None:
    result = installed("credential", "import", "-", stdin=jwt(1, exp=1_700_000_000) + "\n")
    assert (result.code, "it expired on 2023-11-14" in result.out) == (1, True)


def test_access_tokens_are_jwts(installed: Typed) -> None:
    for words in (("--jwt",), ("--format", "access-tokens")):
        result = installed("credential", "import", "-", *words, stdin=json.dumps([jwt(), "sk-a"]))
        assert (result.code, "entry 2: it is not an access token" in result.err) == (2, True)


def test_new_credentials_are_tested_at_the_deployments_upstream(installed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_ALLOW_NETWORKS", "127.0.0.0/8")
    with Provider() as provider:
        installed("credential", "create", "own", "-", "--pool", "p", stdin="sk-own")
        installed("deployment", "create", "d", "--model", "m", "--backend", "openai", "--pool", "p", "--base-url", provider.url)
        result = installed("credential", "import", "-", "--pool", "p", "--test", stdin="sk-a\nsk-own\n")
        assert result.out.splitlines()[-1] == "1 created, 1 already there, 0 refused; 1 of 1 tested well"
        assert [request.headers["authorization"] for request in provider.requests] == ["Bearer sk-a"]


def test_missing_line_break_at_the_end_is_remarked_on(installed: Typed) -> None:
    assert "was it cut off?" in installed("credential", "import", "-", stdin="sk-a").err
