"""Websockets served by the gateway's own gunicorn worker and nothing else of it: a WSGI application of a few lines, in a process of its own."""

from __future__ import annotations

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
from gateway.concurrency import after, spawn
from tests.fakes.gateway import ROOT, free_port
from tests.fakes.processes import children

CONFIGURATION = "from gevent import monkey\n\nmonkey.patch_all()\n"


class Lag:
    """How long the hub is held up: by how much a short sleep is late."""

    step_s = 0.005

    def __init__(self) -> None:
        self._longest_s, self._watches = 0.0, False

    def taken(self) -> float:
        if not self._watches:
            self._watches = True
            spawn(self._watch, "lag")
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s

    def _watch(self) -> None:
        while True:
            began = time.monotonic()
            time.sleep(self.step_s)
            self._longest_s = max(self._longest_s, time.monotonic() - began - self.step_s)


LAG = Lag()


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """By path: what `serve` says, each with `max_bytes` and `send_s` in its query. What asks for no websocket is answered with 200 and the longest time in
    seconds for which the hub was held up since it was asked last."""
    query = {name: float(values[0]) for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    try:
        websocket = WebSocket.accept(environ, ("second", "first"), max_bytes=int(query.get("max_bytes", MAX_BYTES)), send_s=query.get("send_s", SEND_S))
    except NotAWebSocket:
        start_response("200 OK", [])
        return [str(LAG.taken()).encode()]
    try:
        serve(websocket, environ["PATH_INFO"], query)
    except WebSocketClosed as closed:
        print(f"{environ.get('HTTP_X_MARK', '')}: {closed.code}", flush=True)  # into the server's log
    start_response("200 OK", [])
    return [b"never sent"]


def serve(websocket: WebSocket, path: str, query: dict[str, float]) -> None:
    """`/echo`; `/sink` counts what comes until "end", and tells; `/busy?s=` reads nothing for so long, then is `/sink`; `/source?bytes=` sends one message
    of that size; `/fail` raises; `/close?code=`; `/closed_by_another?s=&sends=`: another greenlet closes it while this one receives, or sends."""
    if path == "/echo":
        while (message := websocket.receive(None)) is not None:
            websocket.send(message)
    if path == "/fail":
        raise RuntimeError("the view failed")
    if path == "/close":
        websocket.close(int(query["code"]), "as asked")
    if path == "/closed_by_another":
        after(query["s"], lambda: websocket.close(4409))
        while True:
            websocket.send(b"x" * 1_000_000) if query["sends"] else websocket.receive(None)
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

    def lag_s(self) -> float:
        """The longest time for which the hub was held up since this was asked last."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=20) as answer:
            return float(answer.read())

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
