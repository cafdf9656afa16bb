"""What open answers see when their worker is told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.answers import Slow
from tests.fakes.gateway import ROOT, RunningGateway, free_port
from tests.fakes.provider import Provider

DRAIN_S = 3


def _tell(gateway: RunningGateway, number: int) -> None:
    """As a service manager does, or for SIGINT as a terminal does: every process of the group gets it."""
    assert gateway.process is not None
    workers = [] if number == signal.SIGTERM else Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
    for pid in (gateway.process.pid, *map(int, workers)):
        os.kill(pid, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stream_that_ends_in_time_is_whole_and_one_that_does_not_ends_with_an_error(tmp_path: Path, number: int) -> None:
    with Provider() as provider, RunningGateway(tmp_path, {"GATEWAY_DRAIN_S": str(DRAIN_S)}) as gateway:
        gateway.deploy("m", provider.url)
        gateway.wait_catalog()
        provider.script("/v1/chat/completions", Slow(0.1), Slow(2.0))
        with gateway.client() as quick, gateway.client() as slow:
            for client in (quick, slow):
                client.ask("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True})
                assert client.head().status == 200
            assert gateway.process is not None
            began = time.monotonic()
            _tell(gateway, number)
            whole, cut = quick.rest(), slow.rest()
            assert gateway.process.wait(DRAIN_S + 3) == 0
        assert time.monotonic() - began < DRAIN_S + 2
        assert whole.endswith(b"data: [DONE]\n\n")
        assert b"[DONE]" not in cut
        assert b"shutting down" in cut
        assert sorted(entry.ending for entry in gateway.wait_entries(2)) == ["complete", "upstream_truncated"]


def test_second_server_on_the_same_data_leaves_the_counters_of_the_first_alone(tmp_path: Path) -> None:
    with RunningGateway(tmp_path) as first:
        ask = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
        assert first.post("/v1/chat/completions", ask).status == 200
        second = RunningGateway(tmp_path)
        second.start()
        try:
            assert first.post("/v1/chat/completions", ask).status == 200
            assert b'ending="complete",endpoint="/chat/completions",status="200"} 2.0' in first.get("/metrics", key=None).body
            assert b"gateway_exchanges_total{" not in second.get("/metrics", key=None).body
        finally:
            second.stop()


def test_ctrl_c_while_the_server_starts_ends_it_without_a_traceback(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "OPENAI_", "DATABASE_URL"))}
    environment |= {"GATEWAY_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "gateway.cli", "serve"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        assert any("To stop: Ctrl-C" in line for line in iter(server.stdout.readline, ""))
        server.send_signal(signal.SIGINT)
        rest = server.stdout.read()
        assert server.wait(20) == 0
    assert "Traceback" not in rest
    assert all(line.startswith("{") for line in rest.splitlines() if line)
