"""Finds backends and selection policies by name: a built-in's alias, an entry point, or `package.module:Class`.

Built-ins take the stranger's road: they are named by strings and imported only when they are used.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from gateway.errors import PluginError

BACKENDS = "gateway.backends"
POLICIES = "gateway.policies"

_WORD: Mapping[str, str] = MappingProxyType({BACKENDS: "backend", POLICIES: "policy"})
BUILTIN: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        BACKENDS: MappingProxyType(
            {
                "echo": "backends.echo:Echo",
                "openai": "backends.openai:OpenAI",
                "access_token": "backends.access_token:AccessToken",
                "agent": "backends.agent:Agent",
            },
        ),
        POLICIES: MappingProxyType(
            {
                "weighted": "gateway.core.policies:Weighted",
                "least_busy": "gateway.core.policies:LeastBusy",
                "longest_unused": "gateway.core.policies:LongestUnused",
                "cheapest": "gateway.core.policies:Cheapest",
                "fastest": "gateway.core.policies:Fastest",
                "fill_first": "gateway.core.policies:FillFirst",
            }
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin that can be named. `problem` says why it cannot be used, or is empty."""

    name: str
    target: str
    distribution: str
    problem: str = ""


def resolve(group: str, name: str) -> type:
    """The class behind a name. Raises PluginError, with a suggestion where a name is close."""
    target = BUILTIN[group].get(name) or _entry_points(group).get(name)
    if target is None:
        if ":" not in name:
            known = sorted({*BUILTIN[group], *_entry_points(group)})
            close = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."
            raise PluginError(f"There is no {_WORD[group]} '{name}'. {hint}")
        target = name
    return _load(name, target)


def _entry_points(group: str) -> dict[str, str]:
    """The first of each name, as `listing` says."""
    return {point.name: point.value for point in reversed(tuple(entry_points(group=group)))}


def _load(name: str, target: str) -> type:
    try:
        found = EntryPoint(name=name, value=target, group="").load()
    except (Exception, SystemExit) as error:  # a stranger's import may raise anything; the rest of the gateway goes on
        raise PluginError(f"'{name}' ({target}) cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        raise PluginError(f"'{name}' ({target}) is not a class.")
    return found


def listing(group: str) -> list[Plugin]:
    """Every plugin that can be named, built-ins first; a broken one with its reason."""
    found = [_listed(name, target, "") for name, target in BUILTIN[group].items()]
    taken = set(BUILTIN[group])
    for point in entry_points(group=group):
        if point.name in taken:
            found.append(Plugin(point.name, point.value, _distribution(point), f"the name '{point.name}' is taken by another plugin"))
        else:
            found.append(_listed(point.name, point.value, _distribution(point)))
        taken.add(point.name)
    return found


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else ""


def _listed(name: str, target: str, distribution: str) -> Plugin:
    try:
        _load(name, target)
    except PluginError as error:
        return Plugin(name, target, distribution, str(error))
    return Plugin(name, target, distribution)
