"""What an agent's frames say, as far as the holder of its websocket must know: docs/agents.md has them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.dialects.openai_chat import dumps
from gateway.frames import ChannelLost, decoded

PROTOCOL_ERROR = 4400
MOST_MODELS, NAME_CHARACTERS, MOST_CONCURRENCY = 1000, 128, 1024


class Refused(Exception):
    """An agent that is not let in, or not any longer: with which code its websocket is closed, and why in a few words."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True, slots=True)
class Hello:
    """What an agent says of itself. `name` is empty for the only one of its token; `models` is None where it cannot say which it serves."""

    name: str = ""
    token: str = field(default="", repr=False)
    models: tuple[str, ...] | None = None
    concurrency: int = 1
    session: str = ""
    resumes: bool = False
    software: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """What an agent serves from now on; None: as before. No models: none of them."""

    models: tuple[str, ...] | None = None
    concurrency: int | None = None


class Head(msgspec.Struct):
    """What must be known of a frame to pass it on."""

    type: str
    id: str = ""
    at: msgspec.Raw = msgspec.Raw(b"null")


class Opening(msgspec.Struct):
    """The same of the frame that a client's channel begins with."""

    id: str
    credit: int


_heads, _openings = msgspec.json.Decoder(Head), msgspec.json.Decoder(Opening)


def head_of(raw: str) -> Head:
    """Raises Refused."""
    try:
        return _heads.decode(raw)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        members = object_of(raw)
    id = members.get("id")
    return Head(members["type"], id if isinstance(id, str) else "", msgspec.Raw(dumps(members.get("at"))))


def opening_of(raw: bytes) -> Opening:
    """Raises ChannelLost."""
    try:
        return _openings.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        members = decoded(raw) or {}
    id, credit = members.get("id"), members.get("credit")
    if not isinstance(id, str) or not isinstance(credit, int):
        raise ChannelLost("gone")
    return Opening(id, credit)


def object_of(raw: str) -> dict[str, Any]:
    """Raises Refused for what is no JSON object with a type."""
    document = decoded(raw)
    if document is None:
        raise Refused(PROTOCOL_ERROR, "a frame that is no JSON object")
    if not isinstance(document.get("type"), str):
        raise Refused(PROTOCOL_ERROR, "a frame without a type")
    return document


def read_hello(document: dict[str, Any]) -> Hello:
    """Raises Refused."""
    texts = {name: document.get(name) or "" for name in ("agent", "token", "session", "software")}
    if not all(isinstance(text, str) and len(text) <= NAME_CHARACTERS and text.isascii() and text.isprintable() for text in texts.values()):
        raise Refused(PROTOCOL_ERROR, f"agent, token, session and software must be texts of at most {NAME_CHARACTERS} printable ASCII characters")
    serves = read_update(document)
    return Hello(
        name=texts["agent"],
        token=texts["token"],
        models=serves.models or (),
        concurrency=serves.concurrency or 1,
        session=texts["session"],
        resumes=document.get("resumes") is True and bool(texts["session"]),
        software=texts["software"],
    )


def read_update(document: dict[str, Any]) -> Update:
    """Raises Refused."""
    models, concurrency = document.get("models"), document.get("concurrency")
    if "models" in document and not _are_names(models):
        raise Refused(PROTOCOL_ERROR, f"models must be a list of at most {MOST_MODELS} names")
    if concurrency is not None and (isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= MOST_CONCURRENCY):
        raise Refused(PROTOCOL_ERROR, f"concurrency must be from 1 to {MOST_CONCURRENCY}")
    return Update(None if models is None else tuple(dict.fromkeys(models)), concurrency)


def _are_names(models: Any) -> bool:
    return isinstance(models, list) and len(models) <= MOST_MODELS and all(isinstance(each, str) and 0 < len(each) <= 256 for each in models)
