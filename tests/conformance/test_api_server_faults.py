"""ChatGPT-API-server's own faults, 1 to 11 of CONTRACTS.md's section 8: each would be caught here."""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from gateway.operations import api_server
from tests.conformance.api_server import ADMIN, ELSEWHERE, NO_CLIENTS, Asking, Family, family_in, left, own, told
from tests.conformance.families import CORS
from tests.fakes.agents import Agent, fails
from tests.fakes.gateway import ROOT
from tests.fakes.old_agents import OldAgent, answers, answers_as, answers_data, answers_error, answers_nothing, drops

BODY_LIMIT, FIRST_BYTE_S = 100_000, 1.5


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    environment = {"GATEWAY_JSON_LIMIT": str(BODY_LIMIT), "GATEWAY_FIRST_BYTE_S": str(FIRST_BYTE_S)}
    with family_in(tmp_path_factory.mktemp("gateway"), **environment) as family:
        family.gone(family.agent())
        family.patience(1)
        yield family


@pytest.fixture
def family(served: Family) -> Iterator[Family]:
    with left(served):
        yield served


def echo(agent: OldAgent, frame: dict[str, Any]) -> None:
    """Slow enough for another prompt to come in between."""
    asked = json.loads(frame["data"])
    answers(asked["content"], after_s=0.05)(agent, frame)


def test_fault_1_an_empty_pool_answers_and_who_comes_then_serves(tmp_path: Path) -> None:
    with family_in(tmp_path) as family:
        for _ in range(2):
            assert [told(family.ask()) for _ in range(3)] == [(503, NO_CLIENTS)] * 3
            assert family.connections() == []
            agent = family.agent()
            assert family.ask().status == 200
            family.gone(agent)
            family.patience(0.3)


def test_fault_2_an_agent_that_failed_is_idle_again(family: Family) -> None:
    wrong = (answers_error(), answers_data("no JSON"), answers_as("another-id"), answers_error(), answers_data("[]"))
    agent = family.agent(*wrong)
    assert [family.ask().status for _ in wrong] == [500] * len(wrong)
    assert told(family.ask())[1]["content"] == "hello"
    assert len(agent.asked) == len(wrong) + 1
    entry = family.connections()[0]
    family.wait(lambda: family.connections()[0]["Heartbeat"] > family.connections()[0]["LastMessageTime"])
    assert entry["Id"] == agent.id


def test_fault_3_a_wrong_key_is_not_answered_with_the_right_one(family: Family) -> None:
    refusals = [family.get(f"/admin/users?admin_key={shown}") for shown in ("", "x", ADMIN[:-1])]
    refusals += [family.post(f"/admin/users/{verb}", {"admin_key": "x"}) for verb in ("add", "delete")]
    for refusal in refusals:
        assert refusal.status == 401
        assert ADMIN not in refusal.body.decode() + str(refusal.headers)


def test_fault_4_the_admin_key_is_in_no_log_however_it_is_shown(tmp_path: Path) -> None:
    key = "canary/of+the=admin"
    with family_in(tmp_path, GATEWAY_ADMIN_KEY=key) as family:
        user = family.post("/admin/users/add", {"admin_key": key}).json()
        assert family.get(f"/admin/users?admin_key={quote(key, safe='')}").status == 200
        assert family.get(f"/api-server/admin/users?admin_key={quote(key, safe='')}&x=1").status == 200
        assert family.get("/admin/users", authorization=key).status == 200
        assert family.ask(key=key).status == 503
        assert family.ask(key=user["token"]).status == 503
        assert family.get(f"/admin/users?admin_key={quote(key, safe='')}wrong").status == 401
        assert family.running.get(f"/admin/nothing?admin_key={quote(key, safe='')}", None).status == 404
        family.running.stop()
        log = family.running.log_path.read_text()
    assert '"level":"debug"' in log
    for secret in (key, quote(key, safe=""), quote(key), "canary", user["token"]):
        assert secret not in log


