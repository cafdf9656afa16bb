"""An access token and a ChatGPT-web-style conversation endpoint, at a base URL that the operator sets.

Chats of every dialect are translated to a conversation and back; the dialect `chatgpt_web` is relayed as it is.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from backends.conversation import Ask, Conversation
from backends.http import Response, Transport
from backends.oauth import refresh_grant
from backends.refusal import MODELS_BYTES, parsed, read, refused_body, reset_seconds
from gateway.backend import Body, Call, Cancellation, ChatBackend, Headers, Refreshed, Reply, Services, Target
from gateway.dialects import CHAT_CODECS
from gateway.dialects.chatgpt_web import Complaint, conversation, relayed
from gateway.dialects.events import ChatEvent, ChatRequest, Finished, TextDelta
from gateway.dialects.openai_chat import DONE, dumps
from gateway.errors import BadRequest, UpstreamProtocolError, UpstreamRefused

_STREAM: Headers = (("content-type", "application/json"), ("accept", "text/event-stream"))


@dataclass(frozen=True, slots=True)
class Options:
    """`history`: false asks the upstream to keep nothing, and to train on nothing. `continue_limit`: how often an answer that its limit
    of tokens cut is continued; 0 never. `auto_continue`: a relayed conversation is continued as well, whether or not it asks for it;
    `messages_only`: what it says of no message is left out.
    `exact_models`: send the deployment's model as it is named, not under one of the interface's older names. `refresh_url` and
    `refresh_client_id`: whom to ask for the next token of a credential that has a refresh token (RFC 6749, section 6).
    """

    history: bool = True
    continue_limit: int = 2
    auto_continue: bool = False
    messages_only: bool = False
    conversation_path: str = "/conversation"
    exact_models: bool = False
    refresh_url: str = ""
    refresh_client_id: str = ""


class AccessToken(ChatBackend):
    """Speaks for the holder of `target.secret`; `target.extras["puid"]` goes along as a cookie."""

    dialects = frozenset({*CHAT_CODECS, "chatgpt_web"})
    Options = Options
    default_base_url = "https://chat.openai.com/backend-api"

    def __init__(self, options: Any, services: Services) -> None:
        super().__init__(options, services)
        self._transport = Transport(clock=services.clock, tick_s=services.heartbeat_s, allow_networks=services.allow_networks)

    def send(self, call: Call, target: Target) -> Reply:
        if call.dialect in CHAT_CODECS:
            return _Chat(self, call).send(call, target)
        if (call.method, call.path) == ("POST", "/conversation"):
            return self._relayed_conversation(call, target)
        url = target.base_url + call.path + ("?" + call.query if call.query else "")
        response = self._send(call.method, url, call.headers, call.body, target, call.deadline, call.cancel)
        if response.status >= 300:
            raise refusal(response)
        return Reply(response.status, response.headers, response.chunks, response.close)

    def chat(self, request: ChatRequest, target: Target) -> Iterator[ChatEvent]:
        return self.answer(request, target, self.services.clock() + target.deadlines.total_s, Cancellation())

    def answer(self, request: ChatRequest, target: Target, deadline: float, cancel: Cancellation) -> Iterator[ChatEvent]:
        """The events of `chat`, given up at `deadline` (monotonic) or when `cancel` fires, also while the upstream is silent."""
        asked = conversation(request, target.model, history=self.options.history, exact_model=self.options.exact_models)
        limit = self.options.continue_limit
        lines = Conversation(self._ask(target, deadline), asked, cancel, limit=limit, relays=False, hidden=(target.secret, *target.extras.values()))
        try:
            for line in lines:
                if line.text:
                    lines.begun = request.stream  # a whole answer leaves at its end: until then another upstream may be tried
                    yield TextDelta(line.text)
            yield Finished(lines.reason, None)
        finally:
            lines.close()

    def models(self, target: Target, deadline: float) -> list[str]:
        response = self._send("GET", target.base_url + "/models", (), Body.of(b""), target, deadline, Cancellation())
        if response.status != 200:
            raise refusal(response)
        document = parsed(read(response, MODELS_BYTES))
        listed = document.get("models") if isinstance(document, Mapping) else None
        if not isinstance(listed, list):
            raise UpstreamProtocolError("The upstream's list of models is not one.")
        return [item["slug"] for item in listed if isinstance(item, Mapping) and isinstance(item.get("slug"), str) and item["slug"]]

    def refresh(self, target: Target, deadline: float) -> Refreshed:
        if not self.options.refresh_url:
            raise BadRequest("the option refresh_url is not set: nobody can be asked for another token")
        token, client = target.extras["refresh_token"], self.options.refresh_client_id
        return refresh_grant(self._transport, self.options.refresh_url, client, token, deadlines=target.deadlines, deadline=deadline, proxy=target.proxy)

    def close(self) -> None:
        self._transport.close()

    def _relayed_conversation(self, call: Call, target: Target) -> Reply:
        asked, continues = self._relayed_request(call.document(), target.model)
        limit = self.options.continue_limit if continues or self.options.auto_continue else 0
        lines = Conversation(self._ask(target, call.deadline), asked, call.cancel, limit=limit, relays=True, hidden=(target.secret, *target.extras.values()))
        chunks = _filtered(lines, self.options.messages_only)
        try:
            first = next(filter(None, chunks))  # what is wrong at once is raised here, not behind a status of 200
        except BaseException:
            lines.close()
            raise
        return Reply(200, (("content-type", "text/event-stream; charset=utf-8"),), itertools.chain((first,), chunks), lines.close)

    def _relayed_request(self, document: Mapping[str, Any], model: str) -> tuple[dict[str, Any], bool]:
        """What is asked upstream, and whether the caller wants a cut answer continued. What we do not know is passed on."""
        asked = dict(document)
        continues = asked.pop("auto_continue", False) is True
        if model:
            asked["model"] = model
        if asked.get("conversation_id") == "":
            asked["conversation_id"] = None
        if not self.options.history:
            asked["history_and_training_disabled"] = True
        return asked, continues

    def _ask(self, target: Target, deadline: float) -> Ask:
        def ask(asked: Mapping[str, Any], cancel: Cancellation) -> Response:
            url = target.base_url + self.options.conversation_path
            response = self._send("POST", url, _STREAM, Body.of(dumps(asked)), target, deadline, cancel)
            if response.status >= 300:
                raise refusal(response)
            return response

        return ask

    def _send(self, method: str, url: str, headers: Headers, body: Body, target: Target, deadline: float, cancel: Cancellation) -> Response:
        own = _own_headers(target)
        return self._transport.send(method, url, own + headers, body, deadlines=target.deadlines, deadline=deadline, cancel=cancel, proxy=target.proxy)


class _Chat(ChatBackend):
    """One call's chat: its answer is given up when the call is, also between two events."""

    def __init__(self, backend: AccessToken, call: Call) -> None:
        super().__init__(backend.options, backend.services)
        self._backend, self._call = backend, call

    def chat(self, request: ChatRequest, target: Target) -> Iterator[ChatEvent]:
        return self._backend.answer(request, target, self._call.deadline, self._call.cancel)


