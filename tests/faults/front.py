"""A gateway with small limits, the upstream behind it and the real nginx before it: what hostile clients are tried on, directly and through nginx."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.answers import Json
from tests.fakes.gateway import RawClient, RunningGateway
from tests.fakes.nginx import RunningNginx
from tests.fakes.provider import Provider

DIRECTLY, THROUGH_NGINX = "directly", "through nginx"
ROADS = (DIRECTLY, THROUGH_NGINX)
CHAT, SPEECH_TO_TEXT = "/v1/chat/completions", "/v1/audio/transcriptions"
MODEL = "m"
JSON_LIMIT, UPLOAD_LIMIT, BODY_S = 6_000, 20_000, 4.0
HEADER_S = 15.0
"""The deadline for a request's header, of gunicorn.conf.py and of deploy/nginx.conf."""
LIMITS = {"GATEWAY_JSON_LIMIT": str(JSON_LIMIT), "GATEWAY_UPLOAD_LIMIT": str(UPLOAD_LIMIT), "GATEWAY_BODY_S": str(BODY_S)}


@dataclass(frozen=True)
class Front:
    """All three."""

    gateway: RunningGateway
    nginx: RunningNginx
    provider: Provider

    def client(self, road: str, key: str | None = "", timeout_s: float = 20.0) -> RawClient:
        """A connection on this road that presents the tester's key, another one, or none."""
        if road == DIRECTLY:
            return self.gateway.client(key, timeout_s)
        return self.nginx.client(self.gateway.key if key == "" else key or "", timeout_s)


@contextmanager
def running_front(directory: Path) -> Iterator[Front]:
    with ExitStack() as stack:
        provider = stack.enter_context(Provider())
        provider.always(CHAT, Json({"choices": []}))
        provider.always(SPEECH_TO_TEXT, Json({"text": ""}))
        gateway = stack.enter_context(RunningGateway(directory / "gateway", dict(LIMITS)))
        gateway.deploy(MODEL, provider.url)
        gateway.wait_catalog()
        yield Front(gateway, stack.enter_context(RunningNginx(directory / "nginx", gateway.port)), provider)
