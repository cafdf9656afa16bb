from __future__ import annotations

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.parser import RequestParser
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.body import READ
from gateway.request import Asked, key_of, parsed, plain

BODY = b'{"model":"m"}'
FIELDS = ["Host: h", "Content-Type: application/json", f"Content-Length: {len(BODY)}", "Authorization: Bearer gw_x"]
FIXED = {"fixed": 1}


def request(line: str = "POST /v1/chat/completions HTTP/1.1", fields: list[str] = FIELDS, body: bytes = BODY) -> bytes:
    return "\r\n".join([line, *fields, "", ""]).encode("latin-1") + body


def slowly(data: bytes) -> tuple[Asked, bytes]:
    """What gunicorn's parser makes of it, and the body."""
    config = Config()
    config.set("forwarder_headers", "")
    read = next(RequestParser(config, iter([data]), ("127.0.0.1", 1)))
    return parsed(read, dict(FIXED)), read.body.read()


def test_plain_request_is_read_in_one_step() -> None:
    asked = plain(request(), FIXED, False)
    assert asked is not None
    assert (asked.method, asked.version, asked.closes, asked.expects) == ("POST", (1, 1), False, False)
    made = dict(asked.environ)
    assert made.pop("wsgi.input").read() == BODY
    assert made == {
        "fixed": 1,
        "REQUEST_METHOD": "POST",
        "RAW_URI": "/v1/chat/completions",
        "QUERY_STRING": "",
        "PATH_INFO": "/v1/chat/completions",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "HTTP_HOST": "h",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "13",
        "HTTP_AUTHORIZATION": "Bearer gw_x",
        READ: True,
    }
    assert FIXED == {"fixed": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        request()[:-1],
        request() + b"x",
        request() + request(),
        request("PUT /v1 HTTP/1.1"),
        request("POST /v1 HTTP/1.0"),
        request("POST  /v1 HTTP/1.1"),
        request("POST http://h/v1 HTTP/1.1"),
        request("POST /v1?a=b HTTP/1.1"),
        request("POST /v1/%2e HTTP/1.1"),
        request("POST /v1/../a HTTP/1.1"),
        request("POST //v1 HTTP/1.1"),
        request("POST /v1/ HTTP/1.1"),
        request("GET / HTTP/1.1", FIELDS[:1], b""),
        request("GET /v1/models HTTP/1.1"),
        request(fields=FIELDS[1:]),
        request(fields=[*FIELDS, "Host: h"]),
        request(fields=[*FIELDS, "host: other"]),
        request(fields=["Host: a/b", *FIELDS[1:]]),
        request(fields=[*FIELDS, "Transfer-Encoding: chunked"]),
        request(fields=[*FIELDS, "Expect: 100-continue"]),
        request(fields=[*FIELDS, "Upgrade: h2c"]),
        request(fields=[*FIELDS, "Connection: upgrade"]),
        request(fields=[*FIELDS, "X_A: b"]),
        request(fields=[*FIELDS, "X-A : b"]),
        request(fields=[*FIELDS, "X-A: b\x00"]),
        request(fields=[*FIELDS, "X-A: \xe4"]),
        request(fields=[*FIELDS, "X-A: b", " c"]),
        request(fields=[*FIELDS, "X-A:"]),
        request(fields=[*FIELDS, "X-A: b "]),
        request(fields=[*FIELDS, "X-A: b\nX-C: d"]),
        request(fields=[*FIELDS, "X-A: " + "b" * 8190]),
        request(fields=[*FIELDS, *(f"X-{number}: a" for number in range(97))]),
        request(fields=[*FIELDS[:2], "Content-Length: 013"]),
        request(fields=[*FIELDS[:2], "Content-Length: +13"]),
        request(fields=[*FIELDS[:2], "Content-Length: 13, 13"]),
        request(fields=[*FIELDS[:2], "Content-Length: 13", "Content-Length: 13"]),
    ],
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert plain(data, FIXED, False) is None


def test_connection_ends_where_the_client_says_so() -> None:
    closing, keeping = (plain(request(fields=[*FIELDS, f"Connection: {word}"]), FIXED, False) for word in ("Close", "keep-alive"))
    assert closing is not None
    assert closing.closes
    assert keeping is not None
    assert not keeping.closes


