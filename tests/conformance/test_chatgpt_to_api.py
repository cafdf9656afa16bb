"""chatgpt-to-api's contract over real sockets: CONTRACTS.md's section 4, and its faults 30 to 40."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.operations.server import prepare
from gateway.settings import Settings
from gateway.store import accounts, pools
from gateway.store.database import Database
from tests.factories import put_database
from tests.fakes.answers import Json, Status
from tests.fakes.chatgpt_web import Conversation, CutByTokens, Expired, Limited, Refused, Said, Stream, error_event, event
from tests.fakes.gateway import Answer, RunningGateway, free_port
from tests.fakes.provider import Provider
from tests.unit.operations.test_import_formats import jwt, part

PASSWORD = "correct-horse"
FILE_KEY = "key-of-the-file"
CONVERSATION = "/backend-api/conversation"
ASK = {"model": "gpt-4", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]}
CHAT = "/chatgpt-to-api/v1/chat/completions"


def own_token() -> str:
    """Begins with the base64 of a header that says RS256 first, as the old clients' tokens do."""
    header = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9"
    return f"{header}.{part({'sub': 'own'})}.signature"


class Family:
    """A running gateway, its data directory and its upstream."""

    def __init__(self, running: RunningGateway, provider: Provider | None = None) -> None:
        self.running = running
        if provider is not None:
            self.provider = provider
        self.data = running.directory / "data"

    def ask(self, path: str = CHAT, body: Any = ASK, key: str | None = FILE_KEY, method: str = "POST", **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        return self.running.request(method, path, raw, key, headers)

    def patch(self, name: str, body: Any, password: str | None = PASSWORD, prefix: str = "") -> Answer:
        headers = {} if password is None else {"authorization": password}
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self.running.request("PATCH", f"{prefix}/admin/{name}", raw, None, headers)
        self.running.wait_catalog()
        return answer

    def tokens(self, *tokens: Any) -> None:
        assert self.patch("tokens", list(tokens)).status == 200
        self.provider.requests.clear()

    def keys(self, *keys: str) -> None:
        (self.data / "api_keys.txt").write_text("\n".join(keys) + "\n")

    def members(self) -> list[pools.Credential]:
        return [item for item in self.running.read(pools.list_credentials) if item.pool_name == "access-tokens"]


def text(answer: Answer) -> tuple[int, str]:
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    return answer.status, answer.body.decode()


def events(answer: Answer) -> list[Any]:
    lines = answer.body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2] if line.startswith("data: ")]


def streamed(answer: Answer) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events(answer))


