"""A private Redis server for tests: the real program on a free port of 127.0.0.1, gone when the tests are."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest
import redis

from gateway.backend import Secret
from tests.fakes.gateway import free_port
from tests.fakes.nginx import make_certificate

MISSING = "no Redis server is installed: apt-get install redis-server"


class RedisServer:
    """`with RedisServer(directory) as server: connect(server.url)`. Skips the test where Redis is not installed. It keeps nothing on disk.

    `password`: what its clients have to know; None where they need none. `tls`: clients come by TLS, and have to trust its own certificate.
    """

    def __init__(self, directory: Path, password: str | None = None, *, tls: bool = False) -> None:
        self._directory, self._password, self._tls = directory, password, tls
        self._server: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> RedisServer:
        if shutil.which("redis-server") is None:
            pytest.skip(MISSING)
        self.port = free_port()
        if self._tls:
            make_certificate(self._directory, "localhost")
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> Secret:
        user = f":{self._password}@" if self._password else ""
        scheme, trust = ("rediss", f"?ssl_ca_certs={self._directory}/fullchain.pem") if self._tls else ("redis", "")
        return Secret(f"{scheme}://{user}{'localhost' if self._tls else '127.0.0.1'}:{self.port}/0{trust}")

    def client(self) -> redis.Redis:
        """The tests' own; to be closed by who asked for it."""
        return redis.Redis.from_url(self.url.reveal(), socket_timeout=5)

    def start(self) -> None:
        options: dict[str, object] = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self._directory, "daemonize": "no"}
        if self._password:
            options["requirepass"] = self._password
        if self._tls:
            files = {"cert": "fullchain", "key": "privkey", "ca-cert": "fullchain"}
            options |= {"port": 0, "tls-port": self.port, "tls-auth-clients": "no"}
            options |= {f"tls-{what}-file": self._directory / f"{name}.pem" for what, name in files.items()}
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        with (self._directory / "redis.log").open("ab") as log:
            # Under setpriv: a killed test run leaves no server behind.
            self._server = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "redis-server", *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        with self.client() as client:
            while not _answers(client):
                if time.monotonic() > deadline:
                    raise TimeoutError((self._directory / "redis.log").read_text())
                time.sleep(0.01)

    def signal(self, what: signal.Signals) -> None:
        """SIGSTOP: it hangs until SIGCONT."""
        if self._server is not None:
            self._server.send_signal(what)

    def stop(self) -> None:
        """As in a crash: what it held is lost. Idempotent."""
        if self._server is None:
            return
        self._server.kill()
        self._server.wait(30)
        self._server = None


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
