"""Agents' websockets, and the rest of ChatGPT-API-server's routes: a prompt for an agent, who is connected, who may ask."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, g, request

from gateway.api import PREFIXES
from gateway.api.access import is_of_this_host
from gateway.api.agent_asks import Asks
from gateway.api.body import read_raw
from gateway.api.replies import Answered
from gateway.api.web import Web, policy, preflight
from gateway.api.websocket import NotAWebSocket, WebSocket, WebSocketClosed
from gateway.core.agent_older import OlderSession
from gateway.core.agent_session import SMALL_BYTES, Session, SessionV2
from gateway.core.agents import Agents
from gateway.core.globs import matches
from gateway.errors import BadRequest, GatewayError, PermissionDenied, SwitchedOff, Unauthenticated
from gateway.operations import api_server
from gateway.secrets import Secrets
from gateway.settings import Settings, is_loopback
from gateway.state.agents import Holder
from gateway.store.database import Database

SUBPROTOCOL = "chat-gateway.agent.v2"
BODY_BYTES = 65_536
"""Of a body that is read before its sender has shown a key: the one for users holds it."""
REGISTER = "/client/register"
"""Before it may stand an agent's token, as one segment."""
_ROUTES = frozenset(
    {
        ("GET", "/health"),
        ("HEAD", "/health"),
        ("GET", REGISTER),
        *((method, "/api/ask") for method in ("POST", "OPTIONS")),
        *((method, path) for path in ("/api/connections", "/admin/users") for method in ("GET", "OPTIONS")),
        *((method, f"/admin/users/{verb}") for verb in ("add", "delete") for method in ("POST", "OPTIONS")),
    }
)
_PORT = re.compile(r":[0-9]+\Z")
NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Family:
    """What the routes share."""

    web: Web
    agents: Agents
    asks: Asks
    database: Database
    secrets: Secrets
    settings: Settings


def place(environ: dict[str, Any]) -> None:
    """Lead a request to the family's prefix where it is the family's: the old program has none."""
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    if (method, path) in _ROUTES or (method == "GET" and path.endswith(REGISTER) and _is_under_a_secret(path)):
        environ["PATH_INFO"] = PREFIXES["api_server"] + path


def _is_under_a_secret(path: str) -> bool:
    """One segment stands before the rest, and it is no family's."""
    first = path.removesuffix(REGISTER)
    return first.rfind("/") == 0 and len(first) > 1 and first not in PREFIXES.values()


def blueprint(family: Family) -> Blueprint:
    """Every route stands under the family's prefix; `place` leads there what is asked for without it."""
    web = family.web
    web.guard("agent", lambda environ: _check_origin(family.settings, environ))
    web.guard("ask-key", lambda environ: _let_in(family, environ))
    web.guard("admin-key", lambda environ: _check_admin(family))
    made = Blueprint("api_server", __name__, url_prefix=PREFIXES["api_server"])

    def add(method: str, rule: str, name: str, view: Callable[[Family], Answered], needs: str) -> None:
        answer = policy(needs)(lambda: web.respond(view(family)))
        made.add_url_rule(rule, name, answer, methods=[method], provide_automatic_options=False)
        if rule != "/health":
            made.add_url_rule(rule, f"preflight_{name}", preflight, methods=["OPTIONS"], provide_automatic_options=False)

    add("GET", "/health", "health", lambda family: _text(200, "OK"), "open")
    add("POST", "/api/ask", "ask", lambda family: family.asks.answer(request.environ, g.principal), "ask-key")
    add("GET", "/api/connections", "connections", _connections, "open")
    add("POST", "/admin/users/add", "add_user", _add_user, "admin-key")
    add("POST", "/admin/users/delete", "delete_user", _delete_user, "admin-key")
    add("GET", "/admin/users", "users", _users, "admin-key")

    @policy("agent")
    def register(secret: str = "") -> Response:
        return web.respond(_register(family, secret))

    @policy("open")
    def plain(secret: str = "") -> Response:
        del secret
        return web.respond(_no_websocket())

    for name, rule in (("", REGISTER), ("_under_a_secret", f"/<secret>{REGISTER}")):
        made.add_url_rule(rule, f"register{name}", register, methods=["GET"], websocket=True, provide_automatic_options=False)
        made.add_url_rule(rule, f"plain{name}", plain, methods=["GET"], provide_automatic_options=False)
    return made


# an agent's websocket


def _check_origin(settings: Settings, environ: Mapping[str, Any]) -> None:
    """A browser says which page asks; who says nothing is no browser. Raises PermissionDenied."""
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and ("," in origin or not any(matches(origin, pattern) for pattern in settings.agent_origins)):  # two headers are one with a comma
        raise PermissionDenied("Pages of this origin may not connect agents; AGENT_ORIGINS lists those that may.")


