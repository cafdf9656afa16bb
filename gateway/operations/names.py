"""What a name may be: of users, deployments and credentials, of models, and of a key's label."""

from __future__ import annotations

import re

from gateway.core.globs import is_model
from gateway.errors import BadRequest

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
LABEL_CHARACTERS = 64


RESERVED = frozenset({"environment"})
"""The deployment that OPENAI_API_KEY makes."""


def check_name(kind: str, name: str) -> None:
    """Raises BadRequest. `kind` is the word for what bears the name ("user")."""
    if kind == "deployment" and name in RESERVED:
        raise BadRequest(f"{name!r} is the name of the deployment that OPENAI_API_KEY makes; choose another")
    if not _NAME.match(name):
        raise BadRequest(f"{name!r} cannot be a {kind}'s name: it must be 1 to 64 letters, digits, dots, hyphens or underscores")


def check_model_name(name: str) -> None:
    """A model's name, exact or a glob such as gpt-*. Raises BadRequest."""
    if not is_model(name):
        raise BadRequest(f"{name!r} cannot be a model's name: it must be 1 to 256 printable characters without spaces or commas")


def check_label(label: str) -> None:
    """A key's label: free text on one line. Raises BadRequest."""
    if len(label) > LABEL_CHARACTERS or not label.isprintable():
        raise BadRequest(f"a label must be at most {LABEL_CHARACTERS} printable characters")
