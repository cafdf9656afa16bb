"""Row 32: PostgreSQL is gone, and comes back. Calls under way end as if nothing had happened, keys with a budget wait; nothing is lost or doubled."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.operations import ledger as books
from tests.fakes.answers import Slow
from tests.fakes.gateway import RunningGateway
from tests.fakes.postgres import Postgres
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, DONE
from tests.faults.conftest import Measured

BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        provider.always("/v1/chat/completions", Slow(0.1))
        yield provider


@pytest.mark.parametrize(("policy", "workers"), [("serve", 1), ("refuse", 3)])
def test_a_database_that_is_away_loses_no_entry(tmp_path: Path, provider: Provider, policy: str, workers: int, measured: Measured) -> None:
    with Postgres(tmp_path / "postgres") as server:
        environment = {"WEB_CONCURRENCY": str(workers), "GATEWAY_WITHOUT_DATABASE": policy}
        with RunningGateway(tmp_path / "gateway", environment, server.emptied("gateway")) as gateway:
            gateway.deploy("m", provider.url)
            payer = gateway.new_key(gateway.new_user("payer"))
            gateway.budget(10**12, "user", 2)
            time.sleep(1.2)  # every worker follows within a second
            assert gateway.post(CHAT, BODY).status == gateway.post(CHAT, BODY, payer).status == 200
            with gateway.client(payer) as client:
                client.ask(CHAT, {**BODY, "stream": True})
                assert client.head().status == 200
                server.stop(signal.SIGQUIT)
                began = time.monotonic()
                body, stream_s = client.rest(), time.monotonic() - began
            time.sleep(1.5)  # the catalog's poll notices
            free, paid = gateway.post(CHAT, BODY), gateway.post(CHAT, BODY, payer)
            asked = time.monotonic()
            health = gateway.get("/healthz", key=None).status
            health_s = time.monotonic() - asked
            server.start()
            began = time.monotonic()
            while gateway.post(CHAT, BODY, payer).status != 200:
                assert time.monotonic() - began < 10
                time.sleep(0.1)
            back_s = time.monotonic() - began
            entries = gateway.wait_entries(5 if policy == "serve" else 4)
            audit = books.verify(gateway.database_url or "", gateway.secrets.hasher.hash)
    quick = f"/healthz in {health_s * 1000:.0f} ms, back after {back_s:.1f} s"
    measured(32, f"{policy}, {workers} worker(s): a stream ended {stream_s:.1f} s after the crash, {quick}; {len(audit.differences)} differences")
    assert body.endswith(DONE)
    assert (free.status, paid.status, paid.headers["retry-after"]) == (200 if policy == "serve" else 503, 503, "2")
    assert health == 200
    assert [entry.ending for entry in entries].count("complete") == (5 if policy == "serve" else 4)
    assert len({entry.exchange for entry in entries}) == len(entries)
    assert (audit.differences, audit.holds) == ((), 0)
