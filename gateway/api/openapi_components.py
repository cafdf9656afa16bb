"""What openapi.py puts together: the headers, schemas and answers that the routes share, and what is known of each route beyond its rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gateway.core.exchange import Ending
from gateway.dialects.events import BUCKETS
from gateway.state.base import CONCURRENCY, REQUESTS, TOKENS
from gateway.store.budgets import PERIODS

DESCRIPTION = """OpenAI's API over deployments of the operator's choice.

What is described of a request's body is what the gateway itself reads; every other member reaches the upstream as it is, and the upstream judges it.
An answer of the upstream's is relayed as it came: its media types are those that OpenAI documents.

A JSON body is read as UTF-8, whatever type and charset its Content-Type names, unless that is multipart/form-data.

Every error of the gateway's own has the schema `Error`. An unknown path is answered with 404, a method that a path does not take with 405 and `Allow`.
HEAD is answered wherever GET is.

The families of older projects (/chatgpt, /platform, /imitate, /api and others) have shapes of their own, and are described in docs/families.md."""

EXCHANGE_ID = "^[0-9A-HJKMNP-TV-Z]{26}$"
_MODEL_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$"
_FIELD_NAME_PATTERN = r'^[^\u0000-\u0008\u000a-\u001f\u007f-\u009f\u2028\u2029"\\]+$'


def _header(description: str, *, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": {"type": "string", **schema}}


HEADERS: Mapping[str, Any] = {
    "RequestId": _header("The id of the exchange. What was relayed is found under /v1/requests/{exchange_id}.", required=True, pattern=EXCHANGE_ID),
    "ServerTiming": _header(
        "Milliseconds within the gateway, at upstreams, and until the answer began.",
        required=True,
        pattern=r"^gateway;dur=\d+\.\d(, upstream;dur=\d+\.\d(, first_byte;dur=\d+\.\d)?)?$",
    ),
    "Receipt": _header(
        "Which deployments were tried, with what outcome, and which were left out for what reason.",
        required=True,
        pattern='^attempts="[^"]*"(; excluded="[^"]*")?$',
    ),
    "CostUsd": _header("What was booked, in USD, where that is known before the answer begins.", pattern=r"^\d+\.\d{9}$"),
    "UpstreamRequestId": _header("The upstream's own x-request-id."),
    "RetryAfter": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
    "RetryAfterAlways": {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 1}},
    "RetryAfterRelayed": _header("The upstream's, as it came."),
    "Authenticate": _header("How to authenticate.", required=True, enum=["Bearer"]),
    "Replayed": _header("Given where this is a stored answer, for the Idempotency-Key of an earlier call: that of x-request-id.", enum=["true"]),
    "ShouldRetryRelayed": _header("Tells OpenAI's SDKs whether another attempt may succeed."),
    "ShouldRetry": _header("Tells OpenAI's SDKs that another attempt would fail as well.", required=True, enum=["false"]),
}
_ANY_ANSWER: Mapping[str, str] = {"x-request-id": "RequestId", "server-timing": "ServerTiming", "x-gateway-receipt": "Receipt"}
_RELAYED_ANSWER: Mapping[str, str] = {**_ANY_ANSWER, "x-gateway-cost-usd": "CostUsd", "x-upstream-request-id": "UpstreamRequestId"}
_RELAYED_SUCCESS: Mapping[str, str] = {**_RELAYED_ANSWER, "idempotent-replayed": "Replayed"}


def reference(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def answer(description: str, content: Mapping[str, Any], headers: Mapping[str, str] = _ANY_ANSWER) -> dict[str, Any]:
    """A Response Object; `headers` maps a header's name to its component."""
    return {
        "description": description,
        "headers": {name: reference("headers", component) for name, component in headers.items()},
        "content": {kind: dict(media) for kind, media in content.items()},
    }


