"""The web interface of ChatGPT and of what imitates it: `POST /conversation`, answered by events that repeat the whole text so far.

The codec relays such a stream as it is. `conversation`, `continuation`, `Lines` and `Reader` are for a backend that chats over it.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gateway.dialects.events import ChatRequest, Usage
from gateway.dialects.openai_chat import dumps
from gateway.dialects.sse import Event, encode
from gateway.errors import INVALID_KEY_CODES, BadRequest

DEFAULT_MODEL = "text-davinci-002-render-sha"
PLUGINS_MODEL = "gpt-4-plugins"
MAX_RESET_S = 86_400.0
_UNSETTLED = "\ufffd" + "".join(map(chr, range(0xD800, 0xDC00)))
"""What stands at the end of a text whose last character has only half arrived."""
_FINISH: Mapping[str, str] = MappingProxyType({"max_tokens": "length", "length": "length", "content_filter": "content_filter"})


class ChatGPTWeb:
    """The codec. Its terminal event is `data: [DONE]`; it knows no usage, and its clients take no comment for a heartbeat."""

    name = "chatgpt_web"
    terminal_candidate = re.compile(rb"data:[ \t]*\[DONE\]")
    reports_usage_on_request = False
    heartbeat = b""

    def is_terminal(self, event: Event) -> bool:
        return event.data is not None and event.data.strip() == b"[DONE]"

    def is_failure(self, event: Event) -> bool:
        return False

    def usage(self, document: Mapping[str, Any]) -> Usage | None:
        return None

    def error_event(self, error: Mapping[str, Any]) -> bytes:
        """These clients read `error` as a text."""
        return encode(dumps({"message": None, "conversation_id": None, "error": error.get("message")}))


# requests


def conversation(request: ChatRequest, model: str, *, history: bool, exact_model: bool = False) -> dict[str, Any]:
    """What is asked upstream for a chat. `plugin_ids` and `arkose_token` are the caller's own, or absent.

    `exact_model` sends `model` as it is; else it is one of the names that the interface had when its clients were written.
    """
    plugins = _plugin_ids(request.document.get("plugin_ids"))
    arkose_token = request.document.get("arkose_token")
    asked = {
        "action": "next",
        "messages": [_message(message.role, message.content) for message in request.messages],
        "parent_message_id": str(uuid.uuid4()),
        "model": model if exact_model else PLUGINS_MODEL if plugins else web_model(model),
        "history_and_training_disabled": not history,
    }
    if plugins:
        asked["plugin_ids"] = plugins
    if isinstance(arkose_token, str) and arkose_token:
        asked["arkose_token"] = arkose_token
    return asked


def continuation(asked: Mapping[str, Any], conversation_id: str, message_id: str) -> dict[str, Any]:
    """The request that goes on where the answer to `asked` was cut: behind this message of this conversation."""
    return {**asked, "action": "continue", "messages": None, "parent_message_id": message_id, "conversation_id": conversation_id}


def web_model(model: str) -> str:
    """GPT-4 and its kin under their own names, but for `gpt-4` with a size or a date; anything else is the default model."""
    if not model.startswith("gpt-4"):
        return DEFAULT_MODEL
    return "gpt-4" if re.match(r"gpt-4-[0-9]", model) else model


def _message(role: str, text: str) -> dict[str, Any]:
    author = {"role": "critic" if role == "system" else role}
    return {"id": str(uuid.uuid4()), "author": author, "content": {"content_type": "text", "parts": [text]}}


def _plugin_ids(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest("'plugin_ids' must be a list of strings.", param="plugin_ids")
    return value


# what is wrong


_INVALID_CODES = INVALID_KEY_CODES | {"token_expired", "token_invalidated", "token_revoked", "invalid_token", "invalid_jwt", "session_expired"}
_LIMIT_CODES = frozenset({"model_cap_exceeded", "rate_limit_exceeded", "usage_limit_exceeded", "too_many_requests"})
_TOO_LONG_CODES = frozenset({"message_length_exceeds_limit", "context_length_exceeded"})
_BAD = r"expired|invalid|revoked|malformed"
_TOKEN = r"(?<!arkose )(?<!captcha )(?:token|jwt|signature|session)\b"  # noqa: S105
_INVALID_TEXT = re.compile(rf"{_TOKEN}.{{0,60}}\b(?:{_BAD})\b|\b(?:{_BAD})\b(?:(?! arkose| captcha).){{0,60}}{_TOKEN}|parse your authentication token", re.I)
_LIMIT_TEXT = re.compile(r"too many (?:concurrent )?requests|rate.?limit|(?:usage|message) (?:cap|limit)|limit reached|only one message at a time", re.I)
_JUDGED_CHARACTERS = 500
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Complaint:
    """What such an upstream says is wrong: the `detail` of a refusal, or the `error` of an event. `clears_in_s` is how long it lasts."""

    text: str
    code: str | None = None
    clears_in_s: float | None = None

    @staticmethod
    def of(value: Any) -> Complaint:
        """From a text, or an object with some of `message`, `code`, `type`, `clears_in`."""
        if not isinstance(value, Mapping):
            return Complaint(_one_line(value) if isinstance(value, str) else "")
        codes = (value.get("code"), value.get("type"))
        code = next((word for word in codes if isinstance(word, str) and word), None)
        text = value.get("message") or value.get("detail")
        return Complaint(_one_line(text) if isinstance(text, str) else "", code, _seconds(value.get("clears_in")))

    @property
    def is_of_token(self) -> bool:
        """Whether the token is at fault: expired, revoked, or none at all."""
        return self.code in _INVALID_CODES or _INVALID_TEXT.search(self.text) is not None

    @property
    def status(self) -> int:
        """The status that it would have had as an answer of its own."""
        if self.code in _LIMIT_CODES or self.clears_in_s is not None or _LIMIT_TEXT.search(self.text):
            return 429
        if self.code in _TOO_LONG_CODES:
            return 413
        return 401 if self.is_of_token else 500

    def upstream_code(self, status: int) -> str | None:
        """Its code, in OpenAI's word where that decides what becomes of the credential."""
        return "invalid_api_key" if status == 401 and self.is_of_token else self.code


