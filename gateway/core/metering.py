"""Metering: what a call used, from the provider's own figures, else by estimate, marked as such. Money is read from fully parsed JSON only."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.backend import Call
from gateway.dialects import CHAT_CODECS, CODECS, sse
from gateway.dialects.events import Usage

_DATA_URL = re.compile(rb'"data:[^"]{64,}"')
BYTES_PER_TOKEN = 4


class Source(enum.StrEnum):
    """Where a usage comes from."""

    PROVIDER = "provider"
    ESTIMATED = "estimated"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Metered:
    usage: Usage
    source: Source


NOTHING = Metered(Usage(), Source.NONE)
"""For an answer of which the client got no content."""


def whole(dialect: str, body: bytes) -> Usage | None:
    """The provider's usage in a whole JSON answer."""
    document = _object(body)
    return None if document is None else CODECS[dialect].usage(document)


def from_events(dialect: str, events: bytes) -> Usage | None:
    """The provider's usage in the last of these raw SSE events that has one."""
    found = None
    for raw in sse.split(events):
        data = sse.parse(raw).data
        document = _object(data) if data else None
        found = (CODECS[dialect].usage(document) if document is not None else None) or found
    return found


def metered(usage: Usage | None, call: Call, delivered_bytes: int, delivered_events: int) -> Metered:
    """The provider's usage where it gave one, else an estimate where the answer is text of a chat."""
    if usage is not None:
        return Metered(usage, Source.PROVIDER)
    if call.dialect not in CHAT_CODECS and not call.stream:
        return NOTHING
    told = sum(len(_DATA_URL.sub(b"", chunk)) for chunk in call.body.open()) if call.body.replayable else 0
    # A streamed event carries about a token; the first and the last carry none.
    answered = max(delivered_events - 2, 0) if call.stream else delivered_bytes // BYTES_PER_TOKEN
    return Metered(Usage(input_uncached=told // BYTES_PER_TOKEN, output_text=answered), Source.ESTIMATED)


def _object(body: bytes) -> Mapping[str, Any] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
