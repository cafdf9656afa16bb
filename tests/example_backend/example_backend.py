"""A backend that answers backwards, and a policy that takes the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.backend import ChatBackend, Target
from gateway.dialects.events import ChatEvent, ChatRequest, Finished, TextDelta, Usage


@dataclass(frozen=True, slots=True)
class Options:
    """`word_by_word`: turn each word round and leave the words in order."""

    word_by_word: bool = False


class Backwards(ChatBackend):
    """Turns the last message round. A token is a character."""

    Options = Options
    needs_secret = False

    def chat(self, request: ChatRequest, target: Target) -> Iterator[ChatEvent]:
        text = request.messages[-1].content
        turned = " ".join(word[::-1] for word in text.split(" ")) if self.options.word_by_word else text[::-1]
        for character in turned:
            yield TextDelta(character)
        yield Finished("stop", Usage(input_uncached=len(text), output_text=len(turned)))


class First:
    """Takes the first candidate, whatever the weights."""

    def choose(self, candidates: Sequence[Any]) -> Any:
        return candidates[0]
