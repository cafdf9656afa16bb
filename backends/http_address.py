"""Where the transport may connect to: the operator means what he wrote, but a public name must not lead into his own network.

No I/O. Used by backends/http_dial.py and http_pool.py alone.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from gateway.backend import Network

Address = tuple[int, Any]
"""A socket family, and what `connect` takes."""

_NEVER: tuple[tuple[str, Network], ...] = tuple(
    (why, ip_network(network))
    for why, network in (
        ("the unspecified address, which leads to this host itself", "0.0.0.0/8"),
        ("the unspecified address, which leads to this host itself", "::/128"),
        ("a link-local address, where clouds answer with their secrets", "169.254.0.0/16"),
        ("a link-local address", "fe80::/10"),
        ("a cloud's metadata service", "100.100.100.200/32"),
        ("a cloud's metadata service", "168.63.129.16/32"),
        ("a cloud's metadata service", "192.0.0.192/32"),
        ("a cloud's metadata service", "fd00:ec2::/32"),
        ("a cloud's metadata service", "fd20:ce::254/128"),
        ("a cloud's metadata service", "fd00:c1::a9fe:a9fe/128"),
        ("a cloud's metadata service", "fd00:42::42/128"),
        ("a multicast address", "224.0.0.0/4"),
        ("a multicast address", "ff00::/8"),
        ("the broadcast address", "255.255.255.255/32"),
    )
)
"""Refused also where the operator wrote the address, unless he allowed a network within one of these."""

_INNER: tuple[Network, ...] = tuple(
    ip_network(network)
    for network in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
        *("::1/128", "fc00::/7", "fec0::/10", "64:ff9b:1::/48", "100::/64", "2001:2::/48", "2001:db8::/32", "3fff::/20"),
        *("::/3", "4000::/2", "8000::/1"),  # all that is not 2000::/3
    )
)
"""What no public name should lead to: private, shared and loopback networks, and those that are reserved."""

_OWN_NAT64 = IPv6Network("64:ff9b:1::/48")

_LOW_32 = (1 << 32) - 1
_WRAPPED: tuple[tuple[IPv6Network, int, int], ...] = (
    (IPv6Network("::ffff:0:0/96"), 0, 0),  # mapped
    (IPv6Network("::ffff:0:0:0/96"), 0, 0),  # translated
    (IPv6Network("64:ff9b::/96"), 0, 0),  # NAT64
    (_OWN_NAT64, 0, 0),  # NAT64 of one's own network, which may hold it elsewhere too
    (IPv6Network("2002::/16"), 80, 0),  # 6to4
    (IPv6Network("2001::/32"), 0, _LOW_32),  # Teredo
    (IPv6Network("::/96"), 0, 0),  # compatible
)
"""Networks whose addresses hold an IPv4 address: how far from the right end, and which of its bits are turned round."""

_OWN_ENDINGS = (".localhost", ".internal", ".local", ".lan", ".home.arpa")


@dataclass(frozen=True, slots=True)
class Place:
    """A host as the operator wrote it, and a port. `role` is "upstream" or "proxy": what messages call it."""

    role: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def literal(self) -> list[Address]:
        """The address that the host spells out, if it does."""
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError, ValueError):
                socket.inet_pton(family, self.host)
                return [(family, (self.host, self.port))]
        return []

    @property
    def own(self) -> bool:
        """Whether it can only be meant for the operator's own network: an address, or a name that no public zone has."""
        if self.literal:
            return True
        name = self.host.removesuffix(".")
        if name.rpartition(".")[2][:1].isdigit():  # an address in an odd spelling: 2130706433, 0x7f.1
            return False
        return "." not in name or name.endswith(_OWN_ENDINGS)


class Peers:
    """Says which addresses may be connected to. `allowed`: networks that the operator opened beyond that."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self._allowed = tuple(allowed)

    def objection(self, place: Place, address: str) -> str:
        """Why `place` must not be connected to at this address, in a line for the operator; empty where it may be."""
        given = ip_address(address.partition("%")[0])
        embedded = _embedded(given)
        forms = (given,) if embedded is None else (given, embedded)
        allowing = [network for network in self._allowed if any(_holds(network, form) for form in forms)]
        for why, network in _NEVER:
            if any(_holds(network, form) for form in forms) and not any(_within(one, network) for one in allowing):
                return f"the {place.role} {place.host} is at {address}, {why}"
        meant = given if embedded is None or _holds(_OWN_NAT64, given) else embedded
        inner = next((network for network in _INNER if _holds(network, meant)), None)
        if inner is None or place.own or allowing:
            return ""
        line = ",".join(str(network) for network in (*self._allowed, inner))
        return (
            f"the {place.role} {place.host} is at {address}, which is not a public address; where that is meant, "
            f"set GATEWAY_ALLOW_NETWORKS={line} (a line in .env.local) and restart"
        )


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to, if it holds one."""
    number = int(address)
    if address.version == 4 or number <= 1:  # :: and ::1 are themselves
        return None
    for network, shift, turned in _WRAPPED:
        if address in network:
            return IPv4Address((number >> shift & _LOW_32) ^ turned)
    return None


def _holds(network: Network, address: IPv4Address | IPv6Address) -> bool:
    return network.version == address.version and address in network


def _within(network: Network, other: Network) -> bool:
    return network.version == other.version and network.prefixlen >= other.prefixlen and network.network_address in other
