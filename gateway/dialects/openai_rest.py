"""OpenAI's endpoints without chat events of ours: responses, embeddings, images, audio, moderations. Relayed raw; only usage and ends are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gateway.dialects import openai_usage
from gateway.dialects.events import Usage
from gateway.dialects.openai_chat import dumps
from gateway.dialects.sse import HEARTBEAT, Event, encode

TERMINAL_TYPES = frozenset(
    {
        "response.completed",
        "response.incomplete",
        "response.failed",
        "image_generation.completed",
        "image_edit.completed",
        "transcript.text.done",
        "speech.audio.done",
    }
)


class OpenAIRest:
    """The codec. A terminal event is told by the `type` of its data, or is `[DONE]`."""

    name = "openai_rest"
    terminal_candidate = re.compile(
        rb"\[DONE\]|response\.(?:completed|incomplete|failed)|image_(?:generation|edit)\.completed|transcript\.text\.done|speech\.audio\.done"
    )
    reports_usage_on_request = False
    heartbeat = HEARTBEAT

    def is_terminal(self, event: Event) -> bool:
        return event.data is not None and (event.data.strip() == b"[DONE]" or _type(event) in TERMINAL_TYPES)

    def is_failure(self, event: Event) -> bool:
        return _type(event) == "response.failed"

    def usage(self, document: Mapping[str, Any]) -> Usage | None:
        return openai_usage.usage(document)

    def error_event(self, error: Mapping[str, Any]) -> bytes:
        """Both shapes at once: the Responses API's flat event and the error object that every SDK looks for."""
        flat = {"type": "error", "code": error.get("code"), "message": error.get("message"), "param": error.get("param")}
        return encode(dumps({**flat, "error": error}), "error")


def _type(event: Event) -> str:
    """The name of a terminal event, or what its data says."""
    if event.name in TERMINAL_TYPES:
        return event.name
    try:
        document = json.loads(event.data or b"")
    except (ValueError, RecursionError):
        return ""
    kind = document.get("type") if isinstance(document, dict) else None
    return kind if isinstance(kind, str) else ""
