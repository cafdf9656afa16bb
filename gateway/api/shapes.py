"""How each family words an error, and whether its pages may be asked from any other: what its own clients expect. Knows no Flask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gateway.api import PREFIXES
from gateway.errors import GatewayError, MethodNotAllowed, NotFound, SwitchedOff, Unauthenticated, error_type


@dataclass(frozen=True, slots=True)
class Shape:
    """`document` is what an error becomes, given with its message in one printable line; `open_to_browsers`: every answer has the three
    headers by which a page of any origin may read it."""

    document: Callable[[GatewayError, str], Mapping[str, Any]]
    open_to_browsers: bool = False


def _openai(error: GatewayError, message: str) -> Mapping[str, Any]:
    return {"error": {"message": message, "type": error_type(error.status), "param": error.param, "code": error.code}}


def _go_chatgpt(error: GatewayError, message: str) -> Mapping[str, Any]:
    """As go-chatgpt-api's README version words it."""
    if isinstance(error, NotFound):
        return {"message": "Route not found"}
    return {"message" if isinstance(error, MethodNotAllowed) else "errorMessage": message}


def _go_chatgpt_2(error: GatewayError, message: str) -> Mapping[str, Any]:
    """As its last version does: the same, without the capital and the full stop."""
    return {name: lowered(text) if name == "errorMessage" else text for name, text in _go_chatgpt(error, message).items()}


def _chatgpt_to_api(error: GatewayError, message: str) -> Mapping[str, Any]:
    """Who is refused at the door is told in a text, all else as by OpenAI."""
    return {"error": message} if isinstance(error, Unauthenticated | SwitchedOff) else _openai(error, message)


def _api_server(error: GatewayError, message: str) -> Mapping[str, Any]:
    return {"error": message}


def lowered(text: str) -> str:
    """A sentence without its capital and its full stop."""
    return text[:1].lower() + text[1:].removesuffix(".")


OPENAI = Shape(_openai)
_GO_CHATGPT, _GO_CHATGPT_2 = Shape(_go_chatgpt, open_to_browsers=True), Shape(_go_chatgpt_2, open_to_browsers=True)
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        PREFIXES["chatgpt"]: _GO_CHATGPT,
        PREFIXES["platform"]: _GO_CHATGPT,
        PREFIXES["imitate"]: _GO_CHATGPT_2,
        PREFIXES["backend_api"]: _GO_CHATGPT_2,
        PREFIXES["chatgpt_to_api"]: Shape(_chatgpt_to_api, open_to_browsers=True),
        PREFIXES["api_server"]: Shape(_api_server, open_to_browsers=True),
    }
)
"""By a path's first segment; every other path's is OpenAI's."""


def shape_of(path: str) -> Shape:
    """The shape of the family that a path, from its "/" on, belongs to."""
    end = path.find("/", 1)
    return SHAPES.get(path if end < 0 else path[:end], OPENAI)
