from __future__ import annotations

from tests.unit.cli.conftest import Typed


def test_a_pool_is_made_with_its_first_credential_and_shown(installed: Typed) -> None:
    assert "No pools yet" in installed("pool", "list").out
    installed("credential", "create", "a", "-", "--pool", "shared", stdin="sk-0123456789abcdefg")
    installed("credential", "create", "b", "-", "--pool", "shared", "--concurrency", "2", stdin="sk-0123456789abcdefh")
    installed("deployment", "create", "d", "--model", "m", "--backend", "openai", "--pool", "shared")
    assert installed("pool", "list", "--json").json() == [
        {"id": 1, "name": "shared", "policy": None, "affinity": None, "credentials": ["a", "b"], "deployments": ["d"]}
    ]
    shown = installed("pool", "show", "shared").out
    assert "2 at once" in shown
    assert "behind d" in shown
    assert "pool shared" in installed("deployment", "list").out


def test_a_pool_s_policy_is_one_that_exists(installed: Typed) -> None:
    installed("pool", "create", "p")
    refused = installed("pool", "set", "p", "--policy", "weigthed")
    assert (refused.code != 0, "Did you mean 'weighted'?" in refused.err) == (True, True)
    assert installed("pool", "set", "p", "--policy", "weighted", "--affinity", "soft", "--json").json()["policy"] == "weighted"
    assert installed("pool", "set", "p", "--affinity", "none", "--json").json() == {"id": 1, "name": "p", "policy": "weighted", "affinity": None}
    assert installed("pool", "set", "p", "--policy", "", "--json").json()["policy"] is None


def test_a_pool_in_use_is_kept(installed: Typed) -> None:
    installed("credential", "create", "a", "-", "--pool", "shared", stdin="sk-0123456789abcdefg")
    assert "used by a" in installed("pool", "delete", "shared").err
    installed("pool", "create", "spare")
    assert installed("pool", "delete", "spare").code == 0
    assert "pool list" in installed("pool", "delete", "spare").err


def test_a_deployment_presents_a_credential_or_a_pool(installed: Typed) -> None:
    installed("credential", "create", "a", "-", "--pool", "shared", stdin="sk-0123456789abcdefg")
    refused = installed("deployment", "create", "d", "--model", "m", "--backend", "openai", "--pool", "shared", "--credential", "a")
    assert (refused.code != 0, "name one of the two" in refused.err) == (True, True)
    installed("deployment", "create", "d", "--model", "m", "--backend", "openai", "--pool", "shared")
    assert installed("deployment", "set", "d", "--credential", "a", "--json").json()["pool"] is None
    changed = installed("deployment", "set", "d", "--pool", "shared", "--json").json()
    assert (changed["pool"], changed["credential"]) == ("shared", None)
