"""The access-token backend keeps the contract against a web-style upstream on a real socket, and gives its texts exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.access_token import AccessToken
from gateway.backend import Backend, Body, Call, Cancellation, Deadlines, Proxy, Secret, Services, Target
from gateway.dialects import document, sse
from gateway.dialects.events import ChatEvent, ChatRequest, Finished, Message, TextDelta
from gateway.errors import BadRequest, Blame, Cancelled, UpstreamError, UpstreamInterrupted, UpstreamProtocolError, UpstreamRefused
from gateway.testing import SHORT_S, UpstreamContract, drain, read
from tests.fakes.answers import CloseAt, CloseDelimited, Json, Redirect, Silent, StallAt, Status, Step, answer_of
from tests.fakes.chatgpt_web import (
    DATE_STAMP,
    DONE,
    TEXT,
    Blocked,
    Conversation,
    CutByTokens,
    Expired,
    Limited,
    Models,
    Refused,
    Said,
    Stream,
    error_event,
    event,
    line,
)
from tests.fakes.provider import Provider
from tests.fakes.proxy import Proxy as FakeProxy
from tests.fakes.received import Received

SECRET = "eyJhbGciOiJSUzI1NiI.secret-of-the-contract"
PLACE = "/backend-api"
PATH = PLACE + "/conversation"


class TestAccessToken(UpstreamContract):
    backend_class = AccessToken
    provider: Provider

    @pytest.fixture(autouse=True)
    def upstream(self) -> Iterator[None]:
        with Provider() as provider:
            self.provider = provider
            provider.always(PATH, Conversation())
            provider.always(PLACE + "/models", Models())
            yield

    def target(self, place: str = PLACE) -> Target:
        return Target(self.provider.root + place, "gpt-4", Secret(SECRET), Deadlines())

    def at(self, place: str, step: Step) -> Target:
        self.provider.always(f"/{place}/conversation", step)
        return self.target(f"/{place}")

    def refusing(self) -> Target:
        return self.at("refusing", Refused(503, "overloaded"))

    def silent(self) -> Target:
        return self.at("silent", Silent())

    def stalled(self) -> Target:
        return self.at("stalled", StallAt(900, Conversation()))

    def broken(self) -> Target:
        return self.at("broken", CloseAt(900, Conversation()))

    def test_secret_is_not_in_the_targets_repr(self) -> None:
        shown = repr(dataclasses.replace(self.target(), extras={"puid": Secret("user-1:2")}))
        assert SECRET not in shown
        assert "user-1" not in shown

    def test_failed_calls_leave_no_connection_open(self, running: Backend) -> None:
        for target in (self.silent(), self.stalled(), self.broken()):
            for dialect, stream in self.streams():
                with pytest.raises(UpstreamError):
                    drain(running, self.call(dialect, stream, target, total_s=SHORT_S), target)
        self.provider.wait_open(0)

    def test_connections_are_used_again(self, running: Backend) -> None:
        target = self.target()
        for _ in range(3):
            for dialect, stream in self.shapes():
                drain(running, self.call(dialect, stream, target), target)
        assert self.provider.connections_seen == 1


@pytest.fixture
def web() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


Built = Callable[..., AccessToken]


@pytest.fixture
def built() -> Iterator[Built]:
    """Makes backends of such options, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> AccessToken:
            return stack.enter_context(contextlib.closing(AccessToken(AccessToken.Options(**options), Services())))

        yield make


@pytest.fixture
def backend(built: Built) -> AccessToken:
    return built()


def at(web: Provider, model: str = "gpt-4", **members: Any) -> Target:
    return Target(web.root + PLACE, model, Secret(SECRET), Deadlines(), **members)


def asked(stream: bool = True, **document: Any) -> ChatRequest:
    return ChatRequest("gpt-4", (Message("system", "Be brief."), Message("user", "hi")), stream, False, None, document)


def chatted(backend: AccessToken, web: Provider, *steps: Step, stream: bool = True, **document: Any) -> tuple[str, str]:
    """The text, and the reason it ended for."""
    web.script(PATH, *steps)
    events = list(backend.chat(asked(stream, **document), at(web)))
    assert isinstance(events[-1], Finished)
    return text_of(events), events[-1].reason


