"""ChatGPT-API-server's HTTP routes over real sockets: CONTRACTS.md, 1.2. Its agents: test_api_server_agents.py; its faults: test_api_server_faults.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.api_server import ADMIN, ELSEWHERE, NO_CLIENTS, Asking, Family, family_in, is_uuid4, left, told
from tests.conformance.families import CORS
from tests.fakes.old_agents import OldAgent, answers, answers_as, answers_data, answers_error, answers_nothing, drops

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
NEVER = "0001-01-01T00:00:00Z"
UNREADABLE = [b"", b"{", b"[]", b'"hi"', b"7", b"null", b'{"content": 1}', b'{"content": ["hi"]}', b'{"content": "x", "conversation_id": 5}', b"\xff"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    with family_in(tmp_path_factory.mktemp("gateway")) as family:
        family.gone(family.agent())
        family.patience(0.3)
        yield family


@pytest.fixture
def family(served: Family) -> Iterator[Family]:
    with left(served):
        yield served


# 1.1 and the family's other routes


@pytest.mark.parametrize("prefix", ["", "/api-server"])
def test_health_is_a_text(family: Family, prefix: str) -> None:
    answer = family.get(prefix + "/health")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/plain; charset=utf-8", b"OK")


@pytest.mark.parametrize("prefix", ["", "/api-server"])
@pytest.mark.parametrize("path", ["/api/ask", "/api/connections", "/admin/users", "/admin/users/add", "/admin/users/delete"])
def test_a_browser_may_ask_before_it_asks(family: Family, prefix: str, path: str) -> None:
    asked = {"origin": "https://anywhere.example", "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    answer = family.running.request("OPTIONS", prefix + path, None, None, asked)
    assert (answer.status, answer.body, {name: answer.headers[name] for name in CORS}) == (204, b"", CORS)


@pytest.mark.parametrize("path", ["/api-server/nothing", "/api-server/api/nothing", "/nothing"])
def test_what_is_not_there_is_404(family: Family, path: str) -> None:
    assert family.running.get(path, None).status == 404


# POST /api/ask


@pytest.mark.parametrize("prefix", ["", "/api-server"])
def test_an_answer_has_the_five_keys_and_goes_on_by_its_ids(family: Family, prefix: str) -> None:
    agent = family.agent(answers("Hello!", "c-1", "r-1"), answers("Hello again!", "", "r-2"))
    first = family.ask("hi", prefix=prefix)
    assert first.headers["content-type"].startswith("application/json")
    assert told(first) == (200, {"id": "", "response_id": "r-1", "conversation_id": "c-1", "content": "Hello!", "error": ""})
    second = family.ask("more", "c-1", parent_id="r-1", prefix=prefix)
    assert told(second) == (200, {"id": "", "response_id": "r-2", "conversation_id": "c-1", "content": "Hello again!", "error": ""})
    assert [(asked["content"], asked["conversation_id"]) for asked in agent.asked] == [("hi", ""), ("more", "c-1")]
    assert agent.asked[1]["parent_id"] == "r-1"


def test_id_and_error_are_what_the_agent_put_into_its_data(family: Family) -> None:
    data = {"id": "i", "error": "e", "response_id": "r", "conversation_id": "c", "content": "x", "more": 1}
    family.agent(answers_data(json.dumps(data)))
    assert told(family.ask()) == (200, {"id": "i", "response_id": "r", "conversation_id": "c", "content": "x", "error": "e"})


def test_ids_that_are_not_given_are_made(family: Family) -> None:
    agent = family.agent()
    assert family.ask().status == 200
    (asked,) = agent.asked
    assert set(asked) == {"message_id", "conversation_id", "parent_id", "content"}
    assert is_uuid4(asked["message_id"])
    assert is_uuid4(asked["parent_id"])
    assert asked["conversation_id"] == ""


def test_ids_that_are_given_arrive(family: Family) -> None:
    agent = family.agent()
    assert family.ask("hi", message_id="m-1", parent_id="p-1").status == 200
    assert agent.asked == [{"message_id": "m-1", "parent_id": "p-1", "conversation_id": "", "content": "hi"}]


@pytest.mark.parametrize("document", [{"content": ""}, {}, {"content": None, "conversation_id": "", "parent_id": ""}, {"content": "", "extra": [1]}])
def test_an_empty_prompt_is_one(family: Family, document: Any) -> None:
    agent = family.agent()
    assert family.post("/api/ask", document, ADMIN).status == 200
    assert agent.asked[0]["content"] == ""


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_the_content_type_is_not_looked_at(family: Family, content_type: str) -> None:
    agent = family.agent()
    answer = family.post("/api/ask", '{"content": "Grüße 🦊"}'.encode(), ADMIN, **{"content-type": content_type})
    assert (answer.status, agent.asked[0]["content"]) == (200, "Grüße 🦊")


@pytest.mark.parametrize("raw", UNREADABLE)
@pytest.mark.parametrize("key", [ADMIN, "wrong", None])
def test_a_body_that_is_none_is_told_before_the_key(family: Family, raw: bytes, key: str | None) -> None:
    answer = family.post("/api/ask", raw, key)
    if key != ADMIN and raw.startswith(b'{"'):
        assert answer.status == 401  # an object of wrong fields is looked at with a key only
    else:
        assert told(answer) == (400, {"error": "Invalid request"})


def test_a_key_is_needed(family: Family) -> None:
    assert told(family.ask(key=None)) == (401, {"error": "API key not provided"})
    assert told(family.ask(key="")) == (401, {"error": "API key not provided"})


def test_a_key_that_is_unknown_is_told_before_whether_there_are_agents(family: Family) -> None:
    for key in ("wrong", ADMIN + "x", ADMIN[:-1], ADMIN.upper(), family.running.key, "Bearer", "Grüße".encode().decode("latin-1")):
        assert told(family.ask(key=key)) == (401, {"error": "Invalid API key"})


def test_the_admin_key_and_a_users_token_let_in(family: Family) -> None:
    family.agent()
    _, token = family.user()
    for key in (ADMIN, token):
        assert family.ask(key=key).status == 200


def test_a_users_token_opens_nothing_else(family: Family) -> None:
    _, token = family.user()
    assert family.running.get("/v1/models", token).status == 401


def test_without_agents_there_is_no_answer(family: Family) -> None:
    assert told(family.ask()) == (503, NO_CLIENTS)
    assert told(family.ask("hi", "unknown")) == (503, NO_CLIENTS)


def test_without_an_idle_agent_there_is_no_answer(family: Family) -> None:
    family.agent(answers("slow", after_s=1.5))
    slow = Asking(family)
    family.wait(lambda: family.running.get("/healthz", None).status == 200)
    family.wait(lambda: any(entry["LastMessageTime"] != NEVER for entry in family.connections()))
    assert told(family.ask("second")) == (503, NO_CLIENTS)
    assert slow.answer().status == 200


def test_three_agents_that_fail_the_ping_are_all_that_is_tried(family: Family) -> None:
    agents = [family.agent() for _ in range(4)]
    for agent in agents:
        agent.on_ping = agent.drop
    assert told(family.ask()) == (503, {"error": "Ping failed"})
    assert sum(not agent.is_connected for agent in agents) == 3


def test_a_conversation_that_nobody_began_is_unknown(family: Family) -> None:
    agent = family.agent()
    assert told(family.ask("hi", "never-begun")) == (500, {"error": "Conversation doesn't exists"})
    assert agent.asked == []


def test_a_conversation_whose_agent_is_gone_cannot_go_on(family: Family) -> None:
    first = family.agent(answers("one", "c-gone"))
    assert family.ask().status == 200
    family.gone(first)
    other = family.agent()
    assert told(family.ask("more", "c-gone")) == (500, {"error": "Connection no longer exists"})
    assert other.asked == []


def test_a_conversation_whose_agent_fails_the_ping_is_told_so(family: Family) -> None:
    agent, other = family.agent(answers("one", "c-ping")), None
    assert family.ask().status == 200
    other = family.agent()
    agent.on_ping = agent.drop
    assert told(family.ask("more", "c-ping")) == (503, {"error": "Ping failed"})
    assert other.asked == []


def test_an_agent_that_is_lost_in_the_middle_is_told(family: Family) -> None:
    agent = family.agent(drops())
    answer = family.ask()
    assert (answer.status, answer.json()["error"]) == (500, "Failed to read response from the client")
    assert isinstance(answer.json()["err"], str)
    assert answer.json()["err"]
    assert agent.id not in family.connected()


def test_an_answer_under_another_id_is_told(family: Family) -> None:
    family.agent(answers_as("not-the-requests"))
    assert told(family.ask()) == (500, {"error": "Failed to find response from the client"})


def test_an_agents_error_is_told_with_its_words(family: Family) -> None:
    agent = family.agent(answers_error())
    response = {"id": None, "message": "error", "data": "Unknown error"}
    answer = family.ask()
    response["id"] = agent.ids[0]
    assert told(answer) == (500, {"error": "Failed to convert response to ChatGptResponse", "response": response})


@pytest.mark.parametrize("data", ["", "text", "[]", "null", '"a"', "{", "3"])
def test_data_that_is_no_object_is_told(family: Family, data: str) -> None:
    agent = family.agent(answers_data(data))
    response = {"message": "ChatGptResponse", "data": data}
    answer = family.ask()
    assert told(answer) == (500, {"error": "Failed to convert response to ChatGptResponse", "response": {"id": agent.ids[0]} | response})


def test_a_client_that_leaves_is_no_failure_of_its_agent(family: Family) -> None:
    agent = family.agent(answers_nothing(), answers("here"))
    with closing(family.running.client(None).sock) as sock:
        raw = b'{"content": "hi"}'
        sock.sendall(b"POST /api/ask HTTP/1.1\r\nhost: g\r\nauthorization: %s\r\ncontent-length: %d\r\n\r\n%s" % (ADMIN.encode(), len(raw), raw))
        agent.wait(lambda: len(agent.asked) == 1)
    family.wait(lambda: family.ask().status == 200)
    assert agent.is_connected


# GET /api/connections


def test_connections_are_listed_as_they_were(family: Family) -> None:
    assert family.get("/api/connections").json() == {"connections": []}
    agent = family.agent()
    (entry,) = family.connections()
    assert set(entry) == {"Ws", "Id", "Heartbeat", "LastMessageTime"}
    assert (entry["Ws"], entry["Id"], entry["LastMessageTime"]) == ({}, agent.id, NEVER)
    assert MOMENT.fullmatch(entry["Heartbeat"])
    assert family.ask().status == 200
    family.wait(lambda: MOMENT.fullmatch(family.connections()[0]["LastMessageTime"]))
    family.wait(lambda: family.connections()[0]["Heartbeat"] > family.connections()[0]["LastMessageTime"])


def test_connections_need_no_key_and_show_ids_to_this_host_and_the_admin_only(family: Family) -> None:
    agent = family.agent()
    assert [entry["Id"] for entry in family.connections()] == [agent.id]
    for headers in ({}, {"authorization": "wrong"}, {"authorization": family.running.key}):
        answer = family.get("/api/connections", **ELSEWHERE, **headers)
        assert agent.id not in answer.body.decode()
        assert len(answer.json()["connections"]) == 1
    for key in (ADMIN, f"Bearer {ADMIN}"):
        assert [entry["Id"] for entry in family.connections(**ELSEWHERE, authorization=key)] == [agent.id]


# /admin/users


@pytest.mark.parametrize("prefix", ["", "/api-server"])
def test_a_user_is_added_listed_and_deleted(family: Family, prefix: str) -> None:
    family.agent()
    made = family.post("/admin/users/add", {"admin_key": ADMIN}, prefix=prefix)
    user = made.json()
    assert made.status == 200
    assert set(user) == {"user_id", "token"}
    assert is_uuid4(user["user_id"])
    assert is_uuid4(user["token"])
    assert user in family.get(f"{prefix}/admin/users?admin_key={ADMIN}").json()["users"]
    assert family.ask(key=user["token"]).status == 200
    deleting = {"admin_key": ADMIN, "user_id": user["user_id"]}
    for _ in range(2):  # also where there is no such user
        assert told(family.post("/admin/users/delete", deleting, prefix=prefix)) == (200, {"message": "User deleted"})
        assert told(family.ask(key=user["token"])) == (401, {"error": "Invalid API key"})
    assert user not in family.get(f"{prefix}/admin/users?admin_key={ADMIN}").json()["users"]


@pytest.mark.parametrize("path", ["/admin/users/add", "/admin/users/delete"])
def test_who_has_shown_no_key_yet_sends_no_more_than_64_kb(family: Family, path: str) -> None:
    def padded(size: int) -> bytes:
        return b'{"admin_key":"wrong"}'.ljust(size)

    assert told(family.post(path, padded(65_536))) == (401, {"error": "Invalid admin key"})
    assert family.post(path, padded(65_537)).status == 413


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"admin_key=x", b'{"admin_key": 5}'])
@pytest.mark.parametrize("path", ["/admin/users/add", "/admin/users/delete"])
def test_a_body_that_is_none_is_refused(family: Family, path: str, raw: bytes) -> None:
    assert told(family.post(path, raw)) == (400, {"error": "Invalid request body"})


@pytest.mark.parametrize("document", [{}, {"admin_key": ""}, {"admin_key": "wrong"}, {"admin_key": ADMIN + " "}, {"user_id": "x"}])
@pytest.mark.parametrize("path", ["/admin/users/add", "/admin/users/delete"])
def test_another_admin_key_is_refused(family: Family, path: str, document: Any) -> None:
    assert told(family.post(path, document)) == (401, {"error": "Invalid admin key"})


def test_a_users_token_is_no_admin_key(family: Family) -> None:
    _, token = family.user()
    assert told(family.post("/admin/users/add", {"admin_key": token})) == (401, {"error": "Invalid admin key"})


@pytest.mark.parametrize("query", ["", "?admin_key=", "?admin_key=wrong", f"?admin_key={ADMIN}x"])
def test_users_are_listed_to_the_admin_only(family: Family, query: str) -> None:
    answer = family.get("/admin/users" + query)
    assert answer.status == 401
    assert answer.json()["error"] == "Invalid admin key"


def test_the_admin_key_may_come_in_a_header(family: Family) -> None:
    for shown in (ADMIN, f"Bearer {ADMIN}"):
        assert family.get("/admin/users", authorization=shown).status == 200
        assert family.post("/admin/users/add", {}, shown).status == 200


# a family without its setting, and one that lists no tokens


def test_without_an_admin_key_users_cannot_be_made_and_one_line_says_why(tmp_path: Path) -> None:
    with family_in(tmp_path, GATEWAY_ADMIN_KEY="") as family:
        for answer in (family.post("/admin/users/add", {"admin_key": ""}), family.get("/admin/users?admin_key=")):
            assert answer.status == 503
            assert "GATEWAY_ADMIN_KEY" in answer.json()["error"]
        assert told(family.ask(key="anything")) == (401, {"error": "Invalid API key"})


def test_tokens_are_masked_where_the_operator_wants_it(tmp_path: Path) -> None:
    with family_in(tmp_path, AGENT_LIST_TOKENS="0") as family:
        user_id, token = family.user()
        answer = family.get(f"/admin/users?admin_key={ADMIN}")
        assert answer.json() == {"users": [{"user_id": user_id, "token": f"{token[:4]}...{token[-4:]}"}]}
        assert family.ask(key=token).status == 503  # it lets in all the same
        with OldAgent(family.port) as agent:
            family.wait(lambda: agent.id in family.connected())
