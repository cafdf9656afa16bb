"""Who may call chatgpt-to-api's routes: keys of api_keys.txt, bearers of an upstream token, on request whoever is on this host. Knows no Flask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.api import PREFIXES
from gateway.api.access import is_of_this_host
from gateway.backend import Secret
from gateway.errors import SwitchedOff, Unauthenticated
from gateway.operations.token_files import ApiKeysFile
from gateway.settings import Settings, is_loopback

OWN_KEY = "Bearer gw_"
OWN_TOKEN = "Bearer eyJhbGciOiJSUzI1NiI"  # noqa: S105  the base64 of a header that says RS256
ALWAYS = frozenset(
    {
        ("GET", "/ping"),
        ("HEAD", "/ping"),
        ("OPTIONS", "/v1/chat/completions"),
        *(("PATCH", f"/admin/{name}") for name in ("tokens", "password", "puid", "openai")),
    }
)
"""Routes that are this family's alone, also without its prefix."""
SHARED = frozenset({("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/engines")})
"""Routes that are this family's where its rules apply, unless a key of the gateway's own is shown."""


class FileKeys:
    """Reads api_keys.txt as it changes. Keeps no state of a request."""

    def __init__(self, settings: Settings) -> None:
        self._file = ApiKeysFile(settings.data_dir.resolve())
        self._open = settings.chatgpt_to_api_open and is_loopback(settings.host)

    def place(self, environ: dict[str, Any]) -> None:
        """Lead a request to the family's prefix where the family answers it."""
        route = (environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if route in ALWAYS or (route in SHARED and self._applies(environ)):
            environ["PATH_INFO"] = PREFIXES["chatgpt_to_api"] + route[1]

    def _applies(self, environ: Mapping[str, Any]) -> bool:
        if environ.get("HTTP_AUTHORIZATION", "").startswith(OWN_KEY):
            return False
        return self._file.in_use or self._is_open_to(environ)

    def admit(self, environ: Mapping[str, Any]) -> Secret | None:
        """The upstream's token where the caller brings one; None for a call that the pool answers. Raises Unauthenticated, SwitchedOff."""
        shown: str = environ.get("HTTP_AUTHORIZATION", "")
        value = shown.removeprefix("Bearer ")
        if shown.startswith(OWN_TOKEN) and value.isascii() and value.isprintable() and " " not in value:
            return Secret(value)
        if not self._file.in_use:
            if self._is_open_to(environ):
                return None
            raise SwitchedOff("There is no api_keys.txt in GATEWAY_DATA_DIR, so that nobody may call; CHATGPT_TO_API_OPEN=1 lets callers of this host do so.")
        if not shown:
            raise Unauthenticated("No API key provided. Send one of the keys of api_keys.txt as 'Authorization: Bearer KEY'.")
        if shown.startswith("Bearer ") and self._file.holds(value):
            return None
        if shown.startswith("Bearer sk-"):
            raise Unauthenticated("You tried to use the official API key which is not supported.")
        raise Unauthenticated("Invalid API key.")

    def _is_open_to(self, environ: Mapping[str, Any]) -> bool:
        return self._open and is_of_this_host(environ)