def text_of(events: list[ChatEvent]) -> str:
    return "".join(said.text for said in events if isinstance(said, TextDelta))


def raw_call(members: dict[str, Any], method: str = "POST", path: str = "/conversation", query: str = "") -> Call:
    raw = json.dumps(members).encode()
    read_body = document.read(raw)
    headers = (("content-type", "application/json"),)
    deadline = time.monotonic() + 10
    return Call("chatgpt_web", method, path, query, headers, Body.of(raw), read_body.fields, read_body.parsed, True, deadline, Cancellation())


QUESTION = {"action": "next", "messages": [], "model": "gpt-4", "parent_message_id": "p"}


def relayed(backend: AccessToken, web: Provider, *steps: Step, **members: Any) -> bytes:
    web.script(PATH, *steps)
    return drain(backend, raw_call(QUESTION | members), at(web))


# what goes out


def test_chat_goes_out_as_a_conversation_of_the_tokens_holder(backend: AccessToken, web: Provider) -> None:
    chatted(backend, web, Said("hi"))
    (received,) = web.requests
    body = received.json()
    assert (received.method, received.path) == ("POST", PATH)
    assert received.headers["authorization"] == f"Bearer {SECRET}"
    assert (received.headers["content-type"], received.headers["accept"]) == ("application/json", "text/event-stream")
    assert received.headers["user-agent"] == "chat-gateway"
    assert "cookie" not in received.headers
    assert [message["author"]["role"] for message in body["messages"]] == ["critic", "user"]
    assert (body["action"], body["model"], body["history_and_training_disabled"]) == ("next", "gpt-4", False)
    assert not body.keys() & {"conversation_id", "arkose_token", "plugin_ids"}


def test_32_cookie_is_sent_with_the_token_that_it_belongs_to_alone(backend: AccessToken, web: Provider) -> None:
    web.always(PATH, Said("hi"))
    list(backend.chat(asked(), at(web, extras={"puid": Secret("user-1:2")})))
    list(backend.chat(asked(), at(web)))
    drain(backend, raw_call(QUESTION), at(web, extras={"puid": Secret("user-3:4")}))
    assert [received.headers.get("cookie") for received in web.requests] == ["_puid=user-1:2", None, "_puid=user-3:4"]


def test_every_request_goes_through_the_targets_proxy(backend: AccessToken, web: Provider) -> None:
    web.always(PATH, CutByTokens("more, "))
    web.always(PLACE + "/models", Models())
    with FakeProxy() as proxy:
        through = at(web, proxy=Proxy.parse(proxy.url("http")))
        list(backend.chat(asked(), through))
        drain(backend, raw_call(QUESTION), through)
        drain(backend, raw_call({}, "GET", "/models"), through)
        backend.models(through, time.monotonic() + 5)
        assert len(web.requests) == 6
        assert web.connections_seen == len(proxy.asked)


def test_history_is_switched_off_for_every_kind_of_call(web: Provider, built: Built) -> None:
    backend = built(history=False)
    chatted(backend, web, Said("hi"))
    relayed(backend, web, Said("hi"))
    assert [received.json()["history_and_training_disabled"] for received in web.requests] == [True, True]


def test_exact_models_and_path_of_the_options_are_used(web: Provider, built: Built) -> None:
    web.always(PLACE + "/f/conversation", Said("hi"))
    list(built(exact_models=True, conversation_path="/f/conversation").chat(asked(), at(web, "o3")))
    assert web.requests[0].json()["model"] == "o3"


def test_answer_without_a_usage_says_that_it_knows_none(backend: AccessToken, web: Provider) -> None:
    web.always(PATH, Said("hi"))
    assert list(backend.chat(asked(), at(web)))[-1] == Finished("stop", None)


# what comes back


@pytest.mark.parametrize("noise", [False, True])
def test_30_repeated_text_is_given_exactly(backend: AccessToken, web: Provider, noise: bool) -> None:
    web.script(PATH, Said("ha", "ha", "ha", noise=noise))
    events = list(backend.chat(asked(), at(web)))
    assert [said.text for said in events if isinstance(said, TextDelta)] == ["ha", "ha", "ha"]


