from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.gateway import ROOT
from tests.unit.cli.conftest import Result, Typed

SECRET = "sk-canary-0123456789"


def silent(result: Result) -> Result:
    assert SECRET not in result.out + result.err
    return result


def test_a_secret_comes_from_standard_input_and_only_its_end_is_shown(installed: Typed) -> None:
    assert "(…6789)" in silent(installed("credential", "create", "main", "-", stdin=SECRET + "\n")).out
    assert "…6789" in silent(installed("credential", "list")).out
    assert silent(installed("credential", "list", "--json")).json()[0]["hint"] == "6789"


def test_a_secret_comes_from_a_variable(installed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", SECRET)
    assert silent(installed("credential", "create", "main", "--from-env", "UPSTREAM_KEY")).code == 0
    result = installed("credential", "replace", "main", "--from-env", "NO_SUCH_KEY")
    assert (result.code, "NO_SUCH_KEY is not set" in result.err) == (2, True)


def test_a_secret_is_never_an_argument_and_not_repeated(installed: Typed) -> None:
    result = silent(installed("credential", "create", "main", SECRET))
    assert (result.code, "never an argument" in result.err) == (2, True)
    assert installed("credential", "list", "--json").json() == []


def test_without_a_terminal_nothing_is_asked(installed: Typed) -> None:
    result = installed("credential", "create", "main", stdin=SECRET)
    assert (result.code, "no terminal" in result.err) == (2, True)


def test_at_a_terminal_the_secret_is_asked_for_and_not_echoed(installed: Typed) -> None:
    keyboard, terminal = os.openpty()
    command = [sys.executable, "-m", "gateway.cli", "credential", "create", "main"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True)
    os.close(terminal)
    screen = b""
    while b"Secret: " not in screen:
        screen += os.read(keyboard, 1000)
    os.write(keyboard, SECRET.encode() + b"\n")
    with contextlib.suppress(OSError):  # the terminal's end
        while piece := os.read(keyboard, 1000):
            screen += piece
    os.close(keyboard)
    assert process.wait(10) == 0
    assert SECRET.encode() not in screen
    assert "…6789" in installed("credential", "list").out


def test_a_replaced_secret_is_the_next_version(installed: Typed) -> None:
    installed("credential", "create", "main", "-", stdin=SECRET)
    assert installed("credential", "replace", "main", "-", "--json", stdin="sk-another-secret-9999").json()["version"] == 2


def test_a_disabled_credential_is_listed_as_such_and_a_deleted_one_is_gone(installed: Typed) -> None:
    installed("credential", "create", "main", "-", stdin=SECRET)
    installed("credential", "disable", "main")
    assert "disabled" in installed("credential", "list").out
    installed("credential", "enable", "main")
    assert "active" in installed("credential", "list").out
    installed("credential", "delete", "main")
    assert "gateway credential create" in installed("credential", "list").out


def test_57_no_file_of_the_installation_holds_the_secret(installed: Typed) -> None:
    installed("credential", "create", "main", "-", stdin=SECRET)
    installed("user", "create", "ann")
    key = installed("key", "create", "--user", "ann", "--json").json()["key"]
    files = [path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()]
    assert files
    assert not any(secret.encode() in content for content in files for secret in (SECRET, key))


def test_a_credential_s_pool_limits_and_tags_are_set_and_listed(installed: Typed) -> None:
    made = installed("credential", "create", "main", "-", "--pool", "shared", "--rpm", "5", "--per-day", "100", "--tag", "eu", "--json", stdin=SECRET).json()
    assert (made["pool"], made["rpm"], made["per_day"], made["tags"]) == ("shared", 5, 100, ["eu"])
    changed = installed("credential", "set", "main", "--rpm", "0", "--weight", "3", "--pool", "other", "--proxy", "http://p:1", "--json").json()
    assert (changed["pool"], changed["rpm"], changed["per_day"], changed["weight"], changed["proxy"]) == ("other", None, 100, 3, "http://p:1")
    assert "other" in installed("credential", "list").out
    assert installed("credential", "set", "main").code != 0


def test_a_proxy_of_an_unknown_scheme_is_refused_and_nothing_changes(installed: Typed) -> None:
    installed("credential", "create", "main", "-", stdin=SECRET)
    before = installed("credential", "list", "--json").json()
    refused = installed("credential", "set", "main", "--proxy", "ftp://proxy.example:1")
    assert (refused.code != 0, "must be http://, socks5:// or socks5h://" in refused.err) == (True, True)
    assert installed("credential", "list", "--json").json() == before


def test_a_draining_credential_says_so_until_it_ends(installed: Typed) -> None:
    installed("credential", "create", "main", "-", stdin=SECRET)
    assert installed("credential", "drain", "main", "--json").json()["draining_at"] is not None
    assert "draining" in installed("credential", "list").out
    assert installed("credential", "drain", "main", "--end", "--json").json()["draining_at"] is None


def test_a_jwt_s_own_end_is_its_expiry(installed: Typed) -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 2_000_000_000}).encode()).decode().rstrip("=")
    made = installed("credential", "create", "main", "-", "--json", stdin=f"eyJhbGciOiJSUzI1NiJ9.{claims}.sig").json()
    assert made["expires_at"] == 2_000_000_000_000


def test_an_extra_comes_as_secretly_as_a_secret(installed: Typed) -> None:
    installed("credential", "create", "main", "-", stdin="sk-0123456789abcdefg")
    assert "is kept, sealed" in silent(installed("credential", "extra", "main", "refresh_token", "-", stdin=SECRET)).out
    assert silent(installed("credential", "extra", "main", "refresh_token", SECRET)).code == 2
    assert "taken away" in installed("credential", "extra", "main", "refresh_token", "--remove").out