def test_fault_5_an_id_is_shown_to_few_and_moves_only_to_who_knows_its_secret(family: Family) -> None:
    token = family.token("owned", "owned")
    agent = family.agent(answers("mine", "c-owned"), always=answers("mine"), kept_id="its-id", prefix=f"/{token}")
    assert family.ask().status == 200
    assert "its-id" not in family.get("/api/connections", **ELSEWHERE).body.decode()
    with OldAgent(family.port, kept_id="its-id", headers=ELSEWHERE) as intruder:
        assert intruder.wait_closed().code == 4401
    with OldAgent(family.port, kept_id="its-id") as another:  # on this host any id may be had, but it is another agent's
        family.wait(lambda: len(family.connections()) == 2)
        assert family.ask("more", "c-owned").json()["content"] == "mine"
        assert another.asked == []
    assert agent.is_connected


def test_fault_6_keys_are_compared_in_constant_time_and_kept_as_hashes(family: Family) -> None:
    _, token = family.user()
    secret = family.token("hashed", "hashed")
    assert family.ask(key=token).status in (200, 503)
    files = [path for path in (family.running.directory / "data").rglob("*") if path.is_file() and path.stat().st_size]
    assert any(path.name == "gateway.db" for path in files)
    for path in files:
        raw = path.read_bytes()
        assert not any(each.encode() in raw for each in (token, secret, ADMIN)), path
    assert "compare_digest" in inspect.getsource(api_server.is_admin_key)
    sources = [path.read_text() for name in ("api", "operations", "core") for path in (ROOT / "gateway" / name).rglob("*.py")]
    assert not [line for text in sources for line in text.splitlines() if re.search(r"admin_key(\.reveal\(\))?\s*[!=]=|[!=]=\s*\S*admin_key\b", line)]


def test_fault_7_two_prompts_of_one_conversation_do_not_cross(family: Family) -> None:
    family.agent(answers("begun", "c-both"), always=echo)
    assert family.ask().status == 200
    asking = {f"prompt {number}": Asking(family, f"prompt {number}", "c-both") for number in range(8)}
    for content, each in asking.items():
        assert told(each.answer())[1] | {"response_id": ""} == {"id": "", "response_id": "", "conversation_id": "c-both", "content": content, "error": ""}


def test_fault_8_after_a_prompt_that_took_too_long_its_agent_serves_on(family: Family) -> None:
    agent = family.agent(answers("too late", after_s=FIRST_BYTE_S + 0.4), always=echo)
    assert told(family.ask()) == (500, {"error": "Failed to read response from the client", "err": "i/o timeout"})
    for content in ("second", "third"):  # the first one's answer comes meanwhile, and is nobody's
        assert family.ask(content).json()["content"] == content
        agent.wait(lambda: len(agent.asked) >= 2)
        time.sleep(0.3)
    assert agent.is_connected
    assert len(agent.asked) == 3


def test_fault_9_who_leaves_is_gone_at_once_and_conversations_outlast_a_restart(tmp_path: Path) -> None:
    with family_in(tmp_path) as family:
        agent, other = family.agent(always=own("a"), kept_id="a"), family.agent(kept_id="b")
        assert {family.ask().status for _ in range(2)} == {200}
        other.drop()
        began = time.monotonic()
        family.wait(lambda: family.connected() == {"a"})
        assert time.monotonic() - began < 1
        family.running.stop()
        agent.wait_closed()
        family.running.start()
        family.reconnected(agent)
        assert family.ask("more", "c-a").json()["content"] == "from a"


def test_fault_10_a_busy_agent_is_waited_for(family: Family) -> None:
    family.agent(always=echo)
    asking = {f"prompt {number}": Asking(family, f"prompt {number}") for number in range(10)}
    assert [each.answer().json()["content"] for each in asking.values()] == list(asking)


def test_fault_10_a_browser_may_ask_and_bearer_is_taken(family: Family) -> None:
    family.agent()
    _, token = family.user()
    preflight = family.running.request("OPTIONS", "/api/ask", None, None, {"origin": "https://page.example", "access-control-request-method": "POST"})
    assert (preflight.status, {name: preflight.headers[name] for name in CORS}) == (204, CORS)
    for key in (ADMIN, token):
        assert family.ask(key=f"Bearer {key}").status == 200


def test_fault_10_a_body_has_a_limit(family: Family) -> None:
    agent = family.agent()
    answer = family.ask("x" * BODY_LIMIT)
    assert answer.status == 413
    assert isinstance(answer.json()["error"], str)
    assert agent.asked == []
    assert family.ask("x" * (BODY_LIMIT - 100)).status == 200


