"""/openapi.json, made from the routes themselves: it describes exactly what is served."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from werkzeug.routing import Map, Rule

from gateway import __version__
from gateway.api import PREFIXES
from gateway.api import openapi_components as components
from gateway.api.endpoint import Endpoint
from gateway.api.openai import ENDPOINTS
from gateway.api.shapes import OPENAI, shape_of

_CONVERTER = re.compile(r"<(?:[a-z]+:)?([a-z_]+)>")
_RELAYED = MappingProxyType({PREFIXES["openai"] + endpoint.path: endpoint for endpoint in ENDPOINTS})
_EVERY_KEYED = ("401", "403", "500", "503")
_EVERY_RELAYED = ("400", "401", "402", "403", "404", "408", "409", "413", "422", "429", "500", "502", "503", "504")
_TAGS: Mapping[str, str] = {
    "relayed": "Answered by an upstream.",
    "own": "Answered by the gateway.",
    "not served": "Known paths of OpenAI's API that would keep objects upstream.",
    "system": "For machines and operators.",
}


def document(rules: Map, views: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an app's routes, but for those of the families whose shape is not OpenAI's: docs/families.md has them.
    Raises KeyError for a route of which nothing is known."""
    paths: dict[str, dict[str, Any]] = {}
    for rule in (rule for rule in rules.iter_rules() if shape_of(rule.rule) is OPENAI):
        path = _CONVERTER.sub(r"{\1}", rule.rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _operation(rule, path, method, getattr(views[rule.endpoint], "policy", ""))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Chat Gateway", "version": __version__, "description": components.DESCRIPTION},
        "externalDocs": {"description": "What upstreams take and answer.", "url": "https://platform.openai.com/docs/api-reference"},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A gateway key (gw_...)."},
                "metrics": {"type": "http", "scheme": "bearer", "description": "GATEWAY_METRICS_TOKEN, where the operator set one."},
            },
            "headers": dict(components.HEADERS),
            "links": dict(components.LINKS),
            "parameters": dict(components.SHARED_PARAMETERS),
            "responses": components.responses(),
            "schemas": components.schemas(),
        },
    }


def _operation(rule: Rule, path: str, method: str, policy: str) -> dict[str, Any]:
    tag, described = _described(rule, path, policy)
    operation: dict[str, Any] = {"operationId": f"{rule.endpoint.replace('.', '_')}_{method.lower()}", "tags": [tag], **described}
    if rule.arguments:
        operation["parameters"] = [{"name": name, "in": "path", "required": True, **components.PARAMETERS[name]} for name in sorted(rule.arguments)]
    if policy == "key":
        operation["security"] = [{"key": []}]
    if policy == "metrics":
        operation["security"] = [{}, {"metrics": []}]
    return operation


def _described(rule: Rule, path: str, policy: str) -> tuple[str, dict[str, Any]]:
    """An operation's tag, and what is particular to it."""
    if "not_served" in rule.endpoint:
        missing = ("404",) if rule.arguments else ()  # a line break in a path is no part of any
        errors = sorted((*_EVERY_KEYED, *missing, "501"))
        return "not served", {"summary": "Not served: it keeps objects upstream.", "responses": {status: components.refusal(status) for status in errors}}
    if path in _RELAYED:
        return "relayed", _relayed(_RELAYED[path])
    return "own" if policy == "key" else "system", _own(rule.endpoint, policy)


def _relayed(endpoint: Endpoint) -> dict[str, Any]:
    responses = {
        "200": components.relayed(components.ANSWERS[endpoint.path]),
        "2XX": components.reference("responses", "RelayedSuccess"),
        **{status: components.refusal(status, relays=True) for status in _EVERY_RELAYED},
        "4XX": components.reference("responses", "RelayedRefusal"),
    }
    return {
        "summary": endpoint.summary,
        "parameters": [components.reference("parameters", "IdempotencyKey")],
        "requestBody": _request_body(endpoint),
        "responses": responses,
    }


def _request_body(endpoint: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if endpoint.body != "form":
        content["application/json"] = {
            "schema": components.json_body(endpoint.path, endpoint.default_model),
            "example": components.EXAMPLES[endpoint.path],
        }
    if endpoint.body != "json":
        content["multipart/form-data"] = {"schema": components.form_body(endpoint.default_model)}
    return {"required": True, "content": content}


def _own(name: str, policy: str) -> dict[str, Any]:
    known = components.OWN[name]
    errors = (*known.errors, *(_EVERY_KEYED if policy == "key" else ("500",)))
    responses = {"200": components.answer("OK", known.content), **{status: components.refusal(status) for status in sorted(errors)}}
    if name == "system.readyz":
        responses["503"] = components.answer("Not ready; the checks say why.", known.content)
    described = {"summary": known.summary, "responses": responses}
    return described if known.body is None else {**described, "requestBody": {"required": True, "content": dict(known.body)}}
