"""The head of a reply: as much as must be seen before the client gets a byte. A failure within it is an attempt's failure.

Server-sent events: up to the first event with data that is neither an error nor a ping. A JSON or text answer, or one whose
length is known, of at most 4 MB: all of it. Anything else: the first block.
"""

from __future__ import annotations

import enum
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from gateway.backend import Reply
from gateway.dialects import sse
from gateway.errors import UpstreamProtocolError, UpstreamRefused

WHOLE_BYTES = 4 << 20
SSE_HEAD_BYTES = 64 << 10
PING_NAMES = ("ping", "keepalive")


class Framing(enum.Enum):
    """How the end of an answer is known, and so what must wait for the commit."""

    EVENTS = "events"  # the dialect's terminal event
    WHOLE = "whole"  # all of it is in hand
    COUNTED = "counted"  # the block that completes the content-length
    OPEN = "open"  # the end of the iteration: the server writes the final chunk after it


@dataclass(slots=True)
class Answer:
    """A reply whose head has been read. `head` and then `more` are what was read, `reply.chunks` the rest; `length` only where COUNTED."""

    reply: Reply
    framing: Framing
    head: bytes
    length: int = 0
    hides_usage: bool = False
    more: deque[bytes] = field(default_factory=deque)
    """Blocks of an OPEN answer: joined they would be in memory twice."""


def read_head(reply: Reply) -> Answer:
    """Read the head. Raises UpstreamError; the caller closes the reply."""
    headers = dict(reply.headers)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    length = int(headers["content-length"]) if headers.get("content-length", "").isdecimal() else None
    if reply.status in (204, 304):
        return Answer(reply, Framing.WHOLE, b"")  # the server never iterates these
    if kind == "text/event-stream":
        return Answer(reply, Framing.EVENTS, _first_event(reply.chunks))
    if (length is not None and length <= WHOLE_BYTES) or (length is None and _is_text(kind)):
        blocks, ended = _up_to(reply.chunks, WHOLE_BYTES)
        if ended:
            return Answer(reply, Framing.WHOLE, b"".join(blocks))
        return Answer(reply, Framing.OPEN, blocks.popleft(), more=blocks)
    first = next((chunk for chunk in reply.chunks if chunk), b"")
    if length is not None:
        return Answer(reply, Framing.COUNTED, first, length)
    return Answer(reply, Framing.OPEN if first else Framing.WHOLE, first)


def _is_text(kind: str) -> bool:
    return kind in ("", "application/json", "application/problem+json") or kind.startswith("text/")


def _up_to(chunks: Iterator[bytes], limit: int) -> tuple[deque[bytes], bool]:
    """What came, and whether that was all. More than `limit` by at most one block."""
    blocks, size = deque[bytes](), 0
    for chunk in chunks:
        blocks.append(chunk)
        size += len(chunk)
        if size > limit:
            return blocks, False
    return blocks, True


def _first_event(chunks: Iterator[bytes]) -> bytes:
    head, seen = b"", 0
    for chunk in chunks:
        head += chunk
        boundary = sse.last_boundary(head)
        for raw in sse.split(head[seen:boundary]):
            if _is_content(raw):
                return head
        seen = boundary
        if len(head) > SSE_HEAD_BYTES:
            return head
    raise UpstreamProtocolError("The upstream's stream ended before its first event.")


def _is_content(raw: bytes) -> bool:
    """Whether an event counts as the beginning of the answer. Raises UpstreamRefused for an error object."""
    event = sse.parse(raw)
    if event.data is None or event.name in PING_NAMES:
        return False
    if event.name == "error" or event.data.lstrip().startswith(b'{"error"') or b'"error"' in event.data[:4096]:
        error = error_of(event)
        if error is not None:
            raise _refused(event.data, error)
    return event.data.strip() != b'{"type":"ping"}'


def error_of(event: sse.Event) -> dict[str, Any] | None:
    """The error object that an event is, if it is one."""
    try:
        document = json.loads(event.data or b"")
    except (ValueError, RecursionError):
        return {} if event.name == "error" else None
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str) and error:
        return {"message": error}
    return document if event.name == "error" or document.get("type") == "error" else None


_STATUS_OF_CODE = MappingProxyType(
    {
        "rate_limit_exceeded": 429,
        "insufficient_quota": 402,
        "invalid_api_key": 401,
        "permission_denied": 403,
        "invalid_request_error": 400,
        "context_length_exceeded": 400,
    }
)


def _refused(data: bytes, error: dict[str, Any]) -> UpstreamRefused:
    """An error object in place of content, under the status it would have had as an answer of its own."""
    words = [word for word in (error.get("code"), error.get("type")) if isinstance(word, str)]
    named = [word for word in (error.get("code"), error.get("status")) if isinstance(word, int) and 400 <= word <= 599]
    status = named[0] if named else next((_STATUS_OF_CODE[word] for word in words if word in _STATUS_OF_CODE), 500)
    return UpstreamRefused(status, (("content-type", "application/json"),), data, upstream_code=words[0] if words else None)
