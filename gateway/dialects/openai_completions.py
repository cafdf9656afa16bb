"""OpenAI's older text completions: `POST /completions`."""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from gateway.dialects.events import ChatEvent, ChatRequest, Message, TextDelta, ToolCallDelta
from gateway.dialects.openai_chat import DONE, OpenAIChat, chat_request, collect, dumps, usage_object
from gateway.dialects.sse import encode
from gateway.errors import BadRequest


class OpenAICompletions(OpenAIChat):
    """The codec. A prompt is one message of the user; a list of prompts is joined by blank lines only where it is translated."""

    name = "openai_completions"
    terminal_candidate = re.compile(rb"\[DONE\]")

    def request(self, document: Mapping[str, Any]) -> ChatRequest:
        prompt = document.get("prompt", "")
        prompts = prompt if isinstance(prompt, list) else [prompt]
        if not all(isinstance(item, str) for item in prompts):
            raise BadRequest("'prompt' must be a string or a list of strings for this model: it takes no tokens.", param="prompt")
        return chat_request(document, (Message("user", "\n\n".join(prompts)),))

    def encoder(self, model: str, created: int, request: ChatRequest) -> CompletionEncoder:  # type: ignore[override]
        return CompletionEncoder(model, created, request.include_usage)


class CompletionEncoder:
    """Chat events to `text_completion` objects. Tool calls have no place in this dialect and are left out."""

    def __init__(self, model: str, created: int, include_usage: bool) -> None:
        self._head = {"id": "cmpl-" + secrets.token_hex(12), "object": "text_completion", "created": created, "model": model}
        self._include_usage = include_usage

    def stream(self, events: Iterator[ChatEvent]) -> Generator[bytes, None, None]:
        for event in events:
            if isinstance(event, TextDelta):
                yield encode(dumps({**self._head, "choices": [_choice(event.text, None)]}))
            elif not isinstance(event, ToolCallDelta):
                yield encode(dumps({**self._head, "choices": [_choice("", event.reason)]}))
                if self._include_usage and event.usage is not None:
                    yield encode(dumps({**self._head, "choices": [], "usage": usage_object(event.usage)}))
                yield DONE

    def whole(self, events: Iterator[ChatEvent]) -> bytes:
        text, _, finished = collect(events)
        answer = {**self._head, "choices": [_choice(text, finished.reason)]}
        return dumps(answer | ({"usage": usage_object(finished.usage)} if finished.usage else {}))


def _choice(text: str, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
