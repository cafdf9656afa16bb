"""The routes of the web interface as go-chatgpt-api's clients know them: what each asks of the upstream. Knows no Flask, and does no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from gateway.errors import BadRequest

Bodies = Callable[[Callable[[], Mapping[str, Any]]], bytes]
"""What is sent upstream, made from the client's document; it is read where that is needed."""
CONVERSATION = "conversation"


@dataclass(frozen=True, slots=True)
class Route:
    """A route below the web interface's root, as a pattern. `name` is the path without what varies in it, `refused` what a client is told
    where the upstream refuses. `upstream_method`: where it is another one than the client's. `body`: None where the client's goes as it is.
    """

    methods: tuple[str, ...]
    name: str
    refused: str
    upstream_method: str = ""
    body: Bodies | None = None
    pages: bool = False

    def takes(self, method: str, path: str) -> bool:
        return method in self.methods and re.fullmatch(self.name.replace("{id}", "[^/]+"), path) is not None


def _cleared(document: Callable[[], Mapping[str, Any]]) -> bytes:
    return _dumped({"title": None, "is_visible": False})


def _renamed(document: Callable[[], Mapping[str, Any]]) -> bytes:
    """A conversation with a title is visible; without one it is what the client says, or not."""
    given = document()
    title, visible = given.get("title"), given.get("is_visible")
    if not (title is None or isinstance(title, str)) or not (visible is None or isinstance(visible, bool)):
        raise BadRequest("'title' must be a string and 'is_visible' true or false.")
    return _dumped({"title": title, "is_visible": title is not None or visible is True})


def _given(document: Callable[[], Mapping[str, Any]]) -> bytes:
    """All of it: also what the originals did not know."""
    return _dumped(document())


def _dumped(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()


ROUTES = (
    Route(("GET",), "conversations", "Failed to get conversations.", pages=True),
    Route(("PATCH", "POST"), "conversations", "Failed to clear conversations.", "PATCH", _cleared),
    Route(("POST",), "conversation/gen_title/{id}", "Failed to generate title.", body=_given),
    Route(("POST",), "conversation/message_feedback", "Failed to add feedback.", body=_given),
    Route(("GET",), "conversation/{id}", "Failed to get content."),
    Route(("PATCH", "POST"), "conversation/{id}", "Failed to update conversation.", "PATCH", _renamed),
    Route(("GET",), "models", "Failed to get models."),
    Route(("GET",), "accounts/check", "Check failed."),
)
FALLBACK = Route(("GET", "POST", "PATCH"), "*", "Fallback failed.")
"""Whatever else the README version relays."""
EVERYTHING_ELSE = Route((*FALLBACK.methods, "PUT", "DELETE"), "*", "Fallback failed.")
"""Whatever else the last version does."""


def route_of(method: str, path: str, fallback: Route) -> Route | None:
    """The route that a path below the interface's root is; None where its method is not taken."""
    found = next((route for route in ROUTES if route.takes(method, path)), None)
    return found or (fallback if method in fallback.methods else None)


def page(pairs: Sequence[tuple[str, str]]) -> str:
    """The query of a list: which part of it, and nothing else."""
    given = {name: value for name, value in pairs if value}
    return urlencode({"offset": given.get("offset", "0"), "limit": given.get("limit", "20")})


def completed(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A conversation's request with what the interface asks for and old clients leave out: whose a message is, and its metadata."""
    messages = document.get("messages")
    if not isinstance(messages, list):
        return document
    return {**document, "messages": [_message(item) if isinstance(item, dict) else item for item in messages]}


def _message(message: Mapping[str, Any]) -> Mapping[str, Any]:
    author = message.get("author")
    author = author if isinstance(author, dict) else {}
    return {**message, "author": {**author, "role": author.get("role") or "user"}, "metadata": message.get("metadata") or {}}
