"""The API families: one Flask blueprint module each. `PREFIXES` is the one table of what each family owns."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PREFIXES: Mapping[str, str] = MappingProxyType(
    {
        "openai": "/v1",
        "me": "/v1/me",
        "system": "/",
        "chatgpt": "/chatgpt",
        "platform": "/platform",
        "imitate": "/imitate",
        "backend_api": "/api",
        "chatgpt_to_api": "/chatgpt-to-api",
        "api_server": "/api-server",
    }
)