def test_14_short_lines_and_what_is_no_json_are_passed_over(backend: AccessToken, web: Provider) -> None:
    noise = (b"\n", b"d\n", b"data:\n", b"data: \n", b"data: {\n", b"data: []\n", b"data: 7\n", b": note\n", b"\xff\xfe\n", DATE_STAMP)
    assert chatted(backend, web, Stream(*noise, event("all"), *noise, event("all is well"), *noise)) == ("all is well", "stop")


def test_31_reason_is_in_openais_words(backend: AccessToken, web: Provider, built: Built) -> None:
    assert chatted(backend, web, Said("a")) == ("a", "stop")
    assert chatted(backend, web, Said("a", finish="interrupted")) == ("a", "stop")
    assert chatted(built(continue_limit=0), web, CutByTokens("a")) == ("a", "length")


def test_40_trailing_moderation_event_repeats_nothing(backend: AccessToken, web: Provider) -> None:
    web.script(PATH, Said("all is well"))
    assert len(list(backend.chat(asked(), at(web)))) == 2


def test_cut_answer_is_continued_with_the_same_token(backend: AccessToken, web: Provider) -> None:
    steps = (CutByTokens("one, "), CutByTokens("two, "), Said("three"))
    assert chatted(backend, web, *steps, arkose_token="given") == ("one, two, three", "stop")
    first, second, third = (received.json() for received in web.requests)
    assert {received.headers["authorization"] for received in web.requests} == {f"Bearer {SECRET}"}
    assert (second["action"], second["messages"], second["conversation_id"]) == ("continue", None, "conversation-1")
    assert second["parent_message_id"] not in (first["parent_message_id"], third["parent_message_id"])
    assert second["parent_message_id"].startswith("message-")
    assert (second["model"], second["arkose_token"]) == (first["model"], "given")


def test_answer_that_is_still_cut_at_the_limit_says_so(backend: AccessToken, web: Provider) -> None:
    web.always(PATH, CutByTokens("more, "))
    assert chatted(backend, web) == ("more, more, more, ", "length")
    assert len(web.requests) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_34_cut_stream_is_never_taken_for_an_answer(backend: AccessToken, web: Provider, stream: bool) -> None:
    for step in (CloseAt(1500, Said("a", "b", "c")), Stream(event("a"), event("ab"), done=False), Stream(done=False)):
        with pytest.raises(UpstreamInterrupted):
            chatted(backend, web, step, stream=stream)


def test_finished_answer_whose_done_is_missing_is_complete(backend: AccessToken, web: Provider) -> None:
    assert chatted(backend, web, Said("a", done=False)) == ("a", "stop")
    assert relayed(backend, web, Said("a", done=False)).endswith(DONE)


def test_upstream_that_stays_open_behind_its_end_is_not_waited_for(backend: AccessToken, web: Provider) -> None:
    answer = answer_of(Said("a"), Received("POST", PATH, "", (), b'{"action":"next"}', 0.0, 1))
    size = sum(len(action) for action in answer.script() if isinstance(action, bytes))
    begun = time.monotonic()
    assert chatted(backend, web, StallAt(size - 5, Said("a"))) == ("a", "stop")
    assert relayed(backend, web, StallAt(size - 5, Said("a"))).endswith(DONE)
    assert time.monotonic() - begun < 5


def test_call_is_cancelled_while_it_waits_for_a_continuation(backend: AccessToken, web: Provider) -> None:
    call = raw_call(QUESTION | {"auto_continue": True})

    def leave(received: Received) -> Any:
        call.cancel.fire("client_gone")
        return Silent()(received)

    web.script(PATH, CutByTokens("a"), leave)
    reply = backend.send(call, at(web))
    with pytest.raises(Cancelled):
        read(reply)
    assert len(web.requests) == 2
    web.wait_open(0)


# what is refused


