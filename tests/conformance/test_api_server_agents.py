"""ChatGPT-API-server's agents over real sockets: CONTRACTS.md, 1.3 and 1.4."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.operations.agents import enrol, revoke
from tests.conformance.api_server import ADMIN, ELSEWHERE, Asking, Family, family_in, is_uuid4, left, told
from tests.fakes.gateway import now
from tests.fakes.old_agents import OldAgent, answers, answers_error
from tests.fakes.websocket import Refused, WebSocketClient

FRAME = {"id", "message", "data"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    with family_in(tmp_path_factory.mktemp("gateway")) as family:
        family.gone(family.agent())
        family.patience(3)
        yield family


@pytest.fixture
def family(served: Family) -> Iterator[Family]:
    with left(served):
        yield served


@pytest.fixture(scope="module")
def of_three_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    with family_in(tmp_path_factory.mktemp("gateway"), WEB_CONCURRENCY="3") as family:
        family.gone(family.agent())
        family.patience(3)
        yield family


@pytest.fixture
def three(of_three_workers: Family) -> Iterator[Family]:
    with left(of_three_workers):
        yield of_three_workers


def token_of(family: Family, name: str, **options: Any) -> str:
    made = enrol(family.running.database, family.running.secrets.hasher, name, ["api-server"], now(), **options)
    family.wait_catalog()
    return made.token.reveal()


def conversations(family: Family, agents: list[OldAgent]) -> dict[str, OldAgent]:
    """One that each of them began."""
    for _ in agents:
        assert family.ask("begin").status == 200
    assert [len(agent.asked) for agent in agents] == [1] * len(agents)
    return {f"c-{agent.id}": agent for agent in agents}


def newest(family: Family) -> str:
    """When the latest agent connected, or answered."""
    return max((entry["Heartbeat"] for entry in family.connections()), default="")


def own(agent_id: str) -> Any:
    """Answers that tell who gave them."""
    return answers(f"from {agent_id}", f"c-{agent_id}")


# 1.3, frame by frame


@pytest.mark.parametrize("path", ["/client/register", "/api-server/client/register"])
def test_every_frame_is_as_it_was(family: Family, path: str) -> None:
    with WebSocketClient(family.port, path, origin="https://chat.openai.com") as socket:
        assert socket.subprotocol is None
        offer = socket.receive_json()
        assert set(offer) == FRAME
        assert (offer["message"], offer["data"], is_uuid4(offer["id"])) == ("Connection id", "", True)
        socket.send_json({"id": offer["id"], "message": "Connection id", "data": ""})
        family.wait(lambda: offer["id"] in family.connected())
        family.wait_catalog()
        asking = Asking(family, "hi")
        ping = socket.receive_json()
        assert set(ping) == FRAME
        assert (ping["message"], ping["data"], is_uuid4(ping["id"])) == ("ping", "", True)
        socket.send_json({"id": ping["id"], "message": "pong", "data": ""})
        request = socket.receive_json()
        assert set(request) == FRAME
        assert (request["message"], is_uuid4(request["id"]), request["id"] != ping["id"]) == ("ChatGptRequest", True, True)
        assert isinstance(request["data"], str)
        asked = json.loads(request["data"])
        assert set(asked) == {"message_id", "conversation_id", "parent_id", "content"}
        data = {"response_id": "r", "conversation_id": "c", "content": "x"}
        socket.send_json({"id": request["id"], "message": "ChatGptResponse", "data": json.dumps(data)})
        assert told(asking.answer()) == (200, {"id": "", "error": "", **data})


@pytest.mark.parametrize("path", ["/client/register", "/api-server/client/register", "/secret/client/register"])
def test_a_request_for_no_websocket_is_a_bad_one(family: Family, path: str) -> None:
    answer = family.get(path)
    assert (answer.status, answer.body, answer.headers["sec-websocket-version"]) == (400, b"Bad Request", "13")
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("message", ["Connection id", "something else", ""])
def test_of_the_first_frame_only_the_id_counts(family: Family, message: str) -> None:
    with WebSocketClient(family.port) as socket:
        socket.receive_json()
        socket.send_json({"id": "kept-from-before", "message": message, "more": {"a": 1}})
        family.wait(lambda: family.connected() == {"kept-from-before"})


@pytest.mark.parametrize("frame", ["no JSON", "[]", "{}", '{"id": ""}', '{"id": 5}', json.dumps({"id": "x" * 129}), json.dumps({"id": "a\nb"})])
def test_a_first_frame_without_an_id_ends_the_connection(family: Family, frame: str) -> None:
    with WebSocketClient(family.port) as socket:
        socket.receive_json()
        socket.send(frame)
        assert socket.end().code == 4400
    assert family.connections() == []


def test_what_nobody_asked_for_is_passed_over(family: Family) -> None:
    agent = family.agent()
    for message in ("ChatGptResponse", "pong", "error", "ping", "other"):
        agent.say({"id": "nobodys", "message": message, "data": "{}", "extra": [1]})
    assert told(family.ask())[1]["content"] == "hello"
    assert agent.is_connected


# registration


def test_an_offered_id_is_taken(family: Family) -> None:
    agent = family.agent()
    assert agent.id == agent.offered_id
    assert family.connected() == {agent.id}


def test_an_id_from_before_is_kept_also_where_it_was_never_issued_here(family: Family) -> None:
    agent = family.agent(kept_id="of-another-server")
    assert family.connected() == {"of-another-server"}
    assert family.ask().status == 200
    assert len(agent.asked) == 1


def test_the_newest_connection_of_an_id_has_it(family: Family) -> None:
    older = family.agent(kept_id="tab")
    newer = OldAgent(family.port, kept_id="tab")
    with newer:
        assert older.wait_closed().code == 4409
        family.wait(lambda: family.connected() == {"tab"})
        for _ in range(3):
            assert family.ask().status == 200
        assert (len(older.asked), len(newer.asked)) == (0, 3)


def test_another_secret_takes_no_id_over(family: Family) -> None:
    first, second = token_of(family, "first", pool="takeover"), token_of(family, "second", pool="takeover")
    holder = family.agent(kept_id="same-id", prefix=f"/{first}")
    intruders = [family.agents.enter_context(OldAgent(family.port, kept_id="same-id", prefix=prefix)) for prefix in (f"/{second}", "")]
    family.wait(lambda: [entry["Id"] for entry in family.connections()] == ["same-id"] * 3)
    assert all(agent.is_connected for agent in (holder, *intruders))
    with OldAgent(family.port, kept_id="same-id", prefix=f"/{first}"):
        assert holder.wait_closed().code == 4409
        assert all(agent.is_connected for agent in intruders)


def test_a_conversation_never_goes_on_with_who_has_its_agents_id_under_another_secret(family: Family) -> None:
    token = token_of(family, "impostor")
    agent = family.agent(answers("mine", "c-mine"), kept_id="wanted")
    assert family.ask().status == 200
    family.gone(agent)
    impostor = family.agent(kept_id="wanted", prefix=f"/{token}")
    assert told(family.ask("more", "c-mine")) == (500, {"error": "Connection no longer exists"})
    assert impostor.asked == []


@pytest.mark.parametrize("secret", ["gw_agent_" + "0" * 38, "wrong", "%20", "a" * 500])
def test_an_unknown_secret_lets_nobody_in(family: Family, secret: str) -> None:
    with WebSocketClient(family.port, f"/{secret}/client/register") as socket:
        assert socket.receive_json()["message"] == "Connection id"
        socket.send_json({"id": "x", "message": "Connection id", "data": ""})
        assert socket.end().code == 4401
    assert family.connections() == []


def test_a_secret_in_the_path_is_in_no_log(family: Family) -> None:
    token = token_of(family, "unlogged", pool="unlogged")
    family.gone(family.agent(prefix=f"/{token}"))
    with WebSocketClient(family.port, "/wrong-secret-in-the-path/client/register") as socket:
        socket.receive_json()
        socket.send_json({"id": "x", "message": "Connection id", "data": ""})
        assert socket.end().code == 4401
    with pytest.raises(Refused):
        WebSocketClient(family.port, f"/{token}/client/register", origin="https://evil.example")
    log = family.running.log_path.read_text()
    assert token not in log
    assert "wrong-secret-in-the-path" not in log


def test_a_revoked_secret_ends_its_agents_and_lets_none_in(family: Family) -> None:
    token = token_of(family, "revoked", pool="revoked")
    agent, bystander = family.agent(prefix=f"/{token}"), family.agent()
    revoke(family.running.database, "revoked", now())
    assert agent.wait_closed(3).code == 4401
    again = OldAgent(family.port, prefix=f"/{token}")
    with again:
        assert again.wait_closed().code == 4401
    assert bystander.is_connected


@pytest.mark.parametrize("path", ["/two/segments/client/register", "/client/register/", "/client/register/more", "//client/register"])
def test_other_paths_register_nobody(family: Family, path: str) -> None:
    with pytest.raises(Refused) as refused:
        WebSocketClient(family.port, path)
    assert refused.value.status == 404


@pytest.mark.parametrize("origin", [None, "https://chat.openai.com", "https://chatgpt.com", "moz-extension://0a1b"])
def test_pages_that_agents_run_in_may_connect(family: Family, origin: str | None) -> None:
    family.agent(origin=origin)


@pytest.mark.parametrize("origin", ["https://evil.example", "https://chat.openai.com.evil.example", "http://chat.openai.com", "null"])
def test_a_foreign_page_is_refused_before_the_handshake(family: Family, origin: str) -> None:
    with pytest.raises(Refused) as refused:
        WebSocketClient(family.port, origin=origin)
    assert refused.value.status == 403
    assert family.connections() == []


def test_from_elsewhere_a_secret_is_needed(family: Family) -> None:
    token = token_of(family, "elsewhere", pool="elsewhere")
    for headers in (ELSEWHERE, {"forwarded": "for=203.0.113.7"}, {"x-real-ip": "203.0.113.7"}):
        agent = OldAgent(family.port, headers=headers)
        with agent:
            assert agent.wait_closed().code == 4401
    family.agent(headers=ELSEWHERE, prefix=f"/{token}")


def test_the_operator_may_open_the_door_to_all(tmp_path: Path) -> None:
    with family_in(tmp_path, AGENT_OPEN="1") as family:
        family.agent(headers=ELSEWHERE)
        assert family.ask().status == 200


# choosing


def test_a_fresh_agent_goes_before_a_used_one_and_then_the_longest_unused(family: Family) -> None:
    first = family.agent(always=answers("1"))
    for _ in range(2):
        assert family.ask().json()["content"] == "1"
    family.agent(always=answers("2"))
    assert family.ask().json()["content"] == "2"
    family.agent(always=answers("3"))
    assert [family.ask().json()["content"] for _ in range(7)] == ["3", "1", "2", "3", "1", "2", "3"]
    assert len(first.asked) == 4


def test_a_busy_agent_is_not_chosen(family: Family) -> None:
    family.agent(answers("slow", after_s=2.5), always=answers("1"))
    slow = Asking(family)
    family.agent(always=answers("2"))
    assert [family.ask().json()["content"] for _ in range(3)] == ["2"] * 3
    assert not slow.is_answered
    assert slow.answer().json()["content"] == "slow"
    assert family.ask().json()["content"] == "1"


def test_an_agent_that_died_quietly_is_found_out_and_another_answers(family: Family) -> None:
    used = family.agent(always=answers("used"))
    assert family.ask().status == 200
    silent, wrong = family.agent(pongs=False), family.agent()
    wrong.on_ping = lambda: wrong.say({"id": "another", "message": "pong", "data": ""})
    asking = [Asking(family), Asking(family)]
    assert [each.answer().json()["content"] for each in asking] == ["used", "used"]
    assert all(5.0 <= each.seconds < 7.0 for each in asking)
    family.wait(lambda: family.connected() == {used.id})
    assert (silent.asked, wrong.asked) == ([], [])


def test_a_pong_is_taken_in_the_middle_of_a_request(family: Family) -> None:
    agent = family.agent(answers("slow", after_s=0.5))
    asking = Asking(family)
    agent.wait(lambda: agent.asked)
    agent.say({"id": "any", "message": "pong", "data": ""})
    assert asking.answer().status == 200


# affinity


def test_follow_ups_go_to_exactly_their_conversations_agent(family: Family) -> None:
    agents = [family.agent(always=own(str(number)), kept_id=f"{number}") for number in range(3)]
    began = conversations(family, agents)
    for conversation, agent in [*began.items(), *reversed(began.items())] * 2:
        before = len(agent.asked)
        assert family.ask("more", conversation).json()["content"] == f"from {agent.id}"
        assert agent.asked[before]["conversation_id"] == conversation


def test_a_follow_up_waits_for_its_own_agent_though_another_is_idle(family: Family) -> None:
    agent = family.agent(answers("one", "c-busy"), answers("slow", after_s=0.6), always=answers("mine"))
    assert family.ask().status == 200
    other = family.agent(always=answers("other"))
    assert family.ask().json()["content"] == "other"
    slow = Asking(family, "new")
    agent.wait(lambda: len(agent.asked) == 2)
    assert family.ask("more", "c-busy").json()["content"] == "mine"
    assert slow.answer().json()["content"] == "slow"
    assert len(other.asked) == 1


def test_a_conversation_outlasts_a_reconnect_under_the_same_id(family: Family) -> None:
    agent, other = family.agent(always=answers("mine", "c-back"), kept_id="back"), None
    assert family.ask().status == 200
    other = family.agent()
    agent.drop()
    agent.wait_closed()
    family.wait(lambda: family.connected() == {other.id})
    asking = Asking(family, "more", "c-back")
    family.reconnected(agent)
    assert asking.answer().json()["content"] == "mine"
    assert family.ask("more", "c-back").json()["content"] == "mine"
    assert other.asked == []


def test_a_conversation_goes_on_with_who_answered_it_last(family: Family) -> None:
    first = family.agent(answers("first", "c-moves"))
    assert family.ask().status == 200
    family.agent(answers("second", "c-moves"), always=answers("second"))
    assert family.ask().json()["content"] == "second"
    assert family.ask("more", "c-moves").json()["content"] == "second"
    assert len(first.asked) == 1


def test_a_conversation_goes_on_also_with_agents_of_a_secret(family: Family) -> None:
    token = token_of(family, "firefox")
    agents = [family.agent(always=own(f"p{number}"), kept_id=f"p{number}", prefix=f"/{token}") for number in range(3)]
    for _ in agents:
        assert family.ask("begin").status == 200
    began = {f"c-{agent.id}": agent for agent in agents if agent.asked}
    for conversation, agent in [*began.items()] * 3:
        assert family.ask("more", conversation).json()["content"] == f"from {agent.id}"


def test_another_keys_conversation_is_unknown(family: Family) -> None:
    agent = family.agent(answers("one", "c-private"))
    assert family.ask().status == 200
    _, token = family.user()
    assert told(family.ask("more", "c-private", token)) == (500, {"error": "Conversation doesn't exists"})
    assert len(agent.asked) == 1


def test_conversations_and_ids_outlast_a_restart_of_the_gateway(tmp_path: Path) -> None:
    with family_in(tmp_path) as family:
        agents = [family.agent(always=own(str(number)), kept_id=f"{number}") for number in range(2)]
        began = conversations(family, agents)
        family.running.stop()
        for agent in agents:
            agent.wait_closed()
        family.running.start()
        for agent in reversed(agents):
            family.reconnected(agent)
        for conversation, agent in began.items():
            assert family.ask("more", conversation).json()["content"] == f"from {agent.id}"


# three workers


def test_an_agent_is_reached_from_every_worker_and_listed_by_each(three: Family) -> None:
    agents = [three.agent(always=own(f"w{number}"), kept_id=f"w{number}") for number in range(3)]
    three.wait(lambda: all(three.connected() == {"w0", "w1", "w2"} for _ in range(9)))
    for _ in range(12):
        assert three.ask().status == 200
    assert all(agent.asked for agent in agents)
    for agent in agents:
        for _ in range(4):
            assert three.ask("more", f"c-{agent.id}").json()["content"] == f"from {agent.id}"


def test_a_fresh_agent_goes_before_a_used_one_in_every_worker(three: Family) -> None:
    used = three.agent(always=answers("used"))
    for _ in range(6):
        assert three.ask().status == 200
    three.wait(lambda: all(three.connections()[0]["LastMessageTime"] > "1970" for _ in range(6)))
    fresh = three.agent(always=answers("fresh"))
    assert three.ask().json()["content"] == "fresh"
    assert (len(used.asked), len(fresh.asked)) == (6, 1)


def test_no_agent_gets_two_requests_at_once_from_different_workers(three: Family) -> None:
    at_once, most, lock = [0], [0], threading.Lock()

    def counted(agent: OldAgent, frame: dict[str, Any]) -> None:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.05)
        with lock:
            at_once[0] -= 1
        answers(json.loads(frame["data"])["content"])(agent, frame)

    three.agent(always=counted)
    asking = [Asking(three, f"prompt {number}") for number in range(12)]
    assert [each.answer().json()["content"] for each in asking] == [f"prompt {number}" for number in range(12)]
    assert most == [1]


def test_an_id_is_taken_over_from_another_worker(three: Family) -> None:
    with ExitStack() as tabs:
        before, since = None, ""
        for _ in range(6):
            tab = tabs.enter_context(OldAgent(three.port, kept_id="moving"))
            if before is not None:
                assert before.wait_closed(3).code == 4409
            three.wait(lambda since=since: newest(three) > since)  # type: ignore[misc]
            before, since = tab, newest(three)
        three.wait(lambda: all(three.connected() == {"moving"} for _ in range(6)))
        three.wait_catalog()
        three.wait(lambda: three.ask().status == 200)
        assert tab.asked


def test_an_agent_that_failed_is_asked_again(three: Family) -> None:
    agent = three.agent(answers_error())
    assert three.ask().status == 500
    assert three.ask().status == 200
    assert len(agent.asked) == 2


def test_users_of_one_worker_are_users_of_all(three: Family) -> None:
    three.agent()
    user = three.post("/admin/users/add", {"admin_key": ADMIN}).json()
    assert all(three.ask(key=user["token"]).status == 200 for _ in range(6))
    three.post("/admin/users/delete", {"admin_key": ADMIN, "user_id": user["user_id"]})
    assert all(three.ask(key=user["token"]).status == 401 for _ in range(6))


def test_the_older_protocol_is_spoken_where_no_other_is_asked_for(family: Family) -> None:
    for subprotocols in ((), ("chat",)):
        with WebSocketClient(family.port, subprotocols=subprotocols) as socket:
            assert socket.subprotocol is None
            assert socket.receive_json()["message"] == "Connection id"
            socket.send("{")
            assert socket.end().code == 4400
