"""Names of models and prices, and those with wildcards: `*` stands for any characters, `?` for one. A bracket stands for itself: models have them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

_MODEL = re.compile(r"[!-+\--~]{1,256}")  # printable ASCII but for the comma, which separates models in a list


def is_model(name: str) -> bool:
    """Whether a model may have this name, or several by this glob."""
    return _MODEL.fullmatch(name) is not None


def is_glob(name: str) -> bool:
    return "*" in name or "?" in name


def matches(name: str, glob: str) -> bool:
    """Whether the glob (or the plain name) stands for `name`."""
    return name == glob or (is_glob(glob) and fnmatch.fnmatchcase(name, glob.replace("[", "[[]")))


def matches_any(name: str, globs: Iterable[str]) -> bool:
    return any(matches(name, glob) for glob in globs)
