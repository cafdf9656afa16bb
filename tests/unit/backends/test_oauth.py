"""The refresh grant over real sockets: one request, whatever it is answered, and no token in any error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest

from backends.http import Transport
from backends.oauth import ANSWER_BYTES, refresh_grant
from gateway.backend import Deadlines, Refreshed, Secret
from gateway.errors import Blame, UpstreamError, UpstreamProtocolError, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from tests.fakes.answers import CloseAt, Json, Redirect, Silent, Status
from tests.fakes.issuer import FIRST, PATH, Issuer

NOW = 1_000_000
PATIENT = Deadlines(connect_s=2.0, first_byte_s=5.0, idle_s=5.0)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        yield issuer


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport()
    yield transport
    transport.close()


def ask(
    transport: Transport, issuer: Issuer, token: str = FIRST, client_id: str = "client", deadlines: Deadlines = PATIENT, total_s: float = 10.0
) -> Refreshed:
    deadline = time.monotonic() + total_s
    return refresh_grant(transport, issuer.token_url, client_id, Secret(token), deadlines=deadlines, deadline=deadline, wall_ms=lambda: NOW)


def revealed(given: Refreshed) -> tuple[str, dict[str, str], int | None]:
    return given.secret.reveal(), {name: value.reveal() for name, value in given.extras.items()}, given.expires_at


def test_a_refresh_token_is_exchanged_as_the_specification_has_it(transport: Transport, issuer: Issuer) -> None:
    given = ask(transport, issuer)
    assert revealed(given) == ("access-token-number-1", {"refresh_token": "refresh-token-number-1"}, NOW + 3_600_000)
    (received,) = issuer.requests
    assert (received.method, received.path, received.headers["content-type"]) == ("POST", PATH, "application/x-www-form-urlencoded")
    assert (received.headers["user-agent"], received.headers["accept"]) == ("chat-gateway", "application/json")
    assert parse_qs(received.body.decode()) == {"grant_type": ["refresh_token"], "refresh_token": [FIRST], "client_id": ["client"]}
    assert "token-number" not in f"{given}"


def test_what_a_token_holds_is_escaped(transport: Transport, issuer: Issuer) -> None:
    issuer.good = "a&grant_type=password=%+/ü"
    assert ask(transport, issuer, issuer.good, client_id="").secret.reveal() == "access-token-number-1"
    assert b"client_id" not in issuer.requests[0].body


@pytest.mark.parametrize(
    ("answer", "extras", "expires_at"),
    [
        ({}, {}, None),
        ({"refresh_token": None, "expires_in": None}, {}, None),
        ({"refresh_token": "next", "expires_in": 1.5}, {"refresh_token": "next"}, NOW + 1500),
        ({"expires_in": "60"}, {}, NOW + 60_000),
        *(({"expires_in": life}, {}, None) for life in (0, -1, True, "soon", "9" * 5000, 1e308, [], {})),
    ],
)
def test_what_an_answer_leaves_out_is_left_as_it_is(
    transport: Transport, issuer: Issuer, answer: dict[str, Any], extras: dict[str, str], expires_at: int | None
) -> None:
    issuer.then(Json({"access_token": "new", **answer}))
    assert revealed(ask(transport, issuer)) == ("new", extras, expires_at)


@pytest.mark.parametrize("status", [400, 401])
def test_a_dead_refresh_token_is_told_from_everything_else(transport: Transport, issuer: Issuer, status: int) -> None:
    issuer.then(Json({"error": "invalid_grant", "error_description": FIRST}, status))
    with pytest.raises(UpstreamRefused) as caught:
        ask(transport, issuer)
    assert (caught.value.blame, caught.value.upstream_code, caught.value.upstream_status) == (Blame.CREDENTIAL_INVALID, "invalid_grant", status)
    assert FIRST not in f"{caught.value} {caught.value.body!r} {caught.value.headers}"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Json({"error": "invalid_client"}, 401), "invalid_client"),
        (Json({"error": "invalid_api_key"}, 401), "invalid_api_key"),
        (Json({"error": "invalid_grant"}, 500), "invalid_grant"),
        (Json({"error": {"code": "invalid_grant"}}, 400), None),
        (Json({"error": "x\n" * 10}, 400), None),
        (Json({"error": "x" * 100}, 400), None),
        (Status(404, b"<html>"), None),
        (Status(400, b'{"error":"invalid_grant","x":"' + b"y" * ANSWER_BYTES + b'"}'), None),
        (Status(503, b""), None),
    ],
)
def test_any_other_refusal_says_nothing_of_the_refresh_token(transport: Transport, issuer: Issuer, answer: Any, code: str | None) -> None:
    issuer.then(answer)
    with pytest.raises(UpstreamRefused) as caught:
        ask(transport, issuer)
    assert caught.value.blame is not Blame.CREDENTIAL_INVALID
    assert caught.value.upstream_code == code


def test_how_long_to_wait_is_taken_from_the_answer(transport: Transport, issuer: Issuer) -> None:
    issuer.then(Json({}, 429, (("retry-after", "17"),)))
    with pytest.raises(UpstreamRefused) as caught:
        ask(transport, issuer)
    assert caught.value.reset_s == 17


@pytest.mark.parametrize(
    "answer",
    [
        Redirect("http://127.0.0.1/elsewhere", 307),
        Status(204, b""),
        Status(200, b""),
        Status(200, b"[1]"),
        Status(200, b"[" * 100_000),
        Status(200, b'{"access_token":"' + b"x" * ANSWER_BYTES + b'"}'),
        *(Json({"access_token": value}) for value in (None, 7, "", "a b", "a\r\nx: y", "é", "x" * 40_000)),
        Json({"access_token": "new", "refresh_token": "a\nb"}),
        Json({"access_token": "new", "refresh_token": ""}),
        Json({}),
    ],
)
def test_what_is_no_answer_of_a_token_endpoint_is_an_error_of_one_line(transport: Transport, issuer: Issuer, answer: Any) -> None:
    issuer.then(answer)
    with pytest.raises(UpstreamProtocolError) as caught:
        ask(transport, issuer)
    assert "\n" not in str(caught.value)
    assert issuer.root not in str(caught.value)


@pytest.mark.parametrize("position", [0, 20, 150])
def test_a_refresh_token_is_sent_once_however_the_connection_ends(transport: Transport, issuer: Issuer, position: int) -> None:
    """Also over a connection that was kept: the issuer may have taken the token before it broke."""
    ask(transport, issuer)
    issuer.then(CloseAt(position))
    with pytest.raises(UpstreamError):
        ask(transport, issuer, issuer.good)
    time.sleep(0.05)
    assert len(issuer.requests) == 2
    assert issuer.requests[0].connection != issuer.requests[1].connection


def test_an_issuer_that_is_silent_or_away_is_given_up(transport: Transport) -> None:
    with Issuer() as issuer:
        issuer.then(Silent())
        with pytest.raises(UpstreamTimeout):
            ask(transport, issuer, total_s=0.2)
        assert len(issuer.requests) == 1
    with pytest.raises(UpstreamUnreachable):
        ask(transport, issuer)