def _own_headers(target: Target) -> Headers:
    own: Headers = (("user-agent", "chat-gateway"),)
    if target.secret:  # some paths are open to everybody
        own = (("authorization", "Bearer " + target.secret.reveal()), *own)
    puid = target.extras.get("puid")
    return (*own, ("cookie", "_puid=" + puid.reveal())) if puid else own


def _filtered(lines: Conversation, messages_only: bool) -> Iterator[bytes]:
    """The blocks of a relayed conversation, b"" for a tick, and one `[DONE]` at the very end."""
    for line in lines:
        block = relayed(line.raw, messages_only=messages_only)
        lines.begun = lines.begun or bool(block)
        yield block
    yield DONE


def refusal(response: Response) -> UpstreamRefused:
    """The error that a status of 400 and above means. Raises UpstreamProtocolError for a redirect; closes the response."""
    body = refused_body(response)
    document = parsed(body)
    complaint = Complaint.of((document.get("detail") or document.get("error")) if isinstance(document, Mapping) else None)
    reset_s = reset_seconds(dict(response.headers), time.time())
    return UpstreamRefused(
        response.status,
        response.headers,
        body,
        upstream_code=complaint.upstream_code(response.status),
        reset_s=complaint.clears_in_s if reset_s is None else reset_s,
    )
