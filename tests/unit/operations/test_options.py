from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.backend import Backend
from gateway.errors import BadRequest
from gateway.operations.options import build_options, find_backend


@dataclass(frozen=True, slots=True)
class Options:
    name: str = ""
    count: int = 0
    pause_s: float = 0.0
    loud: bool = False
    limits: dict[str, int] | None = None

    def __post_init__(self) -> None:
        if self.count > 10:
            raise ValueError("too many")


class Loose:
    """Options of a backend that does not say which it has."""

    def __init__(self, **options: Any) -> None:
        self.options = options


class Typed(Backend):
    dialects = frozenset({"openai_chat"})
    Options = Options

    def send(self, call: Any, target: Any) -> Any:
        raise NotImplementedError


class Untyped(Typed):
    Options = Loose  # type: ignore[assignment]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a backend that a third party would install."""
    module = types.ModuleType("stranger_backend")
    module.Typed, module.Untyped, module.number = Typed, Untyped, int  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stranger_backend", module)
    return "stranger_backend:Typed"


def test_texts_become_what_the_option_is(typed: str) -> None:
    texts = {"name": "7", "count": "7", "pause_s": "0.5", "loud": "yes", "limits": '{"a":1}'}
    assert build_options(typed, texts, {}) == {"name": "7", "count": 7, "pause_s": 0.5, "loud": True, "limits": {"a": 1}}


def test_options_are_added_to_those_before_and_an_empty_text_takes_one_away(typed: str) -> None:
    assert build_options(typed, {"count": "3", "name": ""}, {"name": "x", "loud": True}) == {"count": 3, "loud": True}


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("count", "many", "must be a whole number"),
        ("pause_s", "nan", "must be a number"),
        ("loud", "maybe", "true or false"),
        ("cuont", "1", "did you mean count"),
        ("zzz", "1", "it has count, limits, loud, name, pause_s"),
        ("count", "11", "refuses its options: ValueError: too many"),
    ],
)
def test_what_the_backend_does_not_take_is_refused(typed: str, name: str, text: str, complaint: str) -> None:
    with pytest.raises(BadRequest, match=complaint):
        build_options(typed, {name: text}, {})


def test_a_backend_that_does_not_tell_gets_json_or_text(typed: str) -> None:
    assert build_options("stranger_backend:Untyped", {"a": "1", "b": "x"}, {}) == {"a": 1, "b": "x"}


def test_an_unknown_backend_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(BadRequest, match="Did you mean 'openai'"):
        find_backend("opnai")


def test_a_class_that_is_no_backend_is_refused(typed: str) -> None:
    with pytest.raises(BadRequest, match="is not a backend"):
        find_backend("stranger_backend:number")
