"""What an answer with an error status says, whosever API it is of: its body, and how long it asks us to wait."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from backends.http import Response
from gateway.errors import UpstreamError, UpstreamProtocolError

ERROR_BODY_BYTES = 1 << 18
MODELS_BYTES = 4 << 20
MAX_RESET_S = 86_400.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S: Mapping[str, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def refused_body(response: Response) -> bytes:
    """The body of an answer with a status of 300 and above, for as long as the transport lets us read; closes the response.

    Raises UpstreamProtocolError for a redirect.
    """
    if response.status < 400:
        response.close()
        raise UpstreamProtocolError("The upstream answered with a redirect, which is never followed.")
    try:
        return read(response, ERROR_BODY_BYTES)
    except UpstreamError:
        return b""  # the status says enough


def read(response: Response, limit: int) -> bytes:
    """The body up to `limit` bytes; closes the response."""
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


def parsed(body: bytes) -> Any:
    """The JSON value that a body is; None where it is none."""
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