def json_of(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": reference("schemas", schema)}}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error of the gateway's own. `relayed`: an upstream's refusal may reach the client under this status as well;
    `alone`: routes that ask no upstream answer it too."""

    name: str
    text: str
    relayed: bool = False
    alone: bool = True


REFUSALS: Mapping[str, Refusal] = {
    "400": Refusal("BadRequest", "The request is malformed, or asks for what is not served.", relayed=True),
    "401": Refusal("Unauthenticated", "The API key is missing, unknown, expired or revoked."),
    "402": Refusal("BudgetExceeded", "A budget of the key, its user, its team or the gateway has no room for this call."),
    "403": Refusal("PermissionDenied", "The key may not use the model, or may not be used for this or from here; or the caller may not see this."),
    "404": Refusal("NotFound", "There is no such model, object or path.", relayed=True),
    "408": Refusal("BodyTimeout", "The body did not arrive in time.", relayed=True),
    "409": Refusal("KeyInUse", "The call of this Idempotency-Key is under way, or its answer was not kept.", relayed=True, alone=False),
    "413": Refusal("BodyTooLarge", "The body is too large.", relayed=True),
    "422": Refusal("KeyReused", "This Idempotency-Key came with another request before.", relayed=True, alone=False),
    "429": Refusal("RateLimited", "A limit on the way is reached, the gateway's own or, at every deployment of the model, its upstream's."),
    "500": Refusal("Failed", "The gateway failed."),
    "501": Refusal("NotServed", "Not served: it keeps objects upstream."),
    "502": Refusal("UpstreamFailed", "The upstream failed, or refused the gateway's credential."),
    "503": Refusal("Unavailable", "Nothing is available to answer now."),
    "504": Refusal("UpstreamTimeout", "The upstream did not answer in time."),
}
_ADDED: Mapping[str, Mapping[str, str]] = {
    "401": {"www-authenticate": "Authenticate"},
    "409": {"x-should-retry": "ShouldRetryRelayed"},
    "429": {"retry-after": "RetryAfterAlways"},
    "500": {"x-should-retry": "ShouldRetry"},
    "501": {"x-should-retry": "ShouldRetry"},
    "503": {"retry-after": "RetryAfter"},
}


def refusal(status: str, *, relays: bool = False) -> dict[str, str]:
    """A reference to the answer with this status, where an upstream is asked (`relays`) or not."""
    named = REFUSALS[status].name
    return reference("responses", f"{named}OrRelayed" if relays and REFUSALS[status].relayed else named)


_AS_IT_CAME: Mapping[str, Any] = {"*/*": {}}


def responses() -> dict[str, Any]:
    """The components that `refusal` refers to, and what an upstream may answer besides."""
    made: dict[str, Any] = {}
    for status, known in REFUSALS.items():
        headers = {name: component for name, component in _RELAYED_ANSWER.items() if status != "401" or name in ("x-request-id", "x-gateway-receipt")}
        headers |= _ADDED.get(status, {})
        if known.alone:
            made[known.name] = answer(known.text, json_of("Error"), headers)
        if known.relayed:
            headers["retry-after"] = "RetryAfterRelayed"
            text = f"{known.text} Or the upstream's own refusal with this status, as it came."
            made[f"{known.name}OrRelayed"] = answer(text, {**json_of("ErrorOrRelayed"), **_AS_IT_CAME}, headers)
    headers = {**_RELAYED_ANSWER, "retry-after": "RetryAfterRelayed"}
    made["RelayedRefusal"] = answer("The upstream's own refusal of the request, as it came. Never a 401, 402, 403 or 429.", _AS_IT_CAME, headers)
    made["RelayedSuccess"] = answer("Another success of the upstream's, as it came.", _AS_IT_CAME, _RELAYED_SUCCESS)
    return made


def relayed(content: Mapping[str, Any]) -> dict[str, Any]:
    return answer("The upstream's answer, as it came.", content, _RELAYED_SUCCESS) | {"links": {"receipt": reference("links", "Receipt")}}


LINKS: Mapping[str, Any] = {
    "Receipt": {
        "operationId": "openai_request_get",
        "parameters": {"exchange_id": "$response.header.x-request-id"},
        "description": "What became of this call, and what was booked for it.",
    }
}


def _object(properties: Mapping[str, Any], optional: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    return {"type": "object", "required": [name for name in properties if name not in optional], "properties": dict(properties), **more}


_TEXT = MappingProxyType({"type": "string"})
_COUNT = MappingProxyType({"type": "integer", "minimum": 0})


def _overview() -> dict[str, Any]:
    text, count = dict(_TEXT), dict(_COUNT)
    number: dict[str, Any] = {"type": "integer"}
    yes: dict[str, Any] = {"type": "boolean"}
    moment = {"type": ["integer", "null"], "description": "Milliseconds since 1970."}
    whose = {"enum": ["key", "user", "team", "global", "model"]}
    binding = {"type": "boolean", "description": "Of those of its kind the one that is the first to refuse."}
    key = {"id": count, "label": {"type": "string"}, "expires_at": moment, "scopes": {"type": "array", "items": text}}
    limit: dict[str, Any] = {"of": whose, "model": {"type": ["string", "null"]}, "resource": {"enum": [REQUESTS, TOKENS, CONCURRENCY]}}
    limit |= {"limit": count, "used": count, "remaining": count, "reset_s": {"type": "number", "minimum": 0}, "binding": binding}
    amounts = {"limit_nano_usd": count, "spent_nano_usd": number, "held_nano_usd": number, "remaining_nano_usd": number}
    budget: dict[str, Any] = {"of": whose, "period": {"enum": list(PERIODS)}, "timezone": text, "soft": yes, **amounts, "resets_at": moment, "binding": binding}
    lists = {"limits": {"type": "array", "items": _object(limit)}, "budgets": {"type": "array", "items": _object(budget)}}
    return _object({"key": _object(key), "user": text, "team": {"type": ["string", "null"]}, **lists, "models": {"type": "array", "items": text}})


def schemas() -> dict[str, Any]:
    text, count = dict(_TEXT), dict(_COUNT)
    maybe_text, maybe_count = {"type": ["string", "null"]}, {"type": ["integer", "null"], "minimum": 0}
    kinds = {"type": "string", "enum": ["invalid_request_error", "permission_error", "rate_limit_error", "server_error"]}
    error = _object({"message": {"type": "string", "minLength": 1}, "type": kinds, "param": maybe_text, "code": text}, additionalProperties=False)
    model = _object({"id": text, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": text})
    excluded = _object({"deployment": text, "reason": text})
    attempt = _object({"deployment": text, "credential": maybe_text, "model": text, "outcome": text, "status": maybe_count, "ms": maybe_count})
    booked = {
        "amount_nano_usd": {"type": "integer"},
        "usage": {"type": "object", "description": "Tokens by bucket.", "properties": dict.fromkeys(BUCKETS, count)},
        "usage_source": text,
        "flags": {"type": "array", "items": text},
        "rates_pico_usd": {"type": "object", "description": "The price of a token of each bucket.", "additionalProperties": {"type": "integer"}},
        "model_served": text,
    }
    receipt = {
        "id": {"type": "string", "pattern": EXCHANGE_ID},
        "at": {"type": "integer", "description": "Milliseconds since 1970."},
        "endpoint": text,
        "model": text,
        "stream": {"type": "boolean"},
        "candidates": {"type": "array", "items": text},
        "excluded": {"type": "array", "items": excluded},
        "excluded_more": {"type": "integer", "description": "How many more there are than these."},
        "affinity": {"type": "object", "description": "To which credential the conversation is bound, and which was used."},
        "attempts": {"type": "array", "items": attempt},
        "status": maybe_count,
        "ending": {"enum": [*map(str, Ending), None]},
        "error": maybe_text,
        "first_byte_ms": maybe_count,
        "total_ms": maybe_count,
        "client_request_id": maybe_text,
        "booked": {**_object(booked), "type": ["object", "null"]},
    }
    return {
        "Error": _object({"error": error}, additionalProperties=False),
        "ErrorOrRelayed": {"anyOf": [reference("schemas", "Error"), {"description": "The upstream's, as it came."}]},
        "Model": model,
        "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": reference("schemas", "Model")}}),
        "Receipt": _object(receipt, ("excluded_more", "affinity")),
        "Redemption": _object({"code": {"type": "string", "description": "As the operator gave it out (gw_code_...)."}}),
        "Redeemed": _object({"id": text, "at": count, "amount_nano_usd": count, "balance_nano_usd": {"type": "integer", "description": "What is left."}}),
        "Overview": _overview(),
        "Alive": _object({"status": {"const": "alive"}}),
        "Readiness": _object({"status": {"enum": ["ready", "not ready"]}, "generation": {"type": "integer"}, "checks": {"additionalProperties": text}}),
    }


# what is known of each route


@dataclass(frozen=True, slots=True)
class Own:
    """A route that the gateway answers by itself: the content of its 200 and of the body that it takes, and the errors besides 401, 403,
    500 and 503, which every key's route has."""

    summary: str
    content: Mapping[str, Any]
    errors: tuple[str, ...] = ()
    body: Mapping[str, Any] | None = None


OWN: Mapping[str, Own] = {
    "openai.models": Own("List the models that the key may use.", json_of("Models")),
    "openai.model": Own("Retrieve one of them.", json_of("Model"), ("404",)),
    "openai.request": Own("The receipt of one of your requests: candidates, attempts, ending, and what was booked.", json_of("Receipt"), ("404",)),
    "me.overview": Own("What your key may use: limits and budgets, what is left of them, which of them bind, and the models.", json_of("Overview")),
    "me.redeem": Own("Redeem a code: its credit is booked to your account, once.", json_of("Redeemed"), ("400", "404", "408", "413"), json_of("Redemption")),
    "system.root": Own("A line for who looks whether anybody is there.", {"text/plain": {"schema": dict(_TEXT)}}),
    "system.healthz": Own("Whether the process is alive.", json_of("Alive")),
    "system.readyz": Own("Whether it can serve: database, migrations, catalog, ledger. 503 where it cannot.", json_of("Readiness")),
    "system.metrics_text": Own(
        "Prometheus metrics. Answers the local host, or the bearer of GATEWAY_METRICS_TOKEN.", {"text/plain": {"schema": dict(_TEXT)}}, ("403",)
    ),
    "system.openapi": Own("This document.", {"application/json": {"schema": {"type": "object"}}}),
}

PARAMETERS: Mapping[str, Any] = {
    "model": {"description": "A model's name. A slash in it may stand as it is.", "example": "gpt-4o", "schema": {"type": "string", "minLength": 1}},
    "exchange_id": {"description": "The x-request-id of an answer.", "schema": {"type": "string", "pattern": EXCHANGE_ID}},
    "rest": {"description": "Whatever follows.", "schema": {"type": "string", "minLength": 1}},
}

SHARED_PARAMETERS: Mapping[str, Any] = {
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The same request with the same key within a day gets the stored answer again, and is charged once. An answer of over 256 KB, or one"
        " that was cut, is not kept: then 409. A call that failed and cost nothing leaves its key free.",
        "example": "5e3f1c8a-3f0b-4e0e-9f63-0a2a6b1d7c55",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    }
}

