from __future__ import annotations

from tests.unit.cli.conftest import Typed


def test_a_new_installation_serves_echo(installed: Typed) -> None:
    assert [(item["name"], item["deployments"]) for item in installed("model", "list", "--json").json()] == [("echo", ["echo"])]
    assert "echo  echo   echo     default" in installed("deployment", "list").out


def test_empty_lists_say_what_to_do_next(installed: Typed) -> None:
    assert installed("deployment", "delete", "echo").code == 0
    assert installed("model", "delete", "echo").code == 0
    assert "gateway model create" in installed("model", "list").out
    assert "gateway deployment create" in installed("deployment", "list").out


def test_a_deployment_brings_its_model_with_a_note(installed: Typed) -> None:
    made = installed("deployment", "create", "fast", "--model", "gpt-*", "--backend", "echo", "--option", "pause_s=0.5", "--json")
    assert made.json()["options"] == {"pause_s": 0.5}
    assert "the model gpt-* did not exist and was created" in made.err
    assert installed("model", "create", "gpt-*").code == 4


def test_set_changes_what_is_named(installed: Typed) -> None:
    changed = installed(
        "deployment", "set", "echo", "--priority", "3", "--disable", "--no-include-usage", "--idle-s", "4", "--base-url", "http://h/v1", "--json"
    ).json()
    assert (changed["priority"], changed["enabled"], changed["include_usage"], changed["idle_s"], changed["base_url"]) == (3, False, False, 4.0, "http://h/v1")
    again = installed("deployment", "set", "echo", "--enable", "--idle-s", "0", "--base-url", "", "--json").json()
    assert (again["priority"], again["enabled"], again["idle_s"], again["base_url"]) == (3, True, None, "")


def test_an_unknown_option_of_a_backend_is_refused_with_those_it_has(installed: Typed) -> None:
    result = installed("deployment", "set", "echo", "--option", "pauze_s=1")
    assert (result.code, "did you mean pause_s?" in result.err) == (2, True)
