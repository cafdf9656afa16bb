"""The only crossing between Flask and the core: request -> Call, Reply -> Response, error -> the family's shape, and the client's watcher."""

from __future__ import annotations

import hmac
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from gateway.api.body import Received, breaks_off, linger, read_body
from gateway.backend import Call, Cancellation, Headers
from gateway.concurrency import watch_readable
from gateway.core.exchange import Exchange, new_id
from gateway.core.gateway import Gateway
from gateway.core.identity import Identity, Presented, Principal
from gateway.core.relay import Relay, error_type
from gateway.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound, PermissionDenied
from gateway.settings import Settings

log = logging.getLogger(__name__)
View = TypeVar("View", bound=Callable[..., Any])

REQUEST_HEADERS = ("accept", "openai-beta")
"""A client's headers that go to the upstream; its content-type is rewritten from the body's kind."""
RESPONSE_HEADERS = frozenset(
    {"content-type", "content-disposition", "content-language", "openai-processing-ms", "openai-version", "openai-model", "retry-after", "x-should-retry"}
)
"""An upstream's headers that reach the client. Never cookies, its rate limits, or anything about the connection."""


def policy(name: str) -> Callable[[View], View]:
    """Declare who may use a view: "key" (an API key), "open" (anyone), "metrics" (loopback, or the metrics token). A view without one is refused."""

    def mark(view: View) -> View:
        view.policy = name  # type: ignore[attr-defined]
        return view

    return mark


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A relayed endpoint of a family. `path` is relative to the family's prefix and to a deployment's base URL alike.

    `body` is "json", "form" (multipart), or "either". `default_model` is what the API takes where the body names none.
    `check` refuses what this gateway does not serve and returns members to splice in.
    """

    path: str
    dialect: str
    body: str
    summary: str
    default_model: str | None = None
    check: Callable[[Received], Mapping[str, Any]] | None = None


class GunicornClient:
    """The client as its socket, which gunicorn puts into the environ; without one (a test client) nobody ever leaves."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._socket = environ.get("gunicorn.socket")
        self._disarm: Callable[[], None] | None = None

    def on_leave(self, callback: Callable[[], None]) -> None:
        if self._socket is not None:
            self._disarm = watch_readable(self._socket, callback)

    def disarm(self) -> None:
        if self._disarm is not None:
            self._disarm()
            self._disarm = None


class Web:
    """What the blueprints share. Installed once on the app; it keeps no state of a request."""

    def __init__(self, gateway: Gateway, identity: Identity, settings: Settings) -> None:
        self.gateway, self.identity, self.settings = gateway, identity, settings

    def install(self, app: Flask) -> None:
        app.before_request(lambda: self._authorize(app))
        app.after_request(_finish)
        app.register_error_handler(GatewayError, error_response)
        app.register_error_handler(HTTPException, _http_error)
        app.register_error_handler(Exception, _unexpected)

    def _authorize(self, app: Flask) -> None:
        """Default deny, before a byte of the body is read."""
        g.began = time.monotonic()
        if (path := request.environ.get("PATH_INFO", "")).startswith("//"):  # Werkzeug would take it for one slash; what stands before us may not
            raise NotFound(f"There is no {request.method} {path} here; /openapi.json lists what is served.")
        if request.endpoint is None:
            return  # no such route: Flask answers 404
        declared = getattr(app.view_functions[request.endpoint], "policy", None)
        if declared == "key":
            g.principal = self.identity.authenticate(presented())
        elif declared == "metrics":
            self._authorize_metrics()
        elif declared != "open":
            raise PermissionDenied("This route has no policy.")

    def _authorize_metrics(self) -> None:
        token, shown = self.settings.metrics_token, presented().value
        if token is not None:
            if hmac.compare_digest(token.reveal().encode(), shown.encode()):
                return
            raise PermissionDenied("/metrics needs 'Authorization: Bearer' with GATEWAY_METRICS_TOKEN.")
        forwarded = any(name in request.headers for name in ("X-Forwarded-For", "Forwarded", "X-Real-Ip"))
        if request.remote_addr not in ("127.0.0.1", "::1") or forwarded:
            raise PermissionDenied("/metrics answers the local host only; set GATEWAY_METRICS_TOKEN to read it from elsewhere.")

    def relay(self, endpoint: Endpoint) -> Response:
        """The three lines of every relayed view: read, handle, respond."""
        received = read_body(request.environ, endpoint.body, request.headers.get("Content-Type", ""), self.settings)
        exchange = self._begin(endpoint, received)
        g.exchange = exchange  # for the error handlers: a failure's answer carries the receipt as well
        return respond(exchange, self.gateway.handle(exchange))

    def _begin(self, endpoint: Endpoint, received: Received) -> Exchange:
        model = received.fields.model or endpoint.default_model
        if not model:
            raise BadRequest("The request names no 'model'.", param="model")
        edits = endpoint.check(received) if endpoint.check is not None else {}
        call = make_call(endpoint, received)
        principal: Principal = g.principal
        client_id = request.headers.get("X-Request-Id", "")[:128] or None
        return self.gateway.begin(call.edited(**edits), principal, GunicornClient(request.environ), endpoint.path, model, client_id)


def presented() -> Presented:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return Presented("openai", scheme.lower(), value.strip())


