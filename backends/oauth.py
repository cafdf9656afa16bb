"""The refresh of an access token as OAuth 2.0 has it: RFC 6749, section 6. For backends that implement `Refreshes`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from backends.http import Response, Transport
from backends.refusal import reset_seconds
from gateway.backend import Body, Cancellation, Deadlines, Headers, Proxy, Refreshed, Secret
from gateway.errors import Blame, UpstreamError, UpstreamProtocolError, UpstreamRefused

ANSWER_BYTES = 1 << 18
TOKEN_CHARACTERS = 1 << 15
CODE_CHARACTERS = 64
LONGEST_LIFE_S = 1e9
_HEADERS: Headers = (("content-type", "application/x-www-form-urlencoded"), ("accept", "application/json"), ("user-agent", "chat-gateway"))


def refresh_grant(
    transport: Transport,
    url: str,
    client_id: str,
    refresh_token: Secret,
    *,
    deadlines: Deadlines,
    deadline: float,
    proxy: Proxy | None = None,
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> Refreshed:
    """Ask the token endpoint `url` once, before `deadline` (monotonic). `client_id` is left out where it is empty.

    Raises UpstreamError; an UpstreamRefused that blames CREDENTIAL_INVALID where the answer is `invalid_grant`: the refresh token is dead.
    """
    fields = {"grant_type": "refresh_token", "refresh_token": refresh_token.reveal(), "client_id": client_id}
    raw = urlencode({name: value for name, value in fields.items() if value}).encode()
    once = Body(open=lambda: iter((raw,)), replayable=False, size=len(raw))  # the transport sends it over a fresh connection, and never again
    asked_at = wall_ms()
    response = transport.send("POST", url, _HEADERS, once, deadlines=deadlines, deadline=deadline, cancel=Cancellation(), proxy=proxy)
    if response.status != 200:
        raise _refusal(response)
    return _refreshed(_document(response), asked_at)


def _refreshed(document: dict[str, Any], asked_at: int) -> Refreshed:
    """RFC 6749, section 5.1. Where no new refresh token is given, the old one stays."""
    secret, following = _token(document.get("access_token")), document.get("refresh_token")
    extras = {"refresh_token": _token(following)} if following is not None else {}
    return Refreshed(secret, extras, _end(document.get("expires_in"), asked_at))


def _token(value: Any) -> Secret:
    fit = isinstance(value, str) and 0 < len(value) <= TOKEN_CHARACTERS and value.isascii() and value.isprintable() and " " not in value
    if not fit:
        raise UpstreamProtocolError("The token endpoint's answer holds no usable token.")
    return Secret(value)


def _end(life_s: Any, asked_at: int) -> int | None:
    """None where the endpoint does not say it, or says what cannot be."""
    if isinstance(life_s, str) and life_s.isdecimal() and len(life_s) < 10:
        life_s = int(life_s)  # as some endpoints have it
    known = isinstance(life_s, (int, float)) and not isinstance(life_s, bool) and 0 < life_s < LONGEST_LIFE_S
    return asked_at + int(life_s * 1000) if known else None


def _refusal(response: Response) -> UpstreamError:
    """RFC 6749, section 5.2. The answer's words are not kept: they may repeat a token."""
    if response.status < 400:
        response.close()
        return UpstreamProtocolError(f"The token endpoint answered with status {response.status}, which gives no token.")
    try:
        error = _document(response).get("error")
    except UpstreamError:
        error = None  # the status says enough
    code = error if isinstance(error, str) and error.isascii() and error.isprintable() and len(error) <= CODE_CHARACTERS else None
    refused = UpstreamRefused(response.status, (), b"", upstream_code=code, reset_s=reset_seconds(dict(response.headers), time.time()))
    if code == "invalid_grant" and response.status in (400, 401):
        refused.blame, refused.retryable = Blame.CREDENTIAL_INVALID, True
    elif refused.blame is Blame.CREDENTIAL_INVALID:  # of an API key, which this is not about
        refused.blame = Blame.NOBODY
    return refused


def _document(response: Response) -> dict[str, Any]:
    """The JSON object of an answer, which is closed. Raises UpstreamError."""
    raw = bytearray()
    try:
        for chunk in response.chunks:
            raw += chunk
            if len(raw) > ANSWER_BYTES:
                raise UpstreamProtocolError("The token endpoint's answer is too long.")
    finally:
        response.close()
    try:
        document = json.loads(bytes(raw))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UpstreamProtocolError("The token endpoint's answer is no JSON object.")
    return document