@pytest.mark.parametrize(("trusted", "word", "scheme"), [(True, "https", "https"), (True, "http", "http"), (False, "https", "http")])
def test_scheme_is_what_a_trusted_peer_says(trusted: bool, word: str, scheme: str) -> None:
    asked = plain(request(fields=[*FIELDS, f"X-Forwarded-Proto: {word}"]), FIXED, trusted)
    assert asked is not None
    assert asked.environ["wsgi.url_scheme"] == scheme


def test_names_become_keys() -> None:
    assert [key_of(name) for name in ("X-A-b", "content-type", "Content-Length")] == ["HTTP_X_A_B", "CONTENT_TYPE", "CONTENT_LENGTH"]


def test_parsed_request_has_what_the_application_reads() -> None:
    asked, body = slowly(request("POST /v1/%C3%A4%2f?a=b HTTP/1.1", [*FIELDS, "X-A: 1", "X-A: 2", "Connection: close", "Expect: 100-continue"]))
    made = dict(asked.environ)
    del made["wsgi.input"]
    assert made == {
        "fixed": 1,
        "REQUEST_METHOD": "POST",
        "RAW_URI": "/v1/%C3%A4%2f?a=b",
        "QUERY_STRING": "a=b",
        "PATH_INFO": "/v1/\u00c3\u00a4/",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "HTTP_HOST": "h",
        "HTTP_CONNECTION": "close",
        "HTTP_EXPECT": "100-continue",
        "HTTP_AUTHORIZATION": "Bearer gw_x",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "13",
        "HTTP_X_A": "1,2",
    }
    assert (asked.closes, asked.expects, body) == (True, True, BODY)


LINES = st.builds(
    "{} {} {}".format,
    st.sampled_from(["POST", "GET", "PUT", "post"]),
    st.sampled_from(["/v1/models", "/v1/chat/completions", "/a.b", "/a//b", "/.a", "/a/..", "*", "/a?b", "http://h/a", "/a%2f", "/\xe4"]),
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/1.1 ", "http/1.1"]),
)
NAMES = st.sampled_from(
    [
        "Host",
        "host",
        "Content-Length",
        "Content-Type",
        "Connection",
        "X-A",
        "x-a",
        "X_A",
        "Transfer-Encoding",
        "Expect",
        "X-Forwarded-Proto",
        "X-Forwarded-Ssl",
        "Te",
        "A b",
    ]
)
VALUES = st.sampled_from(
    ["h", "0", "13", "013", "+1", "close", "keep-alive", "Close", "https", "chunked", "100-continue", "", " a ", "a\tb", "a\x00", "\xe4", "on", "a\r\nB: c"]
)
FIELD = st.builds("{}:{}{}".format, NAMES, st.sampled_from([" ", "", "  ", "\t"]), VALUES)


@given(LINES, st.lists(FIELD, max_size=6), st.sampled_from([b"", BODY, b"x", request()]), st.booleans())
def test_what_is_read_in_one_step_is_what_the_parser_reads(line: str, fields: list[str], body: bytes, usual: bool) -> None:
    data = request(line, FIELDS[:3] + fields if usual else fields, body)
    asked = plain(data, FIXED, True)
    if asked is None:
        return
    try:
        other, rest = slowly(data)
    except (ParseException, StopIteration) as error:
        raise AssertionError("the parser refuses it") from error
    assert asked.environ.pop("wsgi.input").read() == rest
    assert asked.environ.pop(READ)
    del other.environ["wsgi.input"]
    assert asked == other


@pytest.mark.parametrize("fields", [[], ["Host: a/b"], ["Host: a@b"], ["Host: a, b"]])
def test_host_that_is_missing_or_none_is_refused(fields: list[str]) -> None:
    with pytest.raises(ParseException):
        slowly(request("GET / HTTP/1.1", fields, b""))


def test_older_request_needs_no_host() -> None:
    asked, _ = slowly(request("GET / HTTP/1.0", [], b""))
    assert asked.version == (1, 0)
    assert asked.closes


@pytest.mark.parametrize("target", ["ftp://h/", "a", "h:80"])
def test_target_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(ParseException):
        slowly(request(f"GET {target} HTTP/1.1", ["Host: h"], b""))
