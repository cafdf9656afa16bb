from __future__ import annotations

import dataclasses
import sys
import types

import pytest

from gateway.cli.agents import REFERENCE, document, lines
from gateway.operations.agents import ListedAgent, ListedEnrolment
from gateway.state.agents import Holder
from gateway.store.agents import Agent, Announced, Enrolment
from gateway.store.pools import Credential
from tests.unit.cli.conftest import Typed

ENROLMENT = Enrolment(1, "laptop", "gw_agent_ab12", "wxyz", ("llama*",), 1, "agents", 0, None, None)
HOLDER = Holder("credential:5-0", "box", 1, "w1", 3, "s", 2, ("llama3.1",), 4, 1_700_000_000.0, rtt_ms=12.4)
Call = tuple[tuple[object, ...], dict[str, object]]
SEEN = 1_700_000_060_000


def listed(*holders: Holder | None) -> list[ListedEnrolment]:
    """An agent for each of them."""
    found = []
    for number, holder in enumerate(holders, 5):
        credential = Credential(number, 1, "agents", f"laptop-{number}", b"", "", 1, 0, None)
        found.append(ListedAgent(Agent(number, 1, Announced("box", ("llama3.1",), 2, "ref/1\x1b[2J", 4), SEEN), credential, holder))
    return [ListedEnrolment(ENROLMENT, tuple(found))]


def test_a_token_is_shown_once_with_what_to_do_next(installed: Typed) -> None:
    result = installed("agent", "enrol", "laptop", "--model", "llama3.1", "--model", "qwen*", "--expires", "30d", "--max-agents", "2")
    assert result.code == 0
    (token,) = {line.strip() for line in result.out.splitlines() if line.startswith("    gw_agent_")}
    assert f"GATEWAY_AGENT_TOKEN={token} gateway agent --connect ws://127.0.0.1:" in result.out
    assert "may serve llama3.1, qwen*, in the pool agents" in result.out
    (shown,) = installed("agent", "list", "--json").json()
    assert (shown["name"], shown["models"], shown["max_agents"], shown["state"], shown["agents"]) == ("laptop", ["llama3.1", "qwen*"], 2, "active", [])
    assert [item["name"] for item in installed("deployment", "list", "--json").json()] == ["echo", "agents-llama3.1"]
    assert token not in installed("agent", "list").out


def test_a_shared_model_is_remarked_upon(installed: Typed) -> None:
    result = installed("agent", "enrol", "laptop", "--model", "echo")
    assert (result.code, result.err.startswith("note: echo is served by echo too")) == (0, True)


def test_without_agents_the_list_says_how_to_let_some_in(installed: Typed) -> None:
    assert installed("agent", "list").out == "No agents yet. Let some in: gateway agent enrol NAME --model 'llama*'\n"
    installed("agent", "enrol", "laptop", "--model", "m")
    assert installed("agent", "list").out.endswith("\nNo agent came in yet.\n")


def test_a_token_is_rotated_revoked_and_deleted(installed: Typed) -> None:
    first = installed("agent", "enrol", "laptop", "--model", "m", "--json").json()["token"]
    second = installed("agent", "rotate", "laptop", "--json").json()["token"]
    assert first != second
    assert installed("agent", "revoke", "laptop").code == 0
    assert "revoked" in installed("agent", "list").out
    assert installed("agent", "rotate", "laptop").code == 2
    assert installed("agent", "delete", "laptop").out == "laptop deleted, with 0 agents\n"
    assert [installed("agent", verb, "laptop").code for verb in ("revoke", "rotate", "delete")] == [3, 3, 3]


def test_the_door_of_agents_without_a_token_is_closed_by_its_name(installed: Typed) -> None:
    assert installed("agent", "revoke", "api-server").code == 0
    (shown,) = installed("agent", "list", "--json").json()
    assert (shown["name"], shown["state"], shown["prefix"]) == ("api-server", "revoked", "")


def test_a_name_that_is_taken_is_a_conflict_and_a_model_is_required(installed: Typed) -> None:
    installed("agent", "enrol", "laptop", "--model", "m")
    assert [installed("agent", "enrol", "laptop", "--model", "m").code, installed("agent", "enrol", "other").code] == [4, 2]


def test_who_is_connected_is_told_with_since_when(installed: Typed) -> None:
    gone = dataclasses.replace(HOLDER, gone_at=1_700_000_001.0)
    shown = lines(listed(HOLDER, dataclasses.replace(HOLDER, draining=True), gone, None), SEEN)
    assert shown[1].split()[-4:] == ["agents", "2/4", "never", "active"]
    agents = shown[4:]
    assert "since 2023-11-14 22:13 UTC " in agents[0]
    assert " 12 ms" in agents[0]
    assert "since 2023-11-14 22:13 UTC, leaving" in agents[1]
    assert ["no, seen 2023-11-14 22:14 UTC" in line for line in agents] == [False, False, True, True]
    assert "\x1b" not in "".join(shown)


def test_who_is_connected_in_json() -> None:
    (shown,) = document(listed(HOLDER, dataclasses.replace(HOLDER, gone_at=1.0), None), SEEN)
    assert [(item["connected_since"], item["worker"], item["seen_at"]) for item in shown["agents"]] == [
        (1_700_000_000_000, "w1", SEEN),
        (None, None, SEEN),
        (None, None, SEEN),
    ]


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """A program in the reference agent's place, which notes how it was called."""
    called: list[Call] = []

    def run(*arguments: object, **options: object) -> int:
        if arguments[0] == "nowhere":
            raise ValueError("that is no URL")
        called.append((arguments, options))
        return 1

    module = types.ModuleType(REFERENCE)
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, REFERENCE, module)
    return called


def test_with_connect_the_command_is_an_agent(gateway: Typed, reference: list[Call], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_AGENT_TOKEN", "gw_agent_x")
    result = gateway("agent", "--connect", "wss://g", "--upstream", "http://u/v1", "--model", "a", "--model", "b", "--concurrency", "2", "--name", "box")
    assert result.code == 1
    options = {"models": ("a", "b"), "concurrency": 2, "upstream_key": "", "name": "box"}
    assert reference == [(("wss://g", "gw_agent_x", "http://u/v1"), options)]


def test_what_the_agent_refuses_is_wrong_usage(gateway: Typed, reference: object) -> None:
    result = gateway("agent", "--connect", "nowhere", "--token", "t", "--upstream", "u")
    assert (result.code, "that is no URL" in result.err) == (2, True)


@pytest.mark.parametrize("words", [("--connect", "wss://g"), ("--connect", "wss://g", "--token", "t"), ("--connect", "wss://g", "list"), ()])
def test_half_a_command_is_wrong_usage(gateway: Typed, words: tuple[str, ...]) -> None:
    assert gateway("agent", *words).code == 2
