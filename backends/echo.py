"""Answers with what it was told: a fresh checkout works with no key and no network."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.backend import ChatBackend, Target
from gateway.dialects.events import ChatEvent, ChatRequest, Finished, TextDelta, Usage

_WORD = re.compile(r"(?:\A\s+)?\S+\s*")  # white space at both ends of the repeat would make long runs of it quadratic


@dataclass(frozen=True, slots=True)
class Options:
    """`pause_s`: seconds to wait before each word, to see streaming with one's own eyes."""

    pause_s: float = 0.0


class Echo(ChatBackend):
    """The last message, word by word. A token is a word."""

    Options = Options
    needs_secret = False

    def chat(self, request: ChatRequest, target: Target) -> Iterator[ChatEvent]:
        words = _WORD.findall(request.messages[-1].content) or [""]
        limit = len(words) if request.max_tokens is None else max(request.max_tokens, 0)
        for word in words[:limit]:
            if self.options.pause_s:
                time.sleep(self.options.pause_s)
            yield TextDelta(word)
        told = sum(len(message.content.split()) for message in request.messages)
        usage = Usage(input_uncached=told, output_text=min(len(words), limit))
        yield Finished("length" if limit < len(words) else "stop", usage)
