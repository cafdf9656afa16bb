"""Connecting where names are slow, and what a connection may not do to another."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from backends.http_connection import Connection, Dial, Names
from gateway.errors import UpstreamUnreachable


class HungNames(Names):
    """A name server that never answers."""

    def _resolve(self, *_: object) -> None:
        threading.Event().wait(2)


def test_name_that_is_never_resolved_ends_at_the_deadline() -> None:
    dial = Dial("h.example", 80, [], HungNames(time.monotonic), time.monotonic, time.monotonic() + 0.2)
    with pytest.raises(UpstreamUnreachable):
        dial.connect(None)


def test_abort_ends_the_wait_for_a_name() -> None:
    dial = Dial("h.example", 80, [], HungNames(time.monotonic), time.monotonic, time.monotonic() + 30)
    threading.Timer(0.1, dial.abort).start()
    begun = time.monotonic()
    with pytest.raises(UpstreamUnreachable):
        dial.connect(None)
    assert time.monotonic() - begun < 5


def test_callers_share_one_look_up() -> None:
    names = HungNames(time.monotonic)
    lookups = {id(names.look_up("h.example", 80, threading.Event())) for _ in range(5)}
    assert len(lookups) == 1


def test_failed_look_up_is_not_kept() -> None:
    names = Names(time.monotonic)
    lookups = []
    for _ in range(2):
        woken = threading.Event()
        lookups.append(names.look_up("no-such-host.invalid", 80, woken))
        assert woken.wait(20)
    assert lookups[0] is not lookups[1]
    assert all(isinstance(lookup.error, OSError) for lookup in lookups)


def test_name_just_resolved_is_not_asked_again() -> None:
    names = Names(time.monotonic)
    woken = threading.Event()
    first = names.look_up("localhost", 80, woken)
    assert woken.wait(20)
    woken = threading.Event()
    assert names.look_up("localhost", 80, woken) is first
    assert woken.is_set()


def test_dead_first_address_leaves_time_for_the_second(black_hole: str) -> None:
    dead = int(black_hole.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        addresses = [(int(socket.AF_INET), ("127.0.0.1", dead)), (int(socket.AF_INET), ("127.0.0.1", port))]
        dial = Dial("h.example", port, addresses, Names(time.monotonic), time.monotonic, time.monotonic() + 1)
        dial.connect(None).close()


def test_abort_after_close_touches_no_other_connection() -> None:
    ours, peer = socket.socketpair()
    connection = Connection(ours, time.monotonic)
    connection.close()
    connection.close()
    other, other_peer = socket.socketpair()  # takes over the descriptor's number
    connection.abort()
    other_peer.sendall(b"x")
    assert other.recv(1) == b"x"
    for sock in (peer, other, other_peer):
        sock.close()
