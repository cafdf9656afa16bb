"""The web interface's and the platform's sign-in as their services answer it, over fake providers: cookies, hidden fields, redirects, refusals.

Each step insists on what the one before gave, so that a step left out, a cookie lost or a field not escaped is a refusal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

from tests.fakes.answers import Answer, Json, Redirect, Status, Step
from tests.fakes.provider import Provider
from tests.fakes.received import Received

USERNAME, PASSWORD = "ann+one@example.com", "p&a+s%s=w;rd ü"
SESSION = {"user": {"id": "user-1", "email": USERNAME}, "expires": "2030-01-01T00:00:00.000Z", "accessToken": "eyJ-signed-in", "authProvider": "auth0"}
ONBOARDING = {"user": {"session": {"sensitive_id": "sess-signed-in"}}, "invites": []}
HTML = (("content-type", "text/html; charset=utf-8"),)
CALLBACK = "https://platform.openai.com/auth/callback"


def Page(text: str, status: int = 200, cookie: str = "") -> Answer:
    headers = (*HTML, ("set-cookie", cookie)) if cookie else HTML
    return Answer(status, headers, (text.encode(),))


def form(received: Received) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(received.body.decode(), keep_blank_values=True).items()}


def query(received: Received) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(received.query).items()}


def cookies(received: Received) -> dict[str, str]:
    pairs = [part.strip().partition("=") for part in received.headers.get("cookie", "").split(";")]
    return {name: value for name, _, value in pairs if name}


@dataclass
class SignInServices:
    """Serves the sign-in of `accounts`, by name their passwords. `session` is what one is given; `puids`: the cookies that visits with their tokens set.

    `replace` puts another answer in the place of a step's; `logins` counts those that began, `signed_in` names those that ended well.
    """

    web: Provider
    auth0: Provider
    api: Provider
    second_factor: bool = False
    denied: str = ""
    accounts: dict[str, str] = field(default_factory=lambda: {USERNAME: PASSWORD})
    session: Callable[[str], Any] = lambda name: SESSION
    puids: dict[str, str] = field(default_factory=dict)
    signed_in: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    logins: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def install(self) -> None:
        """Every step as it goes well, in place of what stood there."""
        self.second_factor, self.denied = False, ""
        steps: dict[tuple[Provider, str], Step] = {
            (self.web, "/api/auth/csrf"): self._csrf,
            (self.web, "/api/auth/signin/auth0"): self._signin,
            (self.web, "/api/auth/callback/auth0"): self._callback,
            (self.web, "/api/auth/session"): self._session,
            (self.web, "/backend-api/models"): self._models,
            (self.auth0, "/authorize"): self._authorize,
            (self.auth0, "/u/login/identifier"): self._identifier,
            (self.auth0, "/u/login/password"): self._password,
            (self.auth0, "/authorize/resume"): self._resume,
            (self.auth0, "/v2/logout"): lambda received: Redirect("https://elsewhere.example/"),
            (self.auth0, "/oauth/token"): self._token,
            (self.api, "/dashboard/onboarding/login"): self._onboarding,
        }
        for (provider, path), step in steps.items():
            provider.always(path, step)

    # the web interface

    def _csrf(self, received: Received) -> Answer:
        number = next(self.logins)
        assert "csrf" not in cookies(received), "a cookie of another sign-in"
        return Json({"csrfToken": f"csrf&{number}"}, 200, (("set-cookie", f"csrf={number}; Path=/; HttpOnly"),))

    def _signin(self, received: Received) -> Answer:
        number = cookies(received).get("csrf")
        right = {"callbackUrl": "/", "csrfToken": f"csrf&{number}", "json": "true"}
        if form(received) != right or query(received) != {"prompt": "login"}:
            return Status(400, {"detail": "no sign-in"})
        return Json({"url": f"{self.auth0.root}/authorize?{urlencode({'from': 'web', 'login': number})}"})

    def _callback(self, received: Received) -> Answer:
        if self.denied:
            return Redirect("/", 307)
        if query(received).get("code") != f"code-{cookies(received).get('csrf')}":
            return Status(400, {})
        return Answer(302, (("location", "/"), ("set-cookie", "session=yes; Path=/")))

    def _session(self, received: Received) -> Answer:
        if cookies(received).get("session") != "yes":
            return Json({})
        name = self.names[cookies(received)["csrf"]]
        self.signed_in.append(name)
        return Json(self.session(name))

    def _models(self, received: Received) -> Answer:
        token = received.headers.get("authorization", "").removeprefix("Bearer ")
        puid = next((puid for name, puid in self.puids.items() if self.session(name).get("accessToken") == token), None)
        return Json({"models": []}, 200, () if puid is None else (("set-cookie", f"_puid={puid}; Path=/; HttpOnly"),))

    # the service that asks for the password

    def _authorize(self, received: Received) -> Answer:
        asked = query(received)
        origin = "platform" if asked.get("redirect_uri") == CALLBACK else "web"
        number = asked.get("login") or str(next(self.logins))
        headers = (("location", f"/u/login/identifier?{urlencode({'state': f'{origin}-{number}='})}"), ("set-cookie", f"auth0={number}; Path=/"))
        return Answer(302, headers)

    def _identifier(self, received: Received) -> Answer:
        state = query(received).get("state", "")
        if received.method == "GET":
            return Page(f'<form><br><input type="text" name="username"><input type="hidden" name="state" value="{state}"></form>')
        sent = form(received)
        wanted = {"js-available": "true", "webauthn-available": "true", "is-brave": "false", "webauthn-platform-available": "false", "action": "default"}
        name = sent.get("username", "")
        if name not in self.accounts or sent != {"state": state, "username": name, **wanted} or not state.endswith(f"-{cookies(received).get('auth0')}="):
            return Page("<p>No such account.</p>", 400)
        return Redirect(f"/u/login/password?{urlencode({'state': state})}")

    def _password(self, received: Received) -> Answer:
        state = query(received).get("state", "")
        if received.method == "GET":
            return Page("<form></form>")
        name = form(received).get("username", "")
        if form(received) != {"state": state, "username": name, "password": self.accounts.get(name), "action": "default"}:
            return Page('<div class="a"><div id="prompt-alert"><p>Wrong email\n or <b>password</b></p></div><p>more</p></div>', 400)
        self.names[state.rstrip("=").partition("-")[2]] = name
        return Redirect(f"/authorize/resume?{urlencode({'state': state})}")

    def _resume(self, received: Received) -> Answer:
        origin, _, number = query(received).get("state", "").rstrip("=").partition("-")
        if self.second_factor:
            return Redirect("/u/mfa-otp-challenge?state=x")
        if origin == "platform":
            return Redirect(f"{CALLBACK}?{urlencode({'code': f'code-{number}'})}")
        told = {"error": "access_denied", "error_description": self.denied} if self.denied else {"code": f"code-{number}"}
        return Redirect(f"{self.web.root}/api/auth/callback/auth0?{urlencode(told)}")

    def _token(self, received: Received) -> Answer:
        sent: dict[str, Any] = received.json()
        right = sent.get("grant_type") == "authorization_code" and sent.get("redirect_uri") == CALLBACK and str(sent.get("code")).startswith("code-")
        return Json({"access_token": "eyJ-platform"}) if right and sent.get("client_id") else Status(403, {"error": "invalid_grant"})

    # the platform

    def _onboarding(self, received: Received) -> Answer:
        return Json(ONBOARDING) if received.json() == {} and received.headers.get("authorization") == "Bearer eyJ-platform" else Status(401)
