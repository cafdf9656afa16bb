"""`POST /api/ask`: a prompt on its way to an agent, and what an old client is told when there is no answer. Knows no Flask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gateway.api.access import authorize
from gateway.api.body import read_body
from gateway.api.endpoint import Endpoint, GunicornClient, make_call
from gateway.api.replies import Answered, exchange_headers, of_relay
from gateway.core.affinity import Affinity, credential_number
from gateway.core.catalog import Deployment
from gateway.core.exchange import Exchange
from gateway.core.gateway import Gateway
from gateway.core.identity import API_SERVER, INFERENCE, Identity, Presented, Principal
from gateway.core.rests import NOT_CONNECTED, RECONNECTING
from gateway.dialects import CHAT_CODECS
from gateway.errors import (
    AgentFailed,
    AgentLost,
    BadRequest,
    GatewayError,
    ModelNotFound,
    NoDeploymentAvailable,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.operations import api_server
from gateway.operations.agents import OPEN as NAME
from gateway.settings import Settings

ASK = Endpoint("/ask", "api_server", "json", "Ask an agent, in a new conversation or one that goes on.", NAME)
NO_CLIENTS = "No available clients"
READ_FAILED = "Failed to read response from the client"
_TOLD: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "ping_failed": (503, "Ping failed"),
        "send_failed": (500, "Failed to send request to the client"),
        "read_failed": (500, READ_FAILED),
        "wrong_id": (500, "Failed to find response from the client"),
        "bad_data": (500, "Failed to convert response to ChatGptResponse"),
    }
)


class Asks:
    """Keeps no state of a request."""

    def __init__(self, gateway: Gateway, identity: Identity, affinity: Affinity, settings: Settings) -> None:
        self._gateway, self._identity, self._affinity, self._settings = gateway, identity, affinity, settings

    def principal(self, environ: Mapping[str, Any]) -> Principal:
        """Who shows the admin key, or a user's token, with or without "Bearer". Raises Unauthenticated, PermissionDenied, and GatewayError (500)."""
        shown = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ").strip()
        if not shown:
            raise Unauthenticated("API key not provided")
        try:
            if api_server.is_admin_key(self._settings, shown):
                principal = self._identity.account(API_SERVER, "with the admin key")
            else:
                principal = self._identity.authenticate(Presented(API_SERVER, "raw", shown))
        except Unauthenticated as error:
            raise Unauthenticated("Invalid API key") from error
        except StoreUnavailable as error:
            raise GatewayError("Failed to verify API key", code="store_unavailable") from error
        return authorize(principal, (INFERENCE,), environ, self._settings.trusted_proxies)

    def answer(self, environ: dict[str, Any], principal: Principal) -> Answered:
        """Raises GatewayError for what is not about agents: limits, budgets, a body that is none."""
        try:
            received = read_body(environ, "json", "", self._settings)
            document = received.document()
            CHAT_CODECS[ASK.dialect].request(document)
        except BadRequest as error:
            raise error if type(error) is not BadRequest else BadRequest("Invalid request") from error
        call = make_call(environ, ASK, received)
        exchange = self._gateway.begin(call, principal, GunicornClient(environ), "/api/ask", NAME)
        environ["gateway.exchange"], exchange.served_by = exchange, NAME
        conversation = document.get("conversation_id") or ""
        try:
            self._go_on(exchange, conversation)
            environ["gateway.relay"] = relay = self._gateway.handle(exchange)
        except GatewayError as error:
            self._gateway.ledger.close(exchange, error)
            told = self._told(error, conversation)
            if told is None:
                raise
            return _json(*told, exchange)
        answered = of_relay(relay, exchange)
        if relay.status == 200 and relay.body is not None:
            self._bind(exchange, relay.body)
        return answered

    def _go_on(self, exchange: Exchange, conversation: str) -> None:
        """Nobody else may answer than who answered before. Raises NoDeploymentAvailable for a conversation that nobody began here."""
        if not conversation:
            return
        pools = {deployment.pool.id for deployment in self._deployments() if deployment.pool is not None}
        bound = {self._affinity.binding(exchange, pool, _named(conversation)) for pool in pools}
        exchange.bound = frozenset(number for number in bound if number is not None)
        if not exchange.bound:
            raise NoDeploymentAvailable("Conversation doesn't exists", code="conversation_unknown")

    def _bind(self, exchange: Exchange, body: bytes) -> None:
        """The conversation goes on with who began it."""
        conversation, label = json.loads(body).get("conversation_id"), exchange.attempts[-1].credential
        for deployment in self._deployments():
            number = credential_number(deployment)
            if deployment.credential == label and deployment.pool is not None and number is not None and conversation:
                self._affinity.bind(exchange, deployment.pool.id, number, _named(conversation))
                return

    def _deployments(self) -> list[Deployment]:
        return list(self._gateway.catalog.snapshot.find(NAME))

    def _told(self, error: GatewayError, conversation: str) -> tuple[int, Mapping[str, Any]] | None:
        """That nobody is there comes before what became of a conversation."""
        deployments = self._deployments()
        absent = [rest for _, rest in self._gateway.dispatcher.resting(deployments) if rest.reason in (NOT_CONNECTED, RECONNECTING)]
        return _told(error, conversation if len(absent) < len(deployments) else "")


def _named(conversation: str) -> str:
    return f"conversation_id:{json.dumps(conversation)}"


def _told(error: GatewayError, conversation: str) -> tuple[int, Mapping[str, Any]] | None:
    """Status and body for what became of an agent; None for other errors."""
    if isinstance(error, AgentFailed) and error.cause in _TOLD:
        status, message = _TOLD[error.cause]
        detail = {"response": error.detail} if error.cause == "bad_data" else {"err": str(error.detail)} if error.cause == "read_failed" else {}
        return status, {"error": message, **detail}
    if isinstance(error, UpstreamTimeout):
        return 500, {"error": READ_FAILED, "err": "i/o timeout"}
    if isinstance(error, AgentLost):
        return 500, {"error": READ_FAILED, "err": "the connection was lost"}
    if error.code == "conversation_unknown" and conversation:
        return 500, {"error": error.message}
    if isinstance(error, NoDeploymentAvailable) and conversation:
        return 500, {"error": "Connection no longer exists"}
    if isinstance(error, NoDeploymentAvailable | ModelNotFound) or (isinstance(error, RateLimited) and error.code in ("agents_busy", "upstream_rate_limited")):
        return 503, {"error": NO_CLIENTS}
    return (500, {"error": error.message}) if isinstance(error, UpstreamError) else None


def _json(status: int, document: Mapping[str, Any], exchange: Exchange) -> Answered:
    raw = json.dumps(document).encode()
    headers = [("content-type", "application/json; charset=utf-8"), ("content-length", str(len(raw))), *exchange_headers(exchange)]
    return Answered(status, headers, (raw,))
