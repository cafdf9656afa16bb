"""Row 34: no file can grow any more, as on a full disk. What cannot be booked is not sent to an upstream; when there is room again all goes on by
itself, and what could not be booked meanwhile is.

The limit on a file's size stands for the disk: SQLite's log, the journal and the server's own log meet it alike.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fakes.answers import Slow
from tests.fakes.gateway import RunningGateway
from tests.fakes.postgres import Postgres
from tests.fakes.processes import children
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, DONE
from tests.faults.conftest import Measured
from tests.faults.crashes import audited, settled

BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}


@contextlib.contextmanager
def full_disk(gateway: RunningGateway) -> Iterator[None]:
    assert gateway.process is not None
    workers = children(gateway.process.pid)
    for worker in workers:
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    yield
    for worker in workers:
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def recovered(gateway: RunningGateway, *keys: str) -> float:
    """Seconds until calls of these keys are answered again."""
    began = time.monotonic()
    while any(gateway.post(CHAT, BODY, key).status != 200 for key in keys):
        assert time.monotonic() - began < 20, "it does not recover"
        time.sleep(0.05)
    return time.monotonic() - began


def test_a_full_disk_loses_nothing_and_pays_no_upstream_for_what_cannot_be_booked(tmp_path: Path, measured: Measured) -> None:
    with Provider() as provider, RunningGateway(tmp_path, {"WEB_CONCURRENCY": "1"}) as gateway:
        provider.always("/v1/chat/completions", Slow(0.05))
        gateway.deploy("m", provider.url)
        payer = gateway.new_key(gateway.new_user("payer"))
        gateway.budget(10**12, "user", 2)
        gateway.wait_catalog()
        assert gateway.post(CHAT, BODY).status == gateway.post(CHAT, BODY, payer).status == 200
        with gateway.client(payer) as client:
            client.ask(CHAT, {**BODY, "stream": True})
            head = client.head()
            with full_disk(gateway):
                withheld = client.rest()
                asked = len(provider.requests)
                refused = [gateway.post(CHAT, BODY, key) for key in ("", payer) for _ in range(3)]
                ready = gateway.get("/readyz", key=None)
                asked = len(provider.requests) - asked
        seconds = recovered(gateway, "", payer)
        settled(gateway)
        entries, audit = gateway.entries(), audited(gateway)
        cut = gateway.entry(head.headers["x-request-id"])
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "gateway.db")) as database:
        (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
    lost = len(provider.requests) - len(entries)
    measured(34, f"integrity_check {integrity} (ok), {lost} of {len(entries)} calls lost (0), back {seconds:.1f} s after there was room")
    assert b'"code":"settle_failed"' in withheld
    assert DONE not in withheld
    assert {(answer.status, answer.json()["error"]["code"], answer.headers["retry-after"]) for answer in refused} == {(503, "store_unavailable", "2")}
    assert (ready.status, ready.json()["checks"]["ledger"], asked) == (503, "cannot be written", 0)
    assert cut is not None
    assert (cut.ending, cut.amount, cut.cost > 0, cut.flags) == ("complete", 0, True, ("withheld",))
    assert (integrity, lost, audit.differences, audit.holds) == ("ok", 0, (), 0)


def test_a_full_disk_while_postgresql_is_away_loses_nothing(tmp_path: Path, measured: Measured) -> None:
    """PostgreSQL's own disk is its server's business; what is full here is the journal's, when it is all there is."""
    with Provider() as provider, Postgres(tmp_path / "postgres") as server:
        provider.always("/v1/chat/completions", Slow(0.3))
        with RunningGateway(tmp_path / "gateway", {"WEB_CONCURRENCY": "3"}, server.emptied("gateway")) as gateway:
            gateway.deploy("m", provider.url)
            gateway.budget(10**12)
            time.sleep(1.2)  # every worker follows within a second
            assert gateway.post(CHAT, BODY).status == 200
            with gateway.client() as client:
                client.ask(CHAT, {**BODY, "stream": True})
                head = client.head()
                server.stop(signal.SIGQUIT)
                with full_disk(gateway):
                    withheld = client.rest()
                    asked = len(provider.requests)
                    refused = [gateway.post(CHAT, BODY).status for _ in range(6)]
                    asked = len(provider.requests) - asked
            server.start()
            seconds = recovered(gateway, "")
            settled(gateway)
            entries, audit, cut = gateway.entries(), audited(gateway), gateway.entry(head.headers["x-request-id"])
    measured(34, f"postgres-3: {len(provider.requests) - len(entries)} of {len(entries)} calls lost (0), back {seconds:.1f} s after the database was")
    assert b'"code":"settle_failed"' in withheld
    assert (set(refused), asked) == ({503}, 0)
    assert cut is not None
    assert (cut.amount, cut.cost > 0, cut.flags) == (0, True, ("withheld",))
    assert (len(provider.requests), audit.differences, audit.holds) == (len(entries), (), 0)
