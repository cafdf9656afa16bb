"""The official API with an API key: OpenAI, or anything that speaks its HTTP interface at a base URL."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from backends.http import Response, Transport
from gateway.backend import Backend, Body, Call, Cancellation, Headers, Reply, Services, Target
from gateway.errors import UpstreamError, UpstreamProtocolError, UpstreamRefused

ERROR_BODY_BYTES = 1 << 18
MODELS_BYTES = 4 << 20
MAX_RESET_S = 86_400.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S: Mapping[str, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


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
        document = _json(_read(response, MODELS_BYTES))
        listed = document.get("data") if isinstance(document, Mapping) else None
        if not isinstance(listed, list):
            raise UpstreamProtocolError("The upstream's list of models is not one.")
        return [item["id"] for item in listed if isinstance(item, Mapping) and isinstance(item.get("id"), str)]

    def close(self) -> None:
        self._transport.close()

    def _headers(self, target: Target) -> Headers:
        return (("authorization", "Bearer " + target.secret.reveal()), *self._own_headers)


def refusal(response: Response) -> UpstreamError:
    """The error that a status of 300 and above means. Reads its body, for as long as the transport lets it, and closes the response."""
    if response.status < 400:
        response.close()
        return UpstreamProtocolError("The upstream answered with a redirect, which is never followed.")
    try:
        body = _read(response, ERROR_BODY_BYTES)
    except UpstreamError:
        body = b""  # the status says enough
    document = _json(body)
    error = document.get("error") if isinstance(document, Mapping) else None
    return UpstreamRefused(
        response.status, response.headers, body, upstream_code=_error_code(error), reset_s=reset_seconds(dict(response.headers), time.time())
    )


def _error_code(error: Any) -> str | None:
    if not isinstance(error, Mapping):
        return None
    code = error.get("code") or error.get("type")
    return code if isinstance(code, str) else None


def _read(response: Response, limit: int) -> bytes:
    pieces, size = [], 0
    try:
        for chunk in response.chunks:
            pieces.append(chunk)
            size += len(chunk)
            if size > limit:
                break
    finally:
        response.close()
    return b"".join(pieces)[:limit]


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def reset_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """How long the upstream asks us to wait: retry-after-ms, Retry-After (RFC 9110, seconds or a date), else the latest
    `x-ratelimit-reset-*` of a limit with nothing remaining. At most a day. `now` is Unix time."""
    if (milliseconds := headers.get("retry-after-ms", "")).isdecimal():
        return min(int(milliseconds) / 1000, MAX_RESET_S)
    after = headers.get("retry-after", "").strip()
    if after.replace(".", "", 1).isdecimal():
        return min(float(after), MAX_RESET_S)
    if after:
        try:
            return min(max(parsedate_to_datetime(after).timestamp() - now, 0.0), MAX_RESET_S)
        except ValueError:
            return None
    spent = [name for name in ("requests", "tokens") if headers.get(f"x-ratelimit-remaining-{name}") == "0"]
    resets = [_duration(headers.get(f"x-ratelimit-reset-{name}", "")) for name in spent]
    return min(max(resets), MAX_RESET_S) if resets else None


def _duration(text: str) -> float:
    return sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION.findall(text))
