"""Calls with an upstream token of the client's own: who may make them, and their way through the gateway. Knows no Flask."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from gateway.api import PREFIXES
from gateway.api.access import authorize
from gateway.api.body import Received, read_body
from gateway.api.endpoint import GunicornClient
from gateway.api.replies import Answered, of_refusal, of_relay
from gateway.backend import Body, Call, Cancellation, Headers, Secret
from gateway.core.caller import CallersUpstream
from gateway.core.gateway import Gateway
from gateway.core.identity import INFERENCE, Identity, Principal
from gateway.core.relay import Relay
from gateway.core.upstream_secrets import claims, email
from gateway.dialects.document import Fields
from gateway.errors import BadRequest, NotFound, PermissionDenied, SwitchedOff, Unauthenticated, UpstreamRefused
from gateway.secrets import looks_like_key
from gateway.settings import Settings

NOT_JSON = "Failed to parse json request body."
ROUTE_NOT_FOUND = "There is no such route."
_MISSING = "Missing accessToken."
_MISSING_2 = "please provide a valid access token or api key in 'Authorization' header"
_SEGMENTS = re.compile(r"[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*")
_QUERY_FIELDS = 100


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client of these families asks of its upstream. `model` may be empty; `endpoint` is the route, without what varies in it."""

    upstream: CallersUpstream
    dialect: str
    endpoint: str
    method: str
    path: str
    body: Body
    query: str = ""
    model: str = ""
    fields: Fields = Fields()
    document: Callable[[], Mapping[str, Any]] = dict
    stream: bool = False

    def call(self, accept: str) -> Call:
        headers: Headers = (("accept", accept),) if accept else ()
        if self.body.size != 0:
            headers += (("content-type", "application/json"),)
        return Call(
            dialect=self.dialect,
            method=self.method,
            path=self.path,
            query=self.query,
            headers=headers,
            body=self.body,
            fields=self.fields,
            document=self.document,
            stream=self.stream,
            deadline=math.inf,  # the attempt carries its deployment's
            cancel=Cancellation(),
        )


Told = Callable[[UpstreamRefused], tuple[bytes, str]]
"""A refusal's body and content type, as the family words it."""


class Callers:
    """Lets in who brings a token of their own, and relays their calls. Keeps no state of a request."""

    def __init__(self, gateway: Gateway, identity: Identity, settings: Settings) -> None:
        self._gateway, self._identity, self.settings = gateway, identity, settings

    def check_served(self) -> None:
        """Raises SwitchedOff."""
        if self.settings.caller_tokens == "off":
            raise SwitchedOff("Calls with an upstream token of their own are not served here: GATEWAY_CALLER_TOKENS is off.")

    def principal(self, environ: Mapping[str, Any]) -> Principal:
        """The account of all such calls. Raises PermissionDenied, StoreUnavailable."""
        return authorize(self._identity.caller(), (INFERENCE,), environ, self.settings.trusted_proxies)

    def relay(self, environ: dict[str, Any], asked: Asked, principal: Principal, token: Secret, told: Told) -> Answered:
        """The upstream's answer; its refusal in the words of `told`. Raises GatewayError."""
        try:
            relay = self.handle(environ, asked, principal, token)
        except UpstreamRefused as error:
            body, content_type = told(error)
            return of_refusal(error, environ["gateway.exchange"], body, content_type)
        return of_relay(relay, environ["gateway.exchange"])

    def handle(self, environ: dict[str, Any], asked: Asked, principal: Principal, token: Secret) -> Relay:
        """Leaves the exchange and the Relay in the environ, as Endpoints.relay does. Raises GatewayError; UpstreamRefused under the upstream's status."""
        if asked.model and not principal.may_use(asked.model):
            raise PermissionDenied(f"Calls with an upstream token of their own may not use the model '{asked.model}'.", code="model_not_allowed")
        client_id = environ.get("HTTP_X_REQUEST_ID", "")[:128] or None
        call = asked.call(environ.get("HTTP_ACCEPT", ""))
        exchange = self._gateway.begin(call, principal, GunicornClient(environ), asked.endpoint, asked.model, client_id)
        environ["gateway.exchange"] = exchange
        price = self._gateway.catalog.snapshot.price(asked.model, exchange.at) if asked.model else None
        environ["gateway.relay"] = relay = self._gateway.handle(exchange, [asked.upstream.candidate(token, asked.model, price)])
        return relay


def shown_token(environ: Mapping[str, Any]) -> str:
    """The token that a request shows, without its scheme; empty where it shows none."""
    shown: str = environ.get("HTTP_AUTHORIZATION", "").strip() or environ.get("HTTP_X_AUTHORIZATION", "").strip()
    return shown.removeprefix("Bearer").strip()


def required_token(environ: Mapping[str, Any], path: str) -> Secret:
    """Raises Unauthenticated, in the words of the path's family, where there is no token, or one of which we can tell that it opens nothing."""
    token, families = shown_token(environ), (PREFIXES["imitate"], PREFIXES["backend_api"])
    if not token:
        raise Unauthenticated(_MISSING_2 if path.startswith(families) else _MISSING)
    if looks_like_key(token):
        raise Unauthenticated("A key of this gateway opens nothing here; bring an access token or a key of the upstream's.")
    if not path.startswith(PREFIXES["platform"]):
        check_expiry(token)
    return Secret(token)


def check_expiry(token: str) -> None:
    """Raises Unauthenticated for a JWT that says that it has expired. It is not verified: that is the upstream's to do."""
    expires = claims(token).get("exp")
    if isinstance(expires, bool) or not isinstance(expires, int | float) or expires > time.time():
        return
    whose = email(token)
    account = f" for account {whose}" if whose else ""
    raise Unauthenticated(f"The accessToken{account} has expired.")


def parsed_object(raw: bytes) -> Mapping[str, Any]:
    """A JSON object; an empty one where it is none."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def received_json(environ: dict[str, Any], settings: Settings, told: str = NOT_JSON) -> Received:
    """A body of one JSON object, whatever its content type says. Raises BadRequest, which says `told` where it is none."""
    try:
        return read_body(environ, "json", "", settings)
    except BadRequest as error:
        if type(error) is not BadRequest or error.code != BadRequest.code:
            raise
        raise BadRequest(told) from error


def upstream_path(environ: Mapping[str, Any], rest: str) -> str:
    """The path that a wildcard route matched, which an upstream may be asked for. Raises NotFound for one that could mean another there."""
    raw: str = environ.get("RAW_URI", "").partition("?")[0]
    if "%" in raw or not _SEGMENTS.fullmatch(rest) or not {".", ".."}.isdisjoint(rest.split("/")):
        raise NotFound(ROUTE_NOT_FOUND)
    return "/" + rest


def encoded_query(environ: Mapping[str, Any]) -> str:
    """The query, read and written anew. Raises BadRequest for one of too many parts."""
    return urlencode(query_pairs(environ))


def query_pairs(environ: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Raises BadRequest."""
    try:
        return parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True, max_num_fields=_QUERY_FIELDS)
    except ValueError:
        raise BadRequest(f"The query has more than {_QUERY_FIELDS} parts.") from None


def as_it_came(error: UpstreamRefused) -> tuple[bytes, str]:
    """The refusal in the upstream's own words."""
    return error.body, dict(error.headers).get("content-type", "application/json")


def in_words(text: str) -> Told:
    """Every refusal in these words."""
    body = json.dumps({"errorMessage": text}).encode()
    return lambda error: (body, "application/json")
