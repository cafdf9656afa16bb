"""chatgpt-to-api: chat completions over a pool of access tokens or the caller's own, and the routes that change the pool.

Every route stands under the family's prefix; file_keys.py leads there what is asked for without it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flask import Blueprint, g, request

from gateway.api import PREFIXES
from gateway.api.access import authorize
from gateway.api.body import Received, read_body, read_raw
from gateway.api.caller import Asked, as_it_came
from gateway.api.endpoint import Endpoint, GunicornClient, make_call
from gateway.api.file_keys import FileKeys
from gateway.api.replies import Answered, exchange_headers, of_relay
from gateway.api.web import Web, policy
from gateway.backend import Body, Secret
from gateway.core.caller import CallersUpstream
from gateway.core.gateway import Gateway
from gateway.core.identity import INFERENCE
from gateway.core.relay import Relay
from gateway.errors import (
    BadRequest,
    GatewayError,
    NoDeploymentAvailable,
    PermissionDenied,
    SwitchedOff,
    UpstreamError,
    UpstreamInterrupted,
    UpstreamRefused,
)
from gateway.operations import chatgpt_to_api as operations
from gateway.operations.chatgpt_to_api import NAME
from gateway.operations.signing_in import SigningIn
from gateway.secrets import Secrets
from gateway.settings import Settings
from gateway.store.database import Database

CHAT = Endpoint("/chat/completions", "openai_chat", "json", "Create a chat completion over an access token, whole or streamed.", "gpt-3.5-turbo")
DETAILS_CHARACTERS = 4096
UNREACHED: Mapping[str, str] = {"error": "error sending request"}


@dataclass(frozen=True, slots=True)
class Family:
    """What the routes share. `redact` takes secrets out of what an upstream says."""

    web: Web
    gateway: Gateway
    database: Database
    secrets: Secrets
    settings: Settings
    redact: Callable[[str], str]
    signing_in: SigningIn
    own_tokens: CallersUpstream
    official: CallersUpstream


def blueprint(family: Family, file_keys: FileKeys) -> Blueprint:
    """The family's routes."""
    web = family.web
    web.guard("file-key", lambda environ: _let_in(family, file_keys, environ))
    web.guard("admin-password", lambda environ: _check_admin(family, environ))
    routes = Blueprint("chatgpt_to_api", __name__, url_prefix=PREFIXES["chatgpt_to_api"])

    def add(method: str, rule: str, name: str, view: Callable[[Family], Answered], needs: str) -> None:
        answer = policy(needs, INFERENCE)(lambda: web.respond(view(family)))
        routes.add_url_rule(rule, name, answer, methods=[method], provide_automatic_options=False)

    add("GET", "/ping", "ping", _pong, "open")
    add("OPTIONS", "/v1/chat/completions", "chat_preflight", _pong, "open")
    add("POST", "/v1/chat/completions", "chat", _chat, "file-key")
    add("GET", "/v1/models", "models", _models, "file-key")
    add("GET", "/v1/engines", "engines", _models, "file-key")
    for name, view in (("tokens", _tokens), ("password", _password), ("puid", _puid), ("openai", _openai)):
        add("PATCH", f"/admin/{name}", f"admin_{name}", view, "admin-password")
    return routes


def _let_in(family: Family, file_keys: FileKeys, environ: Mapping[str, Any]) -> None:
    """Who pays: the account of all callers with a token of their own, or the family's. Raises as FileKeys.admit and Identity.account do."""
    g.token = file_keys.admit(environ)
    if g.token is not None:
        family.web.callers.check_served()
        g.principal = family.web.callers.principal(environ)
    else:
        principal = family.web.identity.account(NAME, "of chatgpt-to-api")
        g.principal = authorize(principal, (INFERENCE,), environ, family.settings.trusted_proxies)


def _check_admin(family: Family, environ: Mapping[str, Any]) -> Answered | None:
    if family.settings.admin_password is None:
        raise SwitchedOff("There is no admin password: set ADMIN_PASSWORD.")
    if not operations.is_admin(family.database, family.secrets, family.settings, environ.get("HTTP_AUTHORIZATION", "")):
        return _text(401, "Unauthorized")
    return None


def _pong(family: Family) -> Answered:
    del family
    return _json(200, {"message": "pong"})


# chats


def _chat(family: Family) -> Answered:
    received = _received(family)
    model = received.fields.model or CHAT.default_model or ""
    environ, principal = request.environ, g.principal
    if not principal.may_use(model):
        raise PermissionDenied(f"This account may not use the model '{model}'.", code="model_not_allowed", param="model")
    try:
        relay = _handled(family, received, model) if g.token is None else _handled_for_caller(family, received, model, g.token)
    except UpstreamError as error:
        return _told(family, error)
    except GatewayError as error:  # every token was tried: what the last upstream said says more
        if isinstance(error.__cause__, UpstreamRefused):
            return _told(family, error)
        raise
    if relay.status >= 400 and relay.body is not None:
        relay.close()
        status, document = _refused(family, relay.status, relay.body)
        return _json(status, document, *exchange_headers(environ["gateway.exchange"]))
    return of_relay(relay, environ["gateway.exchange"])


def _received(family: Family) -> Received:
    """The body, whatever its content type says. Raises BadRequest in the family's words for what is no JSON."""
    try:
        return read_body(request.environ, "json", "", family.settings)
    except BadRequest as error:
        if type(error) is not BadRequest or error.code != BadRequest.code:
            raise
        raise BadRequest("Request must be proper JSON", code=error.message) from error


