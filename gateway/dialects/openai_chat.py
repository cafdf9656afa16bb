"""OpenAI's chat completions: `POST /chat/completions`."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from gateway.dialects import openai_usage
from gateway.dialects.events import ChatEvent, ChatRequest, Finished, Message, TextDelta, ToolCallDelta, Usage
from gateway.dialects.sse import HEARTBEAT, Event, encode
from gateway.errors import BadRequest

DONE = b"data: [DONE]\n\n"


class OpenAIChat:
    """The codec. Its terminal event is `data: [DONE]`."""

    name = "openai_chat"
    terminal_candidate = re.compile(rb"\[DONE\]")
    reports_usage_on_request = True
    heartbeat = HEARTBEAT

    def is_terminal(self, event: Event) -> bool:
        return event.data is not None and event.data.strip() == b"[DONE]"

    def is_failure(self, event: Event) -> bool:
        return False

    def usage(self, document: Mapping[str, Any]) -> Usage | None:
        return openai_usage.usage(document)

    def error_event(self, error: Mapping[str, Any]) -> bytes:
        return encode(dumps({"error": error}))

    def request(self, document: Mapping[str, Any]) -> ChatRequest:
        messages = document.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest("'messages' must be a list of at least one message.", param="messages")
        return chat_request(document, tuple(_message(index, item) for index, item in enumerate(messages)))

    def encoder(self, model: str, created: int, request: ChatRequest) -> ChatEncoder:
        return ChatEncoder(model, created, request.include_usage)


def dumps(value: Any) -> bytes:
    """Compact JSON in UTF-8; in ASCII where a text holds half a surrogate pair, which UTF-8 cannot write."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def chat_request(document: Mapping[str, Any], messages: tuple[Message, ...]) -> ChatRequest:
    """A ChatRequest with what both OpenAI chat dialects share."""
    options = document.get("stream_options")
    limits = (document.get("max_completion_tokens"), document.get("max_tokens"))
    return ChatRequest(
        model=str(document.get("model") or ""),
        messages=messages,
        stream=document.get("stream") is True,
        include_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
        max_tokens=next((limit for limit in limits if isinstance(limit, int) and not isinstance(limit, bool)), None),
        document=document,
    )


def _message(index: int, item: Any) -> Message:
    role = item.get("role") if isinstance(item, Mapping) else None
    if not isinstance(role, str):
        raise BadRequest(f"'messages[{index}]' must be an object with a 'role'.", param="messages")
    return Message(role, plain_text(item.get("content")))


def plain_text(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def usage_object(usage: Usage) -> dict[str, Any]:
    """A Usage as chat completions report it."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


class ChatEncoder:
    """Chat events to `chat.completion.chunk` events, or to one `chat.completion`."""

    def __init__(self, model: str, created: int, include_usage: bool) -> None:
        self._head = {"id": "chatcmpl-" + secrets.token_hex(12), "created": created, "model": model}
        self._include_usage = include_usage
        self._before, _, self._behind = self._chunk({"content": ""}, None).rpartition(b'""')
        """What stands around a piece of text: of most events nothing else changes."""

    def stream(self, events: Iterator[ChatEvent]) -> Generator[bytes, None, None]:
        yield self._chunk({"role": "assistant", "content": ""}, None)
        for event in events:
            if isinstance(event, TextDelta):
                yield self._before + dumps(event.text) + self._behind
            elif isinstance(event, ToolCallDelta):
                yield self._chunk({"tool_calls": [_tool_call_delta(event)]}, None)
            else:
                yield self._chunk({}, event.reason)
                if self._include_usage and event.usage is not None:
                    yield encode(dumps({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage_object(event.usage)}))
                yield DONE

    def _chunk(self, delta: Mapping[str, Any], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return encode(dumps({**self._head, "object": "chat.completion.chunk", "choices": [choice]}))

    def whole(self, events: Iterator[ChatEvent]) -> bytes:
        text, calls, finished = collect(events)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finished.reason}
        answer = {**self._head, "object": "chat.completion", "choices": [choice]}
        return dumps(answer | ({"usage": usage_object(finished.usage)} if finished.usage else {}))


def _tool_call_delta(event: ToolCallDelta) -> dict[str, Any]:
    call: dict[str, Any] = {"index": event.index}
    if event.id is not None:
        call |= {"id": event.id, "type": "function"}
    name = {} if event.name is None else {"name": event.name}
    return call | {"function": name | {"arguments": event.arguments}}


def collect(events: Iterator[ChatEvent]) -> tuple[str, list[dict[str, Any]], Finished]:
    """A whole answer: its text, its tool calls as chat completions write them, and how it ended."""
    text: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    finished = Finished("stop", None)
    for event in events:
        if isinstance(event, TextDelta):
            text.append(event.text)
        elif isinstance(event, ToolCallDelta):
            call = calls.setdefault(event.index, {"id": event.id, "type": "function", "function": {"name": event.name, "arguments": ""}})
            call["function"]["arguments"] += event.arguments
        else:
            finished = event
    return "".join(text), [calls[index] for index in sorted(calls)], finished
