"""The official API under /platform, with the caller's own key or session key: an exact table of paths, relayed as they are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flask import Blueprint, Response, request

from gateway.api import PREFIXES
from gateway.api.caller import ROUTE_NOT_FOUND, Asked, as_it_came, encoded_query, received_json
from gateway.api.sign_in import add_logins
from gateway.api.web import METHODS, Web, policy, preflight
from gateway.backend import Body
from gateway.core.caller import CallersUpstream
from gateway.errors import NotFound


@dataclass(frozen=True, slots=True)
class Route:
    """A path of the official API, as a pattern, and its dialect. `name` is the path without what varies in it."""

    method: str
    pattern: re.Pattern[str]
    name: str
    dialect: str = "openai_rest"


def _route(method: str, name: str, dialect: str = "openai_rest") -> Route:
    return Route(method, re.compile(name.replace("{model}", r"(?!\.{1,2}\Z)[A-Za-z0-9._~:-]+")), name, dialect)


ROUTES = (
    *(_route("GET", f"v1/{name}") for name in ("models", "models/{model}", "files")),
    *(_route("GET", f"dashboard/{name}") for name in ("billing/credit_grants", "billing/subscription", "user/api_keys")),
    _route("POST", "v1/chat/completions", "openai_chat"),
    _route("POST", "v1/completions", "openai_completions"),
    *(_route("POST", f"v1/{name}") for name in ("edits", "images/generations", "embeddings", "moderations")),
)


def blueprint(web: Web, upstream: CallersUpstream, sign_in: CallersUpstream) -> Blueprint:
    """The family's routes."""
    platform = Blueprint("platform", __name__, url_prefix=PREFIXES["platform"])

    @platform.route("/<path:rest>", methods=METHODS, provide_automatic_options=False)
    @policy("caller")
    def relayed(rest: str) -> Response:
        return web.ask(_asked(web, upstream, _found(rest), rest), as_it_came)

    platform.add_url_rule("/<path:rest>", "preflight", preflight, methods=["OPTIONS"], provide_automatic_options=False)
    add_logins(platform, web, sign_in, "/login", "/v1/login")
    return platform


def _found(rest: str) -> Route:
    """Raises NotFound."""
    raw: str = request.environ.get("RAW_URI", "").partition("?")[0]
    found = next((route for route in ROUTES if route.method == request.method and route.pattern.fullmatch(rest)), None)
    if found is None or "%" in raw:
        raise NotFound(ROUTE_NOT_FOUND)
    return found


def _asked(web: Web, upstream: CallersUpstream, route: Route, rest: str) -> Asked:
    endpoint, path, query = f"{PREFIXES['platform']}/{route.name}", "/" + rest, encoded_query(request.environ)
    if route.method == "GET":
        return Asked(upstream, route.dialect, endpoint, "GET", path, Body.of(b""), query)
    received = received_json(request.environ, web.callers.settings)
    fields = received.fields
    model, stream = fields.model or "", fields.stream is True
    return Asked(upstream, route.dialect, endpoint, "POST", path, received.body, query, model, fields, received.document, stream)
