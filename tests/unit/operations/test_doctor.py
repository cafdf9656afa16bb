from __future__ import annotations

import dataclasses
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.backend import Secret
from gateway.dialects.events import Usage
from gateway.operations import doctor, server
from gateway.operations.catalog import Wishes, create_deployment
from gateway.operations.credentials import create_credential
from gateway.operations.doctor import Verdict
from gateway.secrets import Secrets
from gateway.settings import Settings
from gateway.store.database import Database
from gateway.store.ledger import Entry
from gateway.store.models import database as bound
from gateway.store.server import ServerFacts
from tests.factories import booked
from tests.fakes.gateway import free_port
from tests.unit.operations.times import AT


def opened(settings: Settings) -> Database:
    database = Database(settings.database)
    database.bind()
    return database


@pytest.fixture
def here(settings: Settings) -> Settings:
    return dataclasses.replace(settings, port=free_port())


@pytest.fixture
def installed(here: Settings) -> Iterator[tuple[Database, Secrets]]:
    database = opened(here)
    secrets = server.prepare(here, database, AT).secrets
    server.first_key(database, secrets.hasher, AT)
    yield database, secrets
    database.close()


def found(settings: Settings, verdict: Verdict) -> dict[str, str]:
    """The findings of this verdict, by subject; of several the last."""
    return {finding.subject: finding.text for finding in doctor.examine(settings, opened, AT) if finding.verdict is verdict}


def test_a_fresh_installation_has_no_problem(here: Settings, installed: tuple[Database, Secrets]) -> None:
    assert found(here, Verdict.PROBLEM) == {}
    assert {"database", "secrets", "deployments", "prices", "address", "keys"} <= set(found(here, Verdict.OK))


def test_every_finding_is_one_line_without_secrets(here: Settings, installed: tuple[Database, Secrets]) -> None:
    database, secrets = installed
    create_credential(database, secrets, "main", Secret("sk-canary-0123456789"), AT)
    texts = [finding.text for finding in doctor.examine(here, opened, AT)]
    assert not any("\n" in text or "canary" in text for text in texts)


def test_nothing_is_there_before_the_first_migration(here: Settings) -> None:
    problems = found(here, Verdict.PROBLEM)
    assert "gateway migrate" in problems["secrets"]
    assert "gateway migrate" in problems["database"]
    assert not here.data_dir.exists(), "a doctor changes nothing"


def test_a_lost_secret_and_one_that_others_can_read_are_problems(here: Settings, installed: tuple[Database, Secrets]) -> None:
    pepper = here.secrets_path / "pepper.key"
    pepper.chmod(0o644)
    assert f"chmod 600 {pepper}" in found(here, Verdict.PROBLEM)["secrets"]
    pepper.unlink()
    assert "pepper.key is missing" in found(here, Verdict.PROBLEM)["secrets"]


def test_a_directory_open_to_others_is_a_warning(here: Settings, installed: tuple[Database, Secrets]) -> None:
    here.data_dir.chmod(0o755)
    assert "chmod 700" in found(here, Verdict.WARNING)["directories"]


def test_a_deployment_that_cannot_be_used_is_a_problem_with_its_reason(here: Settings, installed: tuple[Database, Secrets]) -> None:
    create_deployment(installed[0], "bare", "m", "openai", AT, Wishes())
    assert "bare of the model m cannot be used: it needs a credential" in found(here, Verdict.PROBLEM)["deployments"]


def test_a_credential_sealed_with_another_master_key_is_a_problem(here: Settings, installed: tuple[Database, Secrets]) -> None:
    database, secrets = installed
    create_credential(database, secrets, "main", Secret("sk-secret"), AT)
    (here.secrets_path / "master.key").unlink()
    other = dataclasses.replace(here, data_dir=here.data_dir.with_name("other"), secrets_dir=here.secrets_path)
    elsewhere = opened(other)
    server.prepare(other, elsewhere, AT)
    elsewhere.close()
    assert "credential replace main" in found(here, Verdict.PROBLEM)["credentials"]


def test_a_model_without_a_price_is_a_warning_or_where_it_is_refused_a_problem(here: Settings, installed: tuple[Database, Secrets]) -> None:
    create_deployment(installed[0], "d", "m", "echo", AT, Wishes(upstream_model="u"))
    assert "u has no price" in found(here, Verdict.WARNING)["prices"]
    assert "u has no price" in found(dataclasses.replace(here, unpriced="refuse"), Verdict.PROBLEM)["prices"]


def test_a_model_without_deployments_is_a_warning(here: Settings, installed: tuple[Database, Secrets]) -> None:
    create_deployment(installed[0], "d", "m", "echo", AT, Wishes(enabled=False))
    assert found(here, Verdict.WARNING)["models"] == "m has no deployment that is enabled"


