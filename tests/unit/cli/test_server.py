from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli.server import USAGE, of_old_words
from tests.fakes.gateway import ROOT
from tests.unit.cli.conftest import Typed


def test_migrate_says_what_it_did_and_that_the_secrets_must_be_kept(gateway: Typed) -> None:
    first = gateway("migrate").out
    assert "applied 0001_initial" in first
    assert "back them up" in first
    assert gateway("migrate").out == f"{Path.cwd()}/data/gateway.db is up to date\n"


def test_migrate_in_json(gateway: Typed) -> None:
    document = gateway("migrate", "--json").json()
    assert (document["applied"][0], document["seeded"], len(document["secrets_created"])) == ("0001_initial", True, 2)


def test_two_at_once_prepare_an_installation_once(gateway: Typed) -> None:
    command = [sys.executable, "-m", "gateway.cli", "migrate", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=20) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    documents = [json.loads(out) for out, _ in outputs]
    assert sorted(document["seeded"] for document in documents) == [False, True]
    assert sorted(len(document["applied"]) for document in documents)[0] == 0
    assert [item["name"] for item in gateway("deployment", "list", "--json").json()] == ["echo"]


def test_the_doctor_ends_with_0_where_all_is_well_and_with_1_where_something_is_wrong(installed: Typed) -> None:
    assert installed("doctor").code == 0
    installed("deployment", "create", "bare", "--model", "m", "--backend", "openai")
    result = installed("doctor")
    assert result.code == 1
    assert "bare of the model m cannot be used" in result.out
    assert installed("doctor", "--json").json()["problems"] == 1


def test_the_doctor_comes_before_the_first_migration(gateway: Typed) -> None:
    result = gateway("doctor")
    assert result.code == 1
    assert not Path("data").exists()


def test_plugins_are_listed_with_the_class_behind_the_name(gateway: Typed) -> None:
    assert {"kind": "backends", "name": "echo", "target": "backends.echo:Echo", "distribution": None, "problem": None} in gateway("plugins", "--json").json()
    assert re.search(r"policies  weighted +gateway.core.policies:Weighted", gateway("plugins").out)


def test_serve_refuses_an_unknown_policy_before_it_prepares_anything(gateway: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_POLICY", "wieghted")
    result = gateway("serve")
    assert (result.code, "wieghted" in result.err, Path("data").exists()) == (1, True, False)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ((), {}),
        (("8080", "key"), {"GATEWAY_PORT": "8080", "GATEWAY_ADMIN_KEY": "key"}),
        (("8080", "key", "-listen", "0.0.0.0"), {"GATEWAY_PORT": "8080", "GATEWAY_ADMIN_KEY": "key", "GATEWAY_HOST": "0.0.0.0"}),
        (("8080", "key", "-listen=0.0.0.0"), {"GATEWAY_PORT": "8080", "GATEWAY_ADMIN_KEY": "key", "GATEWAY_HOST": "0.0.0.0"}),
        (("8080", "key", "more", "-x", "--listen", "0.0.0.0:9"), {"GATEWAY_PORT": "8080", "GATEWAY_ADMIN_KEY": "key", "GATEWAY_HOST": "0.0.0.0"}),
        (("-listen", "::1"), {"GATEWAY_HOST": "::1"}),
        (("8080", "key", "-h", "--what=\ud800", "-listen", "-1"), {"GATEWAY_PORT": "8080", "GATEWAY_ADMIN_KEY": "key"}),
        (("8080", "key", "-listen"), {"GATEWAY_PORT": "8080", "GATEWAY_ADMIN_KEY": "key"}),
        (("8080",), None),
        (("8080", "-listen", "0.0.0.0"), None),
    ],
)
def test_the_old_program_s_arguments_stand_for_settings(words: tuple[str, ...], given: dict[str, str] | None) -> None:
    assert of_old_words(words) == given


@pytest.mark.parametrize("words", [("canary", "8080"), ("-8080", "canary"), ("--prot", "canary"), ("70000", "canary"), ("0", "canary")])
def test_arguments_that_cannot_be_are_refused_without_repeating_them(gateway: Typed, words: tuple[str, ...]) -> None:
    result = gateway("serve", *words)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "canary" not in result.out + result.err
    assert not Path("data").exists()


def test_a_port_without_an_admin_key_prints_a_usage_line(gateway: Typed) -> None:
    result = gateway("serve", "8080")
    assert (result.code, result.out, result.err, Path("data").exists()) == (0, USAGE + "\n", "", False)


def test_help_says_what_the_arguments_are(gateway: Typed) -> None:
    assert "serve [OPTIONS] [PORT ADMIN_KEY] [-listen ADDRESS]" in gateway("serve", "--help").out
