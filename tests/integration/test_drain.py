"""What open answers see when their worker is told to end."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.fakes.answers import Slow
from tests.fakes.gateway import RunningGateway
from tests.fakes.provider import Provider

DRAIN_S = 3


def test_stream_that_ends_in_time_is_whole_and_one_that_does_not_ends_with_an_error(tmp_path: Path) -> None:
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
            gateway.process.send_signal(signal.SIGTERM)
            whole, cut = quick.rest(), slow.rest()
            assert gateway.process.wait(DRAIN_S + 3) == 0
        assert time.monotonic() - began < DRAIN_S + 2
        assert whole.endswith(b"data: [DONE]\n\n")
        assert b"[DONE]" not in cut
        assert b"shutting down" in cut
        assert sorted(entry.ending for entry in gateway.wait_entries(2)) == ["complete", "upstream_truncated"]
