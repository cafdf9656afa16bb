"""What a chat is, whatever the dialect: the request, the events of an answer, and the tokens it used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in disjoint buckets: their sum is the provider's own total. `raw` is the provider's usage object, kept as it came.

    `flags` names what was wrong with it ("clamped", "inconsistent"); a flagged usage is priced all the same.
    """

    input_uncached: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    audio_in: int = 0
    image_in: int = 0
    output_text: int = 0
    reasoning: int = 0
    audio_out: int = 0
    raw: Mapping[str, Any] | None = field(default=None, compare=False)
    flags: tuple[str, ...] = ()

    @property
    def input_tokens(self) -> int:
        return self.input_uncached + self.cache_read + self.cache_write_5m + self.cache_write_1h + self.audio_in + self.image_in

    @property
    def output_tokens(self) -> int:
        return self.output_text + self.reasoning + self.audio_out

    def buckets(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in BUCKETS}

    def counted(self) -> dict[str, int]:
        """The buckets that hold any."""
        return {name: count for name in BUCKETS if (count := getattr(self, name))}


BUCKETS: tuple[str, ...] = tuple(item.name for item in fields(Usage) if item.name not in ("raw", "flags"))
OUTPUT_BUCKETS: tuple[str, ...] = ("output_text", "reasoning", "audio_out")
INPUT_BUCKETS: tuple[str, ...] = tuple(name for name in BUCKETS if name not in OUTPUT_BUCKETS)


@dataclass(frozen=True, slots=True)
class Message:
    """`content` is the plain text of the message: parts of other kinds than text are left out."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a ChatBackend is asked. `document` is the caller's whole body, for what has no field here.

    `conversation`: "id", "parent_id" and "message_id" of one that the upstream keeps, where the dialect has such.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool
    include_usage: bool
    max_tokens: int | None
    document: Mapping[str, Any]
    conversation: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of the call number `index`; `id` and `name` come with its first piece."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every answer. `reason` in OpenAI's words: stop, length, tool_calls, content_filter.

    `conversation`: with what an upstream that keeps conversations goes on with this one: "id" and "message_id".
    """

    reason: str
    usage: Usage | None
    conversation: Mapping[str, str] | None = None


ChatEvent = TextDelta | ToolCallDelta | Finished
