"""The official API with an API key: OpenAI, or anything that speaks its HTTP interface at a base URL."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.http import Response, Transport
from backends.refusal import MODELS_BYTES, parsed, read, refused_body, reset_seconds
from gateway.backend import Backend, Body, Call, Cancellation, Headers, Reply, Services, Target
from gateway.errors import UpstreamProtocolError, UpstreamRefused


@dataclass(frozen=True, slots=True)
class Options:
    """`organization` and `project`: sent as OpenAI-Organization and OpenAI-Project where they are not empty."""

    organization: str = ""
    project: str = ""


class OpenAI(Backend):
    """Relays every dialect of OpenAI's byte for byte."""

    dialects = frozenset({"openai_chat", "openai_completions", "openai_rest"})
    Options = Options
    default_base_url = "https://api.openai.com/v1"

    def __init__(self, options: Any, services: Services) -> None:
        super().__init__(options, services)
        self._transport = Transport(clock=services.clock, tick_s=services.heartbeat_s, allow_networks=services.allow_networks)
        names = (("openai-organization", self.options.organization), ("openai-project", self.options.project))
        self._own_headers: Headers = (("user-agent", "chat-gateway"), *((name, value) for name, value in names if value))

    def send(self, call: Call, target: Target) -> Reply:
        url = target.base_url + call.path + ("?" + call.query if call.query else "")
        response = self._transport.send(
            call.method,
            url,
            self._headers(target) + call.headers,
            call.body,
            deadlines=target.deadlines,
            deadline=call.deadline,
            cancel=call.cancel,
            proxy=target.proxy,
        )
        if response.status >= 300:
            raise refusal(response)
        return Reply(response.status, response.headers, response.chunks, response.close)

    def models(self, target: Target, deadline: float) -> list[str]:
        response = self._transport.send(
            "GET",
            target.base_url + "/models",
            self._headers(target),
            Body.of(b""),
            deadlines=target.deadlines,
            deadline=deadline,
            cancel=Cancellation(),
            proxy=target.proxy,
        )
        if response.status != 200:
            raise refusal(response)
        document = parsed(read(response, MODELS_BYTES))
        listed = document.get("data") if isinstance(document, Mapping) else None
        if not isinstance(listed, list):
            raise UpstreamProtocolError("The upstream's list of models is not one.")
        return [item["id"] for item in listed if isinstance(item, Mapping) and isinstance(item.get("id"), str)]

    def close(self) -> None:
        self._transport.close()

    def _headers(self, target: Target) -> Headers:
        return (("authorization", "Bearer " + target.secret.reveal()), *self._own_headers)


def refusal(response: Response) -> UpstreamRefused:
    """The error that a status of 400 and above means. Raises UpstreamProtocolError for a redirect; closes the response."""
    body = refused_body(response)
    document = parsed(body)
    error = document.get("error") if isinstance(document, Mapping) else None
    return UpstreamRefused(
        response.status, response.headers, body, upstream_code=_error_code(error), reset_s=reset_seconds(dict(response.headers), time.time())
    )


def _error_code(error: Any) -> str | None:
    if not isinstance(error, Mapping):
        return None
    code = error.get("code") or error.get("type")
    return code if isinstance(code, str) else None