@pytest.mark.parametrize(
    ("step", "status", "code", "blame", "reset_s"),
    [
        (Expired(), 401, "invalid_api_key", Blame.CREDENTIAL_INVALID, None),
        (Refused(401, "Could not parse your authentication token. Please try signing in again."), 401, "invalid_api_key", Blame.CREDENTIAL_INVALID, None),
        (Refused(401, {"code": "token_invalidated"}), 401, "invalid_api_key", Blame.CREDENTIAL_INVALID, None),
        (Status(401, {"error": {"code": "invalid_api_key"}}), 401, "invalid_api_key", Blame.CREDENTIAL_INVALID, None),
        (Refused(401, "Unauthorized"), 401, None, Blame.NOBODY, None),
        (Refused(401, "Invalid arkose token"), 401, None, Blame.NOBODY, None),
        (Limited(), 429, None, Blame.CREDENTIAL_MODEL, None),
        (Limited(clears_in=90), 429, "model_cap_exceeded", Blame.CREDENTIAL_MODEL, 90.0),
        (Limited(retry_after=7), 429, None, Blame.CREDENTIAL_MODEL, 7.0),
        (Limited(clears_in=90, retry_after=7), 429, "model_cap_exceeded", Blame.CREDENTIAL_MODEL, 7.0),
        (Limited(clears_in=10**9), 429, "model_cap_exceeded", Blame.CREDENTIAL_MODEL, 86_400.0),
        (Refused(429, {"clears_in": "soon"}), 429, None, Blame.CREDENTIAL_MODEL, None),
        (Blocked(), 403, None, Blame.CREDENTIAL_MODEL, None),
        (Refused(404, "Conversation not found"), 404, None, Blame.CLIENT, None),
        (Refused(422, [{"loc": ["body"], "msg": "field required"}]), 422, None, Blame.CLIENT, None),
        (Status(500, b"[" * 100_000), 500, None, Blame.DEPLOYMENT, None),
        (Status(502, b""), 502, None, Blame.DEPLOYMENT, None),
        # within the stream, before a word of the answer
        (Stream(error_event("Your access token has expired.")), 401, "invalid_api_key", Blame.CREDENTIAL_INVALID, None),
        (Stream(event(""), error_event("Too many requests in 1 hour.")), 429, None, Blame.CREDENTIAL_MODEL, None),
        (Stream(error_event({"code": "model_cap_exceeded", "clears_in": 5})), 429, "model_cap_exceeded", Blame.CREDENTIAL_MODEL, 5.0),
        (Stream(error_event({"message": "Too long.", "code": "message_length_exceeds_limit"})), 413, "message_length_exceeds_limit", Blame.CLIENT, None),
        (Stream(error_event()), 500, None, Blame.DEPLOYMENT, None),
        (Stream({"detail": "Something went wrong."}), 500, None, Blame.DEPLOYMENT, None),
    ],
)
def test_refusal_is_read_and_blamed(
    backend: AccessToken, web: Provider, step: Step, status: int, code: str | None, blame: Blame, reset_s: float | None
) -> None:
    with pytest.raises(UpstreamRefused) as raised:
        chatted(backend, web, step)
    error = raised.value
    assert (error.upstream_status, error.upstream_code, error.blame, error.reset_s) == (status, code, blame, reset_s)


def test_refusal_of_a_relayed_conversation_comes_with_its_own_words(backend: AccessToken, web: Provider) -> None:
    with pytest.raises(UpstreamRefused) as raised:
        relayed(backend, web, Refused(404, "gone"))
    assert json.loads(raised.value.body) == {"detail": "gone"}
    with pytest.raises(UpstreamRefused) as raised:
        relayed(backend, web, Stream(error_event("Too many requests.")))
    assert (raised.value.upstream_status, json.loads(raised.value.body)["error"]) == (429, "Too many requests.")


def test_redirect_is_never_followed(backend: AccessToken, web: Provider) -> None:
    for _ in range(2):
        with pytest.raises(UpstreamProtocolError, match="redirect"):
            chatted(backend, web, Redirect(web.root + "/elsewhere", 307))
        with pytest.raises(UpstreamProtocolError, match="redirect"):
            relayed(backend, web, Redirect(web.root + "/elsewhere", 302))
    assert {received.path for received in web.requests} == {PATH}


def test_error_behind_the_first_words_is_told_in_one_line_without_the_secret(backend: AccessToken, web: Provider) -> None:
    for step in (Said("a", error=f"Broken\r\nfor {SECRET} \u2028."), Said("a", error={"message": f"Broken for {SECRET} ."})):
        web.script(PATH, step)
        answer = backend.chat(asked(), at(web))
        assert next(answer) == TextDelta("a")
        with pytest.raises(UpstreamInterrupted) as raised:
            list(answer)
        assert str(raised.value) == "The upstream broke its answer off: Broken for *** ."


