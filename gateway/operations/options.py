"""A backend's options as an operator writes them: `name=text`, converted by the types of the backend's Options."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import typing
from collections.abc import Mapping
from typing import Any

from gateway import plugins
from gateway.backend import Backend
from gateway.errors import BadRequest, PluginError

_TRUE, _FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})


def find_backend(name: str) -> type[Backend]:
    """The backend class behind a name. Raises BadRequest, with a suggestion where the name is close to one."""
    try:
        found = plugins.resolve(plugins.BACKENDS, name)
    except PluginError as error:
        raise BadRequest(str(error)) from error
    if not issubclass(found, Backend):
        raise BadRequest(f"'{name}' is not a backend")
    return found


def build_options(backend: str, texts: Mapping[str, str], before: Mapping[str, Any]) -> dict[str, Any]:
    """`before` with the named options changed; an empty text takes an option away. Raises BadRequest for what the backend does not take."""
    cls = find_backend(backend)
    kinds = _kinds(cls.Options)
    options = dict(before)
    for name, text in texts.items():
        if kinds is not None and name not in kinds:
            raise BadRequest(_unknown(backend, name, kinds))
        if text:
            options[name] = _converted(name, text, None if kinds is None else kinds[name])
        else:
            options.pop(name, None)
    try:
        cls.Options(**options)
    except Exception as error:  # a stranger's class: whatever it raises is its opinion on the options
        raise BadRequest(f"the backend {backend} refuses its options: {type(error).__name__}: {error}") from error
    return options


def _kinds(options: type) -> Mapping[str, Any] | None:
    """The type of each option; None where the class does not tell."""
    if not dataclasses.is_dataclass(options):
        return None
    try:
        hints = typing.get_type_hints(options)
    except NameError:  # an annotation that exists for type checkers only
        hints = {}
    return {field.name: hints.get(field.name) for field in dataclasses.fields(options) if field.init}


def _unknown(backend: str, name: str, kinds: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, kinds, 1)
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(kinds))}" if kinds else "it has none"
    return f"the backend {backend} has no option {name}; {hint}"


def _converted(name: str, text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if kind is bool:
        return _boolean(name, text)
    if kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BadRequest(f"the option {name} must be a {'whole ' if kind is int else ''}number")
        return number
    try:
        return json.loads(text)
    except ValueError:
        return text


def _boolean(name: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise BadRequest(f"the option {name} must be true or false")
