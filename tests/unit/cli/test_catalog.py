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


def test_a_proxy_is_shown_without_its_password(installed: Typed) -> None:
    changed = installed("deployment", "set", "echo", "--proxy", "-", "--json", stdin="http://user:proxy-password@p.example:3128\n")
    assert changed.json()["proxy"] == "http://user@p.example:3128"
    listed = installed("deployment", "list").out
    assert "http://user@p.example:3128" in listed
    assert "proxy-password" not in listed + changed.out + changed.err
    assert installed("deployment", "set", "echo", "--proxy", "socks5://p:1080", "--json").json()["proxy"] == "socks5://p:1080"
    assert installed("deployment", "set", "echo", "--proxy", "", "--json").json()["proxy"] is None


def test_a_proxys_password_is_never_an_argument(installed: Typed) -> None:
    for url in ("http://user:proxy-password@p:3128", "user:proxy-password@p"):
        result = installed("deployment", "set", "echo", "--proxy", url)
        assert (result.code, "--proxy -" in result.err, "proxy-password" in result.err) == (2, True, False)
    assert installed("deployment", "create", "d", "--model", "m", "--backend", "echo", "--proxy", "https://p:1").code == 2


def test_a_deployment_is_created_with_its_proxy(installed: Typed) -> None:
    made = installed("deployment", "create", "d", "--model", "m", "--backend", "echo", "--proxy", "socks5h://p:1080", "--json")
    assert made.json()["proxy"] == "socks5h://p:1080"
