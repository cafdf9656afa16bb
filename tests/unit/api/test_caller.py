from __future__ import annotations

import time
from typing import Any

import pytest

from gateway.api.caller import check_expiry, encoded_query, parsed_object, query_pairs, required_token, shown_token, upstream_path
from gateway.errors import BadRequest, NotFound, Unauthenticated
from gateway.secrets import mint_key
from tests.conformance.families import expired, jwt


@pytest.mark.parametrize(
    ("environ", "token"),
    [
        ({}, ""),
        ({"HTTP_AUTHORIZATION": "t"}, "t"),
        ({"HTTP_AUTHORIZATION": "Bearer t"}, "t"),
        ({"HTTP_AUTHORIZATION": "Bearer  t "}, "t"),
        ({"HTTP_AUTHORIZATION": " ", "HTTP_X_AUTHORIZATION": "Bearer t"}, "t"),
        ({"HTTP_AUTHORIZATION": "a", "HTTP_X_AUTHORIZATION": "b"}, "a"),
    ],
)
def test_token_is_shown_in_either_header(environ: dict[str, str], token: str) -> None:
    assert shown_token(environ) == token


def test_key_of_this_gateway_is_no_token_of_an_upstreams() -> None:
    with pytest.raises(Unauthenticated, match="opens nothing here"):
        required_token({"HTTP_AUTHORIZATION": f"Bearer {mint_key()}"}, "/chatgpt/models")


def test_key_of_the_platform_is_not_looked_into() -> None:
    assert required_token({"HTTP_AUTHORIZATION": expired()}, "/platform/v1/models").reveal() == expired()


@pytest.mark.parametrize("claims", [{"exp": 1}, {"exp": 1.5}, {"exp": 1, "https://api.openai.com/profile": {"email": 7}}, {"exp": -1e9}])
def test_expired_token_without_an_account_is_refused_too(claims: Any) -> None:
    with pytest.raises(Unauthenticated, match=r"^The accessToken has expired\.$"):
        check_expiry(jwt(claims))


@pytest.mark.parametrize(
    "token", [jwt({"exp": time.time() + 86_400}), jwt({"exp": float("inf")}), jwt({}), jwt(b"[" * 100_000), "a.b.c.d", "é.ü.ö", ""], ids=range(7)
)
def test_token_that_says_nothing_of_the_kind_has_not_expired(token: str) -> None:
    check_expiry(token)


@pytest.mark.parametrize("rest", ["conversation", "a/b-c_d.e~f", "a...b/.c", "0/1"])
def test_plain_path_is_the_upstreams(rest: str) -> None:
    assert upstream_path({"RAW_URI": f"/api/{rest}?x=%41"}, rest) == f"/{rest}"


@pytest.mark.parametrize("rest", ["", "a/", "/a", "a//b", ".", "..", "a/..", "../a", "a/./b", "a%2f", "a b", "a?b", "ä", "a\n", "a:b", "a\\b", "a#b"])
def test_path_that_could_be_read_in_two_ways_is_none(rest: str) -> None:
    with pytest.raises(NotFound):
        upstream_path({}, rest)


def test_escaped_path_is_none_also_where_it_means_a_plain_one() -> None:
    with pytest.raises(NotFound):
        upstream_path({"RAW_URI": "/api/%61"}, "a")


def test_query_is_written_anew() -> None:
    assert encoded_query({"QUERY_STRING": "a=1&a=2&b=&c=%20%26\t&d"}) == "a=1&a=2&b=&c=+%26%09&d="


def test_query_of_too_many_parts_is_refused() -> None:
    with pytest.raises(BadRequest):
        query_pairs({"QUERY_STRING": "a=1&" * 101})


@pytest.mark.parametrize("raw", [b"", b"[1]", b"null", b"x", b"[" * 100_000, b"\xff"])
def test_what_is_no_object_is_an_empty_one(raw: bytes) -> None:
    assert parsed_object(raw) == {}