@pytest.fixture(scope="module")
def serving() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def served(serving: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    environment = {"ADMIN_PASSWORD": PASSWORD, "CHATGPT_BASE_URL": serving.root, "PLATFORM_BASE_URL": serving.root, "OFFICIAL_API_KEY": "sk-official"}
    with RunningGateway(tmp_path_factory.mktemp("gateway"), environment) as running:
        yield Family(running, serving)


@pytest.fixture
def family(served: Family) -> Family:
    """With one key in the file and one token in the pool, and an upstream that answers and remembers nothing."""
    served.keys(FILE_KEY)
    served.tokens({"token": jwt(1), "puid": "user-1"})
    served.provider.always(CONVERSATION, Conversation())
    served.provider.requests.clear()
    return served


# 4.2


@pytest.mark.parametrize("prefix", ["", "/chatgpt-to-api"])
def test_ping_and_preflight_answer_pong_to_anyone_and_any_page(family: Family, prefix: str) -> None:
    for method, path in (("GET", "/ping"), ("OPTIONS", "/v1/chat/completions")):
        answer = family.ask(prefix + path, None, None, method)
        assert (answer.status, answer.json()) == (200, {"message": "pong"})
        assert [answer.headers[f"access-control-allow-{name}"] for name in ("origin", "methods", "headers")] == ["*"] * 3


@pytest.mark.parametrize("prefix", ["", "/chatgpt-to-api"])
@pytest.mark.parametrize("name", ["models", "engines"])
def test_models_are_the_official_apis_list_as_it_comes(family: Family, prefix: str, name: str) -> None:
    family.provider.script("/v1/models", Json({"object": "list", "data": [{"id": "gpt-4", "x": 1}]}), Json({"error": {"message": "no"}}, 401))
    answer = family.ask(f"{prefix}/v1/{name}", None, method="GET")
    assert (answer.status, answer.json()) == (200, {"object": "list", "data": [{"id": "gpt-4", "x": 1}]})
    assert family.provider.requests[-1].headers["authorization"] == "Bearer sk-official"
    refused = family.ask(f"{prefix}/v1/{name}", None, method="GET")
    assert (refused.status, refused.json()) == (401, {"error": {"message": "no"}})


def test_tokens_in_either_form_replace_the_pool_and_the_file(family: Family) -> None:
    assert text(family.patch("tokens", [{"token": jwt(2), "puid": "user-2"}, {"token": jwt(3), "puid": ""}])) == (200, "tokens updated")
    assert json.loads((family.data / "access_tokens.json").read_text()) == [{"token": jwt(2), "puid": "user-2"}, {"token": jwt(3), "puid": ""}]
    assert len(family.members()) == 2
    assert text(family.patch("tokens", [jwt(3)], prefix="/chatgpt-to-api")) == (200, "tokens updated")
    assert [item.hint for item in family.members()] == [jwt(3)[-4:]]


def test_replaced_tokens_that_stay_keep_their_credential(family: Family) -> None:
    before = family.members()[0]
    family.tokens({"token": jwt(1), "puid": "user-1"}, jwt(9))
    assert [item.id == before.id for item in family.members()] == [True, False]
    family.tokens({"token": jwt(1), "puid": "user-2"})
    assert [item.id for item in family.members()] == [before.id]
    assert family.ask().status == 200
    assert family.provider.requests[-1].headers["cookie"] == "_puid=user-2"


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[]", b"null", b'[{"token":""}]', b"[7]", b'[{"token":"two words"}]'])
def test_what_is_no_list_of_tokens_changes_nothing(family: Family, body: bytes) -> None:
    assert text(family.patch("tokens", body)) == (400, "tokens not provided")
    assert len(family.members()) == 1
    assert json.loads((family.data / "access_tokens.json").read_text()) == [{"token": jwt(1), "puid": "user-1"}]


def test_puid_becomes_the_cookie_of_every_token(family: Family) -> None:
    family.tokens(jwt(1), jwt(2))
    assert text(family.patch("puid", {"puid": "user-9"})) == (200, "puid updated")
    assert family.ask().status == 200
    assert family.provider.requests[-1].headers["cookie"] == "_puid=user-9"
    for body in (b"{}", b"{", b'{"puid":""}'):
        assert text(family.patch("puid", body)) == (400, "puid not provided")


def test_password_is_changed_for_every_worker(family: Family) -> None:
    assert text(family.patch("password", {"password": "another-one"})) == (200, "password updated")
    try:
        assert text(family.patch("puid", {"puid": "user-1"}, "another-one")) == (200, "puid updated")
        assert family.patch("puid", {"puid": "user-1"}).status == 401
    finally:
        assert family.patch("password", {"password": PASSWORD}, "another-one").status == 200
    assert text(family.patch("password", b"{")) == (400, "password not provided")


def test_official_key_is_changed(family: Family) -> None:
    assert text(family.patch("openai", {"official_api_key": "sk-patched"})) == (200, "OpenAI credentials updated")
    family.ask("/v1/models", None, method="GET")
    assert family.provider.requests[-1].headers["authorization"] == "Bearer sk-patched"
    assert family.patch("openai", {"official_api_key": "sk-official"}).status == 200
    assert text(family.patch("openai", {"openai_email": "a@b.c", "openai_password": "p:w"})) == (200, "OpenAI credentials updated")


@pytest.mark.parametrize("shown", [None, "wrong", f"Bearer {PASSWORD}", PASSWORD + "x", ""])
def test_administration_needs_the_password_itself_before_the_body(family: Family, shown: str | None) -> None:
    for name in ("tokens", "password", "puid", "openai"):
        answer = family.patch(name, b"{", shown)
        assert (answer.status, answer.body) == (401, b"Unauthorized")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"


# 4.3


@pytest.mark.parametrize("path", ["/v1/chat/completions", CHAT])
@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ("", "No API key provided."),
        ("Bearer sk-0123456789", "You tried to use the official API key which is not supported."),
        ("Bearer other", "Invalid API key."),
        (FILE_KEY, "Invalid API key."),
        (f"bearer {FILE_KEY}", "Invalid API key."),
        (f"Bearer  {FILE_KEY}", "Invalid API key."),
    ],
)
def test_callers_without_a_key_of_the_file_are_refused_in_the_familys_words(family: Family, path: str, shown: str, told: str) -> None:
    answer = family.ask(path, ASK, None, **({"authorization": shown} if shown else {}))
    assert answer.status == 401
    assert answer.json()["error"].startswith(told)
    assert family.provider.requests == []


