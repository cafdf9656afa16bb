"""go-chatgpt-api's clients of the web interface, in both versions: routes, statuses and bodies as they know them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.operations.budgets import Subject, set_budget
from gateway.operations.keys import set_key
from gateway.operations.limits import set_limits
from gateway.store import accounts, catalog
from tests.conformance.families import CORS, TOKEN, Families, expired, families, jwt
from tests.fakes.answers import Answer, Json, Status
from tests.fakes.chatgpt_web import Blocked, Conversation, CutByTokens, Expired, Limited, Models, Refused, Said, Stream, error_event, event
from tests.fakes.gateway import now

B = "/backend-api"
MISSING, MISSING_2 = "Missing accessToken.", "please provide a valid access token or api key in 'Authorization' header"
ASK = {"action": "next", "messages": [{"id": "1", "content": {"content_type": "text", "parts": ["Hello"]}}], "model": "gpt-4", "parent_message_id": "0"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    with families(tmp_path_factory.mktemp("families")) as running:
        yield running


@pytest.fixture
def old(running: Families) -> Families:
    running.forget()
    return running


# who may ask


@pytest.mark.parametrize("path", ["/chatgpt/conversation", "/chatgpt/conversations", "/chatgpt/nowhere", "/platform/v1/models", "/platform/nowhere"])
@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer "])
def test_call_without_a_token_is_refused_in_the_readme_s_words(old: Families, path: str, token: str | None) -> None:
    answer = old.ask("POST", path, {"model": "m"}, token=token)
    assert (answer.status, answer.json()) == (401, {"errorMessage": MISSING})


@pytest.mark.parametrize("path", ["/imitate/v1/chat/completions", "/imitate/v1/models", "/imitate/nowhere", "/api/conversations"])
def test_call_without_a_token_is_refused_in_the_last_version_s_words(old: Families, path: str) -> None:
    answer = old.ask("POST", path, {"model": "m"}, token=None)
    assert (answer.status, answer.json()) == (401, {"errorMessage": MISSING_2})


@pytest.mark.parametrize(
    "headers",
    [{"authorization": TOKEN}, {"authorization": f"Bearer {TOKEN}"}, {"x-authorization": TOKEN}, {"x-authorization": f"Bearer {TOKEN}", "authorization": ""}],
)
def test_token_is_taken_with_and_without_its_scheme_and_under_both_names(old: Families, headers: dict[str, str]) -> None:
    old.web.script(f"{B}/models", Models())
    assert old.ask("GET", "/chatgpt/models", token=None, headers=headers).status == 200
    (received,) = old.web.requests
    assert received.headers["authorization"] == f"Bearer {TOKEN}"
    assert received.headers["user-agent"] == "chat-gateway"


def test_key_of_this_gateway_never_leaves_it(old: Families) -> None:
    for path in ("/chatgpt/models", "/platform/v1/models", "/imitate/v1/models", "/chatgpt/public-api/x"):
        assert old.ask("GET", path, token=f"Bearer {old.gateway.key}").status == 401
    assert old.web.requests + old.api.requests == []


@pytest.mark.parametrize("token", ["t\xe9st", "a b", "Bearer a\tb", "x" * 7000])
def test_odd_token_is_the_callers_mistake_at_most(old: Families, token: str) -> None:
    old.web.always(f"{B}/models", Expired())
    with old.gateway.client() as client:
        client.ask("/chatgpt/models", method="GET", headers={"authorization": token})
        assert client.answer().status in (400, 401)


def test_preflight_is_answered_before_any_token_is_asked_for(old: Families) -> None:
    for path in ("/chatgpt/conversation", "/chatgpt/login", "/platform/v1/chat/completions", "/imitate/v1/chat/completions", "/api/models"):
        answer = old.ask("OPTIONS", path, token=None)
        assert (answer.status, answer.body) == (204, b"")
    assert "access-control-allow-origin" not in old.gateway.get("/v1/models").headers


def test_root_says_that_it_is_there_to_anybody(old: Families) -> None:
    answer = old.gateway.get("/", key=None)
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")


def test_fault_18_token_says_itself_that_it_has_expired(old: Families) -> None:
    answer = old.ask("GET", "/chatgpt/models", token=expired())
    assert (answer.status, answer.json()) == (401, {"errorMessage": "The accessToken for account ann@example.com has expired."})
    answer = old.ask("GET", "/api/models", token=expired())
    assert answer.json() == {"errorMessage": "the accessToken for account ann@example.com has expired"}
    assert old.web.requests == []


@pytest.mark.parametrize(
    "token",
    [
        jwt({"exp": 4_000_000_000, "name": "ÿ?>~ü"}),  # base64url: "-" and "_" stand where base64 has "+" and "/"
        jwt({"name": "no time at all"}),
        jwt({"exp": "yesterday"}),
        jwt({"exp": True}),
        jwt(b"no JSON"),
        jwt([1]),
        "a.!!.c",
        "a.b",
        "sess-123",
    ],
)
def test_fault_18_token_that_does_not_say_so_has_not_expired(old: Families, token: str) -> None:
    old.web.script(f"{B}/models", Models())
    assert old.ask("GET", "/chatgpt/models", token=token).status == 200


# the routes of the web interface

OK = Json({"of": "the upstream", "n": 1.0})
LISTED = [
    ("GET", "/conversations", "GET", "/conversations?offset=0&limit=20", None, "Failed to get conversations."),
    ("GET", "/conversations?offset=5&limit=abc&other=1", "GET", "/conversations?offset=5&limit=abc", None, "Failed to get conversations."),
    ("PATCH", "/conversations", "PATCH", "/conversations", {"title": None, "is_visible": False}, "Failed to clear conversations."),
    ("POST", "/conversations", "PATCH", "/conversations", {"title": None, "is_visible": False}, "Failed to clear conversations."),
    ("GET", "/conversation/abc-1", "GET", "/conversation/abc-1", None, "Failed to get content."),
    ("POST", "/conversation/gen_title/abc-1", "POST", "/conversation/gen_title/abc-1", {"message_id": "m"}, "Failed to generate title."),
    ("POST", "/conversation/message_feedback", "POST", "/conversation/message_feedback", {"message_id": "m", "rating": "x"}, "Failed to add feedback."),
    ("GET", "/models", "GET", "/models", None, "Failed to get models."),
    ("GET", "/accounts/check", "GET", "/accounts/check", None, "Check failed."),
    ("GET", "/me/settings?a=1&a=%20b", "GET", "/me/settings?a=1&a=+b", None, "Fallback failed."),
    ("POST", "/anything/else", "POST", "/anything/else", {"a": [1, 2.50]}, "Fallback failed."),
    ("PATCH", "/anything", "PATCH", "/anything", {"b": 1}, "Fallback failed."),
]


@pytest.mark.parametrize("prefix", ["/chatgpt", "/chatgpt/backend-api", "/api", "/imitate/v1"])
@pytest.mark.parametrize(("method", "path", "upstream_method", "upstream_path", "body", "refused"), LISTED)
def test_route_asks_what_it_always_asked(
    old: Families, prefix: str, method: str, path: str, upstream_method: str, upstream_path: str, body: Any, refused: str
) -> None:
    bare = f"{B}{upstream_path.partition('?')[0]}"
    old.web.script(bare, OK, Refused(418, "no"))
    given = body if path.startswith(("/conversation/", "/anything")) else {"ignored": True}
    answer = old.ask(method, prefix + path, given if method != "GET" else None)
    assert (answer.status, answer.json(), answer.headers["content-type"]) == (200, {"of": "the upstream", "n": 1.0}, "application/json")
    (received,) = old.web.requests
    assert (received.method, received.path + ("?" + received.query if received.query else "")) == (upstream_method, B + upstream_path)
    if body is not None:
        assert received.json() == body
        assert received.headers["content-type"] == "application/json"
    answer = old.ask(method, prefix + path, given if method != "GET" else None)
    second = prefix != "/chatgpt"
    assert (answer.status, answer.json()) == (418, {"errorMessage": refused[0].lower() + refused[1:-1] if second else refused})


@pytest.mark.parametrize("method", ["PATCH", "POST"])
@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"title": None, "is_visible": False}),
        ({"title": "T"}, {"title": "T", "is_visible": True}),
        ({"title": "T", "is_visible": False}, {"title": "T", "is_visible": True}),
        ({"is_visible": True}, {"title": None, "is_visible": True}),
        ({"is_visible": False}, {"title": None, "is_visible": False}),
    ],
)
def test_conversation_is_renamed_or_hidden(old: Families, method: str, given: Any, sent: Any) -> None:
    old.web.script(f"{B}/conversation/abc", OK)
    assert old.ask(method, "/chatgpt/conversation/abc", given).status == 200
    assert (old.web.requests[0].method, old.web.requests[0].json()) == ("PATCH", sent)


@pytest.mark.parametrize("path", ["/chatgpt/conversation", "/chatgpt/conversation/a", "/chatgpt/conversation/gen_title/a"])
@pytest.mark.parametrize("raw", [b"", b"no json", b"[1]", b'{"title":', b"\xff"])
def test_body_that_is_no_json_is_refused(old: Families, path: str, raw: bytes) -> None:
    answer = old.ask("POST", path, raw)
    assert (answer.status, answer.json()) == (400, {"errorMessage": "Failed to parse json request body."})
    assert old.web.requests == []


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_other_methods_are_not_for_the_fallback_but_for_the_last_version_s(old: Families, method: str) -> None:
    answer = old.ask(method, "/chatgpt/anything")
    assert (answer.status, answer.json()) == (405, {"message": "Fallback method not allowed."})
    old.web.script(f"{B}/anything", OK)
    assert old.ask(method, "/api/anything").status == 200
    assert old.web.requests[0].method == method


def test_public_part_of_the_interface_asks_for_no_token(old: Families) -> None:
    old.web.script("/public-api/gizmos", OK, OK)
    assert old.ask("GET", "/chatgpt/public-api/gizmos?q=1", token=None).json() == {"of": "the upstream", "n": 1.0}
    assert old.ask("GET", "/chatgpt/public-api/gizmos").status == 200
    without, with_token = old.web.requests
    assert (without.query, "authorization" in without.headers) == ("q=1", False)
    assert with_token.headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/api/ask", 401), ("GET", "/api/ask", 404), ("POST", "/api/connections", 404), ("GET", "/api/connections", 200)]
)
def test_paths_of_another_family_are_not_the_interface_s(old: Families, method: str, path: str, status: int) -> None:
    assert old.ask(method, path, {} if method == "POST" else None).status == status
    assert old.web.requests == []


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../b", "a/./b", "%2e%2e/x", "a%2fb", "a%41", "a//b", "a/", "a;b", "a@b", "a:b", "a%00b", "a\\b", "%2e%2e%2fx", ".", ".."],
)
@pytest.mark.parametrize("prefix", ["/chatgpt/", "/chatgpt/public-api/", "/api/", "/imitate/v1/", "/platform/v1/models/"])
def test_path_that_could_mean_another_upstream_is_none(old: Families, prefix: str, path: str) -> None:
    with old.gateway.client(TOKEN) as client:
        client.ask(prefix + path, None, method="GET")
        answer = client.answer()
    if prefix.startswith("/platform") and path == "a:b":  # a fine-tuned model's name
        assert answer.status != 400
        return
    assert (answer.status, answer.json()) == (404, {"message": "Route not found"})
    assert old.web.requests + old.api.requests == []


def test_fault_20_prefix_is_taken_away_once_and_at_the_beginning_only(old: Families) -> None:
    for path, upstream in {"/api/x/api/y": "/x/api/y", "/chatgpt/x/chatgpt/backend-api": "/x/chatgpt/backend-api", "/api/chatgpt/api": "/chatgpt/api"}.items():
        old.web.script(B + upstream, OK)
        assert old.ask("GET", path).status == 200, path


def test_unreachable_upstream_is_a_500_with_a_line(old: Families, tmp_path: Any) -> None:
    old.web.always(f"{B}/models", lambda received: [b"nonsense\r\n\r\n"])
    answer = old.ask("GET", "/chatgpt/models")
    assert answer.status == 500
    assert list(answer.json()) == ["errorMessage"]
    assert "retry" not in answer.headers


# conversations


def lines(body: bytes) -> list[bytes]:
    return [line for line in body.split(b"\n\n") if line]


def test_conversation_streams_line_by_line_without_noise(old: Families) -> None:
    old.web.script(f"{B}/conversation", Conversation(noise=True))
    answer = old.ask("POST", "/chatgpt/conversation", {**ASK, "unknown": {"kept": 1.0}, "conversation_id": "", "arkose_token": "callers-own"})
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    told = lines(answer.body)
    assert told[-1] == b"data: [DONE]"
    assert answer.body.count(b"[DONE]") == 1
    assert not any(line.startswith((b"event", b"data: 20")) or b"\n" in line for line in told)
    (received,) = old.web.requests
    sent = received.json()
    assert (sent["unknown"], sent["conversation_id"], sent["arkose_token"], sent["model"]) == ({"kept": 1.0}, None, "callers-own", "gpt-4")
    assert (sent["messages"][0]["author"], sent["messages"][0]["metadata"]) == ({"role": "user"}, {})
    assert received.headers["accept"] == "text/event-stream"


@pytest.mark.parametrize(("path", "count"), [("/chatgpt/conversation", 1), ("/chatgpt/backend-api/conversation", 0), ("/api/conversation", 0)])
def test_what_is_of_no_message_is_left_out_for_the_last_version_s_clients(old: Families, path: str, count: int) -> None:
    old.web.script(f"{B}/conversation", Conversation())
    told = lines(old.ask("POST", path, ASK).body)
    assert sum(line.startswith(b'data: {"conversation_id"') for line in told) == count
    assert told[-1] == b"data: [DONE]"


def test_fault_21_no_token_against_robots_is_made_up(old: Families) -> None:
    old.web.script(f"{B}/conversation", Said("Hello"), Said("Hello"))
    for path in ("/chatgpt/conversation", "/api/conversation"):
        assert old.ask("POST", path, {**ASK, "model": "gpt-4"}).status == 200
    assert all("arkose_token" not in received.json() for received in old.web.requests)
    assert all("sec-ch-ua" not in received.headers and received.headers["user-agent"] == "chat-gateway" for received in old.web.requests)


@pytest.mark.parametrize("messages", [[], None, "x", [1], [{}], [{"author": 1, "metadata": 2}]])
def test_fault_14_odd_messages_and_short_lines_break_nothing(old: Families, messages: Any) -> None:
    old.web.script(f"{B}/conversation", Stream(b"\n", b"d\n", b"data:\n\n", event("Hi"), b"data\n\n"))
    answer = old.ask("POST", "/chatgpt/conversation", {**ASK, "messages": messages})
    assert answer.status == 200
    assert answer.body.endswith(b"data: [DONE]\n\n")


def test_cut_answer_of_the_readme_s_route_goes_on_by_itself(old: Families) -> None:
    old.web.script(f"{B}/conversation", CutByTokens("one, "), Said("two"))
    body = old.ask("POST", "/chatgpt/conversation", ASK).body
    assert body.count(b"[DONE]") == 1
    assert body.endswith(b"data: [DONE]\n\n")
    _, second = old.web.requests
    assert (second.json()["action"], second.json()["messages"], second.json()["model"]) == ("continue", None, "gpt-4")


@pytest.mark.parametrize(("asked", "count"), [({}, 1), ({"auto_continue": False}, 1), ({"auto_continue": True}, 2)])
def test_cut_answer_of_the_last_version_s_route_goes_on_where_the_caller_says_so(old: Families, asked: dict[str, bool], count: int) -> None:
    old.web.script(f"{B}/conversation", CutByTokens("one, "), Said("two"))
    body = old.ask("POST", "/chatgpt/backend-api/conversation", {**ASK, **asked}).body
    assert body.count(b"[DONE]") == 1
    assert len(old.web.requests) == count
    assert "auto_continue" not in old.web.requests[0].json()


def test_fault_15_going_on_has_a_limit(old: Families) -> None:
    old.web.always(f"{B}/conversation", CutByTokens("more "))
    body = old.ask("POST", "/chatgpt/conversation", ASK).body
    assert len(old.web.requests) == 3
    assert body.endswith(b"data: [DONE]\n\n")


def test_fault_15_refusal_to_go_on_leaves_a_stream_that_clients_read(old: Families) -> None:
    old.web.script(f"{B}/conversation", CutByTokens("one, "), Limited())
    answer = old.ask("POST", "/chatgpt/conversation", ASK)
    assert answer.status == 200
    documents = [json.loads(line.removeprefix(b"data: ")) for line in lines(answer.body) if line != b"data: [DONE]"]
    assert all(set(document) >= {"message", "conversation_id", "error"} for document in documents[:-1])
    assert isinstance(documents[-1]["error"], str)


@pytest.mark.parametrize(
    ("refusal", "status", "body"),
    [
        (Limited(clears_in=60), 429, {"detail": {"message": "You've reached the current usage cap.", "code": "model_cap_exceeded", "clears_in": 60}}),
        (Expired(), 401, None),
        (Refused(403, "no access"), 403, {"detail": "no access"}),
        (Blocked(), 403, {}),
        (Status(500, b"oops"), 500, {}),
        (Status(404, b"[1]"), 404, {}),
        (Answer(502), 502, {}),
    ],
)
def test_fault_20_refused_conversation_keeps_the_upstreams_status_and_object(old: Families, refusal: Answer, status: int, body: Any) -> None:
    old.web.always(f"{B}/conversation", refusal)
    old.web.always(f"{B}/models", Models("gpt-4"))
    for path in ("/chatgpt/conversation", "/chatgpt/backend-api/conversation"):
        answer = old.ask("POST", path, ASK)
        assert answer.status == status
        assert answer.json() == (json.loads(refusal.blocks[0]) if body is None else body)
    asked = [received.path for received in old.web.requests if received.path.endswith("/models")]
    assert len(asked) == (0 if status == 401 else 1)  # the last version's route looks why


def test_refusal_for_a_model_that_the_account_does_not_have_says_so(old: Families) -> None:
    old.web.always(f"{B}/conversation", Refused(403, "no"))
    old.web.script(f"{B}/models", Models("text-davinci-002-render-sha"), Status(500))
    answer = old.ask("POST", "/api/conversation", ASK)
    assert (answer.status, answer.json()) == (403, {"errorMessage": "you have no permission to use this model"})
    assert old.ask("POST", "/api/conversation", ASK).json() == {"detail": "no"}  # it cannot be told
    assert old.web.requests[1].headers["authorization"] == f"Bearer {TOKEN}"


def test_error_within_a_stream_is_read_by_old_clients(old: Families) -> None:
    old.web.script(f"{B}/conversation", Stream(event("Hel"), error_event("It broke."), done=False))
    answer = old.ask("POST", "/chatgpt/conversation", ASK)
    assert "broke" in json.loads(lines(answer.body)[-1].removeprefix(b"data: "))["error"]


def test_fault_12_no_cookie_of_one_caller_goes_along_with_another(old: Families) -> None:
    cookie = (("content-type", "application/json"), ("set-cookie", "_puid=of-ann; Path=/"))
    old.web.always(f"{B}/models", Answer(200, cookie, (b'{"models":[]}',)))
    first = old.ask("GET", "/chatgpt/models", token="Bearer ann", headers={"cookie": "_puid=sent-by-ann"})
    assert "set-cookie" not in first.headers
    old.ask("GET", "/chatgpt/models", token="Bearer bob")
    assert all("cookie" not in received.headers for received in old.web.requests)
    assert [received.headers["authorization"] for received in old.web.requests] == ["Bearer ann", "Bearer bob"]


# how it is accounted for


def test_calls_are_booked_to_one_account_without_their_token(old: Families) -> None:
    old.web.script(f"{B}/conversation", Said("Hello there, all of you"))
    old.web.script(f"{B}/models", Refused(429, "slow down"))
    answers = [old.ask("POST", "/chatgpt/conversation", ASK), old.ask("GET", "/chatgpt/models")]
    complete, refused = [old.gateway.exchange(answer.headers["x-request-id"]) for answer in answers]
    assert complete is not None
    assert refused is not None
    assert (complete.ending, complete.status, complete.model) == ("complete", 200, "gpt-4")
    assert (refused.ending, refused.status) == ("upstream_error", 429)
    receipt = json.loads(refused.receipt)
    assert (receipt["candidates"], receipt["endpoint"], receipt["attempts"][0]["status"]) == (["chatgpt"], "/chatgpt/models", 429)
    entry = old.gateway.entry(complete.id)
    assert entry is not None
    assert (entry.usage_source, entry.credential, entry.deployment) == ("estimated", None, "chatgpt")
    assert TOKEN not in old.gateway.log_path.read_text()


def test_refusals_of_one_caller_s_token_leave_others_alone(old: Families) -> None:
    old.web.always(f"{B}/models", Expired())
    for _ in range(5):
        assert old.ask("GET", "/chatgpt/models").status == 401
    assert len(old.web.requests) == 5  # one attempt each, and nothing rests
    old.web.always(f"{B}/models", Models())
    assert old.ask("GET", "/chatgpt/models", token="Bearer other").status == 200


def test_operator_disables_and_limits_the_account(tmp_path: Any) -> None:
    with families(tmp_path) as old:
        old.web.always(f"{B}/models", Models())
        assert old.ask("GET", "/chatgpt/models").status == 200
        user = old.gateway.read(lambda: accounts.find_user("caller-token"))
        old.gateway.write(lambda: accounts.set_user_disabled(user.id, 1))
        old.gateway.wait_catalog()
        answer = old.ask("GET", "/chatgpt/models")
        assert answer.status == 403
        assert "'caller-token' is disabled" in answer.json()["errorMessage"]
        assert old.ask("POST", "/chatgpt/login", {"username": "a", "password": "b"}, token=None).status == 403
        old.gateway.write(lambda: accounts.set_user_disabled(user.id, None))
        old.gateway.wait_catalog()
        assert old.ask("GET", "/chatgpt/models").status == 200


def test_operator_limits_the_account_like_any_other(tmp_path: Any) -> None:
    with families(tmp_path) as old:
        old.web.always(f"{B}/models", Models())
        assert old.ask("GET", "/chatgpt/models").status == 200
        set_limits(old.gateway.database, Subject("user", "caller-token"), now(), rpm=1)
        old.gateway.wait_catalog()
        answers = [old.ask("GET", path) for path in ("/chatgpt/models", "/platform/v1/models", "/imitate/v1/models")]
        assert [answer.status for answer in answers] == [200, 429, 429]
        assert answers[1].json()["errorMessage"].startswith("Your user's")
        assert int(answers[1].headers["retry-after"]) > 0


def test_operator_sets_a_budget_for_the_account(tmp_path: Any) -> None:
    with families(tmp_path) as old:
        old.web.always(f"{B}/conversation", Said("Hello there"))
        assert old.ask("POST", "/chatgpt/conversation", ASK).status == 200
        rates = dict.fromkeys(("input_uncached", "output_text"), 10**9)
        old.gateway.write(lambda: catalog.add_price("gpt-4", 0, rates, now(), source="test"))
        set_budget(old.gateway.database, Subject("user", "caller-token"), "total", 1, now())
        old.gateway.wait_catalog()
        answer = old.ask("POST", "/chatgpt/conversation", ASK)
        assert (answer.status, list(answer.json())) == (402, ["errorMessage"])
        assert len(old.web.requests) == 1


def test_operator_restricts_the_account_to_some_models_and_networks(tmp_path: Any) -> None:
    with families(tmp_path) as old:
        old.web.always(f"{B}/conversation", Said("Hello there"))
        assert old.ask("POST", "/chatgpt/conversation", ASK).status == 200
        set_key(old.gateway.database, "caller-token", now(), models=("gpt-3*",))
        old.gateway.wait_catalog()
        assert old.ask("POST", "/chatgpt/conversation", ASK).status == 403
        assert old.ask("POST", "/chatgpt/conversation", {**ASK, "model": "gpt-3.5"}).status == 200
        set_key(old.gateway.database, "caller-token", now(), networks=("10.0.0.0/8",))
        old.gateway.wait_catalog()
        assert old.ask("POST", "/chatgpt/conversation", {**ASK, "model": "gpt-3.5"}).status == 403


def test_setting_switches_all_of_it_off(tmp_path: Any) -> None:
    with families(tmp_path, GATEWAY_CALLER_TOKENS="off") as old:
        for method, path in [("GET", "/chatgpt/models"), ("POST", "/chatgpt/login"), ("GET", "/platform/v1/models"), ("POST", "/imitate/v1/chat/completions")]:
            answer = old.ask(method, path, {} if method == "POST" else None)
            assert answer.status == 503
            assert "GATEWAY_CALLER_TOKENS" in answer.json()["errorMessage"]
        assert old.web.requests == []


def test_fault_16_server_starts_whatever_its_upstreams_do(tmp_path: Any) -> None:
    with families(tmp_path, CHATGPT_BASE_URL="http://127.0.0.1:9", PLATFORM_BASE_URL="http://127.0.0.1:9", AUTH0_BASE_URL="http://127.0.0.1:9") as old:
        assert old.gateway.get("/readyz", key=None).status == 200
        begun = time.monotonic()
        answer = old.ask("GET", "/chatgpt/models")
        assert (answer.status, list(answer.json())) == (500, ["errorMessage"])
        assert time.monotonic() - begun < 5


def test_conversation_endpoint_may_be_elsewhere(tmp_path: Any) -> None:
    with families(tmp_path) as first, families(tmp_path / "second", API_REVERSE_PROXY=f"{first.api.root}/some/conversation") as old:
        first.api.script("/some/conversation", Said("Hello"))
        old.web.script(f"{B}/models", Models())
        assert old.ask("POST", "/chatgpt/conversation", ASK).status == 200
        assert old.ask("GET", "/chatgpt/models").status == 200
        assert ([each.path for each in first.api.requests], [each.path for each in old.web.requests]) == (["/some/conversation"], [f"{B}/models"])


def test_every_answer_may_be_read_by_any_page(old: Families) -> None:
    assert CORS.items() <= old.gateway.get("/chatgpt", key=None).headers.items()  # `ask` looks at all others