def test_failed_continuation_is_an_interruption_once_something_was_told(backend: AccessToken, web: Provider) -> None:
    for step in (Limited(), Redirect(web.root), Stream(error_event("no")), CloseAt(900, Said("b")), Stream(done=False)):
        with pytest.raises(UpstreamInterrupted) as raised:
            chatted(backend, web, CutByTokens("a"), step)
        assert len(str(raised.value).splitlines()) == 1


def test_failed_continuation_of_a_whole_answer_is_told_as_what_it_is_but_never_as_the_clients_mistake(backend: AccessToken, web: Provider) -> None:
    with pytest.raises(UpstreamRefused) as raised:
        chatted(backend, web, CutByTokens("a"), Limited(), stream=False)
    assert raised.value.upstream_status == 429
    with pytest.raises(UpstreamInterrupted):
        chatted(backend, web, CutByTokens("a"), Refused(404, "gone"), stream=False)


def test_plugins_that_are_no_list_of_texts_are_the_clients_mistake(backend: AccessToken, web: Provider) -> None:
    for wrong in ("plugin-1", [1], {}):
        with pytest.raises(BadRequest):
            chatted(backend, web, Said("a"), plugin_ids=wrong)


# relayed conversations


def test_relayed_conversation_is_filtered_line_by_line(backend: AccessToken, web: Provider) -> None:
    first, last = event("a"), event("ab", status="finished_successfully", end_turn=True)
    lines = (b"event: message\n", line(first), DATE_STAMP, b"\n\n", b"  data: what\xff  \r\n", b"no data\n", line(last))
    body = relayed(backend, web, Stream(*lines))
    assert body == line(first) + b"data: what\xff\n\nno data\n\n" + line(last) + DONE


def test_relayed_request_keeps_what_we_do_not_know(backend: AccessToken, web: Provider) -> None:
    relayed(backend, web, Said("a"), conversation_id="", suggestions=[1], arkose_token="t", timezone_offset_min=-60, auto_continue=False)
    assert web.requests[0].json() == QUESTION | {"conversation_id": None, "suggestions": [1], "arkose_token": "t", "timezone_offset_min": -60}


def test_relayed_conversation_asks_for_the_deployments_model(backend: AccessToken, web: Provider) -> None:
    web.script(PATH, Said("a"))
    drain(backend, raw_call(QUESTION), at(web, "gpt-4-mobile"))
    assert web.requests[0].json()["model"] == "gpt-4-mobile"


def test_relayed_conversation_is_continued_only_where_that_is_wanted(backend: AccessToken, web: Provider, built: Built) -> None:
    assert relayed(backend, web, CutByTokens("one, ")).count(DONE) == 1
    assert len(web.requests) == 1
    assert relayed(backend, web, CutByTokens("one, "), Said("two"), auto_continue=True).count(DONE) == 1
    assert relayed(built(auto_continue=True), web, CutByTokens("one, "), Said("two")).count(DONE) == 1
    assert [received.json()["action"] for received in web.requests] == ["next", "next", "continue", "next", "continue"]
    assert not any("auto_continue" in received.json() for received in web.requests)


def test_15_continuations_have_a_limit_and_one_end(backend: AccessToken, web: Provider) -> None:
    web.always(PATH, CutByTokens("more, "))
    body = relayed(backend, web, auto_continue=True)
    assert len(web.requests) == 3
    assert body.endswith(DONE)
    assert body.count(DONE) == 1


@pytest.mark.parametrize("step", [Refused(429, "no more"), Blocked(), Stream(error_event("no")), CloseAt(900, Said("b")), CloseAt(0), Redirect("/")])
def test_15_failed_continuation_is_no_end_and_no_document_in_the_stream(backend: AccessToken, web: Provider, step: Step) -> None:
    web.script(PATH, CutByTokens("a"), step)
    reply = backend.send(raw_call(QUESTION | {"auto_continue": True}), at(web))
    told: list[bytes] = []
    with pytest.raises(UpstreamInterrupted):
        told.extend(reply.chunks)  # keeps what came before it raises
    reply.close()
    assert told
    assert all(block.startswith(b"data: {") and block.endswith(b"}\n\n") for block in told)
    assert b"no more" not in b"".join(told)


