"""go-chatgpt-api's last version: OpenAI's chats over the web interface, with the caller's access token or the operator's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.families import TOKEN, Families, expired, families, jwt
from tests.fakes.answers import Answer, Json
from tests.fakes.chatgpt_web import Blocked, CutByTokens, Expired, Limited, Refused, Said

CONVERSATION, PATH = "/backend-api/conversation", "/imitate/v1/chat/completions"
ASK = {"model": "gpt-4", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}], "temperature": 0.5}
LENT = jwt({"exp": 4_000_000_000, "of": "the operator"})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    with families(tmp_path_factory.mktemp("imitate")) as running:
        yield running


@pytest.fixture(scope="module")
def lending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    with families(tmp_path_factory.mktemp("lending"), IMITATE_ACCESS_TOKEN=LENT, CONTINUE_SIGNAL="1") as running:
        yield running


@pytest.fixture
def old(running: Families) -> Families:
    running.forget()
    return running


@pytest.fixture
def open_to_all(lending: Families) -> Families:
    lending.forget()
    return lending


def test_whole_answer_is_a_completion(old: Families) -> None:
    old.web.always(CONVERSATION, Said("Hello ", "there"))
    answers = [old.ask("POST", PATH, ASK).json() for _ in range(2)]
    for answer in answers:
        (choice,) = answer["choices"]
        assert (choice["message"]["role"], choice["message"]["content"], choice["finish_reason"]) == ("assistant", "Hello there", "stop")
        assert (answer["object"], answer["model"]) == ("chat.completion", "gpt-4")
        assert answer["created"] > 1_700_000_000
        assert answer["id"].startswith("chatcmpl-")
    assert answers[0]["id"] != answers[1]["id"]
    sent = old.web.requests[0]
    assert sent.headers["authorization"] == f"Bearer {TOKEN}"
    assert [(message["author"]["role"], message["content"]["parts"]) for message in sent.json()["messages"]] == [("critic", ["Be kind."]), ("user", ["Hello"])]


def test_stream_is_one_of_chunks(old: Families) -> None:
    old.web.script(CONVERSATION, Said("ha", "ha", "ha"))
    body = old.ask("POST", PATH, {**ASK, "stream": True}).body
    assert body.endswith(b"data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in body.split(b"\n\n") if line[6:7] == b"{"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "hahaha"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_request_without_a_model_gets_the_default_one(old: Families) -> None:
    old.web.script(CONVERSATION, Said("Hi"))
    assert old.ask("POST", PATH, {"messages": ASK["messages"]}).status == 200
    assert old.web.requests[0].json()["model"] == "text-davinci-002-render-sha"


@pytest.mark.parametrize("refusal", [Limited(clears_in=5), Expired(), Refused(418, "no"), Blocked()])
def test_refusal_is_passed_on_as_it_is(old: Families, refusal: Answer) -> None:
    old.web.script(CONVERSATION, refusal)
    answer = old.ask("POST", PATH, ASK)
    assert (answer.status, answer.body) == (refusal.status, refusal.blocks[0])


def test_body_that_is_no_json_is_told_as_openai_would(old: Families) -> None:
    answer = old.ask("POST", PATH, b"model=x")
    error = answer.json()["error"]
    assert (answer.status, error["message"], error["type"], error["param"]) == (400, "Request must be proper JSON", "invalid_request_error", None)
    assert error["code"]


def test_cut_answer_ends_there_without_the_signal(old: Families) -> None:
    old.web.always(CONVERSATION, CutByTokens("one, "))
    (choice,) = old.ask("POST", PATH, ASK).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"], len(old.web.requests)) == ("one, ", "length", 1)


def test_cut_answer_goes_on_with_the_signal(open_to_all: Families) -> None:
    open_to_all.web.script(CONVERSATION, CutByTokens("one, "), Said("two"))
    (choice,) = open_to_all.ask("POST", PATH, ASK).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one, two", "stop")


def test_expired_token_of_the_caller_is_refused(old: Families) -> None:
    answer = old.ask("POST", PATH, ASK, token=expired())
    assert (answer.status, answer.json()) == (401, {"errorMessage": "the accessToken for account ann@example.com has expired"})


@pytest.mark.parametrize("token", [None, "Bearer anything", "Bearer sk-123"])
def test_operators_token_serves_who_brings_none(open_to_all: Families, token: str | None) -> None:
    open_to_all.web.script(CONVERSATION, Said("Hi"))
    assert open_to_all.ask("POST", PATH, ASK, token=token).status == 200
    assert open_to_all.web.requests[0].headers["authorization"] == f"Bearer {LENT}"


def test_access_token_of_the_caller_goes_before_the_operators(open_to_all: Families) -> None:
    own = jwt({"exp": 4_000_000_000, "of": "the caller"})
    open_to_all.web.script(CONVERSATION, Said("Hi"))
    assert open_to_all.ask("POST", PATH, ASK, token=own).status == 200
    assert open_to_all.web.requests[0].headers["authorization"] == f"Bearer {own}"
    assert open_to_all.ask("POST", PATH, ASK, token=expired()).status == 401


def test_operators_token_opens_chats_and_nothing_else(open_to_all: Families) -> None:
    for path in ("/imitate/v1/conversations", "/imitate/v1/models", "/api/conversations"):
        assert open_to_all.ask("GET", path, token=None).status == 401
    assert open_to_all.web.requests == []


def test_operators_token_is_never_shown(open_to_all: Families) -> None:
    open_to_all.web.script(CONVERSATION, Json({"detail": f"no such token: {LENT}"}, 401))
    answer = open_to_all.ask("POST", PATH, ASK, token=None)
    assert (answer.status, answer.json()) == (401, {"detail": "no such token: [redacted]"})
    assert LENT not in open_to_all.gateway.log_path.read_text()


def test_unknown_path_is_none(old: Families) -> None:
    answer = old.ask("GET", "/imitate/other")
    assert (answer.status, answer.json()) == (404, {"message": "Route not found"})


@pytest.mark.parametrize("messages", [None, "x", [1], [{"content": "no role"}]])
def test_messages_that_are_none_are_the_callers_mistake(old: Families, messages: Any) -> None:
    answer = old.ask("POST", PATH, {"model": "gpt-4", "messages": messages})
    assert (answer.status, list(answer.json())) == (400, ["errorMessage"])
