"""Relayed endpoints: a WSGI environ in, the upstream's answer out. Knows no Flask, so that app.py can serve these routes in front of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.api.access import authorize
from gateway.api.body import Received, read_body
from gateway.api.replies import Answered, finished, of_error, of_kept, of_relay, unexpected
from gateway.backend import Call, Cancellation, Headers
from gateway.concurrency import watch_readable
from gateway.core.gateway import Gateway
from gateway.core.idempotency import Idempotency, Kept
from gateway.core.identity import INFERENCE, Identity, Presented, Principal
from gateway.errors import BadRequest, GatewayError
from gateway.settings import Settings

REQUEST_HEADERS = (("accept", "HTTP_ACCEPT"), ("openai-beta", "HTTP_OPENAI_BETA"))
"""A client's headers that go to the upstream; its content-type is rewritten from the body's kind."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A relayed endpoint of a family. `path` is relative to the family's prefix and to a deployment's base URL alike.

    `body` is "json", "form" (multipart), or "either". `default_model` is what the API takes where the body names none.
    `check` refuses what this gateway does not serve and returns members to splice in. `scopes`: a restricted key needs one of them.
    """

    path: str
    dialect: str
    body: str
    summary: str
    default_model: str | None = None
    check: Callable[[Received], Mapping[str, Any]] | None = None
    scopes: tuple[str, ...] = (INFERENCE,)


class GunicornClient:
    """The client as its socket, which gunicorn puts into the environ; without one (a test client) nobody ever leaves."""

    __slots__ = ("_disarm", "_socket")

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


class Endpoints:
    """Serves every family's relayed endpoints. Keeps no state of a request."""

    def __init__(self, gateway: Gateway, identity: Identity, settings: Settings, idempotency: Idempotency) -> None:
        self._gateway, self._identity, self._settings, self._idempotency = gateway, identity, settings, idempotency

    def answer(self, environ: dict[str, Any], endpoint: Endpoint) -> Answered:
        """The whole of a request; never raises for anything that a client or an upstream does."""
        began = time.monotonic()
        try:
            principal = self._identity.authenticate(presented(environ))
            answered = self.relay(environ, endpoint, authorize(principal, endpoint.scopes, environ, self._settings.trusted_proxies))
            return answered if "gateway.exchange" in environ else finished(answered, environ, began)
        except GatewayError as error:
            told = error
        except Exception as error:
            told = unexpected(error, environ.get("gateway.exchange"))
        if "gateway.exchange" not in environ:
            self._gateway.metrics.refused(told.status, told.code)
        return finished(of_error(told, environ.get("gateway.exchange"), environ["PATH_INFO"]), environ, began)

    def relay(self, environ: dict[str, Any], endpoint: Endpoint, principal: Principal) -> Answered:
        """Read, handle, respond. Leaves the exchange in the environ: a failure's answer carries the receipt as well. Raises GatewayError.

        A stored answer is given again without an exchange.
        """
        received = read_body(environ, endpoint.body, environ.get("CONTENT_TYPE", ""), self._settings)
        model = received.fields.model or endpoint.default_model
        if not model:
            raise BadRequest("The request names no 'model'.", param="model")
        edits = endpoint.check(received) if endpoint.check is not None else {}
        call = make_call(environ, endpoint, received).edited(**edits)
        key = environ.get("HTTP_IDEMPOTENCY_KEY") if principal.may_use(model) else None  # else it is refused on the way, as any call
        claim = None if key is None else self._idempotency.recall(key, call, principal)
        if isinstance(claim, Kept):
            return of_kept(claim)
        client_id = environ.get("HTTP_X_REQUEST_ID", "")[:128] or None
        exchange = self._gateway.begin(call, principal, GunicornClient(environ), endpoint.path, model, client_id)
        environ["gateway.exchange"], exchange.claim = exchange, claim
        environ["gateway.relay"] = relay = self._gateway.handle(exchange)
        return of_relay(relay, exchange)


def presented(environ: Mapping[str, Any]) -> Presented:
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return Presented("openai", scheme.lower(), value.strip())


def make_call(environ: Mapping[str, Any], endpoint: Endpoint, received: Received) -> Call:
    headers: Headers = tuple([(name, value) for name, key in REQUEST_HEADERS if (value := environ.get(key))])
    return Call(
        dialect=endpoint.dialect,
        method=environ["REQUEST_METHOD"],
        path=endpoint.path,
        query="",
        headers=(*headers, ("content-type", received.content_type)),
        body=received.body,
        fields=received.fields,
        document=received.document,
        stream=received.fields.stream is True,
        deadline=math.inf,  # each attempt carries its deployment's
        cancel=Cancellation(),
    )
