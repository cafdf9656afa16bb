"""What a connection may not do to another."""

from __future__ import annotations

import socket
import time

from backends.http_connection import Connection


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
