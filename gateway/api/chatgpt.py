"""go-chatgpt-api's web interface under /chatgpt, and under /api and /imitate as its last version has it: with the caller's own access token."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Blueprint, Response, g, request

from gateway.api import PREFIXES
from gateway.api.body import read_raw
from gateway.api.caller import (
    ROUTE_NOT_FOUND,
    Asked,
    encoded_query,
    in_words,
    parsed_object,
    query_pairs,
    received_json,
    required_token,
    shown_token,
    upstream_path,
)
from gateway.api.chatgpt_routes import CONVERSATION, EVERYTHING_ELSE, FALLBACK, Route, completed, page, route_of
from gateway.api.shapes import lowered
from gateway.api.sign_in import add_logins
from gateway.api.web import METHODS, Web, policy, preflight
from gateway.backend import Body, Secret
from gateway.core.caller import CallersUpstream
from gateway.errors import GatewayError, MethodNotAllowed, NotFound, PermissionDenied, UpstreamRefused

METHOD_NOT_ALLOWED = "Fallback method not allowed."
_OURS = frozenset({"ask", "connections"})
"""Under /api, the paths of another family."""


@dataclass(frozen=True, slots=True)
class WebUpstreams:
    """Where the web interface is reached: its root, what it shows to everybody, and its conversations; of these, `continued` goes on by
    itself with an answer that its limit cut."""

    root: CallersUpstream
    public: CallersUpstream
    conversation: CallersUpstream
    continued: CallersUpstream


class WebInterface:
    """What the routes of the three prefixes have in common. `prefix` is what stands before the interface's own paths, `second` says that
    the route is as the last version of their program has it."""

    def __init__(self, web: Web, upstreams: WebUpstreams) -> None:
        self._web, self._upstreams = web, upstreams

    def relayed(self, prefix: str, rest: str, *, second: bool) -> Response:
        """A path below the root. Raises GatewayError."""
        path = upstream_path(request.environ, rest)[1:]
        if request.method == "POST" and path == CONVERSATION:
            return self._conversation(prefix, second=second)
        route = route_of(request.method, path, EVERYTHING_ELSE if second else FALLBACK)
        if route is None:
            raise MethodNotAllowed(METHOD_NOT_ALLOWED)
        return self._web.ask(self._asked(prefix, route, path), in_words(lowered(route.refused) if second else route.refused))

    def public(self, rest: str) -> Response:
        """What the upstream shows also to who brings no token. Raises GatewayError."""
        path, method = upstream_path(request.environ, rest), request.method
        if method not in METHODS:
            raise MethodNotAllowed(METHOD_NOT_ALLOWED)
        body = Body.of(read_raw(request.environ, self._web.callers.settings))
        asked = Asked(self._upstreams.public, "chatgpt_web", f"{PREFIXES['chatgpt']}/public-api/*", method, path, body, encoded_query(request.environ))
        token = required_token(request.environ, request.path) if shown_token(request.environ) else Secret("")
        return self._web.ask(asked, in_words(FALLBACK.refused), token)

    def _asked(self, prefix: str, route: Route, path: str) -> Asked:
        settings, method = self._web.callers.settings, route.upstream_method or request.method
        query = page(query_pairs(request.environ)) if route.pages else encoded_query(request.environ)
        body = read_raw(request.environ, settings) if route.body is None else route.body(lambda: received_json(request.environ, settings).document())
        return Asked(self._upstreams.root, "chatgpt_web", f"{prefix}/{route.name}", method, "/" + path, Body.of(body), query)

    def _conversation(self, prefix: str, *, second: bool) -> Response:
        received = received_json(request.environ, self._web.callers.settings)
        asked = Asked(
            self._upstreams.conversation if second else self._upstreams.continued,
            "chatgpt_web",
            f"{prefix}/{CONVERSATION}",
            "POST",
            "/" + CONVERSATION,
            received.body,
            model=received.fields.model or "",
            fields=received.fields,
            document=lambda: completed(received.document()),
            stream=True,
        )
        if not second:
            return self._web.ask(asked, _object_of)
        return self._web.ask(asked, lambda error: self._refused(asked, error))

    def _refused(self, asked: Asked, error: UpstreamRefused) -> tuple[bytes, str]:
        """Where it is no matter of the token, the account may not have the model: then it is told so."""
        if error.upstream_status != 401 and asked.model and not self._lists(asked.model):
            raise PermissionDenied("you have no permission to use this model")
        return _object_of(error)

    def _lists(self, model: str) -> bool:
        """Whether the account has the model, or it cannot be told. This is a call of its own, with a receipt of its own."""
        asked = Asked(self._upstreams.root, "chatgpt_web", f"{PREFIXES['chatgpt']}/models", "GET", "/models", Body.of(b""))
        try:
            relay = self._web.callers.handle(dict(request.environ), asked, g.principal, g.token)
        except GatewayError:
            return True
        body = relay.body
        relay.close()
        document = parsed_object(body or b"")
        listed = document.get("models")
        return not isinstance(listed, list) or any(isinstance(item, dict) and item.get("slug") == model for item in listed)


def chatgpt(web: Web, interface: WebInterface, sign_in: CallersUpstream) -> Blueprint:
    """The README version's routes, and those of the last version that stand under the same prefix."""
    made = Blueprint("chatgpt", __name__, url_prefix=PREFIXES["chatgpt"])

    @made.route("/<path:rest>", methods=METHODS, provide_automatic_options=False)
    @policy("caller")
    def relayed(rest: str) -> Response:
        return interface.relayed(PREFIXES["chatgpt"], rest, second=False)

    @made.route("/backend-api/<path:rest>", methods=METHODS, provide_automatic_options=False)
    @policy("caller")
    def backend_api(rest: str) -> Response:
        return interface.relayed(f"{PREFIXES['chatgpt']}/backend-api", rest, second=True)

    @made.route("/public-api/<path:rest>", methods=METHODS, provide_automatic_options=False)
    @policy("guest")
    def public_api(rest: str) -> Response:
        return interface.public(rest)

    made.add_url_rule("/<path:rest>", "preflight", preflight, methods=["OPTIONS"], provide_automatic_options=False)
    add_logins(made, web, sign_in, "/login", "/backend-api/login")
    return made


def backend_api(web: Web, interface: WebInterface, sign_in: CallersUpstream) -> Blueprint:
    """The last version's short name for the web interface. Two of its paths are another family's."""
    made = Blueprint("backend_api", __name__, url_prefix=PREFIXES["backend_api"])

    @made.route("/<path:rest>", methods=METHODS, provide_automatic_options=False)
    @policy("caller")
    def relayed(rest: str) -> Response:
        if rest in _OURS:
            raise NotFound(ROUTE_NOT_FOUND)
        return interface.relayed(PREFIXES["backend_api"], rest, second=True)

    made.add_url_rule("/<path:rest>", "preflight", preflight, methods=["OPTIONS"], provide_automatic_options=False)
    add_logins(made, web, sign_in, "/login", second=True)
    return made


def _object_of(error: UpstreamRefused) -> tuple[bytes, str]:
    """The upstream's own object; an empty one where it sent none."""
    return (error.body if parsed_object(error.body) else b"{}"), "application/json"
