"""Metering: what a call used, from the provider's own figures, else by estimate, marked as such. Money is read from fully parsed JSON only."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.backend import Call
from gateway.dialects import CHAT_CODECS, CODECS, sse
from gateway.dialects.events import Usage
from gateway.dialects.openai_usage import MAX_TOKENS

BINARY = re.compile(rb'"(?:url|image_url|data|file_data|image|audio|b64_json)"\s*:\s*"(?:data:[^"]{64,}|[A-Za-z0-9+/=_-]{512,})"')
"""Images and sounds within JSON: data URLs and base64, in the members that hold such. Elsewhere a client may write its words so."""
BYTES_PER_TOKEN = 4
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_decode = msgspec.json.Decoder().decode


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


def is_error(body: bytes) -> bool:
    """Whether a whole JSON answer is an error object, whatever its status: its words are nobody's tokens."""
    document = _object(body)
    return document is not None and bool(document.get("error"))


def reported(usage: Usage) -> Metered:
    """A provider's usage, bounded to what is possible."""
    return Metered(_possible(usage), Source.PROVIDER)


def metered(usage: Usage | None, call: Call, delivered_bytes: int, delivered_events: int) -> Metered:
    """The provider's usage where it gave one, else an estimate where the answer is text of a chat, or streamed."""
    if usage is not None:
        return reported(usage)
    is_chat = call.dialect in CHAT_CODECS
    if not is_chat and not call.stream and not delivered_events:
        return NOTHING
    # A streamed event carries about a token; the first and the last carry none. Other bytes than a chat's may be no text.
    answered = max(delivered_events - 2, 0) if delivered_events else delivered_bytes // BYTES_PER_TOKEN if is_chat else 0
    return Metered(Usage(input_uncached=_told(call) // BYTES_PER_TOKEN, output_text=answered), Source.ESTIMATED)


def _told(call: Call) -> int:
    """Bytes of text in the request. A form, which has no members, is mostly a file."""
    if call.body.member is None or not call.body.replayable:
        return 0
    return sum(len(BINARY.sub(b"", chunk)) for chunk in call.body.open())


def _possible(usage: Usage) -> Usage:
    """The same where every count is one. A backend's own mistake must not book a credit."""
    counts = usage.buckets()
    if all(type(count) is int and 0 <= count <= MAX_TOKENS for count in counts.values()):
        return usage
    possible = {name: min(max(count, 0), MAX_TOKENS) if type(count) is int else 0 for name, count in counts.items()}
    return Usage(raw=usage.raw, flags=tuple(dict.fromkeys((*usage.flags, "clamped"))), **possible)


def _object(body: bytes) -> Mapping[str, Any] | None:
    try:
        document = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:  # some numbers and texts are JSON to Python's decoder alone
            document = json.loads(body)
        except (ValueError, RecursionError):
            return None
    return document if isinstance(document, dict) else None


def without_usage(events: bytes) -> bytes:
    """Without the event that `include_usage` adds."""
    return b"".join([raw for raw in sse.split(events) if not _only_usage(raw)]) if _NO_CHOICES.search(events) else events


def _only_usage(raw: bytes) -> bool:
    """Whether this event is the one that `include_usage` adds: no choices, and a usage."""
    data = sse.parse(raw).data
    if data is None or b'"usage"' not in data:
        return False
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("choices") == [] and isinstance(document.get("usage"), dict)
