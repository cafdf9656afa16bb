"""Websockets served by the gateway's own gunicorn worker and nothing else of it: a WSGI application of a few lines, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from gateway.api.websocket import MAX_BYTES, SEND_S, NotAWebSocket, WebSocket, WebSocketClosed
from tests.fakes.gateway import ROOT, free_port
from tests.fakes.processes import children

CONFIGURATION = "from gevent import monkey\n\nmonkey.patch_all()\n"


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """`/echo`, `/sink` (counts what comes until "end", and tells), `/source?bytes=` (sends one message of that size), `/busy?s=` (reads nothing for so
    long, then is `/sink`), `/fail` (raises), `/close?code=`. Any of them with `max_bytes` and `send_s`. All else is answered with 200."""
    query = {name: float(values[0]) for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    try:
        websocket = WebSocket.accept(environ, ("second", "first"), max_bytes=int(query.get("max_bytes", MAX_BYTES)), send_s=query.get("send_s", SEND_S))
    except NotAWebSocket:
        start_response("200 OK", [("content-length", "2")])
        return [b"ok"]
    with contextlib.suppress(WebSocketClosed):
        serve(websocket, environ["PATH_INFO"], query)
    start_response("200 OK", [])
    return [b"never sent"]


def serve(websocket: WebSocket, path: str, query: dict[str, float]) -> None:
    if path == "/echo":
        while (message := websocket.receive(None)) is not None:
            websocket.send(message)
    if path == "/fail":
        raise RuntimeError("the view failed")
    if path == "/close":
        websocket.close(int(query["code"]), "as asked")
    if path == "/source":
        websocket.send(b"x" * int(query["bytes"]))
        websocket.receive(None)
    if path == "/busy":
        time.sleep(query["s"])
    if path in ("/busy", "/sink"):
        size = 0
        while (message := websocket.receive(None)) != "end":
            size += len(message or "")
        websocket.send(str(size))


@dataclass(slots=True)
class RunningSockets:
    """Use as a context manager. `worker` is the process that serves."""

    directory: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def worker(self) -> int:
        assert self.process is not None
        (worker,) = children(self.process.pid)
        return worker

    @property
    def log(self) -> str:
        return (self.directory / "server.log").read_text()

    def __enter__(self) -> RunningSockets:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "configuration.py").write_text(CONFIGURATION)
        command = [sys.executable, "-m", "gunicorn", "-c", "configuration.py", "-k", "gateway.server.Worker", "--http-parser", "python", "--no-control-socket"]
        command += ["-b", f"127.0.0.1:{self.port}", "--graceful-timeout", "5", "--keep-alive", "1", "tests.fakes.socket_app:app"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (self.directory / "server.log").open("wb") as log:
            self.process = subprocess.Popen(command, cwd=self.directory, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not self.answers():
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
