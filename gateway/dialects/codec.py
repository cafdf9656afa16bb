"""What a codec is: the little that the relay must know of a dialect, and the more that a chat backend needs."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Protocol

from gateway.dialects.events import ChatEvent, ChatRequest, Usage
from gateway.dialects.sse import Event


class Codec(Protocol):
    """The relay's view of a dialect. Byte searches find candidates; only these methods decide."""

    name: str
    terminal_candidate: re.Pattern[bytes]
    """Matches in every terminal event, and seldom elsewhere."""
    reports_usage_on_request: bool
    """Whether `stream_options.include_usage` exists in this dialect."""
    heartbeat: bytes
    """What a stream may send between two events while nothing happens, and its clients pass over; b"" where they would not."""

    def is_terminal(self, event: Event) -> bool:
        """Whether this event is the answer's last."""

    def is_failure(self, event: Event) -> bool:
        """Whether this event, a terminal one, says that the answer failed."""

    def usage(self, document: Mapping[str, Any]) -> Usage | None:
        """The usage in a whole answer, or in the data of a stream's event; None where it has none."""

    def error_event(self, error: Mapping[str, Any]) -> bytes:
        """The raw SSE event that tells a client of this dialect that its stream broke. `error` is OpenAI's error object."""


class Encoder(Protocol):
    """Chat events to one answer's bytes."""

    def stream(self, events: Iterator[ChatEvent]) -> Generator[bytes, None, None]: ...
    def whole(self, events: Iterator[ChatEvent]) -> bytes: ...


class ChatCodec(Codec, Protocol):
    """A dialect that chats: what a ChatBackend needs besides."""

    def request(self, document: Mapping[str, Any]) -> ChatRequest:
        """Raises BadRequest where the document is not a request of this dialect."""

    def encoder(self, model: str, created: int, request: ChatRequest) -> Encoder:
        """`created` is in Unix seconds."""
