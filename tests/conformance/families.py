"""A gateway whose callers bring tokens of their own, before fakes of the web interface, the official API and the sign-in service."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.gateway import Answer, RunningGateway
from tests.fakes.provider import Provider
from tests.fakes.sign_in import SignInServices

TOKEN = "caller-access-token"
CORS = {f"access-control-allow-{name}": "*" for name in ("origin", "headers", "methods")}


@dataclass
class Families:
    """`ask` is a client of an old program: it sends no content type that says JSON."""

    gateway: RunningGateway
    web: Provider
    auth0: Provider
    api: Provider
    sign_in: SignInServices

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = f"Bearer {TOKEN}", headers: Mapping[str, str] | None = None) -> Answer:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        shown = {} if token is None else {"authorization": token}
        form = {} if raw is None else {"content-type": "application/x-www-form-urlencoded"}
        answer = self.gateway.request(method, path, raw, None, form | shown | dict(headers or {}))
        assert {name: answer.headers.get(name) for name in CORS} == CORS
        return answer

    def forget(self) -> None:
        """As if nothing had been asked."""
        for provider in (self.web, self.auth0, self.api):
            provider.forget()
        self.sign_in.install()


@contextlib.contextmanager
def families(directory: Path, **settings: str) -> Iterator[Families]:
    with Provider() as web, Provider() as auth0, Provider() as api:
        urls = {"CHATGPT_BASE_URL": web.root, "AUTH0_BASE_URL": auth0.root, "PLATFORM_BASE_URL": api.root}
        with RunningGateway(directory, urls | settings) as gateway:
            yield Families(gateway, web, auth0, api, SignInServices(web, auth0, api))


def jwt(claims: Any, header: str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9") -> str:
    """An access token that says this; its signature is nobody's."""
    raw = claims if isinstance(claims, bytes) else json.dumps(claims, ensure_ascii=False).encode()
    return f"{header}.{base64.urlsafe_b64encode(raw).rstrip(b'=').decode()}.c2lnbmF0dXJl"


def expired(email: str = "ann@example.com") -> str:
    return jwt({"exp": int(time.time()) - 5, "https://api.openai.com/profile": {"email": email}})
