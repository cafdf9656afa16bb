"""Whether a key may be used for this, and from here: judged before a byte of the body is read. Knows no Flask, like endpoint.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from gateway.backend import Network
from gateway.core.identity import Principal
from gateway.errors import PermissionDenied
from gateway.settings import is_loopback

Address = IPv4Address | IPv6Address
_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP")


def authorize(principal: Principal, scopes: Sequence[str], environ: Mapping[str, Any], proxies: Sequence[Network]) -> Principal:
    """The principal, which must have one of `scopes` where its key is restricted to some. Raises PermissionDenied."""
    if principal.networks and not principal.may_come_from(address := client_address(environ, proxies)):
        told = "an address that cannot be told" if address is None else str(address)
        raise PermissionDenied(f"This API key may not be used from {told}.", code="address_not_allowed")
    if principal.scopes is not None and not any(scope in principal.scopes for scope in scopes):
        needed = " or ".join(f"'{scope}'" for scope in scopes) or "none that a key can have"
        raise PermissionDenied(f"This API key may not be used for this; the scope needed: {needed}.", code="scope_missing")
    return principal


def is_of_this_host(environ: Mapping[str, Any]) -> bool:
    """Somebody else's request that a server on this host passed on is not, as long as that server says so."""
    return is_loopback(environ.get("REMOTE_ADDR", "")) and not any(name in environ for name in _FORWARDED)


def client_address(environ: Mapping[str, Any], proxies: Sequence[Network]) -> Address | None:
    """The peer's address; where the peer is one of `proxies`, the rightmost of X-Forwarded-For that is none. None: it cannot be told.

    What stands further left a client may have written itself.
    """
    address = _address(environ.get("REMOTE_ADDR", ""))
    if address is None or not _within(address, proxies):
        return address
    for part in reversed(environ.get("HTTP_X_FORWARDED_FOR", "").split(",")):
        if not part.strip():
            continue
        address = _address(part.strip())
        if address is None or not _within(address, proxies):
            return address
    return address


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _address(text: str) -> Address | None:
    """An IPv4 address within an IPv6 one, as sockets for both show it, is itself."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
