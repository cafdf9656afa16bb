"""ChatGPT-API-server's `POST /api/ask`: a prompt, and the conversation that it goes on with; answered whole."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any
from uuid import uuid4

from gateway.dialects.events import ChatEvent, ChatRequest, Message, Usage
from gateway.dialects.openai_chat import collect, dumps
from gateway.dialects.sse import Event
from gateway.errors import BadRequest

IDS = ("conversation_id", "parent_id", "message_id")


class ApiServer:
    """The codec. Nothing of it is streamed: no event is its last."""

    name = "api_server"
    terminal_candidate = re.compile(rb"(?!)")
    reports_usage_on_request = False
    heartbeat = b""

    def is_terminal(self, event: Event) -> bool:
        return False

    def is_failure(self, event: Event) -> bool:
        return False

    def usage(self, document: Mapping[str, Any]) -> Usage | None:
        return None

    def error_event(self, error: Mapping[str, Any]) -> bytes:
        return b""

    def request(self, document: Mapping[str, Any]) -> ChatRequest:
        """The document becomes that of chat completions."""
        given = {name: document.get(name) for name in ("content", *IDS)}
        if any(value is not None and not isinstance(value, str) for value in given.values()):
            raise BadRequest("Invalid request")
        content, conversation, parent, message = (value or "" for value in given.values())
        told = {"id": conversation, "parent_id": parent or str(uuid4()), "message_id": message or str(uuid4())}
        messages = (Message("user", content),)
        asked = {"messages": [{"role": "user", "content": content}]}
        return ChatRequest("", messages, stream=False, include_usage=False, max_tokens=None, document=asked, conversation=told)

    def encoder(self, model: str, created: int, request: ChatRequest) -> _Encoder:
        return _Encoder(request)


class _Encoder:
    def __init__(self, request: ChatRequest) -> None:
        self._asked = request.conversation or {"id": ""}

    def stream(self, events: Iterator[ChatEvent]) -> Generator[bytes, None, None]:
        raise BadRequest("Invalid request")

    def whole(self, events: Iterator[ChatEvent]) -> bytes:
        """An upstream that keeps no conversations answers in one of its own making, which nobody can go on with."""
        text, _, finished = collect(events)
        told = finished.conversation or {}
        answer = {"id": told.get("own_id", ""), "response_id": told.get("message_id") or str(uuid4())}
        answer |= {"conversation_id": told.get("id") or self._asked["id"] or str(uuid4()), "content": text, "error": told.get("error", "")}
        return dumps(answer)