def test_other_paths_are_relayed_as_they_are(backend: AccessToken, web: Provider) -> None:
    web.always(PLACE + "/conversations", Json({"items": []}, headers=(("x-request-id", "r1"),)))
    reply = backend.send(raw_call({"is_visible": False}, "PATCH", "/conversations", "offset=0&limit=20"), at(web))
    assert (reply.status, dict(reply.headers)["x-request-id"], json.loads(read(reply))) == (200, "r1", {"items": []})
    reply.close()
    (received,) = web.requests
    assert (received.method, received.query, received.json()) == ("PATCH", "offset=0&limit=20", {"is_visible": False})
    assert received.headers["authorization"] == f"Bearer {SECRET}"


def test_refusal_of_another_path_has_the_upstreams_status_and_body(backend: AccessToken, web: Provider) -> None:
    web.always(PLACE + "/conversation/7", Refused(404, "Can't load conversation 7"))
    with pytest.raises(UpstreamRefused) as raised:
        backend.send(raw_call({}, "GET", "/conversation/7"), at(web))
    assert (raised.value.upstream_status, json.loads(raised.value.body)) == (404, {"detail": "Can't load conversation 7"})


# models


def test_models_are_slugs(backend: AccessToken, web: Provider) -> None:
    web.script(PLACE + "/models", Models("a", "b"), Json({"models": [{"slug": "c"}, {"slug": 7}, {"slug": ""}, "d", {}]}))
    assert backend.models(at(web), time.monotonic() + 5) == ["a", "b"]
    assert backend.models(at(web), time.monotonic() + 5) == ["c"]
    assert web.requests[0].method == "GET"


@pytest.mark.parametrize("answer", [Json([]), Json({}), Json({"models": {}}), Status(200, b"no"), Status(200, b"")])
def test_list_of_models_that_is_none_is_an_error(backend: AccessToken, web: Provider, answer: Step) -> None:
    web.always(PLACE + "/models", answer)
    with pytest.raises(UpstreamProtocolError):
        backend.models(at(web), time.monotonic() + 5)


# cut anywhere

ANSWER = b"".join(
    answer_of(Conversation(("ha", "ha", "ha", " Gr\u00fc\u00dfe \U0001f44b")), Received("POST", PATH, "", (), b'{"action":"next"}', 0.0, 1)).blocks
)
ANSWER_TEXT = "hahaha Gr\u00fc\u00dfe \U0001f44b"


@pytest.fixture(scope="module")
def cutting() -> Iterator[tuple[Provider, AccessToken]]:
    with Provider() as provider, contextlib.closing(AccessToken(AccessToken.Options(), Services())) as backend:
        yield provider, backend


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, len(ANSWER)), piece=st.integers(1, 300))
def test_stream_cut_at_any_byte_is_exact_or_an_error(cutting: tuple[Provider, AccessToken], cut: int, piece: int) -> None:
    """The end of the connection ends this body: nothing but the answer itself says whether it is whole."""
    web, backend = cutting
    pieces = [ANSWER[start : min(start + piece, cut)] for start in range(0, cut, piece)]
    web.always(PATH, CloseDelimited(Stream(*pieces, done=False)))
    given_text = ""
    try:
        for said in backend.chat(asked(), at(web)):
            given_text += said.text if isinstance(said, TextDelta) else ""
    except UpstreamInterrupted:
        assert ANSWER_TEXT.startswith(given_text)
    else:
        assert given_text == ANSWER_TEXT
    try:
        body = drain(backend, raw_call(QUESTION), at(web))
    except UpstreamInterrupted:
        return
    assert sse.parse(list(sse.split(body))[-1]).data == b"[DONE]"
    assert ANSWER.partition(b'"finished_successfully"')[0] in body


def test_text_of_the_fake_is_what_comes(backend: AccessToken, web: Provider) -> None:
    assert chatted(backend, web, Conversation()) == (TEXT, "stop")
