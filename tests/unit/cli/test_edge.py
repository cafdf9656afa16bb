from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from tests.unit.cli.conftest import Typed

LEAVES = sorted(
    f"{name} {leaf}" if leaf else name for name, command in main.commands.items() for leaf in (command.commands if hasattr(command, "commands") else [""])
)
LISTS = ("user list", "key list", "model list", "deployment list", "credential list", "price list", "report", "plugins", "doctor")


def one_line(text: str) -> str:
    assert text.startswith("gateway: ")
    assert text.count("\n") == 1
    return text.strip()


@pytest.mark.parametrize("command", LEAVES)
def test_every_command_explains_itself(gateway: Typed, command: str) -> None:
    result = gateway(*command.split(), "--help")
    assert result.code == 0
    assert re.match(rf"Usage: gateway {command}\b", result.out)


@pytest.mark.parametrize("command", [command for command in LEAVES if command not in ("serve", "ledger export")])
def test_every_command_that_prints_data_has_json(gateway: Typed, command: str) -> None:
    """But an export, which is streamed: its JSON is a document a line."""
    assert "--json" in gateway(*command.split(), "--help").out


@pytest.mark.parametrize("command", LISTS)
def test_every_list_is_one_json_document(installed: Typed, command: str) -> None:
    result = installed(*command.split(), "--json")
    assert result.code == 0
    assert isinstance(json.loads(result.out), list | dict)


def test_help_tells_the_exit_codes(gateway: Typed) -> None:
    assert "3  not found" in gateway("--help").out


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("user", "nonsense"),
        ("user", "create"),
        ("key", "create"),
        ("user", "list", "--nonsense"),
        ("key", "rotate", "1", "--overlap", "soon"),
        ("report", "--by", "colour"),
        ("price", "set", "m"),
        ("user", "create", "a b"),
        ("deployment", "create", "d", "--model", "m", "--backend", "opnai"),
    ],
)
def test_wrong_usage_is_one_line_and_2(installed: Typed, words: tuple[str, ...]) -> None:
    result = installed(*words)
    assert (result.code, result.out) == (2, "")
    one_line(result.err)


@pytest.mark.parametrize(
    "words",
    [("user", "disable", "x"), ("key", "revoke", "x"), ("model", "delete", "x"), ("deployment", "set", "x", "--weight", "1"), ("credential", "delete", "x")],
)
def test_what_is_not_there_is_one_line_and_3(installed: Typed, words: tuple[str, ...]) -> None:
    result = installed(*words)
    assert result.code == 3
    assert "'x'" in one_line(result.err)


def test_what_is_there_already_or_in_use_is_one_line_and_4(installed: Typed) -> None:
    for words in (("model", "create", "echo"), ("model", "delete", "echo"), ("deployment", "create", "echo", "--model", "echo", "--backend", "echo")):
        result = installed(*words)
        assert result.code == 4
        one_line(result.err)


def test_a_database_that_is_not_there_is_one_line_and_5(gateway: Typed) -> None:
    result = gateway("user", "list")
    assert result.code == 5
    assert "or create it: gateway migrate" in one_line(result.err)
    assert not Path("data").exists()


def test_a_database_with_pending_migrations_is_refused(gateway: Typed) -> None:
    Path("data").mkdir()
    Path("data/gateway.db").touch()
    result = gateway("user", "list")
    assert result.code == 1
    assert "run `gateway migrate`" in one_line(result.err)


def test_every_problem_of_the_settings_is_a_line_and_2(installed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "many")
    monkeypatch.setenv("GATEWAY_UNPRICED", "maybe")
    result = installed("user", "list")
    assert result.code == 2
    assert [line.split()[1] for line in result.err.splitlines()] == ["GATEWAY_PORT", "GATEWAY_UNPRICED"]


def test_missing_secrets_are_one_line_and_1(installed: Typed) -> None:
    installed("user", "create", "ann")
    Path("data-secrets/pepper.key").unlink()
    result = installed("key", "create", "--user", "ann")
    assert result.code == 1
    assert "pepper.key is missing" in one_line(result.err)


def test_control_characters_of_an_argument_do_not_reach_the_terminal(installed: Typed) -> None:
    assert "\x1b" not in installed("user", "disable", "\x1b[2J").err


def test_the_command_starts_without_the_web_framework_and_the_server() -> None:
    """What `gateway --help` does not import, it does not wait for."""
    code = "import sys, gateway.cli; print([name for name in ('flask', 'gevent', 'gunicorn', 'prometheus_client') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]).stdout == "[]\n"