def test_key_of_the_file_is_answered_over_the_pool(family: Family) -> None:
    for path in ("/v1/chat/completions", CHAT):
        assert family.ask(path).status == 200
        sent = family.provider.requests[-1]
        assert (sent.headers["authorization"], sent.headers["cookie"]) == (f"Bearer {jwt(1)}", "_puid=user-1")
        assert sent.headers["user-agent"] == "chat-gateway"


def test_keys_of_the_gateway_follow_its_own_routing_on_v1_and_open_nothing_under_the_prefix(family: Family) -> None:
    assert family.ask("/v1/chat/completions", ASK | {"model": "echo"}, "").json()["choices"][0]["message"]["content"] == "Hello"
    assert "data" in family.ask("/v1/models", None, "", "GET").json()
    assert family.provider.requests == []
    assert family.ask(CHAT, ASK, "").json() == {"error": "Invalid API key."}
    mistyped = family.ask("/v1/chat/completions", ASK, "gw_user_nonsense")
    assert mistyped.json()["error"]["message"] == "The API key is missing, unknown, expired or revoked."


def test_without_a_file_v1_is_the_gateways_and_the_prefix_says_what_to_set(family: Family) -> None:
    (family.data / "api_keys.txt").unlink()
    for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET")):
        answer = family.ask(path, ASK if method == "POST" else None, None, method)
        assert (answer.status, answer.json()["error"]["type"]) == (401, "invalid_request_error")
    told = family.ask(CHAT, ASK, None)
    assert told.status == 503
    assert "CHATGPT_TO_API_OPEN" in told.json()["error"]


def test_callers_of_the_file_are_one_account_that_can_be_switched_off(family: Family) -> None:
    assert family.ask().status == 200
    entry = family.running.wait_entries(1)[-1]
    user = family.running.read(lambda: accounts.find_user("chatgpt-to-api"))
    assert (entry.user, entry.model_asked) == (user.id, "gpt-4")
    family.running.write(lambda: accounts.set_user_disabled(user.id, 1))
    family.running.wait_catalog()
    try:
        assert family.ask().status == 403
    finally:
        family.running.write(lambda: accounts.set_user_disabled(user.id, None))
        family.running.wait_catalog()


# 4.4


def test_request_is_converted_as_ever(family: Family) -> None:
    family.ask(CHAT, {**ASK, "model": "gpt-4-0613", "n": 3, "store": True, "temperature": 0})
    sent = family.provider.requests[-1].json()
    assert (sent["action"], sent["model"], sent["history_and_training_disabled"]) == ("next", "gpt-4", False)
    assert [message["author"]["role"] for message in sent["messages"]] == ["critic", "user"]
    assert [message["content"] for message in sent["messages"]] == [{"content_type": "text", "parts": [text]} for text in ("Be kind.", "Hello")]
    assert "conversation_id" not in sent


@pytest.mark.parametrize(
    ("asked", "sent"),
    [("gpt-3.5-turbo", "text-davinci-002-render-sha"), ("gpt-4-mobile", "gpt-4-mobile"), ("gpt-4-32k", "gpt-4"), ("x", "text-davinci-002-render-sha")],
)
def test_models_are_named_as_ever(family: Family, asked: str, sent: str) -> None:
    assert family.ask(CHAT, ASK | {"model": asked}).json()["model"] == asked
    assert family.provider.requests[-1].json()["model"] == sent


