"""Which addresses may be connected to, for a host that the operator wrote and for a name that leads somewhere."""

from __future__ import annotations

from ipaddress import ip_network
from urllib.parse import urlsplit

import pytest

from backends.http_address import Peers, Place

NEVER = [
    *("0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1", "169.254.170.2", "169.254.255.255"),
    *("100.100.100.200", "168.63.129.16", "192.0.0.192", "224.0.0.1", "239.255.255.250", "255.255.255.255"),
    *("::", "fe80::1", "fe80::1%eth0", "febf::1", "ff02::1", "ff0e::1"),
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42"),
    *("::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "::ffff:0.0.0.0", "::ffff:224.0.0.1", "::ffff:0:169.254.169.254", "::169.254.169.254"),
    *("64:ff9b::169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "64:ff9b::0.0.0.0"),
    *("2002:a9fe:a9fe::1", "2002:a9fe:a9fe:ffff::", "2002:e000:1::", "2001:0:0:0:0:0:5601:5601"),
]
INNER = [
    *("127.0.0.1", "127.1.2.3", "127.255.255.255", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("100.64.0.1", "100.127.255.255", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "240.0.0.1", "255.255.255.254"),
    *("::1", "fc00::1", "fd12:3456::1", "fec0::1", "2001:db8::1", "3fff::1", "100::1", "4000::1", "5f00::1", "64:ff9b:1::808:808", "1::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:192.168.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::7f00:1"),
    *("2002:7f00:1::", "2002:0a00:1::1", "2002:c0a8:101::1", "2001:0:0:0:0:0:80ff:fffe"),
]
OUTER = [
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "172.15.255.255", "172.32.0.1", "192.167.1.1", "169.253.1.1", "169.255.1.1", "100.63.0.1"),
    *("100.128.0.1", "223.255.255.255", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"),
]
OWN = [
    *("localhost", "ollama", "gpu-box", "ollama.", "host.docker.internal", "nas.local", "box.lan", "x.home.arpa", "api.localhost"),
    *("ollama.ai.svc.cluster.local", "10.0.0.1", "127.0.0.1", "::1"),
]
FOREIGN = [
    *("api.example.com", "localhost.example.com", "internal.example.com", "169.254.169.254.nip.io", "127.0.0.1.nip.io", "local.example"),
    *("2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1", "10.0.0.1.", "notinternal.com", "lan.example", "example.com."),
]


def objection(host: str, address: str, *allowed: str) -> str:
    return Peers([ip_network(network) for network in allowed]).objection(Place("upstream", host, 443), address)


def test_the_list_is_long_enough() -> None:
    assert len({*NEVER, *INNER}) >= 60


@pytest.mark.parametrize("host", ["api.example.com", "localhost", "ollama"])
@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_never_connected_to(address: str, host: str) -> None:
    assert f"{host} is at {address}" in objection(host, address)
    assert objection(host, address, "0.0.0.0/0", "::/0", "128.0.0.0/1"), "a network that merely holds them does not open them"


@pytest.mark.parametrize("address", [address for address in NEVER if "%" not in address])
def test_written_address_is_judged_as_well(address: str) -> None:
    url = f"http://[{address}]:80" if ":" in address else f"http://{address}:80"
    assert objection(urlsplit(url).hostname or "", address)


@pytest.mark.parametrize("address", INNER)
def test_public_name_must_not_lead_inside(address: str) -> None:
    refused = objection("api.example.com", address)
    assert f"api.example.com is at {address}" in refused
    line = refused.partition("GATEWAY_ALLOW_NETWORKS=")[2].partition(" ")[0]
    assert objection("api.example.com", address, *line.split(",")) == "", "the line that the operator is told is the right one"


@pytest.mark.parametrize("address", INNER)
@pytest.mark.parametrize("host", ["localhost", "ollama"])
def test_own_name_may_lead_inside(host: str, address: str) -> None:
    assert objection(host, address) == ""


@pytest.mark.parametrize("address", OUTER)
@pytest.mark.parametrize("host", ["api.example.com", "localhost", "127.1"])
def test_everything_may_lead_outside(host: str, address: str) -> None:
    assert objection(host, address) == ""


@pytest.mark.parametrize("host", OWN)
def test_host_that_is_only_in_ones_own_network(host: str) -> None:
    assert Place("upstream", host, 80).own


@pytest.mark.parametrize("host", FOREIGN)
def test_host_that_others_may_name(host: str) -> None:
    assert not Place("upstream", host, 80).own
    assert objection(host, "127.0.0.1")


@pytest.mark.parametrize(
    ("allowed", "address"),
    [
        ("10.0.0.0/8", "10.1.2.3"),
        ("10.0.0.0/8", "::ffff:10.1.2.3"),
        ("10.0.0.0/8", "64:ff9b::10.1.2.3"),
        ("0.0.0.0/0", "192.168.1.1"),
        ("::/0", "fd12::1"),
        ("169.254.0.0/16", "169.254.169.254"),
        ("169.254.169.254/32", "::ffff:169.254.169.254"),
        ("fe80::/64", "fe80::1%eth0"),
    ],
)
def test_operator_opens_networks(allowed: str, address: str) -> None:
    assert objection("api.example.com", address, allowed) == ""


@pytest.mark.parametrize(("allowed", "address"), [("10.0.0.0/8", "11.0.0.1"), ("10.0.0.0/8", "192.168.1.1"), ("fd00::/8", "10.0.0.1")])
def test_network_opens_nothing_else(allowed: str, address: str) -> None:
    assert objection("api.example.com", address, allowed) == objection("api.example.com", address).replace("WORKS=", f"WORKS={allowed},")


def test_line_for_the_operator_keeps_what_he_allowed_already() -> None:
    assert "GATEWAY_ALLOW_NETWORKS=10.0.0.0/8,172.16.0.0/12 " in objection("api.example.com", "172.18.0.3", "10.0.0.0/8")
