"""Row 38: a token expires while a crowd wants it, and workers are killed at the worst moments of its refresh, on both databases.

The issuer's refresh tokens work once: a second request for one is refused, as by issuers that watch for stolen tokens.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.backend import Deadlines, Secret, Services
from gateway.core.catalog import Backends, Catalog
from gateway.core.refreshing import Refresher
from gateway.operations import credentials as operations
from gateway.operations.credentials import CredentialWishes
from gateway.presence import Presence
from gateway.secrets import KeyHasher, Secrets, Vault
from gateway.store import catalog, pools, refreshes
from gateway.store.database import Database
from gateway.store.pools import Credential
from tests.factories import now_ms
from tests.fakes.gateway import ROOT
from tests.fakes.issuer import FIRST, Issuer
from tests.faults.conftest import Measured

PROGRAM = Path(__file__).with_name("refreshing_program.py")
PROCESSES, GREENLETS = 4, 50
SECRETS = Secrets(KeyHasher(b"p" * 32), Vault({1: b"m" * 32}, 1), ())
"""The program's as well."""


@dataclass
class Stage:
    """A database with a credential whose token has expired, its issuer, and workers in processes of their own."""

    url: str
    directory: Path
    issuer: Issuer
    database: Database
    quarantined: list[Mapping[str, Any]] = field(default_factory=list)

    def start(self, crash: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, str(PROGRAM), self.url, str(self.directory), crash]
        environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
        worker = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        return worker

    def killed(self, crash: str) -> None:
        """A worker that kills itself at that moment."""
        with self.start(crash) as worker:
            worker.communicate("go\n", timeout=30)
            assert worker.returncode == -signal.SIGKILL

    def recovered(self) -> float:
        """Seconds until another worker's ticks have left nothing to do."""
        presence = Presence(self.directory / "run")
        presence.start()
        kept = Catalog(self.database, SECRETS.vault, Backends(Services()), Deadlines(), None, lambda *secrets: None)
        kept.refresh()
        refresher = Refresher(self.database, kept, SECRETS, presence, lambda credential, reason, evidence: self.quarantined.append(evidence))
        began = time.monotonic()
        refresher.tick()
        while self.version == 1 and [row.state for row in self.database.read(refreshes.under_way)] != ["refused"]:
            assert time.monotonic() - began < 10
            time.sleep(0.01)
        took_s = time.monotonic() - began
        kept.close()
        presence.close()
        return took_s

    @property
    def credential(self) -> Credential:
        found = self.database.read(lambda: pools.find_credential("main"))
        assert found is not None
        return found

    @property
    def version(self) -> int:
        return self.credential.version

    @property
    def tokens(self) -> tuple[str, str]:
        found = self.credential
        extras = json.loads(SECRETS.vault.open(found.extras or b"", pools.extras_place(found.id)))
        return SECRETS.vault.open(found.sealed, pools.credential_place(found.id)), extras["refresh_token"]


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path, place: str) -> Iterator[Stage]:
    url = request.getfixturevalue("postgres").emptied("refresh") if place == "postgres" else f"sqlite://{tmp_path}/gateway.db"
    with contextlib.closing(Database(url)) as database, Issuer() as issuer:
        database.bind()
        database.migrate()
        wishes = CredentialWishes(extras={"refresh_token": Secret(FIRST)}, expires_at=now_ms() - 1000)
        made = operations.create_credential(database, SECRETS, "main", Secret("an-expired-access-token"), now_ms() - 3_600_000, wishes)

        def deploy() -> None:
            options = {"refresh_url": issuer.token_url}
            catalog.create_deployment("d", catalog.create_model("m", 0).id, "tests.fakes.issuer:Refreshing", 0, options=options, credential_id=made.id)

        database.write(deploy)
        yield Stage(url, tmp_path, issuer, database)


def test_a_crowd_of_every_worker_refreshes_once(stage: Stage, place: str, measured: Measured) -> None:
    stage.issuer.delay_s = 0.3
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(stage.start()) for _ in range(PROCESSES)]
        began = time.monotonic()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        reports = [json.loads(worker.communicate(timeout=50)[0]) for worker in workers]
        seconds = time.monotonic() - began
    wanted, refreshed = (sum(report[name] for report in reports) for name in ("wanted", "refreshed"))
    measured(38, f"{place}: {wanted} concurrent in {PROCESSES} processes: {stage.issuer.issues} refresh, {stage.issuer.refused} refused, in {seconds:.1f} s")
    assert (wanted, refreshed, len(stage.issuer.requests)) == (PROCESSES * GREENLETS, 1, 1)
    assert (stage.issuer.issues, stage.issuer.refused, stage.version) == (1, 0, 2)
    assert stage.tokens == ("access-token-number-1", "refresh-token-number-1")
    assert [report["quarantined"] for report in reports] == [[]] * PROCESSES


def test_a_worker_killed_after_the_answer_was_kept_loses_nothing(stage: Stage, place: str, measured: Measured) -> None:
    stage.killed("got")
    assert stage.version == 1
    took_s = stage.recovered()
    measured(38, f"{place}: killed between keeping the answer and using it: in force {took_s * 1000:.0f} ms after the next tick, the issuer asked once")
    assert stage.tokens == ("access-token-number-1", "refresh-token-number-1")
    assert (len(stage.issuer.requests), stage.quarantined, stage.database.read(refreshes.under_way)) == (1, [], [])


def test_a_worker_killed_with_the_answer_in_hand_is_followed_by_one_more_try(stage: Stage, place: str, measured: Measured) -> None:
    """An issuer that takes a spent token once more, as some do for such cases."""
    stage.issuer.lenient = True
    stage.killed("asked")
    took_s = stage.recovered()
    measured(38, f"{place}: killed between the answer and keeping it, by a lenient issuer: refreshed {took_s * 1000:.0f} ms after the next tick")
    assert stage.tokens == ("access-token-number-2", "refresh-token-number-2")
    assert (len(stage.issuer.requests), stage.quarantined) == (2, [])


def test_where_the_answer_is_lost_with_its_worker_the_quarantine_says_what_to_do(stage: Stage, place: str, measured: Measured) -> None:
    stage.killed("asked")
    stage.recovered()
    (evidence,) = stage.quarantined
    measured(38, f"{place}: killed between the answer and keeping it, by a strict issuer: quarantined, asked {len(stage.issuer.requests)} times in all")
    assert "a worker ended after it had asked the issuer, whose answer is lost; sign in again" in evidence["message"]
    assert (evidence["code"], len(stage.issuer.requests), stage.version) == ("invalid_grant", 2, 1)
    fresh = CredentialWishes(extras={"refresh_token": Secret(stage.issuer.good)})
    operations.set_credential(stage.database, SECRETS.vault, "main", fresh)
    stage.recovered()
    assert stage.tokens == ("access-token-number-2", "refresh-token-number-2")