def _handled(family: Family, received: Received, model: str) -> Relay:
    """Answered over the pool."""
    environ, gateway = request.environ, family.gateway
    if not gateway.catalog.snapshot.find(NAME):
        raise NoDeploymentAvailable("There is no access token: PATCH /admin/tokens, access_tokens.json and ACCESS_TOKENS give some.")
    exchange = gateway.begin(make_call(environ, CHAT, received), g.principal, GunicornClient(environ), CHAT.path, model, _client_id(environ))
    environ["gateway.exchange"], exchange.served_by = exchange, NAME
    environ["gateway.relay"] = relay = gateway.handle(exchange)
    return relay


def _handled_for_caller(family: Family, received: Received, model: str, token: Secret) -> Relay:
    """Answered with the caller's own token alone: no cookie of the pool's goes along, and the pool's turn does not move."""
    asked = Asked(
        family.own_tokens,
        CHAT.dialect,
        CHAT.path,
        "POST",
        CHAT.path,
        received.body,
        model=model,
        fields=received.fields,
        document=received.document,
        stream=received.fields.stream is True,
    )
    return family.web.callers.handle(request.environ, asked, g.principal, token)


def _client_id(environ: Mapping[str, Any]) -> str | None:
    return environ.get("HTTP_X_REQUEST_ID", "")[:128] or None


def _told(family: Family, error: GatewayError) -> Answered:
    """What the upstream said, in the family's words, under its own status."""
    headers = exchange_headers(request.environ["gateway.exchange"])
    if error.retry_after_s is not None:
        headers.append(("retry-after", str(math.ceil(error.retry_after_s))))
    refused = error if isinstance(error, UpstreamRefused) else error.__cause__
    if isinstance(refused, UpstreamRefused):
        status, document = _refused(family, refused.upstream_status, refused.body)
        return _json(status, document, *headers)
    if isinstance(error, UpstreamInterrupted):
        return _json(500, {"error": error.message}, *headers)
    return _json(500, UNREACHED, *headers)


def _refused(family: Family, status: int, body: bytes) -> tuple[int, Mapping[str, Any]]:
    """An error in place of an answer's beginning has no `detail`, but what else an event has."""
    text = family.redact(body.decode("utf-8", "replace"))
    document = _parsed(text.encode())
    if not isinstance(document, dict):
        unknown = {"message": "Unknown error", "type": "internal_server_error", "param": None, "code": "500", "details": text[:DETAILS_CHARACTERS]}
        return 500, {"error": unknown}
    if "detail" not in document and document.get("error") and ("message" in document or "conversation_id" in document):
        return 500, {"error": document["error"]}
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
    return status, {"error": {"message": document.get("detail"), "type": f"{status} {phrase}".strip(), "param": None, "code": "error"}}


# models


def _models(family: Family) -> Answered:
    """The official API's list, as it comes."""
    key = operations.official_key(family.database, family.secrets, family.settings)
    if key is None:
        raise SwitchedOff("There is no key for the official API: set OFFICIAL_API_KEY, or PATCH /admin/openai.")
    asked = Asked(family.official, "openai_rest", "/models", "GET", "/models", Body.of(b""))
    try:
        return family.web.callers.relay(request.environ, asked, g.principal, key, as_it_came)
    except UpstreamError:
        return _json(500, UNREACHED, *exchange_headers(request.environ["gateway.exchange"]))


# administration: the password was right, before a byte of the body was read


def _tokens(family: Family) -> Answered:
    document = _body(family)
    if not isinstance(document, list):
        return _text(400, "tokens not provided")
    return _changed("tokens", lambda: operations.replace_tokens(family.database, family.secrets, family.settings, document, _now_ms()))


def _password(family: Family) -> Answered:
    password = _member(_body(family), "password")
    if password is None:
        return _text(400, "password not provided")
    return _changed("password", lambda: operations.set_password(family.database, family.secrets, family.settings, password, _now_ms()))


def _puid(family: Family) -> Answered:
    puid = _member(_body(family), "puid")
    if puid is None:
        return _text(400, "puid not provided")
    return _changed("puid", lambda: operations.set_puid(family.database, family.secrets, puid))


def _openai(family: Family) -> Answered:
    """An e-mail address and its password serve once, now: neither is kept."""
    document = _body(family)
    key, email, password = (_member(document, name) for name in ("official_api_key", "openai_email", "openai_password"))
    if key is None and (email is None or password is None):
        return _json(400, {"error": "JSON invalid"})
    if key is not None:
        try:
            operations.set_official_key(family.database, family.secrets, key, _now_ms())
        except BadRequest:
            return _json(400, {"error": "JSON invalid"})
    if email is not None and password is not None:
        family.signing_in.give(email, password)
    return _text(200, "OpenAI credentials updated")


def _changed(what: str, change: Callable[[], object]) -> Answered:
    try:
        change()
    except BadRequest as error:
        return _text(400, f"{what} not provided", ("x-gateway-reason", ascii(error.message)[1:-1]))
    return _text(200, f"{what} updated")


def _body(family: Family) -> Any:
    return _parsed(read_raw(request.environ, family.settings))


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _member(document: Any, name: str) -> Secret | None:
    """A text that says something: an empty one, as `{}` means, never takes a password's place."""
    value = document.get(name) if isinstance(document, dict) else None
    return Secret(value) if isinstance(value, str) and value.strip() else None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _json(status: int, document: Mapping[str, Any], *headers: tuple[str, str]) -> Answered:
    return _answered(status, "application/json", json.dumps(document).encode(), headers)


def _text(status: int, text: str, *headers: tuple[str, str]) -> Answered:
    return _answered(status, "text/plain; charset=utf-8", text.encode(), headers)


def _answered(status: int, kind: str, body: bytes, headers: tuple[tuple[str, str], ...]) -> Answered:
    return Answered(status, [("content-type", kind), ("content-length", str(len(body))), *headers], (body,))
