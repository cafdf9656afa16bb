"""A private PostgreSQL server for tests: the real program on a free port of 127.0.0.1, gone when the tests are."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psycopg
import pytest

MISSING = "no PostgreSQL server is installed: apt-get install postgresql"
_DIRECTORIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name.split(".")[0]), reverse=True)
_FAST = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB", "max_connections=100", "autovacuum=off")


def binary(name: str) -> str | None:
    """Where a program of PostgreSQL is; Debian keeps the server's outside PATH."""
    found = [directory / name for directory in _DIRECTORIES if (directory / name).exists()]
    return str(found[0]) if found else shutil.which(name)


class Postgres:
    """`with Postgres(directory) as server: server.url("name")`. Skips the test where PostgreSQL is not installed.

    The server refuses to run as root: root's tests lend it an unprivileged user and a directory that this user can reach.
    `options`: the server's settings; by default it is quick, and its data would not survive a loss of power.
    """

    def __init__(self, directory: Path, options: Sequence[str] = _FAST) -> None:
        self._directory, self._options = directory, options
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._user = _unprivileged() if os.geteuid() == 0 else None
        self._server: subprocess.Popen[bytes] | None = None
        self._names: set[str] = set()
        self.port = 0

    def __enter__(self) -> Postgres:
        initdb = binary("initdb")
        if initdb is None or binary("postgres") is None:
            pytest.skip(MISSING)
        if self._user is not None:
            self._scratch = tempfile.TemporaryDirectory(prefix="gateway-postgres-")
            self._directory = Path(self._scratch.name)
            os.chown(self._directory, self._user.pw_uid, self._user.pw_gid)
        options = ("-U", "gateway", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        subprocess.run([*self._as_user(), initdb, "-D", str(self._data), *options], check=True, stdout=subprocess.DEVNULL, cwd=self._directory)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop(signal.SIGQUIT)  # nothing of it is kept
        if self._scratch is not None:
            self._scratch.cleanup()

    @property
    def _data(self) -> Path:
        return self._directory / "postgres"

    def _as_user(self) -> list[str]:
        if self._user is None:
            return []
        return ["setpriv", f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]

    def start(self) -> None:
        settings = (f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", *self._options)
        arguments = [part for setting in settings for part in ("-c", setting)]
        guard = [*(self._as_user() or ["setpriv"]), "--pdeathsig", "INT"]  # a killed test run leaves no server behind
        command = [*guard, str(binary("postgres")), "-D", str(self._data), *arguments]
        with (self._directory / "postgres.log").open("ab") as log:
            self._server = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log)
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self._address("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: break off what runs, then end in order. SIGQUIT: end as in a crash. Idempotent."""
        if self._server is None:
            return
        self._server.send_signal(how)
        self._server.wait(30)
        self._server = None

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        self.stop(how)
        self.start()

    def url(self, name: str) -> str:
        """The URL of the database `name`, which is made at its first mention."""
        if name not in self._names:
            with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
                connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0'.encode())
            self._names.add(name)
        return self._address(name)

    def emptied(self, name: str) -> str:
        """The URL of the database `name` without anything in it: quicker than another database. Its sessions are ended."""
        url = self.url(name)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return url

    def _address(self, name: str) -> str:
        return f"postgresql://gateway@127.0.0.1:{self.port}/{name}"


def _unprivileged() -> pwd.struct_passwd:
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]
