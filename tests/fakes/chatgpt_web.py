"""What a ChatGPT-web-style upstream answers, as steps for the fake provider: conversations whose texts are cumulative, refusals with a `detail`.

`provider.always("/conversation", Conversation())`, `provider.script("/conversation", CutByTokens("one, "), Conversation("two"))`.
"""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.fakes.answers import Answer, Json, Pairs, Status
from tests.fakes.received import Received

TEXT = "Grüße aus dem Netz 👋, all is well."
SLUGS = ("text-davinci-002-render-sha", "gpt-4", "gpt-4-plugins")
DONE = b"data: [DONE]\n\n"
DATE_STAMP = b"data: 2023-08-01 12:00:00.000000\n\n"
EXPIRED = {"message": "Your authentication token has expired. Please try signing in again.", "type": "invalid_request_error", "code": "token_expired"}


def cumulative(pieces: Iterable[str]) -> list[str]:
    """The texts so far: "ha", "ha" becomes "ha", "haha"."""
    return list(itertools.accumulate(pieces))


def event(text: str | None, **members: Any) -> dict[str, Any]:
    """One event of a conversation. `members` are the message's own; `metadata` adds to what it has, `role` is the author's."""
    metadata = {"message_type": "next", "model_slug": SLUGS[0], "parent_id": "0f0f", **members.pop("metadata", {})}
    conversation, error = members.pop("conversation_id", "conversation-1"), members.pop("error", None)
    message = {
        "id": members.pop("id", "message-1"),
        "author": {"role": members.pop("role", "assistant"), "name": None, "metadata": {}},
        "create_time": 1_700_000_000.5,
        "content": {"content_type": "text", "parts": None if text is None else [text]},
        "status": "in_progress",
        "end_turn": None,
        "weight": 1.0,
        "metadata": metadata,
        "recipient": "all",
        **members,
    }
    return {"message": message, "conversation_id": conversation, "error": error}


def moderation(conversation_id: str = "conversation-1", message_id: str = "message-1") -> dict[str, Any]:
    """The event behind an answer: it has no message."""
    verdict = {"flagged": False, "disclaimers": [], "moderation_id": "modr-fake"}
    return {"conversation_id": conversation_id, "message_id": message_id, "is_completion": True, "moderation_response": verdict}


def error_event(error: Any = "Something went wrong.") -> dict[str, Any]:
    """An error in place of a message."""
    return {"message": None, "conversation_id": "conversation-1", "error": error}


def line(value: Any) -> bytes:
    """One event on the wire; bytes are taken as they are."""
    return value if isinstance(value, bytes) else b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def Stream(*events: Any, done: bool = True, pause_s: float = 0.0) -> Answer:
    """Exactly these events: objects become `data:` lines, bytes are sent as they are; each is a chunk of its own."""
    blocks = (*map(line, events), *([DONE] if done else []))
    return Answer(200, (("content-type", "text/event-stream; charset=utf-8"),), blocks, "chunked", pause_s)


@dataclass(frozen=True)
class Conversation:
    """A well-behaved answer to POST /conversation; 400 for a body that is no request for one.

    `pieces` are joined bit by bit; none stands for the words of TEXT. `finish` is the type of the last message's finish_details:
    with "max_tokens" a `continue` is expected. `noise` adds what readers must pass over: `event:` lines, date stamps, short
    lines, lines that are no JSON, messages of others. A continuation has the conversation that was asked for; `done` is about
    the final `[DONE]`, `error` an error that takes the place of the answer's end.
    """

    pieces: tuple[str, ...] = ()
    finish: str = "stop"
    noise: bool = False
    done: bool = True
    error: Any = None
    pause_s: float = 0.0

    def __call__(self, received: Received) -> Answer:
        try:
            asked = received.json()
        except ValueError:
            asked = None
        if not isinstance(asked, dict) or asked.get("action") not in ("next", "continue"):
            return Refused(400, "The body is no request for a conversation.")
        events = self._events(asked["action"], asked.get("conversation_id") or "conversation-1", f"message-{uuid.uuid4()}")
        return Stream(*(_noisy(events) if self.noise else events), done=self.done, pause_s=self.pause_s)

    def _events(self, action: str, conversation: str, message: str) -> Iterator[Any]:
        said = {"id": message, "conversation_id": conversation, "metadata": {"message_type": action}}
        texts = cumulative(self.pieces or words(TEXT))
        for text in ("", *texts):
            yield event(text, **said)
        if self.error is not None:
            yield error_event(self.error)
            return
        metadata = {"message_type": action, "finish_details": {"type": self.finish}}
        ended = None if self.finish == "max_tokens" else True
        yield event(texts[-1], **{**said, "metadata": metadata}, status="finished_successfully", end_turn=ended)
        if ended:
            yield moderation(conversation, message)


def Said(*pieces: str, **options: Any) -> Conversation:
    """A conversation whose answer is these pieces joined."""
    return Conversation(pieces, **options)


def CutByTokens(*pieces: str, **options: Any) -> Conversation:
    """An answer that the upstream cut at its own limit: it goes on when it is asked to continue."""
    return Conversation(pieces, finish="max_tokens", **options)


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\S+\s*", text))


def _noisy(events: Iterable[Any]) -> Iterator[Any]:
    yield b"event: message\n"
    yield event("You are told nothing.", role="system", status="finished_successfully", end_turn=True)
    yield event("The question.", role="user", id="message-0", status="finished_successfully")
    for said in events:
        yield DATE_STAMP
        yield said
        yield b"data\n\n"
        yield b"data: this is no JSON\n\n"
        yield event(None, role="tool", id="message-tool")


def Refused(status: int, detail: Any, headers: Pairs = ()) -> Answer:
    """A refusal as such an upstream words it: `{"detail": ...}`, whatever kind of value that is."""
    return Json({"detail": detail}, status, headers)


def Expired() -> Answer:
    """401 for an access token that has run out."""
    return Refused(401, EXPIRED)


def Limited(clears_in: float | None = None, retry_after: float | None = None) -> Answer:
    """429 for a token that has used what it may; when it may again is in the detail, in a header, or nowhere."""
    detail: Any = "Too many requests in 1 hour. Try again later."
    if clears_in is not None:
        detail = {"message": "You've reached the current usage cap.", "code": "model_cap_exceeded", "clears_in": clears_in}
    return Refused(429, detail, () if retry_after is None else (("retry-after", str(retry_after)),))


def Blocked() -> Answer:
    """A refusal that is a page, as a front before the upstream gives it."""
    return Status(403, b"<html><title>Just a moment...</title></html>", (("content-type", "text/html"),))


def Models(*slugs: str) -> Answer:
    return Json({"models": [{"slug": slug, "title": slug.upper(), "max_tokens": 8191} for slug in slugs or SLUGS], "categories": []})
