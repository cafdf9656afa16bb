"""What an operator changes holds in every worker within a second; what an operator asks is answered truly."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from gateway.api.shapes import OPENAI, shape_of
from gateway.app import create_app
from gateway.settings import Settings
from gateway.store import accounts, catalog, models
from tests.fakes.gateway import Answer, RunningGateway, now
from tests.fakes.postgres import Postgres
from tests.fakes.provider import Provider

CHAT = "/v1/chat/completions"
NEW = "new"
WITHIN_S = 1.0


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Two workers."""
    with RunningGateway(tmp_path_factory.mktemp("gateway"), {"WEB_CONCURRENCY": "2"}) as gateway:
        time.sleep(WITHIN_S)  # one worker is ready for sure; by then both are
        yield gateway


def ask(gateway: RunningGateway, path: str, body: Any = None, *, key: str | None = "", **headers: str) -> Answer:
    with gateway.client(key) as client:
        client.ask(path, body, method="GET" if body is None else "POST", headers={name.replace("_", "-"): value for name, value in headers.items()})
        return client.answer()


def chat(gateway: RunningGateway, model: str, key: str = "") -> Answer:
    return ask(gateway, CHAT, {"model": model, "messages": [{"role": "user", "content": "Hello"}]}, key=key)


def in_every_worker(gateway: RunningGateway, wanted: int, key: str, model: str | None = None) -> None:
    """In time every answer has this status. Each call has a connection of its own: they are spread over the workers."""

    def status() -> int:
        return (chat(gateway, model, key) if model else ask(gateway, "/v1/models", key=key)).status

    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline and any(status() != wanted for _ in range(30)):
        time.sleep(0.02)
    assert [status() for _ in range(30)] == [wanted] * 30


def test_a_new_key_works_and_a_revoked_one_does_not_within_a_second(gateway: RunningGateway) -> None:
    user = gateway.new_user("changing")
    key = gateway.new_key(user)
    in_every_worker(gateway, 200, key)
    (row,) = gateway.read(lambda: accounts.list_keys(user))
    gateway.write(lambda: accounts.revoke_key(row.id, now()))
    in_every_worker(gateway, 401, key)


def test_the_keys_of_a_disabled_user_do_not_work_within_a_second(gateway: RunningGateway) -> None:
    user = gateway.new_user("disabled")
    key = gateway.new_key(user)
    in_every_worker(gateway, 200, key)
    gateway.write(lambda: accounts.set_user_disabled(user, now()))
    in_every_worker(gateway, 401, key)
    gateway.write(lambda: accounts.set_user_disabled(user, None))
    in_every_worker(gateway, 200, key)


def test_a_new_deployment_is_used_and_a_disabled_one_is_not_within_a_second(gateway: RunningGateway, provider: Provider) -> None:
    assert chat(gateway, NEW).status == 404
    gateway.deploy(NEW, provider.url)
    in_every_worker(gateway, 200, gateway.key, NEW)
    (row,) = gateway.read(lambda: [row for row in catalog.list_deployments() if row.name == NEW])
    gateway.write(lambda: catalog.set_deployment(row.id, enabled=False))
    in_every_worker(gateway, 404, gateway.key, NEW)


def _metric(gateway: RunningGateway, name: str) -> float:
    text = ask(gateway, "/metrics", key=None).body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"{name}(\{{|\s)", line))


def test_metrics_add_up_over_the_workers(gateway: RunningGateway) -> None:
    counted = ("gateway_exchanges_total", "gateway_attempts_total", "gateway_exchange_seconds_count")
    time.sleep(1.5)  # another worker's counts are up to a second old
    before = [_metric(gateway, name) for name in counted]
    answers = [chat(gateway, "echo") for _ in range(60)]
    assert {answer.status for answer in answers} == {200}
    rows = [gateway.exchange(answer.headers["x-request-id"]) for answer in answers]
    assert len({row.owner for row in rows if row}) == 2, "both workers answered"
    deadline = time.monotonic() + WITHIN_S + 1
    while time.monotonic() < deadline and [_metric(gateway, name) for name in counted] != [value + 60 for value in before]:
        time.sleep(0.05)
    assert [_metric(gateway, name) for name in counted] == [value + 60 for value in before]
    assert _metric(gateway, "gateway_settle_failures_total") == 0