def _one_line(text: str) -> str:
    return " ".join("".join(mark if mark.isprintable() else " " for mark in text[:_JUDGED_CHARACTERS]).split())[:_SHOWN_CHARACTERS]


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return min(float(value), MAX_RESET_S)


# answers


class Lines:
    """Cuts a stream into lines as it comes: trimmed, and never an empty one. Takes time in proportion to the bytes."""

    __slots__ = ("_pieces", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0
        """Bytes of the line that is not complete yet."""

    def feed(self, block: bytes) -> list[bytes]:
        """The lines that are complete with this block."""
        if b"\n" not in block:
            self._pieces.append(block)
            self.size += len(block)
            return []
        *whole, rest = block.split(b"\n")
        whole[0] = b"".join([*self._pieces, whole[0]])
        self._pieces, self.size = [rest], len(rest)
        return [line for each in whole if (line := each.strip())]

    def rest(self) -> bytes:
        """The last line, which no line end follows."""
        return b"".join(self._pieces).strip()


def relayed(line: bytes, *, messages_only: bool = False) -> bytes:
    """A line as the old clients get it, with its blank line; b"" for the kinds that they never got: event names and date stamps.

    `messages_only`: nor what is said of the conversation and of no message, which clients of the last version never got.
    """
    dropped = (b"event", b"data: 20", b'data: {"conversation_id"') if messages_only else (b"event", b"data: 20")
    return b"" if not line or line.startswith(dropped) else line + b"\n\n"


class Reader:
    """Reads one answer, or one part of one, from its lines. Nothing of an event is carried over to the next but what is named here.

    `done`: `[DONE]` came. `finished`: the last message came to an end by itself. `finish_type`: why, in the upstream's word. `cut`:
    its limit of tokens cut it, so that it can be asked to continue behind `message_id` of `conversation_id`. `complaint`: an error
    that came in place of an event.
    """

    __slots__ = ("_given", "_speaker", "_text", "complaint", "conversation_id", "cut", "done", "finish_type", "finished", "message_id")

    def __init__(self) -> None:
        self._text = self._given = ""
        self._speaker: Any = None
        self.done = self.finished = self.cut = False
        self.finish_type = ""
        self.conversation_id: str | None = None
        self.message_id: str | None = None
        self.complaint: Complaint | None = None

    @property
    def reason(self) -> str:
        """Why the answer ended, in OpenAI's words."""
        return _FINISH.get(self.finish_type, "stop")

    def feed(self, line: bytes) -> str:
        """The text that this line adds to the answer."""
        if not line.startswith(b"data:"):
            return ""
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return ""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return ""
        if not isinstance(document, dict):
            return ""
        error = document.get("error") or (document.get("detail") if "message" not in document else None)
        if error:
            self.complaint = Complaint.of(error)
            return ""
        message = document.get("message")
        return self._read(message, document.get("conversation_id")) if isinstance(message, dict) else ""

    def rest(self) -> str:
        """What was held back because more of its last character was to come, once nothing does."""
        return self._added(self._text, self._speaker)

    def _read(self, message: Mapping[str, Any], conversation_id: Any) -> str:
        self.finished = False
        if _object(message, "author").get("role") != "assistant":
            return ""
        identity, metadata, turn = message.get("id"), _object(message, "metadata"), message.get("end_turn")
        finish_type = _object(metadata, "finish_details").get("type")
        settled = message.get("status") == "finished_successfully"
        if isinstance(identity, str) and isinstance(conversation_id, str):
            self.message_id, self.conversation_id = identity, conversation_id
        if isinstance(finish_type, str) and finish_type:
            self.cut = settled and finish_type == "max_tokens"
        text = _text(message)
        if text is None or metadata.get("message_type") not in ("next", "continue") or not (turn is None or turn is True):
            return ""
        if isinstance(finish_type, str) and finish_type:
            self.finish_type = finish_type
        self.finished = settled and (turn is True or bool(finish_type))
        if turn is True and not text.startswith(self._given):  # ends the turn, and its text is another's: it never counted
            return ""
        self._text = text
        return self._added(text if settled else text.rstrip(_UNSETTLED), identity)

    def _added(self, text: str, speaker: Any) -> str:
        """What is new in the text so far. What was given cannot be taken back: of a text that was rewritten, what stands behind its
        common beginning is given; a text that only lost its end gives nothing until it is longer than before. Another message's
        text is given in full."""
        given = self._given
        if text.startswith(given):
            added = text[len(given) :]
        elif speaker != self._speaker:
            added = text
        elif given.startswith(text):
            return ""
        else:
            added = text[_common(given, text) :]
        self._given, self._speaker = text, speaker
        return added


def _common(one: str, other: str) -> int:
    """The length of their common beginning, by halving: an upstream may rewrite long texts often."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _text(message: Mapping[str, Any]) -> str | None:
    parts = _object(message, "content").get("parts")
    return parts[0] if isinstance(parts, list) and parts and isinstance(parts[0], str) else None