def _register(family: Family, secret: str) -> Answered:
    environ = request.environ
    try:
        websocket = WebSocket.accept(environ, (SUBPROTOCOL,), max_bytes=SMALL_BYTES)
    except NotAWebSocket:
        return _no_websocket()
    except WebSocketClosed:
        return Answered(200, [], ())
    session: Session = OlderSession(websocket) if websocket.subprotocol is None else SessionV2(websocket)
    family.agents.serve(session, _token(family.settings, secret, environ, session.protocol))
    return Answered(200, [], ())  # the connection is over: nobody reads this


def _token(settings: Settings, secret: str, environ: Mapping[str, Any], protocol: int) -> str | None:
    """What lets the agent in; "" where its first frame is to say so, None where nothing is needed."""
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    token = secret or (value.strip() if scheme.lower() == "bearer" else "")
    if token or protocol != 1:
        return token
    return None if settings.agent_open or _is_local(environ) else ""


def _is_local(environ: Mapping[str, Any]) -> bool:
    """Also a server on this host that does not say whose request it passes on is told by the name that was asked for, if it keeps that."""
    named = _PORT.sub("", environ.get("HTTP_HOST", "")).strip("[]")
    return is_of_this_host(environ) and is_loopback(named)


def _no_websocket() -> Answered:
    return Answered(400, [("content-type", "text/plain; charset=utf-8"), ("sec-websocket-version", "13"), ("content-length", "11")], (b"Bad Request",))


# who asks


def _let_in(family: Family, environ: Mapping[str, Any]) -> None:
    """The admin key, or a token of a user. A body that is no JSON object is told first, as it always was."""
    try:
        g.principal = family.asks.principal(environ)
    except Unauthenticated:
        if int(environ.get("CONTENT_LENGTH") or BODY_BYTES + 1) <= BODY_BYTES:
            _object(family, "Invalid request")
        raise


def _object(family: Family, refusal: str) -> Mapping[str, Any]:
    """Raises BadRequest, which says `refusal` where the body is no JSON object."""
    try:
        document = json.loads(read_raw(request.environ, family.settings, BODY_BYTES))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BadRequest(refusal)
    return document


# who is connected


def _connections(family: Family) -> Answered:
    """Their ids are shown to the admin and on this host: who knows one may take its place."""
    shown = _is_local(request.environ) or api_server.is_admin_key(family.settings, _raw_key())
    return _json(200, {"connections": [_connection(holder, shown=shown) for holder in family.agents.holders()]})


def _connection(holder: Holder, *, shown: bool) -> dict[str, Any]:
    heartbeat = _moment(holder.heard_at if holder.heard_at is not None else holder.since)
    used = NEVER if holder.used_at is None else _moment(holder.used_at)
    return {"Ws": {}, "Id": (holder.name or holder.agent) if shown else "", "Heartbeat": heartbeat, "LastMessageTime": used}


def _moment(seconds: float) -> str:
    """RFC 3339 with nanoseconds."""
    whole, nanoseconds = divmod(round(seconds * 1e9), 1_000_000_000)
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{nanoseconds:09d}Z"


# users


def _check_admin(family: Family) -> None:
    """The old program's clients show the key in the body, or in the query; a header is better, as nobody logs it."""
    if family.settings.admin_key is None:
        raise SwitchedOff("There is no admin key: set GATEWAY_ADMIN_KEY.")
    g.document = _object(family, "Invalid request body") if request.method == "POST" else request.args
    if not all(isinstance(g.document.get(name) or "", str) for name in ("admin_key", "user_id")):
        raise BadRequest("Invalid request body")
    shown: str = g.document.get("admin_key") or _raw_key()
    if not api_server.is_admin_key(family.settings, shown):
        raise Unauthenticated("Invalid admin key")


def _raw_key() -> str:
    shown: str = request.environ.get("HTTP_AUTHORIZATION", "")
    return shown.removeprefix("Bearer ").strip()


def _add_user(family: Family) -> Answered:
    try:
        user = api_server.add_user(family.database, family.secrets, _now_ms())
    except GatewayError:
        return _json(500, {"error": "Failed to insert user_id and token into database"})
    return _json(200, {"user_id": user.user_id, "token": user.token.reveal()})


def _delete_user(family: Family) -> Answered:
    try:
        api_server.delete_user(family.database, g.document.get("user_id") or "", _now_ms())
    except GatewayError:
        return _json(500, {"error": "Failed to delete user from database"})
    return _json(200, {"message": "User deleted"})


def _users(family: Family) -> Answered:
    try:
        users = api_server.list_users(family.database, family.secrets.vault, family.settings)
    except GatewayError as error:
        return _json(500, {"message": "Failed to get users from database", "error": error.message})
    return _json(200, {"users": [{"user_id": user.user_id, "token": user.token} for user in users]})


def _text(status: int, text: str) -> Answered:
    raw = text.encode()
    return Answered(status, [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(raw)))], (raw,))


def _json(status: int, document: Mapping[str, Any]) -> Answered:
    raw = json.dumps(document).encode()
    return Answered(status, [("content-type", "application/json; charset=utf-8"), ("content-length", str(len(raw)))], (raw,))


def _now_ms() -> int:
    return round(datetime.now(UTC).timestamp() * 1000)
