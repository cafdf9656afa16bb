"""Row 62: a backup that was made while calls were under way, put in another place, passes the audit."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pytest

from gateway.operations import ledger as books
from gateway.store.audit import Audit
from tests.fakes.gateway import RunningGateway
from tests.fakes.postgres import Postgres, binary
from tests.faults.calls import CHAT
from tests.faults.conftest import Measured

BODY = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}


def busy(gateway: RunningGateway, stop: threading.Event) -> threading.Thread:
    """Calls, one after the other, until told to stop."""

    def call() -> None:
        while not stop.is_set():
            assert gateway.post(CHAT, BODY).status == 200

    thread = threading.Thread(target=call)
    thread.start()
    return thread


def restored_sqlite(gateway: RunningGateway, directory: Path) -> str:
    copy = directory / "copy.db"
    with contextlib.closing(sqlite3.connect(gateway.directory / "data" / "gateway.db")) as live:
        live.execute("VACUUM INTO ?", (str(copy),))
    return f"sqlite://{copy}"


def restored_postgres(server: Postgres) -> str:
    dump = subprocess.run([str(binary("pg_dump")), server.url("backup")], capture_output=True, check=True).stdout
    subprocess.run([str(binary("psql")), "-q", "-v", "ON_ERROR_STOP=1", server.emptied("copy")], input=dump, check=True, stdout=subprocess.DEVNULL)
    return server.url("copy")


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_a_restored_ledger_passes_the_audit(request: pytest.FixtureRequest, tmp_path: Path, engine: str, measured: Measured) -> None:
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        server = request.getfixturevalue("postgres") if engine == "postgres" else None
        gateway = stack.enter_context(
            RunningGateway(tmp_path / "gateway", {"WEB_CONCURRENCY": "3" if server else "1"}, server.emptied("backup") if server else None)
        )
        gateway.budget(10**12)
        time.sleep(1.2)  # every worker follows within a second
        calls = busy(gateway, stop)
        stack.callback(stop.set)
        gateway.wait_entries(20)
        url = restored_postgres(server) if server else restored_sqlite(gateway, tmp_path)
        stop.set()
        calls.join()
        audit: Audit = books.verify(url, gateway.secrets.hasher.hash)
    measured(62, f"{engine}: {len(audit.differences)} differences in the {audit.entries} entries and {audit.holds} open holds of the copy (0)")
    assert audit.entries >= 20
    assert audit.differences == ()
