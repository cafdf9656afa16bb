"""OpenAI's chat completions over the web interface, under /imitate, with the caller's own access token or the operator's."""

from __future__ import annotations

import json

from flask import Blueprint, Response, g, request

from gateway.api import PREFIXES
from gateway.api.caller import ROUTE_NOT_FOUND, Asked, Told, check_expiry, received_json, shown_token
from gateway.api.chatgpt import WebInterface
from gateway.api.replies import Answered
from gateway.api.sign_in import add_logins
from gateway.api.web import METHODS, Web, policy, preflight
from gateway.backend import Secret
from gateway.core.caller import CallersUpstream
from gateway.core.dispatch import REDACTED
from gateway.errors import BadRequest, NotFound, UpstreamRefused

DEFAULT_MODEL = "gpt-3.5-turbo"
_ACCESS_TOKEN = "eyJhbGciOiJSUzI1NiI"  # noqa: S105
"""How every access token begins: a JWT signed with RS256. Where the operator lends a token, nothing else takes its place."""


def blueprint(web: Web, interface: WebInterface, upstream: CallersUpstream, sign_in: CallersUpstream) -> Blueprint:
    """The family's routes. Where the operator lends an access token, chats need none."""
    imitate = Blueprint("imitate", __name__, url_prefix=PREFIXES["imitate"])
    lent = web.callers.settings.imitate_access_token

    @imitate.post("/v1/chat/completions", provide_automatic_options=False)
    @policy("caller" if lent is None else "guest")
    def chat_completions() -> Response:
        return _chat(web, upstream, g.token if lent is None else _token(lent))

    @imitate.route("/v1/<path:rest>", methods=METHODS, provide_automatic_options=False)
    @policy("caller")
    def backend_api(rest: str) -> Response:
        return interface.relayed(f"{PREFIXES['imitate']}/v1", rest, second=True)

    @imitate.route("/<path:rest>", methods=METHODS, provide_automatic_options=False)
    @policy("caller")
    def unknown(rest: str) -> Response:
        raise NotFound(ROUTE_NOT_FOUND)

    imitate.add_url_rule("/<path:rest>", "preflight", preflight, methods=["OPTIONS"], provide_automatic_options=False)
    add_logins(imitate, web, sign_in, "/login", second=True)
    return imitate


def _token(lent: Secret) -> Secret:
    """The caller's own, or the operator's. Raises Unauthenticated."""
    shown = shown_token(request.environ)
    if not shown.startswith(_ACCESS_TOKEN):
        return lent
    check_expiry(shown)
    return Secret(shown)


def _chat(web: Web, upstream: CallersUpstream, token: Secret) -> Response:
    try:
        received = received_json(request.environ, web.callers.settings)
    except BadRequest as error:
        if error.__cause__ is None:
            raise
        return web.respond(_not_json(str(error.__cause__)))
    model, stream = received.fields.model or DEFAULT_MODEL, received.fields.stream is True
    endpoint = f"{PREFIXES['imitate']}/v1/chat/completions"
    asked = Asked(upstream, "openai_chat", endpoint, "POST", "/chat/completions", received.body, "", model, received.fields, received.document, stream)
    return web.ask(asked, _without(token), token)


def _not_json(reason: str) -> Answered:
    document = {"message": "Request must be proper JSON", "type": "invalid_request_error", "param": None, "code": reason}
    body = json.dumps({"error": document}).encode()
    return Answered(400, [("content-type", "application/json"), ("content-length", str(len(body)))], (body,))


def _without(token: Secret) -> Told:
    """Refusals as they came, but for the token, which may be the operator's: some upstreams repeat what they were sent."""

    def told(error: UpstreamRefused) -> tuple[bytes, str]:
        content_type = dict(error.headers).get("content-type", "application/json")
        return error.body.replace(token.reveal().encode(), REDACTED.encode()), content_type

    return told
