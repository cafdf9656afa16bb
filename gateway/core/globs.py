"""Names with wildcards, of models and prices: `*` stands for any characters, `?` for one. A bracket stands for itself: models have them in their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable


def is_glob(name: str) -> bool:
    return "*" in name or "?" in name


def matches(name: str, glob: str) -> bool:
    """Whether the glob (or the plain name) stands for `name`."""
    return name == glob or (is_glob(glob) and fnmatch.fnmatchcase(name, glob.replace("[", "[[]")))


def matches_any(name: str, globs: Iterable[str]) -> bool:
    return any(matches(name, glob) for glob in globs)
