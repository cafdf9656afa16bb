"""What is told of an upstream's secret."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.backend import Secret
from gateway.core.upstream_secrets import checked, expiry, fingerprint, hint, issued
from gateway.errors import BadRequest
from gateway.secrets import KeyHasher


def part(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def jwt(claims: Any) -> str:
    return f"{part(b'{}')}.{part(json.dumps(claims).encode())}.signature"


def test_the_end_and_the_beginning_of_a_jwt_are_its_own() -> None:
    token = jwt({"iat": 1_700_000_000, "exp": 1_700_003_600.5})
    assert (issued(token), expiry(token)) == (1_700_000_000_000, 1_700_003_600_500)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "sk-opaque",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        f"a.{part(b'not json')}.c",
        f"a.{part(b'[' * 100_000)}.c",
        f"a.{part(chr(0xFF).encode('latin-1'))}.c",
        "é.é.é",
        *(jwt({"exp": value}) for value in (None, "1", True, 0, -5, 1e11, float("nan"), float("inf"), [1])),
        jwt([1]),
        jwt({}),
    ],
)
def test_what_names_no_end_has_none(secret: str) -> None:
    assert expiry(secret) is None


@pytest.mark.parametrize("secret", ["", "  ", "a b", "a\nb", "a\r\nx: y", "é", "a\0b"])
def test_what_no_header_can_carry_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(BadRequest) as caught:
        checked(Secret(secret))
    assert "\n" not in str(caught.value)
    assert "x: y" not in str(caught.value)


def test_a_secret_is_taken_without_what_stands_around_it() -> None:
    assert checked(Secret(" sk-1\n")) == "sk-1"


def test_a_short_secret_is_not_hinted_at() -> None:
    assert (hint("0123456789abcdef"), hint("0123456789abcde")) == ("cdef", "")


def test_a_fingerprint_is_the_same_for_one_secret_and_pepper() -> None:
    hasher = KeyHasher(b"p" * 32)
    assert fingerprint(hasher, "a") == fingerprint(hasher, "a") != fingerprint(hasher, "b")
    assert fingerprint(hasher, "a") != fingerprint(KeyHasher(b"q" * 32), "a")
