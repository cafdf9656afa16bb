"""A fake provider, a transport, and a way to send one request."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from backends.http import Response, Transport
from gateway.backend import Body, Cancellation, Deadlines, Headers, Proxy
from gateway.errors import Cancelled, GatewayError
from tests.fakes.provider import Provider

PATIENT = Deadlines(connect_s=2.0, first_byte_s=5.0, idle_s=5.0)


@dataclass
class Client:
    """Sends requests to one provider, with defaults that no test waits for."""

    transport: Transport
    root: str

    def send(
        self,
        path: str = "/v1/models",
        body: Body | bytes = b"{}",
        *,
        method: str = "POST",
        headers: Headers = (),
        deadlines: Deadlines = PATIENT,
        total_s: float = 10.0,
        cancel: Cancellation | None = None,
        root: str | None = None,
        proxy: Proxy | None = None,
    ) -> Response:
        return self.transport.send(
            method,
            (self.root if root is None else root) + path,
            headers,
            Body.of(body) if isinstance(body, bytes) else body,
            deadlines=deadlines,
            deadline=time.monotonic() + total_s,
            cancel=cancel or Cancellation(),
            proxy=proxy,
        )

    def whole(self, path: str = "/v1/models", body: Body | bytes = b"{}", **options: object) -> bytes:
        response = self.send(path, body, **options)  # type: ignore[arg-type]
        return b"".join(response.chunks)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def client(provider: Provider) -> Iterator[Client]:
    transport = Transport()
    yield Client(transport, provider.root)
    transport.close()


@dataclass
class Authority:
    """A self-signed certificate for 127.0.0.1: the server's context, one that trusts it, and the file."""

    server: ssl.SSLContext
    trusting: ssl.SSLContext
    file: Path


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fake provider")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "provider.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(file)
    return Authority(server, ssl.create_default_context(cafile=str(file)), file)


@pytest.fixture
def secure(authority: Authority) -> Iterator[tuple[Provider, Client]]:
    with Provider(tls=authority.server) as provider:
        transport = Transport(ssl_context=authority.trusting)
        yield provider, Client(transport, provider.root)
        transport.close()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server that completes no handshake: its backlog is full."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    filling = [socket.socket() for _ in range(4)]
    for sock in filling:
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
    time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    for sock in (*filling, listener):
        sock.close()


def failure(run: Callable[[], object], kind: type[GatewayError]) -> tuple[GatewayError, float]:
    """The error of that kind that `run` raises, and after how many seconds."""
    begun = time.monotonic()
    with pytest.raises(kind) as caught:
        run()
    return caught.value, time.monotonic() - begun


def cancel_while(provider: Provider, cancel: Cancellation, run: Callable[[], object], ready: Callable[[], object]) -> float:
    """Seconds from firing to the Cancelled that `run` raises."""
    fired: list[float] = []

    def fire() -> None:
        ready()
        time.sleep(0.05)
        fired.append(time.monotonic())
        cancel.fire("client_gone")

    thread = threading.Thread(target=fire)
    thread.start()
    with pytest.raises(Cancelled, match="client_gone"):
        run()
    ended = time.monotonic()
    thread.join()
    return ended - fired[0]