def test_model_and_content_type_may_be_missing(family: Family) -> None:
    answer = family.ask(CHAT, {"messages": ASK["messages"]}, **{"content-type": "application/x-www-form-urlencoded"})
    assert (answer.status, answer.json()["model"]) == (200, "gpt-3.5-turbo")


def test_whole_answer_has_openais_shape(family: Family) -> None:
    family.provider.script(CONVERSATION, Said("Hello ", "there."))
    document = family.ask().json()
    assert (document["object"], document["model"]) == ("chat.completion", "gpt-4")
    assert document["id"].startswith("chatcmpl-")
    assert document["created"] > 1_700_000_000
    choice = document["choices"][0]
    assert (choice["index"], choice["message"]["role"], choice["message"]["content"]) == (0, "assistant", "Hello there.")


def test_streamed_answer_has_openais_shape(family: Family) -> None:
    family.provider.script(CONVERSATION, Said("Hello ", "there."))
    answer = family.ask(CHAT, ASK | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = events(answer)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    assert streamed(answer) == "Hello there."


def test_what_is_no_json_is_told_in_the_familys_words(family: Family) -> None:
    answer = family.ask(CHAT, b"{nonsense")
    error = answer.json()["error"]
    assert (answer.status, error["message"], error["type"], error["param"]) == (400, "Request must be proper JSON", "invalid_request_error", None)
    assert isinstance(error["code"], str)


@pytest.mark.parametrize(
    ("refusal", "status", "message", "type"),
    [
        (Limited(), 429, "Too many requests in 1 hour. Try again later.", "429 Too Many Requests"),
        (Refused(404, {"any": "type"}), 404, {"any": "type"}, "404 Not Found"),
        (Refused(403, "No."), 403, "No.", "403 Forbidden"),
        (Refused(500, None), 500, None, "500 Internal Server Error"),
    ],
)
def test_refusals_are_told_with_the_upstreams_status_and_detail(family: Family, refusal: Any, status: int, message: Any, type: str) -> None:
    family.tokens(jwt(status))
    family.provider.script(CONVERSATION, refusal)
    answer = family.ask()
    assert (answer.status, answer.json()) == (status, {"error": {"message": message, "type": type, "param": None, "code": "error"}})


def test_refusal_that_is_no_json_is_an_unknown_error(family: Family) -> None:
    family.tokens(jwt(10))
    family.provider.script(CONVERSATION, Status(403, b"<html>Just a moment</html>"))
    error = {"message": "Unknown error", "type": "internal_server_error", "param": None, "code": "500", "details": "<html>Just a moment</html>"}
    answer = family.ask()
    assert (answer.status, answer.json()) == (500, {"error": error})


def test_token_in_a_refusal_is_not_repeated(family: Family) -> None:
    family.tokens(jwt(11))
    family.provider.script(CONVERSATION, Refused(422, f"cannot parse {jwt(11)}"))
    answer = family.ask()
    assert answer.status == 422
    assert jwt(11).encode() not in answer.body


def test_upstreams_that_cannot_be_reached_are_one_text(tmp_path: Path) -> None:
    root = f"http://127.0.0.1:{free_port()}"
    environment = {"CHATGPT_BASE_URL": root, "PLATFORM_BASE_URL": root, "OFFICIAL_API_KEY": "sk-x", "ACCESS_TOKENS": jwt(1), "CHATGPT_TO_API_OPEN": "1"}
    with RunningGateway(tmp_path, environment) as running:
        family = Family(running)
        for answer in (family.ask(CHAT, ASK, None), family.ask("/v1/models", None, None, "GET"), family.ask(CHAT, ASK, own_token())):
            assert (answer.status, answer.json()) == (500, {"error": "error sending request"})


# start-up, and what an old volume holds


def start(directory: Path, **environment: str) -> tuple[RunningGateway, tuple[str, ...]]:
    """A gateway that is prepared, and what `gateway serve` would have told."""
    running = RunningGateway(directory, environment)
    settings = Settings.load(running.settings_environment(), directory)
    put_database(settings.data_dir / "gateway.db")
    running.database = Database(settings.database)
    running.database.bind()
    return running, again(running)


def again(running: RunningGateway) -> tuple[str, ...]:
    """Prepare once more, as the next start does."""
    return prepare(Settings.load(running.settings_environment(), running.directory), running.database, 1_700_000_000_000).notes


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir(mode=0o700)
    return tmp_path / "data"


@pytest.mark.parametrize("document", [[{"token": jwt(1), "puid": "user-1"}, {"token": jwt(2), "puid": ""}], [jwt(1), jwt(2)]])
def test_mounted_tokens_are_served(volume: Path, serving: Provider, document: Any) -> None:
    (volume / "access_tokens.json").write_text(json.dumps(document))
    (volume / "api_keys.txt").write_text(f"\n{FILE_KEY}\n\n")
    with RunningGateway(volume.parent, {"API_REVERSE_PROXY": f"{serving.root}/old/conversation"}) as running:
        serving.always("/old/conversation", Said("Hi"))
        family = Family(running, serving)
        assert len(family.members()) == 2
        assert family.ask("/v1/chat/completions").json()["choices"][0]["message"]["content"] == "Hi"


def test_what_an_operator_did_to_the_pool_outlasts_a_start(volume: Path) -> None:
    (volume / "access_tokens.json").write_text(json.dumps([jwt(1), jwt(2)]))
    running, _ = start(volume.parent)
    family = Family(running)
    first = family.members()[0].id
    running.write(lambda: pools.delete_credential(first))
    assert again(running) == ()
    assert len(family.members()) == 1
    (volume / "access_tokens.json").write_text(json.dumps([jwt(1), jwt(2), jwt(3)]))
    assert again(running) == ("access_tokens.json: 2 new tokens in the pool access-tokens",)
    running.database.close()


def test_tokens_and_puid_come_from_the_environment(volume: Path) -> None:
    running, _ = start(volume.parent, ACCESS_TOKENS=f"{jwt(1)}, {jwt(2)}", PUID="user-7")
    assert [item.extras is not None for item in Family(running).members()] == [True, True]
    running.database.close()


def test_tokens_of_a_file_that_are_none_are_not_taken(volume: Path) -> None:
    (volume / "access_tokens.json").write_text(json.dumps([jwt(1), "canary"]))
    running, (told,) = start(volume.parent)
    assert "entry 2: it is not an access token" in told
    assert "canary" not in told
    assert Family(running).members() == []
    running.database.close()


def test_proxies_of_every_form_are_taken_in_turn(volume: Path) -> None:
    (volume / "access_tokens.json").write_text(json.dumps([jwt(1), jwt(2), jwt(3)]))
    (volume / "proxies.txt").write_text("http://a:1\nnonsense\n\nb:2\nc:3:user:pa:ss\n")
    running, _ = start(volume.parent)
    assert [item.proxy for item in Family(running).members()] == ["http://a:1", "socks5://b:2", "socks5://user@c:3"]
    (volume / "proxies.txt").write_text("gopher://x:1\n")
    assert again(running) == ("proxies.txt, line 1: the proxy must be http://, socks5:// or socks5h://, with a host and a port; no proxy is changed",)
    running.database.close()


@pytest.mark.parametrize(("value", "disabled"), [("", False), ("1", False), ("true", False), ("yes", False), ("0", True), ("false", True), ("no", True)])
def test_history_is_on_but_where_it_is_switched_off(volume: Path, value: str, disabled: bool) -> None:
    settings = Settings.load({"ENABLE_HISTORY": value}, volume)
    assert settings.history is not disabled


def test_old_names_of_the_address_count_where_ours_are_not_set(volume: Path) -> None:
    settings = Settings.load({"SERVER_HOST": "127.0.0.2", "SERVER_PORT": "9001", "PORT": "9002"}, volume)
    assert (settings.host, settings.port) == ("127.0.0.2", 9001)
    assert Settings.load({"GATEWAY_HOST": "::1", "SERVER_HOST": "127.0.0.2", "GATEWAY_PORT": "9000", "SERVER_PORT": "9001"}, volume).port == 9000


def test_open_rule_holds_on_loopback_only(volume: Path, serving: Provider) -> None:
    serving.always(CONVERSATION, Said("Hi"))
    environment = {
        "CHATGPT_TO_API_OPEN": "1",
        "ACCESS_TOKENS": jwt(1),
        "CHATGPT_BASE_URL": serving.root,
        "PLATFORM_BASE_URL": serving.root,
        "OFFICIAL_API_KEY": "k",
    }
    with RunningGateway(volume.parent, environment) as running:
        family = Family(running, serving)
        assert [family.ask(path, ASK, key).status for path in ("/v1/chat/completions", CHAT) for key in (None, "anything")] == [200] * 4
        assert [family.ask(f"/v1/{name}", None, None, "GET").status for name in ("models", "engines")] == [200] * 2
        assert family.ask(CHAT, ASK, None, **{"x-forwarded-for": "203.0.113.7"}).status == 503
        assert family.ask("/v1/chat/completions", ASK, None, **{"x-forwarded-for": "203.0.113.7"}).status == 401


def test_without_a_password_administration_says_what_to_set(volume: Path) -> None:
    with RunningGateway(volume.parent, {}) as running:
        for shown in ("TotallySecurePassword", ""):
            answer = Family(running).patch("tokens", [jwt(1)], shown)
            assert (answer.status, answer.json()) == (503, {"error": "There is no admin password: set ADMIN_PASSWORD."})


# section 8


def test_fault_30_repeated_text_arrives_whole(family: Family) -> None:
    family.provider.script(CONVERSATION, Said("ha", "ha", "ha"), Said("ha", "ha", "ha"))
    assert streamed(family.ask(CHAT, ASK | {"stream": True})) == "hahaha"
    assert family.ask().json()["choices"][0]["message"]["content"] == "hahaha"


def test_fault_31_finish_reasons_are_openais_and_stand_at_the_end(family: Family) -> None:
    cut = (CutByTokens("one "), CutByTokens("two "), CutByTokens("three"))
    family.provider.script(CONVERSATION, Said("done"), *cut, *cut)
    assert family.ask().json()["choices"][0]["finish_reason"] == "stop"
    answer = family.ask().json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("one two three", "length")
    chunks = events(family.ask(CHAT, ASK | {"stream": True}))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_fault_32_callers_own_token_goes_alone_and_takes_no_turn_of_the_pool(family: Family) -> None:
    for path in ("/v1/chat/completions", CHAT):
        assert family.ask(path, ASK, own_token()).status == 200
        sent = family.provider.requests[-1]
        assert sent.headers["authorization"] == f"Bearer {own_token()}"
        assert "cookie" not in sent.headers
    entry = family.running.wait_entries(2)[-1]
    assert (entry.deployment, entry.credential) == ("chatgpt-to-api", None)
    family.provider.script(CONVERSATION, Expired(), Expired())
    for _ in range(2):  # the same upstream, refusing as often as it likes, puts no token of the pool to rest
        assert family.ask(CHAT, ASK, own_token()).status == 401
    assert family.ask().status == 200


def test_fault_33_nothing_empties_the_password(family: Family) -> None:
    for body in (b"{}", b'{"password":""}', b'{"password":null}', b'{"password":" "}', b"[]"):
        assert text(family.patch("password", body)) == (400, "password not provided")
        assert family.patch("puid", {"puid": "user-1"}, None).status == 401
        assert family.patch("puid", {"puid": "user-1"}).status == 200


def test_fault_34_error_within_a_stream_is_one_document_and_a_cut_is_no_answer(family: Family) -> None:
    family.tokens(jwt(34))
    family.provider.script(CONVERSATION, Stream(error_event("Something broke."), done=False))
    answer = family.ask()
    assert (answer.status, answer.json()) == (500, {"error": "Something broke."})
    family.tokens(jwt(35))
    family.provider.script(CONVERSATION, Stream(event("Half"), done=False))
    cut = family.ask()
    assert cut.status == 500
    assert isinstance(cut.json()["error"], str)
    family.tokens(jwt(36))
    family.provider.script(CONVERSATION, Stream(event("Half"), event("Half of it"), done=False))
    answer = family.ask(CHAT, ASK | {"stream": True})
    assert b"[DONE]" not in answer.body
    assert b'"error"' in answer.body


def test_fault_35_limited_and_expired_tokens_cost_no_request_and_an_empty_pool_asks_nobody(family: Family) -> None:
    family.tokens(jwt(351), jwt(352), jwt(353))
    bad = {f"Bearer {jwt(351)}": Limited(), f"Bearer {jwt(352)}": Expired()}

    def answer(received: Any) -> Any:
        refusal = bad.get(received.headers["authorization"])
        return refusal or Said("Hi")(received)

    family.provider.always(CONVERSATION, answer)
    assert [family.ask().status for _ in range(8)] == [200] * 8
    assert sum(request.headers["authorization"] in bad for request in family.provider.requests) <= 2
    running = family.running
    for item in family.members():
        running.write(lambda item=item: pools.delete_credential(item.id))
    running.wait_catalog()
    family.provider.requests.clear()
    refused = family.ask()
    assert (refused.status, family.provider.requests) == (503, [])


def test_fault_36_strings_are_tokens_and_bad_json_is_answered_once(family: Family) -> None:
    assert text(family.patch("tokens", [jwt(36)])) == (200, "tokens updated")
    for body in (b"{", b"{}", b'{"openai_email":"a@b.c"}', b'{"official_api_key":""}'):
        answer = family.patch("openai", body)
        assert (answer.status, answer.json()) == (400, {"error": "JSON invalid"})


def test_fault_37_each_token_keeps_its_own_proxy(volume: Path) -> None:
    (volume / "access_tokens.json").write_text(json.dumps([jwt(1), jwt(2)]))
    (volume / "proxies.txt").write_text("http://a:1\nhttp://b:2\n")
    running, _ = start(volume.parent, http_proxy="http://user:secret@c:3")
    with_proxies = [(item.hint, item.proxy) for item in Family(running).members()]
    again(running)
    assert [(item.hint, item.proxy) for item in Family(running).members()] == with_proxies
    assert [proxy for _, proxy in with_proxies] == ["http://a:1", "http://b:2"]
    running.database.close()


def test_fault_38_tokens_are_for_their_owners_eyes_and_half_a_file_keeps_the_pool(family: Family) -> None:
    path = family.data / "access_tokens.json"
    family.tokens(jwt(38), jwt(39))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [name for name in os.listdir(family.data) if name.startswith(".access_tokens")] == []
    path.write_bytes(path.read_bytes()[:-30])
    (told,) = again(family.running)
    assert told.startswith("access_tokens.json: line ")
    assert told.endswith("none of its tokens is taken, and the pool access-tokens stays as it is")
    assert len(family.members()) == 2


def test_fault_38_passwords_with_colons_and_blank_lines_are_read(volume: Path) -> None:
    (volume / "accounts.txt").write_text("a@b.c:pass:word\n\nd@e.f:canary\n")
    running, told = start(volume.parent)
    assert told == ("accounts.txt: 2 accounts wait to be signed in",)
    (volume / "accounts.txt").write_text("a@b.c:x\ncanary\n")
    assert again(running) == (
        "accounts.txt, line 2: it must be email:password, in UTF-8; the other lines count",
        "accounts.txt: 1 accounts wait to be signed in",
    )
    running.database.close()


def test_fault_39_keys_are_read_again_when_their_file_changes(family: Family) -> None:
    assert family.ask(key="later").status == 401
    family.keys(FILE_KEY, "", "later")
    assert family.ask(key="later").status == 200
    family.keys(FILE_KEY)
    assert family.ask(key="later").status == 401


def test_fault_39_history_that_is_switched_on_is_on(family: Family) -> None:
    assert Settings.load({"ENABLE_HISTORY": "true"}, family.data).history is True
    family.ask()
    assert family.provider.requests[-1].json()["history_and_training_disabled"] is False


def test_fault_40_events_without_a_text_repeat_nothing(family: Family) -> None:
    family.provider.script(CONVERSATION, Conversation(("One ", "two."), noise=True))
    answer = family.ask(CHAT, ASK | {"stream": True})
    assert streamed(answer) == "One two."
    deltas = [chunk["choices"][0]["delta"] for chunk in events(answer)]
    assert sum(not delta for delta in deltas) == 1