_JSON: Mapping[str, Any] = {"application/json": {"schema": {"type": "object"}}}
_EVENTS: Mapping[str, Any] = {"text/event-stream": {}}
_PLAIN: Mapping[str, Any] = {"text/plain": {"schema": dict(_TEXT)}}

ANSWERS: Mapping[str, Mapping[str, Any]] = {
    "/chat/completions": {**_JSON, **_EVENTS},
    "/completions": {**_JSON, **_EVENTS},
    "/embeddings": _JSON,
    "/responses": {**_JSON, **_EVENTS},
    "/moderations": _JSON,
    "/images/generations": {**_JSON, **_EVENTS},
    "/images/edits": {**_JSON, **_EVENTS},
    "/images/variations": _JSON,
    "/audio/speech": {"audio/*": {}, "application/octet-stream": {}, **_EVENTS},
    "/audio/transcriptions": {**_JSON, **_PLAIN, **_EVENTS},
    "/audio/translations": {**_JSON, **_PLAIN},
}
"""The content of a relayed endpoint's 200, by its path below the family's prefix."""

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "/chat/completions": {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]},
    "/completions": {"model": "gpt-3.5-turbo-instruct", "prompt": "Hello"},
    "/embeddings": {"model": "text-embedding-3-small", "input": "Hello"},
    "/responses": {"model": "gpt-4o", "input": "Hello"},
    "/moderations": {"input": "Hello"},
    "/images/generations": {"model": "gpt-image-1", "prompt": "A lighthouse"},
    "/images/edits": {"model": "gpt-image-1", "prompt": "At night", "images": [{"image_url": "https://example.com/lighthouse.png"}]},
    "/audio/speech": {"model": "tts-1", "voice": "alloy", "input": "Hello"},
}
"""JSON bodies of relayed endpoints, by path."""