def make_call(endpoint: Endpoint, received: Received) -> Call:
    cancel = Cancellation()
    headers: Headers = tuple((name, value) for name in REQUEST_HEADERS if (value := request.headers.get(name)))
    return Call(
        dialect=endpoint.dialect,
        method=request.method,
        path=endpoint.path,
        query="",
        headers=(*headers, ("content-type", received.content_type)),
        body=received.body,
        fields=received.fields,
        document=received.document,
        stream=received.fields.stream is True,
        deadline=math.inf,  # each attempt carries its deployment's
        cancel=cancel,
    )


def respond(exchange: Exchange, relay: Relay) -> Response:
    """The Response of a Relay. Closes the Relay itself where the whole body is in hand; app.py does where the server takes no headers."""
    request.environ["gateway.relay"] = relay
    try:
        headers = [(name, value) for name, value in relay.headers if name in RESPONSE_HEADERS]
        upstream_id = next((value for name, value in relay.headers if name == "x-request-id"), None)
        headers += exchange_headers(exchange) + ([("x-upstream-request-id", upstream_id)] if upstream_id else [])
        if relay.body is not None:
            relay.close()
            return _typed(Response(relay.body, relay.status, headers), headers)
        if relay.length is not None:
            headers.append(("content-length", str(relay.length)))
        if exchange.call.stream:
            headers.append(("x-accel-buffering", "no"))
        return _typed(Response(relay, relay.status, headers, direct_passthrough=True), headers)
    except BaseException:
        relay.close()
        raise


def _typed(response: Response, headers: Sequence[tuple[str, str]]) -> Response:
    """Without the type that Werkzeug puts where an upstream names none: text/html, which a browser would run."""
    if all(name != "content-type" for name, _ in headers):
        del response.headers["content-type"]
    return response


def exchange_headers(exchange: Exchange) -> list[tuple[str, str]]:
    """What every answer of an exchange carries: its id, where the time went, how it was routed, and its cost where that is known."""
    headers = [("x-request-id", exchange.id), ("server-timing", _server_timing(exchange)), ("x-gateway-receipt", _compact_receipt(exchange))]
    if exchange.amount_nano is not None:
        headers.append(("x-gateway-cost-usd", f"{exchange.amount_nano // 10**9}.{exchange.amount_nano % 10**9:09d}"))
    return headers


def _server_timing(exchange: Exchange) -> str:
    total = (exchange.clock() - exchange.started) * 1000
    upstream = sum((attempt.ended or exchange.clock()) - attempt.started for attempt in exchange.attempts) * 1000
    first = f", first_byte;dur={(exchange.first_byte - exchange.started) * 1000:.1f}" if exchange.first_byte is not None else ""
    return f"gateway;dur={max(total - upstream, 0):.1f}, upstream;dur={upstream:.1f}{first}"


def _compact_receipt(exchange: Exchange) -> str:
    attempts = ", ".join(f"{attempt.deployment}:{attempt.outcome}" for attempt in exchange.attempts)
    excluded = ", ".join(f"{name}:{reason}" for name, reason in exchange.excluded.items())
    return f'attempts="{attempts}"' + (f'; excluded="{excluded}"' if excluded else "")


def error_response(error: GatewayError) -> Response:
    """An error in OpenAI's shape, with the exchange's headers; a request that was refused before it became an exchange gets an id all the same."""
    document = {"error": {"message": error.message, "type": error_type(error.status), "param": error.param, "code": error.code}}
    response = Response(json.dumps(document), error.status, content_type="application/json")
    exchange: Exchange | None = g.get("exchange")
    if exchange is not None:
        response.headers.extend(exchange_headers(exchange))
    else:
        response.headers["x-request-id"] = refusal_id = _fresh_id()
        log.info("refused", extra={"exchange": refusal_id, "fields": {"path": request.path, "status": error.status, "error": error.code}})
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.status in (500, 501):
        response.headers["x-should-retry"] = "false"  # OpenAI's SDKs retry every 5xx: these would fail, or be paid, again
    return response


def _fresh_id() -> str:
    return new_id(time.time_ns() // 1_000_000)


def _http_error(error: HTTPException) -> Response:
    """What Flask itself refuses, in the same shape."""
    if error.code == 404:
        return error_response(NotFound(f"There is no {request.method} {request.path} here; /openapi.json lists what is served."))
    if error.code == 405:
        response = error_response(MethodNotAllowed(f"{request.path} does not take {request.method}."))
        response.headers["Allow"] = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return response
    refusal = BadRequest(error.description or "The request cannot be read.")
    refusal.status = error.code or 400
    return error_response(refusal)


def _unexpected(error: Exception) -> Response:
    exchange: Exchange | None = g.get("exchange")
    log.error("unexpected %s", type(error).__name__, exc_info=error, extra={"exchange": exchange.id if exchange else None})
    return error_response(GatewayError("The gateway failed; the operator finds the reason in its log."))


def _finish(response: Response) -> Response:
    """What every answer carries, also one that never was an exchange: an id, where the time went, and that nobody was asked."""
    response.headers.setdefault("x-request-id", _fresh_id())
    if response.status_code != 401:  # where a wrong key's time goes is nobody's business: an unknown one would differ from a revoked one
        response.headers.setdefault("server-timing", f"gateway;dur={(time.monotonic() - g.began) * 1000:.1f}")
    response.headers.setdefault("x-gateway-receipt", 'attempts=""')
    if breaks_off(request.environ):
        response.call_on_close(partial(linger, request.environ))
    return response
