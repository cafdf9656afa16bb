"""Signs in with a user name and a password, as a browser's user would: the documented sequence of calls, and nothing that a service did not ask for.

What comes of it is the service's own document. Nothing is kept between two sign-ins, and no page is made to believe anything of us.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from backends.http import Transport
from backends.refusal import parsed
from backends.sign_in_pages import hidden_field, text_of_class, text_of_id
from backends.sign_in_visit import Page, Visit
from gateway.backend import Backend, Call, Headers, Reply, Services, Target
from gateway.errors import BadRequest, UpstreamError, UpstreamRefused

PLATFORM_CLIENT_ID = "DRivsnm2Mu42T3KOpqdtwB3NYviHYzwD"
"""By which the sign-in service knows the platform's own pages; it is in every one of their URLs."""
PLATFORM_CALLBACK = "https://platform.openai.com/auth/callback"
EMAIL_REFUSED = "Email is not valid."
PASSWORD_REFUSED = "Email or password is not correct."  # noqa: S105
NO_CSRF_TOKEN, NO_URL, NO_STATE = "Failed to get CSRF token.", "Failed to get authorized url.", "Failed to get state."
NO_ACCESS_TOKEN, NO_SESSION_KEY = "Failed to get access token.", "Failed to get session key."
TWO_FACTORS = "Login with two-factor authentication enabled is not supported currently."
PUID = "_puid"
_JSON: Headers = (("content-type", "application/json"),)


@dataclass(frozen=True, slots=True)
class Options:
    """`platform`: sign in to the platform, for its session key, instead of to the web interface. `auth0_url`: the service that asks for
    the password. `puid`: visit the web interface with the token that it gave, and answer with its cookie `_puid`, where it sets one."""

    platform: bool = False
    auth0_url: str = "https://auth0.openai.com"
    puid: bool = False


@dataclass(frozen=True, slots=True)
class Login:
    """What signs in. Its repr shows neither."""

    username: str
    password: str

    def __repr__(self) -> str:
        return "<Login>"


class SignIn(Backend):
    """POST /login with `username` and `password`. The target's base URL is that of the web interface, or of the platform's API."""

    dialects = frozenset({"chatgpt_web"})
    Options = Options
    needs_secret = False

    def __init__(self, options: Any, services: Services) -> None:
        super().__init__(options, services)
        self._transport = Transport(clock=services.clock, allow_networks=services.allow_networks)

    def send(self, call: Call, target: Target) -> Reply:
        login, auth0 = _login(call.document()), self.options.auth0_url
        ends_at = PLATFORM_CALLBACK if self.options.platform else ""
        visit = Visit(self._transport, call, target, (target.base_url, auth0), ends_at)
        signed_in = _platform if self.options.platform else _web
        body = signed_in(visit, target.base_url, auth0, login)
        cookie = _puid(visit, target.base_url, body) if self.options.puid else ""
        headers: Headers = (("set-cookie", f"{PUID}={cookie}"),) if cookie else ()
        return Reply(200, (*_JSON, *headers, ("content-length", str(len(body)))), iter((body,)), lambda: None)

    def close(self) -> None:
        self._transport.close()


def _login(document: Mapping[str, Any]) -> Login:
    """Raises BadRequest."""
    username, password = document.get("username", ""), document.get("password", "")
    if not isinstance(username, str) or not isinstance(password, str):
        raise BadRequest("Failed to parse user login info.")
    return Login(username, password)


def _web(visit: Visit, web: str, auth0: str, login: Login) -> bytes:
    """The session, as the web interface gives it."""
    page = visit.get(f"{web}/api/auth/csrf")
    token = page.document.get("csrfToken")
    if page.status != 200 or not isinstance(token, str):
        raise _refused(page, (page.status == 403 and text_of_class(page.text, "message")) or NO_CSRF_TOKEN)
    page = visit.post_form(f"{web}/api/auth/signin/auth0?prompt=login", {"callbackUrl": "/", "csrfToken": token, "json": "true"})
    url = page.document.get("url")
    if page.status != 200 or not isinstance(url, str):
        raise _refused(page, NO_URL)
    page = visit.get(url)
    state = hidden_field(page.text, "state")
    if page.status != 200 or not state:
        raise _refused(page, NO_STATE)
    _identify(visit, auth0, state, login)
    page = _prove(visit, auth0, state, login, follows=False)
    if page.status != 302 or not page.location:
        raise _refused(page, NO_ACCESS_TOKEN)
    _resume(visit, page.location)
    page = visit.get(f"{web}/api/auth/session")
    if page.status != 200:
        detail = page.document.get("detail")
        raise _refused(page, detail if page.status == 429 and isinstance(detail, str) and detail else NO_ACCESS_TOKEN)
    return page.body