_NOT_CHECKED: Mapping[str, Any] = {"description": "Read, but judged by the upstream."}
_NOT_KEPT: Mapping[str, Any] = {"enum": [False, None], "description": "Nothing is kept upstream: any other value is refused."}
_MEMBERS: Mapping[str, Mapping[str, Any]] = {
    "/chat/completions": {"store": _NOT_KEPT, "n": _NOT_CHECKED, "max_tokens": _NOT_CHECKED, "max_completion_tokens": _NOT_CHECKED},
    "/completions": {"n": _NOT_CHECKED, "best_of": _NOT_CHECKED, "max_tokens": _NOT_CHECKED},
    "/responses": {
        "store": {"not": {"const": True}, "description": "The upstream is told false, whatever stands here; true is refused."},
        "background": _NOT_KEPT,
        "conversation": _NOT_KEPT,
        "previous_response_id": _NOT_KEPT,
        "prompt": {"type": "null", "description": "A stored prompt is kept upstream, and refused."},
        "max_output_tokens": _NOT_CHECKED,
    },
}


def json_body(path: str, default_model: str | None) -> dict[str, Any]:
    """The schema of a relayed endpoint's JSON body: the members that the gateway reads."""
    members = {
        "model": _model(default_model, nullable=default_model is not None),
        "stream": {"type": ["boolean", "null"], "description": "Whether the answer comes as server-sent events."},
        "stream_options": {"type": ["object", "null"]},
        **{name: dict(schema) for name, schema in _MEMBERS.get(path, {}).items()},
    }
    return _object(members, tuple(name for name in members if name != "model" or default_model), additionalProperties=True)


def form_body(default_model: str | None) -> dict[str, Any]:
    """The schema of a multipart body: the fields that the gateway reads, and what it asks of every field's name."""
    fields = {"model": _model(default_model, nullable=False), "stream": {"type": "boolean"}}
    optional = ("stream",) if default_model is None else ("model", "stream")
    return _object(fields, optional, propertyNames={"pattern": _FIELD_NAME_PATTERN}, maxProperties=200, additionalProperties=True)


def _model(default: str | None, *, nullable: bool) -> dict[str, Any]:
    kinds = ["string", "null"] if nullable else "string"
    schema = {"type": kinds, "minLength": 1, "maxLength": 256, "pattern": _MODEL_PATTERN, "description": "One of GET /v1/models."}
    return schema if default is None else schema | {"default": default}
