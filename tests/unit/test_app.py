from __future__ import annotations

import dataclasses
import io
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.api import PREFIXES
from gateway.app import create_app
from gateway.backend import Proxy, Secret
from gateway.errors import PluginError
from gateway.secrets import SecretsError
from gateway.settings import Settings
from tests.unit.api.served import Server, logs_kept, prepared, serving

KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
"""32 bytes in base64."""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with logs_kept():
        yield Settings(data_dir=tmp_path / "data", master_key=Secret(f"1:{KEY}"), pepper=Secret(KEY))


def test_building_the_application_starts_nothing_and_opens_nothing(settings: Settings) -> None:
    before = set(threading.enumerate())
    app = create_app(settings)
    assert set(threading.enumerate()) == before
    assert not settings.data_dir.exists()
    assert app.extensions["gateway"].catalog.generation == -1


def test_application_is_not_ready_before_it_is_started(settings: Settings) -> None:
    prepared(settings)
    app = create_app(settings)
    client = app.test_client()
    assert client.get("/readyz").status_code == 503
    app.extensions["gateway"].start()
    try:
        assert client.get("/readyz").status_code == 200
    finally:
        app.extensions["gateway"].close()
        app.extensions["database"].close()


def test_missing_secrets_are_told_and_not_made(tmp_path: Path) -> None:
    with logs_kept(), pytest.raises(SecretsError):
        create_app(Settings(data_dir=tmp_path / "data"))
    assert list(tmp_path.iterdir()) == []


def test_policy_that_does_not_exist_is_told(settings: Settings) -> None:
    with pytest.raises(PluginError, match="Did you mean 'weighted'"):
        create_app(dataclasses.replace(settings, policy="wieghted"))


def test_secrets_of_the_settings_never_reach_the_log(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ("plain-upstream-secret", "plain-metrics-token", KEY, f"1:{KEY}", "plain-access-token", "plain-password")
    proxy = Proxy("http", "proxy", 3128, "ann", plain[5])
    given = {"openai_api_key": Secret(plain[0]), "metrics_token": Secret(plain[1]), "imitate_access_token": Secret(plain[4]), "callers_proxy": proxy}
    create_app(dataclasses.replace(settings, **given))
    logging.getLogger("gateway").warning("%s %s %s %s %s %s", *plain)
    written = capsys.readouterr().err
    assert "redacted" in written
    assert not any(text in written for text in plain)


def test_every_route_declares_who_may_use_it(settings: Settings) -> None:
    app = create_app(settings)
    views = app.view_functions
    routes = [(rule, method) for rule in app.url_map.iter_rules() for method in rule.methods or ()]
    websockets = {rule.rule for rule, _ in routes if rule.websocket}
    assert websockets == {f"/api-server{secret}/client/register" for secret in ("", "/<secret>")}
    assert {getattr(views[rule.endpoint], "policy", None) for rule, _ in routes if rule.websocket} == {"agent"}
    policies = {(rule.rule, method): getattr(views[rule.endpoint], "policy", None) for rule, method in routes if not rule.websocket}
    assert set(policies.values()) == {"key", "open", "metrics", "caller", "guest", "file-key", "admin-password", "ask-key", "admin-key"}
    gets = {(path, method) for path in ("/", "/healthz", "/readyz", "/openapi.json") for method in ("GET", "HEAD")}
    preflights = {(f"/{family}/<path:rest>", "OPTIONS") for family in ("chatgpt", "platform", "imitate", "api")}
    of_old_tokens = {("/chatgpt-to-api/ping", "GET"), ("/chatgpt-to-api/ping", "HEAD"), ("/chatgpt-to-api/v1/chat/completions", "OPTIONS")}
    of_agents = {
        (f"/api-server{path}", method)
        for path in ("/health", *(path for path in ("/client/register", "/<secret>/client/register")))
        for method in ("GET", "HEAD")
    }
    asked = ("/api/ask", "/api/connections", "/admin/users", "/admin/users/add", "/admin/users/delete")
    of_agents |= {(f"/api-server{path}", "OPTIONS") for path in asked} | {("/api-server/api/connections", method) for method in ("GET", "HEAD")}
    assert {route for route, policy in policies.items() if policy == "open"} == gets | preflights | of_old_tokens | of_agents
    assert {route for route, policy in policies.items() if policy == "ask-key"} == {("/api-server/api/ask", "POST")}
    assert {path for (path, _), policy in policies.items() if policy == "admin-key"} == {f"/api-server{path}" for path in asked if "/admin/" in path}
    assert {route for route, policy in policies.items() if policy == "admin-password"} == {
        (f"/chatgpt-to-api/admin/{name}", "PATCH") for name in ("tokens", "password", "puid", "openai")
    }
    assert {route for route, policy in policies.items() if policy == "metrics"} == {("/metrics", "GET"), ("/metrics", "HEAD")}
    guests = {path for (path, _), policy in policies.items() if policy == "guest"}
    logins = ("/chatgpt/login", "/chatgpt/backend-api/login", "/platform/login", "/platform/v1/login", "/imitate/login", "/api/login")
    assert guests == {*logins, "/chatgpt/public-api/<path:rest>"}
    assert {path.split("/")[1] for (path, _), policy in policies.items() if policy == "caller"} == {"chatgpt", "platform", "imitate", "api"}


def test_every_route_stands_under_the_prefix_of_its_family(settings: Settings) -> None:
    for rule in create_app(settings).url_map.iter_rules():
        family = rule.endpoint.partition(".")[0]
        assert rule.rule.startswith(PREFIXES[family]), rule


def test_route_of_files_that_flask_would_add_is_not_there(settings: Settings) -> None:
    assert not any("static" in rule.endpoint for rule in create_app(settings).url_map.iter_rules())


def test_environments_key_serves_every_model_without_a_row(tmp_path: Path) -> None:
    with serving(tmp_path, openai_api_key=Secret("sk-environment-secret"), openai_base_url="http://127.0.0.1:9/v1") as served:
        (found,) = served.gateway.catalog.snapshot.find("gpt-9")
        assert (found.owner, found.secret.reveal(), found.base_url) == ("environment", "sk-environment-secret", "http://127.0.0.1:9/v1")


def test_model_without_a_price_is_neither_listed_nor_served_where_it_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, unpriced="refuse") as served:
        assert [each["id"] for each in served.ask("GET", "/v1/models").get_json()["data"]] == ["echo"]
        assert served.chat().status_code == 403


def test_server_may_be_told_to_close_the_connection(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        server = Server(served.app)
        environ = served.client.get("/healthz").request.environ | {"CONTENT_LENGTH": "5", "wsgi.input": io.BytesIO(b"hello")}
        server.call(environ)
        assert server.status.startswith("200")
        assert server.closes
