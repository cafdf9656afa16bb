"""Connecting where names are slow or lead astray, and the check of the address that is connected to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from backends.http import Transport
from backends.http_address import Address, Peers, Place
from backends.http_dial import Dial, Names, Route
from gateway.backend import Deadlines
from gateway.errors import UpstreamUnreachable
from tests.fakes.provider import Provider
from tests.unit.backends.conftest import Client

NAMED = "api.example.com"


class HungNames(Names):
    """A name server that never answers for names that begin with "hung"."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.asked: list[str] = []

    def resolve(self, host: str, port: int) -> list[Address]:
        self.asked.append(host)
        if host.startswith("hung"):
            threading.Event().wait(2)
        return [(int(socket.AF_INET), ("127.0.0.1", port))]


class FixedNames(Names):
    """Every name leads to these addresses."""

    def __init__(self, *addresses: str) -> None:
        super().__init__(time.monotonic)
        self._addresses = addresses

    def resolve(self, host: str, port: int) -> list[Address]:
        return [(int(socket.AF_INET6 if ":" in address else socket.AF_INET), (address, port)) for address in self._addresses]


def dial(host: str, port: int = 80, names: Names | None = None, wait_s: float = 1.0, allowed: str = "") -> Dial:
    peers = Peers([ip_network(allowed)] if allowed else [])
    return Dial(Route(Place("upstream", host, port)), names or Names(time.monotonic), peers, time.monotonic, time.monotonic() + wait_s)


# names


def test_name_that_is_never_resolved_ends_at_the_deadline() -> None:
    with pytest.raises(UpstreamUnreachable, match="not resolved in time"):
        dial("hung.example", names=HungNames(), wait_s=0.2).connect(None)


def test_abort_ends_the_wait_for_a_name() -> None:
    waiting = dial("hung.example", names=HungNames(), wait_s=30)
    threading.Timer(0.1, waiting.abort).start()
    begun = time.monotonic()
    with pytest.raises(UpstreamUnreachable):
        waiting.connect(None)
    assert time.monotonic() - begun < 5


def test_callers_share_one_look_up() -> None:
    names = HungNames()
    lookups = {id(names.look_up("hung.example", 80, threading.Event())) for _ in range(5)}
    assert len(lookups) == 1


def test_hung_look_ups_hold_up_no_other() -> None:
    names = HungNames()
    for number in range(40):
        names.look_up(f"hung{number}.example", 80, threading.Event())
    woken = threading.Event()
    names.look_up("h.example", 80, woken)
    assert woken.wait(1)


def test_failed_look_up_is_not_kept() -> None:
    names = Names(time.monotonic)
    lookups = []
    for _ in range(2):
        woken = threading.Event()
        lookups.append(names.look_up("no-such-host.invalid", 80, woken))
        assert woken.wait(20)
    assert lookups[0] is not lookups[1]
    assert all(isinstance(lookup.error, OSError) for lookup in lookups)


class ExhaustedNames(Names):
    """Finds no memory, the first time."""

    tries = 0

    def resolve(self, host: str, port: int) -> list[Address]:
        self.tries += 1
        if self.tries == 1:
            raise MemoryError
        return [(socket.AF_INET, ("127.0.0.1", port))]


def test_look_up_that_could_not_be_made_does_not_hold_the_name_for_ever() -> None:
    names = ExhaustedNames(time.monotonic)
    for found in (0, 1):
        done = threading.Event()
        lookup = names.look_up("upstream.example", 80, done)
        assert done.wait(5)
        assert (len(lookup.addresses), lookup.error is None) == (found, bool(found))


def test_name_just_resolved_is_not_asked_again() -> None:
    names = Names(time.monotonic)
    woken = threading.Event()
    first = names.look_up("localhost", 80, woken)
    assert woken.wait(20)
    woken = threading.Event()
    assert names.look_up("localhost", 80, woken) is first
    assert woken.is_set()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64 + ".example"])
