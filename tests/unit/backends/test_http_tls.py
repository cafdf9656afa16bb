"""TLS: what is trusted, and that every deadline and a cancel hold over it."""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from pathlib import Path

import pytest

from backends.http import Transport
from gateway.backend import Cancellation, Deadlines
from gateway.errors import UpstreamInterrupted, UpstreamTimeout, UpstreamUnreachable
from tests.fakes.answers import CloseDelimited, End, RawBytes
from tests.fakes.provider import Provider
from tests.unit.backends.conftest import Client, cancel_while, failure

PATH = "/v1/chat/completions"
HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
ROOT = Path(__file__).parents[3]


def test_tls_carries_calls_over_one_connection(secure: tuple[Provider, Client]) -> None:
    provider, client = secure
    body = json.dumps({"text": "x" * 1_000_000}).encode()
    assert b"chatcmpl" in client.whole(PATH, body)
    assert b"chatcmpl" in client.whole(PATH, b'{"stream": true}')
    assert provider.requests[0].body == body
    assert provider.connections_seen == 1


def test_large_answer_over_tls_arrives_whole(secure: tuple[Provider, Client]) -> None:
    provider, client = secure
    body = os.urandom(3_000_000)
    provider.script(PATH, RawBytes(b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n" + body, end=None))
    assert client.whole(PATH) == body


def test_certificate_that_is_not_trusted_means_unreachable(secure: tuple[Provider, Client]) -> None:
    provider, _ = secure
    transport = Transport()
    error, _ = failure(lambda: Client(transport, provider.root).send(PATH), UpstreamUnreachable)
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    assert provider.requests == []


def test_certificate_for_another_name_means_unreachable(secure: tuple[Provider, Client]) -> None:
    provider, client = secure
    failure(lambda: client.send(PATH, root=f"https://localhost:{provider.port}"), UpstreamUnreachable)


def test_tls_handshake_ends_at_the_connect_deadline(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        root = f"https://127.0.0.1:{listener.getsockname()[1]}"
        _, seconds = failure(lambda: client.send(root=root, deadlines=Deadlines(connect_s=0.3)), UpstreamUnreachable)
    assert 0.25 < seconds < 2


def test_cancel_ends_a_tls_handshake(client: Client, provider: Provider) -> None:
    cancel = Cancellation()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        root = f"https://127.0.0.1:{listener.getsockname()[1]}"
        assert cancel_while(provider, cancel, lambda: client.send(root=root, cancel=cancel, deadlines=Deadlines(connect_s=5)), lambda: time.sleep(0.1)) < 0.5


def test_plain_server_behind_https_means_unreachable(client: Client, provider: Provider) -> None:
    failure(lambda: client.send(root=f"https://127.0.0.1:{provider.port}", deadlines=Deadlines(connect_s=1)), UpstreamUnreachable)


def test_cancel_ends_a_silent_tls_stream(secure: tuple[Provider, Client]) -> None:
    provider, client = secure
    provider.script(PATH, RawBytes(HELLO[:-1], End.HOLD))
    cancel = Cancellation()
    response = client.send(PATH, cancel=cancel)
    assert next(response.chunks) == b"hell"
    assert cancel_while(provider, cancel, lambda: next(response.chunks), lambda: None) < 0.5
    provider.wait_closed()


def test_silent_tls_stream_ends_at_the_idle_deadline(secure: tuple[Provider, Client]) -> None:
    provider, client = secure
    provider.script(PATH, RawBytes(HELLO[:-1], End.HOLD))
    response = client.send(PATH, deadlines=Deadlines(idle_s=0.3))
    next(response.chunks)
    error, _ = failure(lambda: next(response.chunks), UpstreamTimeout)
    assert getattr(error, "phase", None) == "idle"


def test_tls_that_ends_without_saying_so_is_an_interruption(secure: tuple[Provider, Client]) -> None:
    provider, client = secure
    provider.script(PATH, CloseDelimited())  # the fake closes its socket without TLS's own end
    with pytest.raises(UpstreamInterrupted):
        list(client.send(PATH).chunks)
