"""Row 60: a server meets a schema that is not its own. It answers nobody until it fits, and then begins by itself.

Several runners at once, one that is killed half-way, one that fails, and a newer schema are in tests/unit/store/test_migrations.py.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from gateway.store.models import database
from tests.fakes.gateway import RunningGateway
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT
from tests.faults.conftest import Measured

BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
FUTURE = "INSERT INTO schema_migration (name, applied) VALUES ('9999_future', '2030-01-01 00:00:00')"


def test_a_worker_that_begins_with_a_newer_schema_serves_nobody_until_it_fits(tmp_path: Path, measured: Measured) -> None:
    with Provider() as provider, contextlib.ExitStack() as stack:
        gateway = RunningGateway(tmp_path, {"WEB_CONCURRENCY": "1"})
        gateway.prepare()
        stack.push(gateway.__exit__)
        gateway.deploy("m", provider.url)
        gateway.write(lambda: database.execute_sql(FUTURE))
        gateway.start(ready=503)
        refused, listed, ready = gateway.post(CHAT, BODY), gateway.get("/v1/models"), gateway.get("/readyz", key=None)
        gateway.write(lambda: database.execute_sql("DELETE FROM schema_migration WHERE name = '9999_future'"))
        began = time.monotonic()
        while gateway.post(CHAT, BODY).status != 200:
            assert time.monotonic() - began < 10
            time.sleep(0.05)
        seconds = time.monotonic() - began
        gateway.write(lambda: database.execute_sql(FUTURE))
        gateway.deploy("later", provider.url)
        gateway.wait_catalog()
        later = gateway.post(CHAT, BODY)
    measured(60, f"a worker that begins under a newer schema answers {refused.status}; {seconds:.1f} s after it fits it serves")
    assert (refused.status, refused.json()["error"]["code"], listed.status) == (503, "store_unavailable", 503)
    assert "newer than this program" in ready.json()["checks"]["migrations"]
    assert later.status == 200, "who serves already goes on, so that a newer program can take over"
    assert len(provider.requests) == 2
