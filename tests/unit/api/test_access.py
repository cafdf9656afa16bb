"""Where a request came from, by its peer and by what a trusted proxy says."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from gateway.api.access import authorize, client_address
from gateway.errors import PermissionDenied
from tests.factories import principal

PROXIES = tuple(ip_network(text) for text in ("127.0.0.1", "::1", "10.0.0.0/24"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),  # no proxy of ours: what it says is not asked for
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("::1", " 2001:db8::7 ", "2001:db8::7"),
        ("::ffff:127.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "203.0.113.9, 198.51.100.1", "198.51.100.1"),  # the left one the client may have written
        ("127.0.0.1", "203.0.113.9,198.51.100.1,10.0.0.7", "198.51.100.1"),  # through two proxies
        ("127.0.0.1", "10.0.0.8, 10.0.0.7", "10.0.0.8"),  # one of the proxies asks itself
        ("127.0.0.1", "198.51.100.1,", "198.51.100.1"),
        ("127.0.0.1", "198.51.100.1, unknown", None),
        ("127.0.0.1", "198.51.100.1:1234", None),
        ("127.0.0.1", "nonsense, 198.51.100.1", "198.51.100.1"),
        ("", "198.51.100.1", None),
        ("127.0.0.1.evil", "198.51.100.1", None),
    ],
)
def test_address_is_the_rightmost_that_is_no_trusted_proxy(peer: str, forwarded: str | None, address: str | None) -> None:
    environ = {"REMOTE_ADDR": peer} | ({} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded})
    found = client_address(environ, PROXIES)
    assert (None if found is None else str(found)) == address


def test_unrestricted_key_is_asked_for_nothing() -> None:
    asking = principal()
    assert authorize(asking, (), {}, ()) is asking


def test_one_of_the_scopes_is_enough() -> None:
    asking = replace(principal(), scopes=("a",))
    assert authorize(asking, ("b", "a"), {}, ()) is asking
    with pytest.raises(PermissionDenied, match="needed: 'b' or 'c'") as error:
        authorize(asking, ("b", "c"), {}, ())
    assert error.value.code == "scope_missing"


def test_place_is_judged_before_purpose() -> None:
    asking = replace(principal(), scopes=("a",), networks=(ip_network("10.0.0.0/8"),))
    with pytest.raises(PermissionDenied, match="from an address that cannot be told"):
        authorize(asking, ("b",), {}, ())
    assert authorize(asking, ("a",), {"REMOTE_ADDR": "10.9.9.9"}, PROXIES) is asking