def test_fault_10_a_user_has_a_rate_limit(family: Family) -> None:
    agent = family.agent()
    user_id, token = family.user()
    family.running.limit("user", family.account(user_id), rpm=2)
    family.wait_catalog()
    assert [family.ask(key=token).status for _ in range(3)] == [200, 200, 429]
    refused = family.ask(key=token)
    assert isinstance(refused.json()["error"], str)
    assert int(refused.headers["retry-after"]) >= 1
    assert family.ask().status == 200
    assert len(agent.asked) == 3


def test_fault_11_errors_tell_what_happened(family: Family) -> None:
    agent = family.agent(answers_error(), answers_data("{"), answers_as("x"), drops())
    said = [family.ask().json() for _ in range(4)]
    assert said[0]["response"]["data"] == "Unknown error"
    assert said[1]["response"]["data"] == "{"
    assert len({json.dumps(each) for each in said}) == 4
    assert agent.id not in family.connected()


def test_fault_11_an_agent_of_the_newer_protocol_tells_its_cause(family: Family) -> None:
    token = family.token("newer", "newer")
    script = (fails("rate_limited", retry_after_s=1), fails("upstream_failed"), fails("bad_request", status=400, body={"error": {"message": "too long"}}))
    with Agent(family.port, *script, token=token, models=["api-server"]):
        family.wait_catalog()
        limited, failed, mistaken = [family.ask() for _ in script]
    assert (told(limited), int(limited.headers["retry-after"]) >= 1) == ((503, NO_CLIENTS), True)
    assert failed.status == 500
    assert failed.json()["error"].startswith("The upstream failed")
    assert mistaken.status == 400
    assert "too long" in mistaken.body.decode()


def test_receipts_the_ledger_and_the_log_name_the_agent(family: Family) -> None:
    agent = family.agent(answers_error(), kept_id="named")
    failed, answered = family.ask(), family.ask()
    assert (failed.status, answered.status, len(agent.asked)) == (500, 200, 2)
    for answer, outcome in ((failed, "agent_bad_data"), (answered, "answered")):
        family.wait(lambda answer=answer: family.running.exchange(answer.headers["x-request-id"]))  # type: ignore[misc]
        receipt = json.loads(family.running.exchange(answer.headers["x-request-id"]).receipt)  # type: ignore[union-attr]
        (attempt,) = receipt["attempts"]
        label = attempt["credential"]
        assert (label.startswith("api-server-"), attempt["outcome"]) == (True, outcome)
    entry = family.running.entry(answered.headers["x-request-id"])
    assert entry is not None
    assert (entry.credential, entry.model_asked, entry.usage_source) == (label, "api-server", "estimated")
    lines = [line for line in family.running.log_lines() if line.get("exchange") == answered.headers["x-request-id"] and line["msg"] == "exchange"]
    assert [(line["credential"], line["endpoint"], line["status"]) for line in lines] == [(label, "/api/ask", 200)]


def test_a_budget_bounds_what_a_user_asks(family: Family) -> None:
    agent = family.agent(always=answers("x" * 400))
    user_id, token = family.user()
    family.price(10**6)
    family.running.budget(4_500_000, "user", family.account(user_id))
    family.wait_catalog()
    statuses = [family.ask(key=token).status for _ in range(12)]
    assert statuses[0] == 200
    assert statuses[-1] == 402
    assert isinstance(family.ask(key=token).json()["error"], str)
    spent = sum(entry.amount for entry in family.running.entries() if entry.user == family.account(user_id))
    assert 0 < spent <= 4_500_000
    assert len(agent.asked) == statuses.count(200)


def test_a_client_that_leaves_is_told_apart_from_an_agent_that_failed(family: Family) -> None:
    agent = family.agent(answers_nothing(), always=echo)
    with family.running.client(None) as client:
        client.ask("/api/ask", {"content": "hi"}, headers={"authorization": ADMIN})
        agent.wait(lambda: len(agent.asked) == 1)
    assert family.ask("next").json()["content"] == "next"
    assert agent.is_connected
