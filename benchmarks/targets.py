"""What is measured: nothing at all (direct), a bare nginx, this gateway. Each is made ready once and may be started many times."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import Place, Upstream
from benchmarks.processes import ROOT, Cores, Started, Unavailable, clean_environment, free_port

NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
{user}
events {{ worker_connections 30000; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    map $http_authorization $known {{ default 0; "Bearer {key}" 1; }}
    upstream provider {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            if ($known = 0) {{ return 401; }}
            proxy_pass http://provider;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 300s;
        }}
    }}
}}
"""


class Target(ABC):
    """One column of the table. `prepare` is called once and may raise Unavailable; then `start` and `stop` in turn, any number of times.

    `slow` is true for what answers some hundred requests a second: the load is then made smaller.
    """

    name: str
    slow = False
    start_limit_s = 30.0

    def __init__(self, upstream: Upstream, cores: Cores, directory: Path) -> None:
        self.upstream, self.cores, self.directory = upstream, cores, directory
        self.started: Started | None = None
        self.start_s = 0.0

    @property
    @abstractmethod
    def place(self) -> Place: ...

    @abstractmethod
    def prepare(self) -> None: ...

    @abstractmethod
    def command(self) -> Sequence[str]: ...

    def environment(self) -> dict[str, str]:
        return {}

    def start(self) -> None:
        """Returns once a chat completion is answered; `start_s` is how long that took. Raises RuntimeError."""
        began = time.monotonic()
        self.started = Started(self.command(), self.cores.target, self.directory / f"{self.name}.log", self.directory, self.environment())
        while not _answers(self.place):
            if not self.started.alive() or time.monotonic() - began > self.start_limit_s:
                tail = self.started.tail()
                self.stop()
                raise RuntimeError(f"{self.name} does not answer: {tail}")
            time.sleep(0.005)
        self.start_s = time.monotonic() - began

    def stop(self) -> None:
        if self.started is not None:
            self.started.stop()
        self.started = None


class Direct(Target):
    """The load tool asks the upstream itself: the base that latencies are counted from. Nothing is started."""

    name = "direct"

    @property
    def place(self) -> Place:
        return Place(self.upstream.port)

    def prepare(self) -> None:
        pass

    def command(self) -> Sequence[str]:
        return ()

    def start(self) -> None:
        self.start_s = 0.0


class Nginx(Target):
    """One worker that checks the key and relays: the limit of what a proxy can do."""

    name = "nginx"

    def __init__(self, upstream: Upstream, cores: Cores, directory: Path) -> None:
        super().__init__(upstream, cores, directory)
        self._port, self._key = free_port(), "sk-benchmark"
        self._program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

    @property
    def place(self) -> Place:
        return Place(self._port, self._key)

    def prepare(self) -> None:
        if self._program is None:
            raise Unavailable("nginx is not installed: apt-get install nginx-light")
        text = NGINX.format(
            files=os.sysconf("SC_OPEN_MAX"),
            directory=self.directory,
            user="user root;" if os.geteuid() == 0 else "",
            key=self._key,
            upstream=self.upstream.port,
            port=self._port,
        )
        (self.directory / "nginx.conf").write_text(text)

    def command(self) -> Sequence[str]:
        assert self._program is not None
        return [self._program, "-p", str(self.directory), "-c", str(self.directory / "nginx.conf")]


class ChatGateway(Target):
    """This project, as `gateway serve` starts it: one worker, key check, catalog, receipt and ledger on, SQLite on the disk."""

    name = "gateway"

    def __init__(self, upstream: Upstream, cores: Cores, directory: Path) -> None:
        super().__init__(upstream, cores, directory)
        self._port, self._key = free_port(), ""

    @property
    def place(self) -> Place:
        return Place(self._port, self._key)

    @property
    def database(self) -> Path:
        """The SQLite file, for who wants to read the ledger."""
        return self.directory / "data" / "gateway.db"

    def environment(self) -> dict[str, str]:
        return {"GATEWAY_PORT": str(self._port), "GATEWAY_DATA_DIR": str(self.directory / "data"), "PYTHONPATH": str(ROOT), "GATEWAY_DRAIN_S": "5"}

    def prepare(self) -> None:
        self._run("migrate")
        self._run("user", "create", "benchmark")
        self._key = json.loads(self._run("key", "create", "--user", "benchmark", "--json"))["key"]
        self._run("credential", "create", "provider", "-", told="sk-upstream-of-the-benchmark")
        self._run("deployment", "create", "provider", "--model", "*", "--backend", "openai", "--base-url", self.upstream.url, "--credential", "provider")
        self._run("price", "set", "*", "--input", "2.50", "--output", "10")

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "gateway.cli", "serve"]

    def _run(self, *words: str, told: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *words],
            cwd=self.directory,
            env=clean_environment(self.environment()),
            input=told,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"gateway {' '.join(words)}: {done.stderr}")
        return done.stdout


def _answers(place: Place) -> bool:
    """Whether a chat completion is answered with 200."""
    body = json.dumps({"model": "whole-600-0", "messages": [{"role": "user", "content": "nonce-00000000"}]})
    headers = dict(line.split(": ", 1) for line in place.headers) | {"Authorization": f"Bearer {place.key}", "Content-Type": "application/json"}
    line = http.client.HTTPConnection("127.0.0.1", place.port, timeout=5)
    try:
        line.request("POST", place.path, body, headers)
        answer = line.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        line.close()
    return answer.status == 200
