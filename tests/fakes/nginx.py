"""The real nginx before a gateway, with deploy/nginx.conf as it is shipped: only ports, paths, certificate, user and temporary folders are others."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.fakes.gateway import ROOT, RawClient, free_port

CONFIGURATION = ROOT / "deploy" / "nginx.conf"
NAME = "gateway.example.org"
"""The host name in the shipped file; the certificate is made out to it."""
PROGRAM = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class TlsClient(RawClient):
    """A RawClient whose connection is TLS, for the name that nginx serves."""

    def __init__(self, port: int, context: ssl.SSLContext, key: str = "", timeout_s: float = 20.0, name: str = NAME) -> None:
        super().__init__(port, key, timeout_s)
        try:
            self.sock = context.wrap_socket(self.sock, server_hostname=name)
        except BaseException:
            self.sock.close()
            raise

    def ask(self, path: str, body: Any = None, *, method: str = "POST", headers: Mapping[str, str] | None = None) -> None:
        super().ask(path, body, method=method, headers={"host": NAME} | dict(headers or {}))

    def silent(self, seconds: float) -> bool:
        """As of RawClient. TLS has records of its own, so that a socket which can be read need not hold a byte for us."""
        before = self.sock.gettimeout()
        self.sock.settimeout(max(seconds, 0.001))
        try:
            self._inbox += self.sock.recv(self.read_bytes) if not self._inbox else b""
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(before)
        return False


@dataclass(slots=True)
class RunningNginx:
    """Use as a context manager. `upstream_port` is where the gateway listens, or what stands in for it."""

    directory: Path
    upstream_port: int
    port: int = field(default_factory=free_port)
    plain_port: int = field(default_factory=free_port)
    context: ssl.SSLContext = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def client(self, key: str = "", timeout_s: float = 20.0) -> TlsClient:
        return TlsClient(self.port, self.context, key, timeout_s)

    def plain_client(self, key: str = "") -> RawClient:
        """To the port that only sends on to HTTPS."""
        return RawClient(self.plain_port, key)

    @property
    def access_log(self) -> Path:
        return self.directory / "access.log"

    @property
    def error_log(self) -> Path:
        return self.directory / "error.log"

    def __enter__(self) -> RunningNginx:
        if PROGRAM is None:
            pytest.skip("nginx is not installed: apt-get install nginx-light")
        self.directory.mkdir(parents=True, exist_ok=True)
        make_certificate(self.directory)
        self.context = ssl.create_default_context(cafile=str(self.directory / "fullchain.pem"))
        path = self.directory / "nginx.conf"
        path.write_text(self.configuration(CONFIGURATION.read_text()))
        with (self.directory / "nginx.out").open("ab") as output:
            self.process = subprocess.Popen([PROGRAM, "-p", str(self.directory), "-c", str(path), "-g", "daemon off;"], stdout=output, stderr=output)
        self._wait()
        return self

    def configuration(self, shipped: str) -> str:
        """The shipped text with what a test must have otherwise. Raises AssertionError where the text has not what is to be replaced."""
        temporary = "".join(f"\n    {name}_temp_path {self.directory / name};" for name in _TEMPORARY)
        changes = (
            (r"^user .*;$", "user root;" if os.geteuid() == 0 else "", 1),
            (r"^pid .*;$", f"pid {self.directory / 'nginx.pid'};", 1),
            (r"/var/log/nginx(?=/)", str(self.directory), 2),
            (r"/etc/nginx/tls(?=/)", str(self.directory), 2),
            (r"^ *listen \[::\]:.*\n", "", 3),  # not every machine of a test has IPv6
            (r"listen 80\b", f"listen 127.0.0.1:{self.plain_port}", 1),
            (r"listen 443\b", f"listen 127.0.0.1:{self.port}", 2),
            (r"server 127\.0\.0\.1:8080\b", f"server 127.0.0.1:{self.upstream_port}", 1),
            (r"^http \{$", f"http {{{temporary}", 1),
        )
        for pattern, replacement, count in changes:
            shipped, found = re.subn(pattern, replacement.replace("\\", r"\\"), shipped, flags=re.MULTILINE)
            assert found == count, f"deploy/nginx.conf has {found} times {pattern}"
        return shipped

    def _wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"nginx does not run:\n{(self.directory / 'nginx.out').read_text()[-4000:]}")

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)


def make_certificate(directory: Path, name: str = NAME) -> None:
    """fullchain.pem and privkey.pem for `name`, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "fullchain.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with open(os.open(directory / "privkey.pem", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(private)