def test_name_that_cannot_be_resolved_is_said_to_be(host: str) -> None:
    with pytest.raises(UpstreamUnreachable, match="could not be resolved"):
        dial(host, wait_s=20).connect(None)


# addresses


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def test_dead_first_address_leaves_time_for_the_second(black_hole: str) -> None:
    """127.0.0.2 has a listener of its own at the port of the black hole."""
    port = int(black_hole.rpartition(":")[2])
    with socket.create_server(("127.0.0.2", port)):
        dial("h", port, FixedNames("127.0.0.1", "127.0.0.2")).connect(None).close()


def test_name_without_an_address_is_said_to_have_none() -> None:
    with pytest.raises(UpstreamUnreachable, match="no address"):
        dial(NAMED, names=FixedNames()).connect(None)


def test_address_that_is_objected_to_is_passed_over_for_the_next(listening: socket.socket) -> None:
    port = port_of(listening)
    with socket.create_server(("127.0.0.2", port)) as allowed:
        dial(NAMED, port, FixedNames("127.0.0.1", "127.0.0.2"), allowed="127.0.0.2/32").connect(None).close()
        allowed.settimeout(5)
        allowed.accept()[0].close()
    listening.settimeout(0.1)
    with pytest.raises(TimeoutError):
        listening.accept()


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"])
def test_public_name_that_leads_inside_is_not_connected_to(listening: socket.socket, address: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UpstreamUnreachable) as refused:
        dial(NAMED, port_of(listening), FixedNames(address)).connect(None)
    listening.settimeout(0.1)
    with pytest.raises(TimeoutError):
        listening.accept()
    assert address not in str(refused.value), "clients see this text"
    assert f"{NAMED} is at {address}" in caplog.text


def test_connected_address_counts_and_not_the_one_that_was_dialled(listening: socket.socket) -> None:
    """0.0.0.0 is allowed here, and leads to 127.0.0.1, which is not: the peer sees a connection without a byte in it."""
    with pytest.raises(UpstreamUnreachable, match="does not connect to"):
        dial(NAMED, port_of(listening), FixedNames("0.0.0.0"), allowed="0.0.0.0/32").connect(None)
    listening.settimeout(5)
    peer, _ = listening.accept()
    with peer:
        assert peer.recv(10) == b""


@pytest.mark.parametrize("secure", [False, True])
def test_rebound_name_gets_no_byte(listening: socket.socket, secure: bool) -> None:
    """A name that led elsewhere at first leads to this host later: not a request, not a TLS hello."""
    transport = Transport(names=FixedNames("127.0.0.1"))
    client = Client(transport, f"http{'s' if secure else ''}://{NAMED}:{port_of(listening)}")
    with pytest.raises(UpstreamUnreachable, match="its log says why"):
        client.send()
    transport.close()
    listening.settimeout(0.1)
    with pytest.raises(TimeoutError):
        listening.accept()


def test_public_name_may_lead_to_a_network_that_the_operator_allowed(provider: Provider) -> None:
    transport = Transport(names=FixedNames("127.0.0.1"), allow_networks=[ip_network("127.0.0.0/8")])
    client = Client(transport, f"http://{NAMED}:{provider.port}")
    assert client.whole("/v1/models", b"", method="GET")
    assert provider.requests[0].headers["host"] == f"{NAMED}:{provider.port}"
    transport.close()


def test_refused_port_is_told_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(UpstreamUnreachable, match="refused the connection"):
            dial("127.0.0.1", port_of(probe), wait_s=30).connect(None)


def test_black_hole_ends_at_the_connect_deadline(black_hole: str) -> None:
    transport = Transport()
    client = Client(transport, black_hole)
    begun = time.monotonic()
    with pytest.raises(UpstreamUnreachable, match="timed out"):
        client.send(deadlines=Deadlines(connect_s=0.3))
    assert time.monotonic() - begun < 3
    transport.close()