def _identify(visit: Visit, auth0: str, state: str, login: Login) -> None:
    fields = {
        "state": state,
        "username": login.username,
        "js-available": "true",
        "webauthn-available": "true",
        "is-brave": "false",
        "webauthn-platform-available": "false",
        "action": "default",
    }
    page = visit.post_form(f"{auth0}/u/login/identifier?{urlencode({'state': state})}", fields)
    if page.status != 200:
        raise _refused(page, EMAIL_REFUSED)


def _prove(visit: Visit, auth0: str, state: str, login: Login, *, follows: bool) -> Page:
    fields = {"state": state, "username": login.username, "password": login.password, "action": "default"}
    page = visit.post_form(f"{auth0}/u/login/password?{urlencode({'state': state})}", fields, follows=follows)
    if page.status == 400:
        raise _refused(page, text_of_id(page.text, "prompt-alert") or PASSWORD_REFUSED)
    return page


def _resume(visit: Visit, url: str) -> None:
    """From the sign-in service back to the web interface, which then knows the session."""
    page = visit.get(url, follows=False)
    if page.status != 302 or not page.location:
        raise _refused(page, NO_ACCESS_TOKEN)
    if urlsplit(page.location).path.startswith("/u/mfa-otp-challenge"):
        raise _refusal(400, TWO_FACTORS)
    page = visit.get(page.location, follows=False)
    if page.status == 302:
        return
    described = _parameter(page.url, "error_description") or _parameter(page.location, "error_description")
    raise _refused(page, (page.status == 307 and described) or NO_ACCESS_TOKEN)


def _puid(visit: Visit, web: str, session: bytes) -> str:
    """Empty where the service sets none."""
    document = parsed(session)
    token = document.get("accessToken") if isinstance(document, dict) else None
    if isinstance(token, str) and token and not visit.cookie(PUID):
        with contextlib.suppress(UpstreamError):  # a token without its cookie is worth more than neither
            visit.get(f"{web}/backend-api/models", follows=False, bearer=token)
    return visit.cookie(PUID)


def _platform(visit: Visit, api: str, auth0: str, login: Login) -> bytes:
    """What the platform's dashboard is told at its start; the session key is in it."""
    visit.get(f"{auth0}/v2/logout?{urlencode({'client_id': PLATFORM_CLIENT_ID})}", follows=False)
    asked = {
        "client_id": PLATFORM_CLIENT_ID,
        "audience": "https://api.openai.com/v1",
        "redirect_uri": PLATFORM_CALLBACK,
        "scope": "openid profile email offline_access",
        "response_type": "code",
    }
    page = visit.get(f"{auth0}/authorize?{urlencode(asked)}")
    state = _parameter(page.url, "state")
    if page.status != 200 or not state:
        raise _refused(page, NO_STATE)
    _identify(visit, auth0, state, login)
    page = _prove(visit, auth0, state, login, follows=True)
    code = _parameter(page.location, "code")
    if not code:
        raise _refused(page, NO_ACCESS_TOKEN)
    exchanged = {"client_id": PLATFORM_CLIENT_ID, "grant_type": "authorization_code", "code": code, "redirect_uri": PLATFORM_CALLBACK}
    page = visit.post_json(f"{auth0}/oauth/token", exchanged)
    token = page.document.get("access_token")
    if page.status != 200 or not isinstance(token, str):
        raise _refused(page, NO_ACCESS_TOKEN)
    page = visit.post_json(f"{api}/dashboard/onboarding/login", {}, bearer=token)
    if page.status != 200:
        raise _refused(page, NO_SESSION_KEY)
    return page.body


def _parameter(url: str, name: str) -> str:
    return dict(parse_qsl(urlsplit(url).query)).get(name, "")


def _refused(page: Page, text: str) -> UpstreamRefused:
    """Under the status of the page where it went wrong; where that is none of an error's, the service is at fault."""
    return _refusal(page.status if page.status >= 400 else 403 if page.status == 307 else 502, text)


def _refusal(status: int, text: str) -> UpstreamRefused:
    return UpstreamRefused(status, _JSON, json.dumps({"errorMessage": text}).encode())
