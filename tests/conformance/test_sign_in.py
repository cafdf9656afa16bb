"""Signing in to the web interface and to the platform: the sequence of calls, what comes of it, and what is told where a step fails."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conformance.families import Families, families
from tests.fakes.answers import Answer, Json, Redirect, ResetAt, Status, Step
from tests.fakes.gateway import Answer as Seen
from tests.fakes.sign_in import ONBOARDING, PASSWORD, SESSION, USERNAME, Page, cookies, form

WEB_LOGINS = ["/chatgpt/login", "/chatgpt/backend-api/login", "/imitate/login", "/api/login"]
PLATFORM_LOGINS = ["/platform/login", "/platform/v1/login"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    with families(tmp_path_factory.mktemp("sign-in")) as running:
        yield running


@pytest.fixture
def old(running: Families) -> Families:
    running.forget()
    return running


def login(old: Families, path: str, username: Any = USERNAME, password: Any = PASSWORD) -> Seen:
    return old.ask("POST", path, {"username": username, "password": password}, token=None)


@pytest.mark.parametrize("path", WEB_LOGINS)
def test_web_interface_s_session_is_given_as_it_is(old: Families, path: str) -> None:
    answer = login(old, path)
    assert (answer.status, answer.json()) == (200, SESSION)
    steps = [f"{received.method} {received.path}" for received in old.web.requests]
    assert steps == ["GET /api/auth/csrf", "POST /api/auth/signin/auth0", "GET /api/auth/callback/auth0", "GET /api/auth/session"]
    asked = [f"{received.method} {received.path}" for received in old.auth0.requests]
    assert asked == [
        "GET /authorize",
        "GET /u/login/identifier",
        "POST /u/login/identifier",
        "GET /u/login/password",
        "POST /u/login/password",
        "GET /authorize/resume",
    ]


@pytest.mark.parametrize("path", PLATFORM_LOGINS)
def test_platform_s_session_key_is_given_as_it_is(old: Families, path: str) -> None:
    answer = login(old, path)
    assert (answer.status, answer.json()) == (200, ONBOARDING)
    assert [received.path for received in old.auth0.requests][::7] == ["/v2/logout", "/oauth/token"]
    assert [received.path for received in old.api.requests] == ["/dashboard/onboarding/login"]


def test_fault_17_fields_are_escaped(old: Families) -> None:
    assert login(old, "/chatgpt/login").status == 200
    (sent,) = [received for received in old.auth0.requests if (received.method, received.path) == ("POST", "/u/login/password")]
    assert form(sent) == {"state": form(sent)["state"], "username": USERNAME, "password": PASSWORD, "action": "default"}
    assert login(old, "/chatgpt/login", password="x&action=admin&username=root").status == 400
    sent = [received for received in old.auth0.requests if (received.method, received.path) == ("POST", "/u/login/password")][-1]
    assert form(sent)["username"] == USERNAME
    assert form(sent)["action"] == "default"


def test_fault_12_each_sign_in_has_cookies_of_its_own(old: Families) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda path: login(old, path), ["/chatgpt/login", "/platform/login"] * 4))
    assert [answer.status for answer in answers] == [200] * 8
    assert login(old, "/chatgpt/login").status == 200
    first = [received for received in old.web.requests if received.path == "/api/auth/csrf"]
    assert all(cookies(received) == {} for received in first)


def test_nothing_of_a_sign_in_is_kept_or_logged(old: Families) -> None:
    for path in (*WEB_LOGINS, *PLATFORM_LOGINS):
        login(old, path)
        answer = login(old, path, password="another-secret-word")
        row = old.gateway.exchange(answer.headers["x-request-id"])
        assert row is not None
        assert "another-secret-word" not in row.receipt
    kept = old.gateway.log_path.read_text()
    assert not any(word in kept for word in (PASSWORD, "another-secret-word", USERNAME, "eyJ-signed-in", "sess-signed-in"))
    files = [path.read_bytes() for path in old.gateway.directory.rglob("*") if path.is_file()]
    assert not any(word.encode() in content for content in files for word in (PASSWORD, "another-secret-word"))


@pytest.mark.parametrize("raw", [b"", b"username=a", b"[]", b'{"username":1}', b'{"username":"a","password":{}}'])
def test_body_that_is_no_login_is_refused(old: Families, raw: bytes) -> None:
    for path, text in {"/chatgpt/login": "Failed to parse user login info.", "/imitate/login": "failed to parse user login info"}.items():
        answer = old.ask("POST", path, raw, token=None)
        assert (answer.status, answer.json()) == (400, {"errorMessage": text})
    assert old.web.requests == []


def posted(answer: Answer) -> Step:
    """This answer for a form that is sent; the page where it is asked for."""
    return lambda received: answer if received.method == "POST" else Page("<form></form>")


WEB_FAILURES: list[tuple[str, str, Any, int, str]] = [
    ("web", "/api/auth/csrf", Page('<div class="message big"><b>Sorry,</b> not <br>here</div><p>x', 403), 403, "Sorry, not here"),
    ("web", "/api/auth/csrf", Page("<p>", 403), 403, "Failed to get CSRF token."),
    ("web", "/api/auth/csrf", Status(503), 503, "Failed to get CSRF token."),
    ("web", "/api/auth/csrf", Json({}), 502, "Failed to get CSRF token."),
    ("web", "/api/auth/signin/auth0", Status(400), 400, "Failed to get authorized url."),
    ("web", "/api/auth/signin/auth0", Json([1]), 502, "Failed to get authorized url."),
    ("auth0", "/authorize", Status(500), 500, "Failed to get state."),
    ("auth0", "/authorize", Page("<form></form>"), 502, "Failed to get state."),
    ("auth0", "/u/login/password", posted(Status(429)), 429, "Failed to get access token."),
    ("auth0", "/authorize/resume", Status(404), 404, "Failed to get access token."),
    ("web", "/api/auth/callback/auth0", Status(403), 403, "Failed to get access token."),
    ("web", "/api/auth/session", Json({"detail": "Too many, wait."}, 429), 429, "Too many, wait."),
    ("web", "/api/auth/session", Json({"detail": "other"}, 401), 401, "Failed to get access token."),
]


@pytest.mark.parametrize(("service", "step", "answer", "status", "text"), WEB_FAILURES)
def test_step_that_fails_is_told_under_its_status(old: Families, service: str, step: str, answer: Step, status: int, text: str) -> None:
    {"web": old.web, "auth0": old.auth0}[service].always(step, answer)
    seen = login(old, "/chatgpt/login")
    assert (seen.status, seen.json()) == (status, {"errorMessage": text})
    seen = login(old, "/imitate/login")
    assert (seen.status, seen.json()) == (status, {"errorMessage": text[0].lower() + text[1:].removesuffix(".")})


@pytest.mark.parametrize("path", ["/chatgpt/login", "/platform/login"])
def test_wrong_name_or_password_is_told_in_the_service_s_words(old: Families, path: str) -> None:
    answer = login(old, path, username="bob@example.com")
    assert (answer.status, answer.json()) == (400, {"errorMessage": "Email is not valid."})
    answer = login(old, path, password="wrong")
    assert (answer.status, answer.json()) == (400, {"errorMessage": "Wrong email or password"})
    old.auth0.always("/u/login/password", posted(Page("<p>", 400)))
    assert login(old, path).json() == {"errorMessage": "Email or password is not correct."}


def test_second_factor_is_told_and_not_gone_round(old: Families) -> None:
    old.sign_in.second_factor = True
    answer = login(old, "/chatgpt/login")
    assert answer.status == 400
    assert answer.json() == {"errorMessage": "Login with two-factor authentication enabled is not supported currently."}


def test_denied_sign_in_is_told_in_the_service_s_words(old: Families) -> None:
    old.sign_in.denied = "You are not allowed."
    answer = login(old, "/chatgpt/login")
    assert (answer.status, answer.json()) == (403, {"errorMessage": "You are not allowed."})


PLATFORM_FAILURES: list[tuple[str, str, Any, int, str]] = [
    ("auth0", "/authorize", Status(500), 500, "Failed to get state."),
    ("auth0", "/authorize/resume", Status(403), 403, "Failed to get access token."),
    ("auth0", "/oauth/token", Status(403), 403, "Failed to get access token."),
    ("auth0", "/oauth/token", Json({}), 502, "Failed to get access token."),
    ("api", "/dashboard/onboarding/login", Status(401), 401, "Failed to get session key."),
]


@pytest.mark.parametrize(("service", "step", "answer", "status", "text"), PLATFORM_FAILURES)
def test_step_of_the_platform_s_that_fails_is_told_under_its_status(old: Families, service: str, step: str, answer: Step, status: int, text: str) -> None:
    {"api": old.api, "auth0": old.auth0}[service].always(step, answer)
    seen = login(old, "/platform/login")
    assert (seen.status, seen.json()) == (status, {"errorMessage": text})


@pytest.mark.parametrize(("service", "step"), [("auth0", "/v2/logout"), ("auth0", "/oauth/token"), ("api", "/dashboard/onboarding/login")])
def test_fault_19_service_that_breaks_off_is_an_error_and_not_the_end(old: Families, service: str, step: str) -> None:
    provider = {"api": old.api, "auth0": old.auth0}[service]
    provider.always(step, ResetAt(0))
    seen = login(old, "/platform/login")
    assert (seen.status, list(seen.json())) == (500, ["errorMessage"])
    old.sign_in.install()
    assert login(old, "/platform/login").status == 200


@pytest.mark.parametrize(
    "elsewhere", ["http://127.0.0.1:1/x", "http://169.254.169.254/latest", "file:///etc/passwd", "//evil.example/x", "https://chat.openai.com@evil.example/"]
)
def test_sign_in_is_led_to_its_services_only(old: Families, elsewhere: str) -> None:
    old.auth0.always("/authorize", Redirect(elsewhere))
    for path in ("/chatgpt/login", "/platform/login"):
        answer = login(old, path)
        assert (answer.status, answer.json()) == (500, {"errorMessage": "The sign-in led to a host that is none of its services'."})


def test_sign_in_that_is_led_in_circles_ends(old: Families) -> None:
    old.auth0.always("/authorize", Redirect("/authorize"))
    answer = login(old, "/chatgpt/login")
    assert answer.status == 500
    assert len([received for received in old.auth0.requests if received.path == "/authorize"]) < 15


def test_password_that_was_posted_to_one_service_is_not_posted_to_another(old: Families) -> None:
    old.auth0.always("/u/login/password", posted(Redirect(f"{old.api.root}/taken", 307)))
    login(old, "/platform/login")
    taken = [received for received in old.api.requests if received.path == "/taken"]
    assert taken
    assert all(received.body == b"" for received in taken)
