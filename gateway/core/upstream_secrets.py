"""What can be told of a secret that is presented upstream: whether a header can carry it, its end, and marks that do not show it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from gateway.backend import Secret
from gateway.errors import BadRequest
from gateway.secrets import KeyHasher

HINT_CHARACTERS = 4
HINTED_FROM = 16
"""A shorter secret is not hinted at: 4 characters of it would be too large a part."""
LATEST_S = 1e11
PROFILE = "https://api.openai.com/profile"
"""The claim in which OpenAI's access tokens carry the address of their account."""


def checked(secret: Secret) -> str:
    """The secret as it goes into a header, where a line break would begin another. Raises BadRequest, which does not repeat it."""
    plain = secret.reveal().strip()
    if not plain:
        raise BadRequest("the secret is empty")
    if not plain.isascii() or not plain.isprintable() or " " in plain:
        raise BadRequest("the secret must be printable ASCII characters without spaces or line breaks")
    return plain


def hint(plain: str) -> str:
    return plain[-HINT_CHARACTERS:] if len(plain) >= HINTED_FROM else ""


def fingerprint(hasher: KeyHasher, plain: str) -> str:
    """By which the same secret is recognised; nobody without the pepper can tell it from the secret."""
    return hasher.hash(f"credential {plain}")


def expiry(secret: str) -> int | None:
    """When a JWT expires by its `exp`, in Unix milliseconds; None for what is no JWT, or names no end. RFC 7519, section 4.1.4."""
    return _moment(claims(secret).get("exp"))


def issued(secret: str) -> int | None:
    """When a JWT was issued by its `iat`, as `expiry`. RFC 7519, section 4.1.6."""
    return _moment(claims(secret).get("iat"))


def claims(secret: str) -> Mapping[str, Any]:
    """What a JWT says of itself, unverified: it is ours to send, not to believe. Empty for what is no JWT."""
    parts = secret.split(".")
    found = _decoded(parts[1]) if len(parts) == 3 else None
    return found if isinstance(found, dict) else {}


def email(secret: str) -> str:
    """Whose a JWT says that it is, in its own claim or in OpenAI's; empty where it says nothing."""
    said = claims(secret)
    profile = said.get(PROFILE)
    found = said.get("email") or (profile.get("email") if isinstance(profile, dict) else None)
    return found if isinstance(found, str) else ""


def is_jwt(secret: str) -> bool:
    header, _, rest = secret.partition(".")
    return bool(claims(secret)) and isinstance(_decoded(header), dict) and bool(rest.partition(".")[2])


def _decoded(part: str) -> Any:
    try:
        return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None


def _moment(seconds: Any) -> int | None:
    known = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds < LATEST_S
    return int(seconds * 1000) if known else None
