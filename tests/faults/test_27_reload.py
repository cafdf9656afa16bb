"""Row 27: a reload loses no request. The new worker serves before the old one leaves; what arrives at the old one is served."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.answers import Slow
from tests.fakes.gateway import Broken, RawClient, RunningGateway
from tests.fakes.nginx import RunningNginx
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, DONE, milliseconds, percentile
from tests.faults.conftest import Measured

RELOADS, RATE, CLIENTS, DRAIN_S = 10, 100, 10, 10


@dataclass
class Load:
    """RATE calls a second, directly and through nginx, over kept connections and over one for each call, streamed and not."""

    fronts: Sequence[Callable[[], RawClient]]
    stop: threading.Event = field(default_factory=threading.Event)
    results: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(20)

    def _client(self, number: int) -> None:
        kept: RawClient | None = None
        due = time.monotonic() + number / RATE
        while not self.stop.wait(max(due - time.monotonic(), 0)):
            due += CLIENTS / RATE
            began = time.monotonic()
            if kept is not None and not kept.silent(0):  # closed meanwhile, as every client's pool looks first
                kept = kept.sock.close()
            kept = kept or self.fronts[number // 2 % len(self.fronts)]()
            result, keep = self._call(kept, stream=number % 5 == 0)
            self.results.append(result)
            self.seconds.append(time.monotonic() - began)
            if number % 2 or not keep:
                kept = kept.sock.close()
        if kept is not None:
            kept.sock.close()

    def _call(self, client: RawClient, stream: bool) -> tuple[str, bool]:
        """ "ok" or what went wrong, and whether the connection may be used again."""
        try:
            client.ask(CHAT, {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": stream})
            head = client.head()
            body = client.rest()
        except (OSError, Broken) as error:
            return repr(error), False
        if head.status == 200 and (body.endswith(DONE) or not stream):
            return "ok", head.headers.get("connection") != "close"
        return f"{head.status} {body[-200:]!r}", False


def worker_pids(gateway: RunningGateway) -> set[int]:
    assert gateway.process is not None
    return set(map(int, Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()))


def reload(gateway: RunningGateway) -> None:
    """SIGHUP; returns when a worker is started that was not there before. Raises AssertionError after 30 s."""
    assert gateway.process is not None
    before = worker_pids(gateway)
    os.kill(gateway.process.pid, signal.SIGHUP)
    wait(lambda: bool(worker_pids(gateway) - before), gateway)


def wait(met: Callable[[], bool], gateway: RunningGateway) -> None:
    deadline = time.monotonic() + 30
    while not met():
        assert time.monotonic() < deadline, gateway.log_path.read_text()[-3000:]
        time.sleep(0.02)


def test_reloads_under_load_lose_no_request(tmp_path: Path, measured: Measured) -> None:
    settings = {"GATEWAY_DRAIN_S": str(DRAIN_S)}
    with Provider() as provider, RunningGateway(tmp_path / "gateway", settings) as gateway, RunningNginx(tmp_path / "nginx", gateway.port) as nginx:
        gateway.deploy("m", provider.url)
        gateway.wait_catalog()
        provider.always("/v1/chat/completions", Slow(0.02))
        first = worker_pids(gateway)
        load = Load((gateway.client, lambda: nginx.client(gateway.key)))
        began = time.monotonic()
        with load.running():
            for _ in range(RELOADS):
                reload(gateway)
            wait(lambda: len(worker_pids(gateway)) == 1, gateway)
        elapsed = time.monotonic() - began
        assert not worker_pids(gateway) & first
        failed = Counter(result for result in load.results if result != "ok")
        booked = gateway.wait_endings("m", len(load.results))
    slowest, median = milliseconds(max(load.seconds)), milliseconds(percentile(load.seconds, 0.5))
    measured(27, f"{sum(failed.values())} of {len(load.results)} failed over {RELOADS} reloads in {elapsed:.1f} s; p50 {median}, slowest {slowest}")
    assert not failed
    assert booked == {"complete": len(load.results)}


def test_reload_brings_new_settings_and_one_that_would_fail_changes_nothing(tmp_path: Path) -> None:
    with RunningGateway(tmp_path) as gateway:
        (tmp_path / ".env.local").write_text("GATEWAY_JSON_LIMIT=soon\n")
        assert gateway.process is not None
        before = worker_pids(gateway)
        os.kill(gateway.process.pid, signal.SIGHUP)
        wait(lambda: "the reload is refused" in gateway.log_path.read_text(), gateway)
        assert "GATEWAY_JSON_LIMIT must be a whole number" in gateway.log_path.read_text()
        time.sleep(0.2)
        assert worker_pids(gateway) == before
        ask = {"model": "echo", "messages": [{"role": "user", "content": "x" * 2000}]}
        assert gateway.post(CHAT, ask).status == 200

        (tmp_path / ".env.local").write_text("GATEWAY_JSON_LIMIT=1000\n")
        reload(gateway)
        wait(lambda: not worker_pids(gateway) & before, gateway)
        assert gateway.post(CHAT, ask).status == 413
        assert b"gateway_" in gateway.get("/metrics", key=None).body


def test_reload_keeps_the_address_whatever_the_settings_say(tmp_path: Path) -> None:
    with RunningGateway(tmp_path) as gateway:
        before = worker_pids(gateway)
        (tmp_path / ".env.local").write_text("GATEWAY_HOST=192.0.2.1\n")  # of nobody: it cannot be had
        reload(gateway)
        wait(lambda: not worker_pids(gateway) & before, gateway)
        assert "address changes at a restart only" in gateway.log_path.read_text()
        assert gateway.get("/healthz", key=None).status == 200


def test_new_worker_that_does_not_start_leaves_the_old_one_serving(tmp_path: Path) -> None:
    """Its trial went well, and then its run directory is taken away."""
    with RunningGateway(tmp_path) as gateway:
        before = worker_pids(gateway)
        owners = tmp_path / "data" / "run" / "owners"
        shutil.rmtree(owners)
        owners.write_text("no directory")
        reload(gateway)
        wait(lambda: "a new worker did not start" in gateway.log_path.read_text(), gateway)
        assert gateway.get("/readyz", key=None).status == 200
        assert worker_pids(gateway) == before
