from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask

from gateway.api import system
from gateway.errors import StoreUnavailable
from gateway.metrics import Metrics
from gateway.store.database import SchemaMismatch
from tests.unit.api.served import Served, serving


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


def readiness(pending: Callable[[], list[str]], *, generation: int = 3, draining: bool = False) -> tuple[int, dict[str, Any]]:
    """The answer of /readyz where the parts are in this state."""
    parts = {"catalog": SimpleNamespace(generation=generation), "admission": SimpleNamespace(draining=draining), "ledger": SimpleNamespace(stuck=False)}
    gateway: Any = SimpleNamespace(**parts)
    database: Any = SimpleNamespace(pending=pending)
    app = Flask("readiness")
    app.register_blueprint(system.blueprint(gateway, database, Metrics()))
    answer = app.test_client().get("/readyz")
    return answer.status_code, answer.get_json()


def raising(error: Exception) -> Callable[[], list[str]]:
    def pending() -> list[str]:
        raise error

    return pending


def test_process_is_alive_whatever_else_is(served: Served) -> None:
    served.database.close()
    answer = served.ask("GET", "/healthz", key=None)
    assert (answer.status_code, answer.get_json()) == (200, {"status": "alive"})


def test_worker_is_ready_with_its_database_its_schema_and_its_catalog(served: Served) -> None:
    answer = served.ask("GET", "/readyz", key=None)
    assert (answer.status_code, answer.get_json()["status"]) == (200, "ready")
    assert answer.get_json()["generation"] == served.gateway.catalog.generation
    assert set(answer.get_json()["checks"].values()) == {"ok"}


def test_worker_that_drains_is_not_ready(served: Served) -> None:
    served.gateway.admission.stop()
    answer = served.ask("GET", "/readyz", key=None)
    assert (answer.status_code, answer.get_json()["checks"]["draining"]) == (503, "yes")


def test_worker_that_cannot_write_its_ledger_is_not_ready(served: Served) -> None:
    served.gateway.ledger.stuck = True
    answer = served.ask("GET", "/readyz", key=None)
    assert (answer.status_code, answer.get_json()["checks"]["ledger"]) == (503, "cannot be written")


@pytest.mark.parametrize(
    ("pending", "state", "check", "says"),
    [
        (list, {"generation": -1}, "catalog", "not loaded"),
        (list, {"draining": True}, "draining", "yes"),
        (lambda: ["0009_more"], {}, "migrations", "1 pending: run `gateway migrate`"),
        (raising(StoreUnavailable("The database did not answer in time.")), {}, "database", "The database did not answer in time."),
        (raising(SchemaMismatch("the database is newer than this program")), {}, "migrations", "the database is newer than this program"),
    ],
)
def test_worker_that_cannot_serve_says_why(pending: Callable[[], list[str]], state: dict[str, Any], check: str, says: str) -> None:
    status, told = readiness(pending, **state)
    assert (status, told["status"], told["checks"][check]) == (503, "not ready", says)


def test_readiness_asks_no_upstream(served: Served) -> None:
    served.ask("GET", "/readyz", key=None)
    assert served.backend.calls == []


def test_metrics_are_prometheus_text(served: Served) -> None:
    served.chat()
    answer = served.ask("GET", "/metrics", key=None)
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    counted = 'gateway_exchanges_total{deployment="m-d",ending="complete",endpoint="/chat/completions",status="200"} 1.0'
    assert counted in answer.get_data(as_text=True)


def test_open_routes_ask_for_no_key_and_no_database(served: Served) -> None:
    served.database.close()
    for path in ("/healthz", "/openapi.json", "/metrics"):
        assert served.ask("GET", path, key=None).status_code == 200
