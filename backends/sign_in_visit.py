"""One sign-in's way through the pages of its services: cookies of its own, redirects to the services' hosts only. Used by backends/sign_in.py alone."""

from __future__ import annotations

import email.message
import http.cookiejar
import json
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlencode, urljoin, urlsplit

from backends.http import Transport
from backends.refusal import parsed, read
from gateway.backend import Body, Call, Headers, Target
from gateway.errors import UpstreamProtocolError

PAGE_BYTES = 512 << 10
MOST_REDIRECTS = 10
_FORM, _JSON = "application/x-www-form-urlencoded", "application/json"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer that was read to its end. `url` is where it came from, behind redirects; `location` where it leads, absolute, or empty."""

    url: str
    status: int
    location: str
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    @property
    def document(self) -> Mapping[str, Any]:
        """The JSON object that it is; an empty one where it is none."""
        document = parsed(self.body)
        return document if isinstance(document, dict) else {}


class _Answered:
    """A response as cookiejar reads it."""

    def __init__(self, headers: Headers) -> None:
        self._message = email.message.Message()
        for name, value in headers:
            self._message[name] = value

    def info(self) -> email.message.Message:
        return self._message


class Visit:
    """Asks for one page after the other. `hosts`: the URLs of the services; nothing else is ever asked, wherever a page leads.

    `ends_at`: a redirect to a URL that begins so is not followed. Every method raises what Transport.send does, and
    UpstreamProtocolError for a page that leads elsewhere.
    """

    def __init__(self, transport: Transport, call: Call, target: Target, hosts: Sequence[str], ends_at: str = "") -> None:
        self._transport, self._call, self._target = transport, call, target
        self._origins = frozenset(map(_origin, hosts))
        self._ends_at = ends_at
        self._cookies = http.cookiejar.CookieJar()

    def get(self, url: str, *, follows: bool = True, bearer: str = "") -> Page:
        return self._asked("GET", url, b"", "", follows=follows, bearer=bearer)

    def post_form(self, url: str, fields: Mapping[str, str], *, follows: bool = True) -> Page:
        return self._asked("POST", url, urlencode(fields).encode(), _FORM, follows=follows)

    def post_json(self, url: str, document: Mapping[str, Any], *, bearer: str = "") -> Page:
        return self._asked("POST", url, json.dumps(document).encode(), _JSON, follows=False, bearer=bearer)

    def cookie(self, name: str) -> str:
        """What a service set by this name; empty where none did."""
        return next((each.value or "" for each in self._cookies if each.name == name), "")

    def _asked(self, method: str, url: str, body: bytes, content_type: str, *, follows: bool, bearer: str = "") -> Page:
        page = self._send(method, url, body, content_type, bearer)
        for _ in range(MOST_REDIRECTS):
            if not follows or not page.location or (self._ends_at and page.location.startswith(self._ends_at)):
                return page
            repeats = page.status in (307, 308) and _origin(page.location) == _origin(page.url)  # what was posted to one service is not another's
            page = self._send(method, page.location, body, content_type, bearer) if repeats else self._send("GET", page.location, b"", "", "")
        raise UpstreamProtocolError("The sign-in was redirected too often.")

    def _send(self, method: str, url: str, body: bytes, content_type: str, bearer: str) -> Page:
        url = url.partition("#")[0]
        if _origin(url) not in self._origins:
            raise UpstreamProtocolError("The sign-in led to a host that is none of its services'.")
        asked = urllib.request.Request(url, method=method)  # noqa: S310  # what a cookie jar reads; nothing is opened with it
        self._cookies.add_cookie_header(asked)
        optional = (("content-type", content_type), ("cookie", asked.get_header("Cookie", "")), ("authorization", bearer and f"Bearer {bearer}"))
        headers: Headers = (("user-agent", "chat-gateway"), ("accept", "*/*"), *((name, value) for name, value in optional if value))
        response = self._transport.send(
            method,
            url,
            headers,
            Body.of(body),
            deadlines=self._target.deadlines,
            deadline=self._call.deadline,
            cancel=self._call.cancel,
            proxy=self._target.proxy,
        )
        self._cookies.extract_cookies(cast(Any, _Answered(response.headers)), asked)
        location = dict(response.headers).get("location", "") if 300 <= response.status < 400 else ""
        return Page(url, response.status, location and urljoin(url, location), read(response, PAGE_BYTES))


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
