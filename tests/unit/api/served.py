"""The application as app.py builds it, over a real database, without a server: for tests of what no socket is needed for."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from gateway.app import create_app
from gateway.core.gateway import Gateway
from gateway.logs import JsonFormatter, Redactor
from gateway.operations.server import prepare
from gateway.secrets import Secrets, key_prefix, key_suffix, mint_key
from gateway.settings import Settings
from gateway.store import accounts, catalog, exchanges, ledger
from gateway.store.database import Database
from gateway.store.exchanges import ExchangeRow
from gateway.store.ledger import Entry
from tests.factories import Scripted, now_ms, put_database

SCRIPTED = "tests.factories:Scripted"


class Served:
    """`backend` answers the model "m"; `key` is one of the user "ann"."""

    def __init__(self, settings: Settings, secrets: Secrets) -> None:
        self.settings, self.secrets = settings, secrets
        self.app: Flask = create_app(settings)
        self.gateway: Gateway = self.app.extensions["gateway"]
        self.database: Database = self.app.extensions["database"]
        self.ann = self.new_user("ann")
        self.key = self.new_key(self.ann)
        self.deploy("m")
        backend = self.app.extensions["backends"].get(SCRIPTED, {})
        assert isinstance(backend, Scripted)
        self.backend = backend
        self.client = self.app.test_client(use_cookies=False)

    def new_key(self, user_id: int, **fields: Any) -> str:
        key = mint_key()
        shown: dict[str, Any] = {"prefix": key_prefix(key), "suffix": key_suffix(key)}
        self.database.write(lambda: accounts.create_key(user_id, self.secrets.hasher.hash(key), 0, **shown, **fields))
        return key

    def new_user(self, name: str) -> int:
        return self.database.write(lambda: accounts.create_user(name, 0)).id

    def deploy(self, model: str, backend: str = SCRIPTED, **fields: Any) -> None:
        def work() -> None:
            row = catalog.find_model(model) or catalog.create_model(model, 0)
            catalog.create_deployment(f"{model.replace('*', 'any')}-d", row.id, backend, 0, **fields)

        self.database.write(work)
        self.gateway.catalog.refresh()

    def price(self, model: str, rates: Mapping[str, int], per_call_nano: int = 0) -> None:
        self.database.write(lambda: catalog.add_price(model, 0, rates, 0, per_call_nano=per_call_nano))
        self.gateway.catalog.refresh()

    def ask(self, method: str, path: str, *, key: str | None = "", headers: Mapping[str, str] | None = None, **options: Any) -> TestResponse:
        shown = {} if key is None else {"Authorization": f"Bearer {key or self.key}"}
        return self.client.open(path, method=method, headers=shown | dict(headers or {}), **options)

    def post(self, path: str, document: Any, **options: Any) -> TestResponse:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.ask("POST", path, data=data, content_type="application/json", **options)

    def chat(self, **members: Any) -> TestResponse:
        return self.post("/v1/chat/completions", {"model": "m", "messages": [], **members})

    def entry(self, answer: TestResponse) -> Entry | None:
        return self.database.read(lambda: ledger.find_entry(answer.headers["x-request-id"]))

    def row(self, answer: TestResponse) -> ExchangeRow | None:
        return self.database.read(lambda: exchanges.find_exchange(answer.headers["x-request-id"]))


class Server:
    """Calls an application as gunicorn does: `refuses_headers` stands for a value that it will not send."""

    def __init__(self, app: Flask, *, refuses_headers: bool = False) -> None:
        self._app, self._refuses_headers = app, refuses_headers
        self.status = ""
        self.closes = False

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        if self._refuses_headers:
            raise ValueError("a header cannot be sent")
        self.status = status
        return lambda data: None

    def force_close(self) -> None:
        self.closes = True

    def call(self, environ: dict[str, Any]) -> bytes:
        answer = self._app.wsgi_app(environ, self.start_response)
        try:
            return b"".join(answer)
        finally:
            if (close := getattr(answer, "close", None)) is not None:
                close()


def post_environ(served: Served, raw: bytes, **more: Any) -> dict[str, Any]:
    """Of a POST to /v1/chat/completions."""
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/v1/chat/completions",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(raw),
        "wsgi.errors": io.StringIO(),
        "CONTENT_LENGTH": str(len(raw)),
        "CONTENT_TYPE": "application/json",
        "HTTP_AUTHORIZATION": f"Bearer {served.key}",
    }
    return environ | more


@contextlib.contextmanager
def serving(directory: Path, **settings: Any) -> Iterator[Served]:
    made = Settings(**({"data_dir": directory / "data"} | settings))
    with logs_kept():
        served = Served(made, prepared(made))
        try:
            yield served
        finally:
            served.gateway.close()
            served.database.close()


def prepared(settings: Settings) -> Secrets:
    """What `gateway migrate` does before the first worker starts."""
    put_database(settings.data_dir / "gateway.db")
    database = Database(settings.database)
    database.bind()
    try:
        return prepare(settings, database, now_ms()).secrets
    finally:
        database.close()


@contextlib.contextmanager
def logs_kept() -> Iterator[None]:
    """`create_app` takes the process's log over; this gives it back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextlib.contextmanager
def logged() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The lines that are written meanwhile, at every level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(Redactor()))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
