"""/openapi.json, made from the routes themselves: it describes exactly what is served."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from werkzeug.routing import Map, Rule

from gateway import __version__
from gateway.api import PREFIXES
from gateway.api.openai import ENDPOINTS

_CONVERTER = re.compile(r"<(?:[a-z]+:)?([a-z_]+)>")
_ERROR = MappingProxyType({"$ref": "#/components/schemas/Error"})
_SUMMARIES = MappingProxyType(
    {
        "openai.models": "List the models that the key may use.",
        "openai.model": "Retrieve one of them.",
        "openai.request": "The receipt of one of your requests: candidates, attempts, ending, and what was booked.",
        "system.healthz": "Whether the process is alive.",
        "system.readyz": "Whether it can serve: database, migrations, catalog.",
        "system.metrics_text": "Prometheus metrics. Answers the local host, or the bearer of GATEWAY_METRICS_TOKEN.",
        "system.openapi": "This document.",
    }
)
_RELAYED = MappingProxyType({PREFIXES["openai"] + endpoint.path: endpoint for endpoint in ENDPOINTS})
_STATUSES = MappingProxyType(
    {
        "400": "The request is malformed, or asks for what is not served.",
        "401": "The API key is missing, unknown, expired or revoked.",
        "403": "The key may not use the model.",
        "404": "No such model or object.",
        "408": "The body did not arrive in time.",
        "413": "The body is too large.",
        "429": "Rate limited; see Retry-After.",
        "500": "The gateway failed.",
        "502": "The upstream failed.",
        "503": "Nothing is available to answer now; see Retry-After.",
        "504": "The upstream did not answer in time.",
    }
)


def document(rules: Map, views: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an app's routes."""
    paths: dict[str, dict[str, Any]] = {}
    for rule in rules.iter_rules():
        if rule.endpoint == "static":
            continue
        path = _CONVERTER.sub(r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _operation(rule, path, method, getattr(views[rule.endpoint], "policy", ""))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Chat Gateway", "version": __version__, "description": "OpenAI's API over deployments of the operator's choice."},
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "A gateway key (gw_...)."}},
            "schemas": {"Error": _error_schema()},
        },
    }


def _operation(rule: Rule, path: str, method: str, policy: str) -> dict[str, Any]:
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in sorted(rule.arguments)]
    operation: dict[str, Any] = {
        "operationId": f"{rule.endpoint.replace('.', '_')}_{method.lower()}",
        "summary": _summary(rule, path),
        "responses": _responses(rule, path, policy),
    }
    if parameters:
        operation["parameters"] = parameters
    if policy == "key":
        operation["security"] = [{"key": []}]
    if path in _RELAYED and not _is_unserved(rule):
        operation["requestBody"] = _request_body(_RELAYED[path].body)
    return operation


def _is_unserved(rule: Rule) -> bool:
    return "not_served" in rule.endpoint


def _summary(rule: Rule, path: str) -> str:
    if _is_unserved(rule):
        return "Not served: it keeps objects upstream."
    return _RELAYED[path].summary if path in _RELAYED else _SUMMARIES[rule.endpoint]


def _responses(rule: Rule, path: str, policy: str) -> dict[str, Any]:
    def error(description: str) -> dict[str, Any]:
        return {"description": description, "content": {"application/json": {"schema": dict(_ERROR)}}}

    if _is_unserved(rule):
        return {"401": error(_STATUSES["401"]), "501": error("Not served.")}
    if path in _RELAYED:
        content: dict[str, Any] = {kind: {} for kind in ("application/json", "text/event-stream", "application/octet-stream")}
        errors = {status: error(text) for status, text in _STATUSES.items()}
        return {"200": {"description": "The upstream's answer.", "content": content}, **errors, "4XX": error("The upstream's own refusal, as it came.")}
    kinds = {"system.metrics_text": "text/plain"}
    answers: dict[str, Any] = {"200": {"description": "OK", "content": {kinds.get(rule.endpoint, "application/json"): {}}}}
    if policy == "key":
        answers |= {status: error(_STATUSES[status]) for status in ("401", "404", "503")}
    if policy == "metrics":
        answers["403"] = error("Not from here.")
    if rule.endpoint == "system.readyz":
        answers["503"] = {"description": "Not ready.", "content": {"application/json": {}}}
    return answers


def _request_body(kind: str) -> dict[str, Any]:
    json_body = {"application/json": {"schema": {"type": "object", "properties": {"model": {"type": "string"}}}}}
    form_body = {"multipart/form-data": {"schema": {"type": "object"}}}
    return {"required": True, "content": {**({} if kind == "form" else json_body), **({} if kind == "json" else form_body)}}


def _error_schema() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    error = {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}, "type": text, "param": text, "code": text}}
    return {"type": "object", "required": ["error"], "properties": {"error": error}}