@pytest.mark.parametrize("header", ["x_forwarded_for", "forwarded", "x_real_ip"])
def test_metrics_are_not_for_those_behind_a_proxy(gateway: RunningGateway, header: str) -> None:
    answer = ask(gateway, "/metrics", key=None, **{header: "127.0.0.1"})
    assert answer.status == 403
    assert "GATEWAY_METRICS_TOKEN" in answer.json()["error"]["message"]


def test_readyz_tells_a_database_that_is_gone_and_back(tmp_path: Path) -> None:
    with Postgres(tmp_path) as server, RunningGateway(tmp_path / "gateway", database_url=server.url("ready")) as gateway:
        server.stop()
        answer = ask(gateway, "/readyz", key=None)
        assert answer.status == 503
        assert answer.json()["checks"]["database"] != "ok"
        assert ask(gateway, "/healthz", key=None).status == 200
        refused = chat(gateway, "echo")
        assert refused.status >= 500
        assert refused.json()["error"]["code"] in ("store_unavailable", "settle_failed")
        server.start()
        _ready_within(gateway, 5.0)
        assert chat(gateway, "echo").status == 200


def _ready_within(gateway: RunningGateway, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while ask(gateway, "/readyz", key=None).status != 200:
        assert time.monotonic() < deadline, "not ready again"
        time.sleep(0.1)


def _add_migration_of_tomorrow() -> None:
    models.database.execute_sql("INSERT INTO schema_migration (name, applied) VALUES ('9999_tomorrow', '2030-01-01 00:00:00')")


def test_readyz_tells_a_database_of_a_newer_program(tmp_path: Path) -> None:
    with RunningGateway(tmp_path / "gateway") as gateway:
        gateway.write(_add_migration_of_tomorrow)
        answer = ask(gateway, "/readyz", key=None)
        assert answer.status == 503
        assert "newer" in answer.json()["checks"]["migrations"]


@pytest.fixture
def app(gateway: RunningGateway) -> Iterator[Flask]:
    """The same application in this process, to look into."""
    logger = logging.getLogger()
    kept, level = logger.handlers[:], logger.level
    app = create_app(Settings.load(gateway.settings_environment(), gateway.directory))
    yield app
    app.extensions["database"].close()
    logger.handlers[:] = kept
    logger.setLevel(level)


def test_what_is_described_is_what_is_served(gateway: RunningGateway, app: Flask) -> None:
    described = ask(gateway, "/openapi.json", key=None).json()["paths"]
    operations = {(path, method.upper()) for path, methods in described.items() for method in methods}
    ours = [rule for rule in app.url_map.iter_rules() if shape_of(rule.rule) is OPENAI]
    rules = {(re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method) for rule in ours for method in rule.methods or ()}
    assert operations == {(path, method) for path, method in rules if method not in ("HEAD", "OPTIONS")}


def test_every_route_has_a_policy(app: Flask) -> None:
    policies = {rule.endpoint: getattr(app.view_functions[rule.endpoint], "policy", None) for rule in app.url_map.iter_rules()}
    assert set(policies.values()) <= {"key", "open", "metrics", "caller", "guest", "file-key", "admin-password", "ask-key", "admin-key", "agent"}
    keyless = {name for name, declared in policies.items() if declared in ("open", "metrics")}
    preflights = {f"{family}.preflight" for family in ("chatgpt", "platform", "imitate", "backend_api")}
    preflights |= {"chatgpt_to_api.chat_preflight", "chatgpt_to_api.ping"}
    asked = ("ask", "connections", "add_user", "delete_user", "users")
    of_agents = {f"api_server.{name}" for name in ("health", "connections", "plain", "plain_under_a_secret", *(f"preflight_{name}" for name in asked))}
    assert keyless == {"system.root", "system.healthz", "system.readyz", "system.metrics_text", "system.openapi"} | preflights | of_agents
    of_callers = {name.partition(".")[0] for name, declared in policies.items() if declared in ("caller", "guest")}
    assert of_callers == {"chatgpt", "platform", "imitate", "backend_api"}
