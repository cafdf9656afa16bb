"""OpenAI's API under /v1: one table of endpoints that are relayed, one of those that keep objects upstream and are not served yet."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from flask import Blueprint, Response, g, jsonify

from gateway.api import PREFIXES
from gateway.api.body import Received
from gateway.api.endpoint import Endpoint
from gateway.api.web import METHODS, Web, policy
from gateway.core.identity import INFERENCE, USAGE_READ
from gateway.core.listing import Listing
from gateway.core.receipts import Receipts
from gateway.errors import BadRequest, ModelNotFound, NotFound, NotServed

KEPT = "This gateway keeps no conversations or responses upstream: they would belong to nobody."


def _asks(member: Any) -> bool:
    """Whether a member is anything but absent, null or false; 0 is not false."""
    return member is not None and member is not False


def _check_chat(received: Received) -> Mapping[str, Any]:
    if _asks(received.fields.store):  # a lenient upstream would take 1 and "true" as well
        raise BadRequest(f"'store': true is not served. {KEPT}", code="store_not_served", param="store")
    return {}


def _check_responses(received: Received) -> Mapping[str, Any]:
    """The Responses API stores unless told not to, so where `store` is absent it is told."""
    fields, member = received.fields, received.body.member
    if fields.store is True:
        raise BadRequest(f"'store': true is not served; leave it out or send false. {KEPT}", code="store_not_served", param="store")
    for name in ("background", "conversation", "previous_response_id"):
        if _asks(getattr(fields, name)):
            raise BadRequest(
                f"'{name}' is not served: it refers to objects kept upstream. Send the whole input each time.", code=f"{name}_not_served", param=name
            )
    if member is not None and (member("prompt") or b"null") != b"null":
        raise BadRequest(
            "'prompt' (a stored prompt) is not served: it is kept in the upstream's account. Send 'instructions' and 'input'.",
            code="prompt_not_served",
            param="prompt",
        )
    return {} if fields.store is False else {"store": False}


ENDPOINTS = (
    Endpoint("/chat/completions", "openai_chat", "json", "Create a chat completion, whole or streamed.", check=_check_chat),
    Endpoint("/completions", "openai_completions", "json", "Create a text completion, whole or streamed."),
    Endpoint("/embeddings", "openai_rest", "json", "Create embeddings."),
    Endpoint("/responses", "openai_rest", "json", "Create a response, whole or streamed, without keeping it upstream.", check=_check_responses),
    Endpoint("/moderations", "openai_rest", "json", "Classify text or images.", default_model="omni-moderation-latest"),
    Endpoint("/images/generations", "openai_rest", "json", "Create images from a prompt.", default_model="dall-e-2"),
    Endpoint("/images/edits", "openai_rest", "either", "Edit images.", default_model="dall-e-2"),
    Endpoint("/images/variations", "openai_rest", "form", "Create variations of an image.", default_model="dall-e-2"),
    Endpoint("/audio/speech", "openai_rest", "json", "Speak a text."),
    Endpoint("/audio/transcriptions", "openai_rest", "form", "Transcribe audio."),
    Endpoint("/audio/translations", "openai_rest", "form", "Translate audio into English."),
)

NOT_SERVED = (
    "files",
    "uploads",
    "batches",
    "vector_stores",
    "fine_tuning",
    "assistants",
    "threads",
    "responses",
    "conversations",
    "containers",
    "evals",
    "videos",
    "realtime",
    "chat/completions",
)


def blueprint(web: Web, listing: Listing, receipts: Receipts) -> Blueprint:
    """The family's routes."""
    v1 = Blueprint("openai", __name__, url_prefix=PREFIXES["openai"])

    def add(rule: str, name: str, view: Any, *methods: str, scopes: tuple[str, ...] = (INFERENCE,)) -> None:
        v1.add_url_rule(rule, name, policy("key", *scopes)(view), methods=methods, provide_automatic_options=False)

    for endpoint in ENDPOINTS:
        add(endpoint.path, endpoint.path.strip("/").replace("/", "_"), _relaying(web, endpoint), "POST", scopes=endpoint.scopes)
    for name in NOT_SERVED:
        view = partial(_not_served, name)
        if name not in ("responses", "chat/completions"):
            add(f"/{name}", f"not_served_{name.replace('/', '_')}", view, *METHODS)
        else:
            add(f"/{name}", f"not_served_{name.replace('/', '_')}", view, *(method for method in METHODS if method != "POST"))
        add(f"/{name}/<path:rest>", f"not_served_{name.replace('/', '_')}_object", partial(_not_served, name), *METHODS)
    add("/models", "models", partial(_models, listing), "GET", scopes=(INFERENCE, USAGE_READ))
    add("/models/<path:model>", "model", partial(_model, listing), "GET", scopes=(INFERENCE, USAGE_READ))
    add("/requests/<exchange_id>", "request", partial(_request, receipts), "GET", scopes=(USAGE_READ,))
    return v1


def _relaying(web: Web, endpoint: Endpoint) -> Any:
    return partial(web.relay, endpoint)


def _not_served(name: str, rest: str = "") -> Response:
    raise NotServed(f"/v1/{name} keeps objects upstream, which this gateway does not serve yet: it could not tell whose they are.")


def _models(listing: Listing) -> Response:
    return jsonify({"object": "list", "data": [_model_object(name) for name in listing.names(g.principal)]})


def _model(listing: Listing, model: str) -> Response:
    if model not in listing.names(g.principal):
        raise ModelNotFound(f"The model '{model}' does not exist here, or your key may not use it.", param="model")
    return jsonify(_model_object(model))


def _model_object(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "gateway"}


def _request(receipts: Receipts, exchange_id: str) -> Response:
    receipt = receipts.find(exchange_id, g.principal)
    if receipt is None:
        raise NotFound("There is no such request of yours.")
    return jsonify(receipt)