def test_a_port_that_a_stranger_holds_is_a_problem(here: Settings, installed: tuple[Database, Secrets]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", here.port))
        taken.listen()
        threading.Thread(target=_hang_up, args=(taken,), daemon=True).start()
        assert "is in use" in found(here, Verdict.PROBLEM)["address"]


def _hang_up(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.close()


class _Alive(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"status": "alive"}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


def test_a_port_that_a_gateway_holds_is_fine(here: Settings, installed: tuple[Database, Secrets]) -> None:
    with http.server.HTTPServer(("127.0.0.1", here.port), _Alive) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        assert "a gateway answers" in found(here, Verdict.OK)["address"]
        running.shutdown()
        thread.join()


def test_an_unknown_policy_is_a_problem(here: Settings, installed: tuple[Database, Secrets]) -> None:
    assert "GATEWAY_POLICY" in found(dataclasses.replace(here, policy="nonesuch"), Verdict.PROBLEM)["plugins"]


def test_a_database_that_cannot_be_opened_is_a_problem(here: Settings, installed: tuple[Database, Secrets], tmp_path: Path) -> None:
    (tmp_path / "directory.db").mkdir()
    broken = dataclasses.replace(here, database_url=f"sqlite://{tmp_path}/directory.db")
    assert "directory.db" in found(broken, Verdict.PROBLEM)["database"]


FACTS = ServerFacts(version=150_004, at=AT, connections_left=90, durable=True, may_write=True, may_migrate=True)


@pytest.mark.parametrize(
    ("fact", "verdict", "says"),
    [
        ({}, Verdict.OK, "PostgreSQL 15"),
        ({"version": 110_000}, Verdict.PROBLEM, "too old"),
        ({"may_write": False}, Verdict.PROBLEM, "may not write"),
        ({"may_migrate": False}, Verdict.WARNING, "gateway migrate"),
        ({"durable": False}, Verdict.PROBLEM, "synchronous_commit"),
        ({"connections_left": 5}, Verdict.WARNING, "max_connections"),
        ({"at": AT - 7_000}, Verdict.WARNING, "7 s apart"),
    ],
)
def test_what_a_database_server_says_is_judged(fact: dict[str, Any], verdict: Verdict, says: str) -> None:
    findings = list(doctor._server(dataclasses.replace(FACTS, **fact), AT, workers=2))
    assert any(finding.verdict is verdict and says in finding.text for finding in findings)


def test_an_entry_of_the_future_is_a_problem_with_the_clock(here: Settings, installed: tuple[Database, Secrets]) -> None:
    entry = Entry("x", "usage", 1, 1, 1, 0, 0, Usage(), "complete", "none", "m", "m", "d", 1, AT + 3_600_000, price=1)
    booked(installed[0], entry)
    assert "60 minutes ahead" in found(here, Verdict.PROBLEM)["clock"]


def test_a_setting_with_a_letter_wrong_is_a_warning(here: Settings, tmp_path: Path) -> None:
    environment = {"WEB_CONCURENCY": "2", "DATABSE_URL": "x", "GATWAY_PORT": "1", "OPENAI_API_KEYS": "x", "OPENAI_API_KEY_2": "x", "HOME": "/", "PORT": "80"}
    warnings = Settings.load(environment, tmp_path).warnings
    assert [warning.split()[0] for warning in warnings] == ["WEB_CONCURENCY", "DATABSE_URL", "GATWAY_PORT", "OPENAI_API_KEYS"]
    assert "did you mean DATABASE_URL?" in warnings[1]
    assert found(dataclasses.replace(here, warnings=warnings), Verdict.WARNING)["settings"] == warnings[-1]


def texts(settings: Settings, verdict: Verdict, subject: str) -> list[str]:
    return [finding.text for finding in doctor.examine(settings, opened, AT) if (finding.verdict, finding.subject) == (verdict, subject)]


def test_a_small_ledger_is_verified(here: Settings, installed: tuple[Database, Secrets]) -> None:
    assert "0 entries and 0 budget windows are verified" in texts(here, Verdict.OK, "ledger")


def test_what_differs_in_the_ledger_is_a_problem_and_told_in_bounds(here: Settings, installed: tuple[Database, Secrets]) -> None:
    for number in range(7):
        booked(installed[0], Entry(f"x{number}", "usage", 1, 1, 1, 0, 0, Usage(), "complete", "none", "m", "m", "d", 1, AT, price=1))
    problems = texts(here, Verdict.PROBLEM, "ledger")  # sealed by the tests' own pepper, and so by a stranger's
    assert problems[0].startswith("entry 1 of exchange x0 is not as it was booked")
    assert problems[-1] == "2 more differences: gateway ledger verify"
    assert len(problems) == 6


def test_a_ledger_that_is_too_long_is_left_to_verify(here: Settings, installed: tuple[Database, Secrets]) -> None:
    insert = "INSERT INTO entry SELECT {} FROM entry"
    booked(installed[0], Entry("x", "usage", 1, 1, 1, 0, 0, Usage(), "complete", "none", "m", "m", "d", 1, AT, price=1))

    def work() -> None:
        columns = [column.name for column in bound.get_columns("entry")]
        values = [{"id": "1000000", "exchange": "'y'"}.get(name, f'"{name}"') for name in columns]
        bound.execute_sql(insert.format(", ".join(values)))

    installed[0].write(work)
    assert "about 1,000,000 entries are too many to be verified here: gateway ledger verify" in texts(here, Verdict.OK, "ledger")
    assert texts(here, Verdict.PROBLEM, "ledger") == []
