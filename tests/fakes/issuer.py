"""An issuer of tokens on a real socket: OAuth 2.0's refresh grant, with refresh tokens that work once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from backends.http import Transport
from backends.oauth import refresh_grant
from gateway.backend import Refreshed, Services, Target
from tests.factories import Scripted
from tests.fakes.answers import Answer, Delay, Json, Step
from tests.fakes.provider import Provider
from tests.fakes.received import Received

PATH = "/oauth/token"
FIRST = "refresh-token-number-0"


class Issuer(Provider):
    """`issues`: how many tokens it gave; `refused`: how often it was shown a refresh token that is no longer good.

    `rotates`: each answer holds the next refresh token, and the old one is spent. `lenient`: a spent one still works. `meanwhile` is called while
    a request waits for its answer. `then`: scripted answers come first, one a request.
    """

    def __init__(self, *, rotates: bool = True, lenient: bool = False, life_s: int = 3600, delay_s: float = 0.0) -> None:
        super().__init__()
        self.rotates, self.lenient, self.life_s, self.delay_s = rotates, lenient, life_s, delay_s
        self.meanwhile: Callable[[], object] = lambda: None
        self.good, self.issues, self.refused = FIRST, 0, 0
        self._numbers, self._guard = itertools.count(1), threading.Lock()
        self.always(PATH, self._answer)

    @property
    def token_url(self) -> str:
        return self.root + PATH

    def then(self, *steps: Step) -> None:
        self.script(PATH, *steps)

    def _answer(self, received: Received) -> Any:
        answer = self._issued(parse_qs(received.body.decode()))
        self.meanwhile()
        return Delay(self.delay_s, answer)(received) if self.delay_s else answer

    def _issued(self, form: dict[str, list[str]]) -> Answer:
        with self._guard:
            if form["grant_type"] != ["refresh_token"] or (form["refresh_token"] != [self.good] and not self.lenient):
                self.refused += 1
                return Json({"error": "invalid_grant", "error_description": f"spent: {form['refresh_token'][0]}"}, 400)
            self.issues += 1
            given: dict[str, Any] = {"access_token": access_token(number := next(self._numbers)), "token_type": "Bearer", "expires_in": self.life_s}
            if self.rotates:
                self.good = f"refresh-token-number-{number}"
                given["refresh_token"] = self.good
            return Json(given)


def access_token(number: int) -> str:
    return f"access-token-number-{number}"


@dataclass(frozen=True)
class Options:
    refresh_url: str


class Refreshing(Scripted):
    """A backend whose tokens come from an issuer. As "tests.fakes.issuer:Refreshing" it is built by the gateway itself."""

    Options = Options

    def __init__(self, options: Any, services: Services) -> None:
        super().__init__(options, services)
        self._transport = Transport(clock=services.clock)

    def refresh(self, target: Target, deadline: float) -> Refreshed:
        url, token = self.options.refresh_url, target.extras["refresh_token"]
        return refresh_grant(self._transport, url, "client", token, deadlines=target.deadlines, deadline=deadline, proxy=target.proxy)

    def close(self) -> None:
        super().close()
        self._transport.close()
