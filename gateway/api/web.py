"""Where Flask meets the core: policies, errors in the family's shape, and the relayed endpoints as views."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from gateway.api.access import authorize
from gateway.api.body import breaks_off, linger
from gateway.api.caller import Asked, Callers, Told, required_token
from gateway.api.endpoint import Endpoint, Endpoints, presented
from gateway.api.replies import Answered, common_headers, of_error, unexpected
from gateway.api.shapes import shape_of
from gateway.backend import Secret
from gateway.core.identity import Identity
from gateway.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound, PermissionDenied
from gateway.settings import Settings

View = TypeVar("View", bound=Callable[..., Any])
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def policy(name: str, *scopes: str) -> Callable[[View], View]:
    """Declare who may use a view: "key" (an API key), "open" (anyone), "metrics" (loopback, or the metrics token), "caller" (who brings an
    upstream's token), "guest" (anyone, where callers' tokens are served: on their account). A view without one is refused.

    A key that is restricted to some scopes must have one of `scopes`: where a view names none, it is refused.
    """

    def mark(view: View) -> View:
        view.policy = name  # type: ignore[attr-defined]
        view.scopes = scopes  # type: ignore[attr-defined]
        return view

    return mark


class Web:
    """What the blueprints share. Installed once on the app; it keeps no state of a request."""

    def __init__(self, endpoints: Endpoints, callers: Callers, identity: Identity, settings: Settings) -> None:
        self._endpoints, self.callers, self.identity, self._settings = endpoints, callers, identity, settings
        self._guards: dict[str, Callable[[Mapping[str, Any]], Answered | None]] = {}

    def guard(self, name: str, check: Callable[[Mapping[str, Any]], Answered | None]) -> None:
        """A policy of one family's own: `check` lets a request pass, gives a refusal in the family's form, or raises GatewayError."""
        self._guards[name] = check

    def install(self, app: Flask) -> None:
        app.before_request(lambda: self._authorize(app))
        app.after_request(_finish)
        app.register_error_handler(GatewayError, _error_response)
        app.register_error_handler(HTTPException, _http_error)
        app.register_error_handler(Exception, _unexpected)

    def _authorize(self, app: Flask) -> Response | None:
        """Default deny, before a byte of the body is read."""
        g.began = time.monotonic()
        if (path := request.environ.get("PATH_INFO", "")).startswith("//"):  # Werkzeug would take it for one slash; what stands before us may not
            raise NotFound(f"There is no {request.method} {path} here; /openapi.json lists what is served.")
        if request.endpoint is None:
            return None  # no such route: Flask answers 404
        view = app.view_functions[request.endpoint]
        declared = getattr(view, "policy", None)
        if declared == "key":
            principal = self.identity.authenticate(presented(request.environ))
            g.principal = authorize(principal, getattr(view, "scopes", ()), request.environ, self._settings.trusted_proxies)
        elif declared in ("caller", "guest"):
            self.callers.check_served()
            if declared == "caller":
                g.token = required_token(request.environ, request.path)
            g.principal = self.callers.principal(request.environ)
        elif declared == "metrics":
            self._authorize_metrics()
        elif declared in self._guards:
            refusal = self._guards[declared](request.environ)
            return None if refusal is None else _response(refusal)
        elif declared != "open":
            raise PermissionDenied("This route has no policy.")
        return None

    def _authorize_metrics(self) -> None:
        token, shown = self._settings.metrics_token, presented(request.environ).value
        if token is not None:
            if hmac.compare_digest(token.reveal().encode(), shown.encode()):
                return
            raise PermissionDenied("/metrics needs 'Authorization: Bearer' with GATEWAY_METRICS_TOKEN.")
        forwarded = any(name in request.headers for name in ("X-Forwarded-For", "Forwarded", "X-Real-Ip"))
        if request.remote_addr not in ("127.0.0.1", "::1") or forwarded:
            raise PermissionDenied("/metrics answers the local host only; set GATEWAY_METRICS_TOKEN to read it from elsewhere.")

    def relay(self, endpoint: Endpoint) -> Response:
        """A relayed endpoint as a view."""
        return _response(self._endpoints.relay(request.environ, endpoint, g.principal))

    def ask(self, asked: Asked, told: Told, token: Secret | None = None) -> Response:
        """A call of a family whose callers bring a token: this one, or the one that the request showed."""
        return _response(self.callers.relay(request.environ, asked, g.principal, g.token if token is None else token, told))

    def respond(self, answered: Answered) -> Response:
        """What a view made itself."""
        return _response(answered)


@policy("open")
def preflight(rest: str = "") -> Response:
    """What browsers ask before they let a page ask; `_finish` adds the headers."""
    return _response(Answered(204, [], ()))


def _response(answered: Answered) -> Response:
    response = Response(answered.blocks, answered.line, answered.headers, direct_passthrough=True)
    if all(name != "content-type" for name, _ in answered.headers):
        del response.headers["content-type"]  # Werkzeug puts text/html where an upstream names none, which a browser would run
    return response


def _error_response(error: GatewayError) -> Response:
    return _response(of_error(error, request.environ.get("gateway.exchange"), request.path))


def _http_error(error: HTTPException) -> Response:
    """What Flask itself refuses, in the same shape."""
    if error.code == 404:
        return _error_response(NotFound(f"There is no {request.method} {request.path} here; /openapi.json lists what is served."))
    if error.code == 405:
        response = _error_response(MethodNotAllowed(f"{request.path} does not take {request.method}."))
        response.headers["Allow"] = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return response
    refusal = BadRequest(error.description or "The request cannot be read.")
    refusal.status = error.code or 400
    return _error_response(refusal)


def _unexpected(error: Exception) -> Response:
    return _error_response(unexpected(error, request.environ.get("gateway.exchange")))


def _finish(response: Response) -> Response:
    """What every answer carries, also one that never was an exchange."""
    if shape_of(request.path).open_to_browsers:
        for name in ("Origin", "Headers", "Methods"):
            response.headers[f"Access-Control-Allow-{name}"] = "*"
    for name, value in common_headers(response.status_code, g.began):
        response.headers.setdefault(name, value)
    if breaks_off(request.environ):
        response.call_on_close(partial(linger, request.environ))
    return response
