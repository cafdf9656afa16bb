"""Row 56: secrets in logs, errors, metrics, receipts. Row 57: secrets at rest. Figures: 0 hits.

A gateway at log level debug holds secrets that stand nowhere else; it is led through every kind of answer and failure, then
all that it wrote and said is searched for them.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.secrets import mint_key
from gateway.store import accounts, pools
from tests.fakes.answers import CloseAt, ErrorEvent, Json, Redirect, ResetAt, Silent, Status, Step
from tests.fakes.gateway import RunningGateway, free_port, now
from tests.fakes.openai_answers import error_object
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT
from tests.faults.conftest import Measured

PLAIN_SECRET = "CANARYplain7Kq2vX9w3TzR"
FORMED_SECRET = "sk-proj-CANARYformed4Nf8sLm1"
BROKEN_SECRET = "CANARY/broken+'quote\"5Hd"
ENVIRONMENT_SECRET = "CANARYenvironment6Jp0yBc"
METRICS_TOKEN = "CANARYmetricstoken8Gu5eVa"
MASTER_KEY = base64.b64encode(b"CANARY master key of 32 bytes...").decode()
PEPPER = base64.b64encode(b"CANARY pepper, too, has 32 bytes").decode()
PROMPT = "CANARYprompt1Wd7iFo"

UPSTREAM_SECRETS = (PLAIN_SECRET, FORMED_SECRET, BROKEN_SECRET, ENVIRONMENT_SECRET)
OPERATORS_SECRETS = (*UPSTREAM_SECRETS, METRICS_TOKEN, MASTER_KEY, PEPPER)


@dataclass
class Driven:
    """A gateway, and all that it said to clients."""

    gateway: RunningGateway
    provider: Provider
    client_keys: list[str]
    said: list[bytes] = field(default_factory=list)

    def ask(self, path: str, body: Any = None, *, method: str = "POST", key: str | None = "", **headers: str) -> int:
        """The status; 0 where the answer broke off. What came is kept."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        with self.gateway.client(key) as client:
            client.ask(path, body, method=method, headers={"connection": "close", **fields})
            raw = b""
            while block := client.sock.recv(65_536):
                raw += block
        self.said.append(raw)
        return int(raw.split(b" ", 2)[1])

    def chat(self, model: str, **members: Any) -> int:
        return self.ask(CHAT, {"model": model, "messages": [{"role": "user", "content": PROMPT}], **members})


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    environment = {
        "GATEWAY_METRICS_TOKEN": METRICS_TOKEN,
        "GATEWAY_MASTER_KEY": MASTER_KEY,
        "GATEWAY_PEPPER": PEPPER,
        "OPENAI_API_KEY": ENVIRONMENT_SECRET,
        "GATEWAY_CONNECT_S": "0.5",
    }
    with Provider() as provider:
        environment["OPENAI_BASE_URL"] = provider.url
        with RunningGateway(tmp_path_factory.mktemp("canary"), environment) as gateway:
            driven = Driven(gateway, provider, [gateway.key])
            _configure(driven)
            _lead_through_everything(driven)
            yield driven


def _configure(driven: Driven) -> None:
    gateway, url = driven.gateway, driven.provider.url
    gateway.deploy("plain", url, secret=PLAIN_SECRET, first_byte_s=0.3)
    gateway.deploy("formed", url, secret=FORMED_SECRET)
    for status in (402, 403):  # each takes its credential out for a minute
        gateway.deploy(f"plain-{status}", url, secret=PLAIN_SECRET)
        gateway.deploy(f"formed-{status}", url, secret=FORMED_SECRET)
    gateway.deploy("unreachable", f"http://127.0.0.1:{free_port()}/v1", secret=PLAIN_SECRET)
    gateway.deploy("no-such-name", "http://host.invalid/v1", secret=PLAIN_SECRET)
    gateway.deploy("no-tls", driven.provider.url.replace("http", "https"), secret=FORMED_SECRET)
    gateway.deploy("broken", url, secret=BROKEN_SECRET, backend="tests.faults.broken_backend:Broken")
    gateway.deploy("unreadable", url, secret=FORMED_SECRET)
    gateway.deploy("no-such-backend", url, secret=FORMED_SECRET, backend="tests.faults.missing:Missing")
    misplaced = gateway.secrets.vault.seal(FORMED_SECRET, "another place")
    gateway.write(lambda: pools.replace_secret(_credential("unreadable-key"), "", lambda _: misplaced))
    gateway.wait_catalog()


def _credential(label: str) -> int:
    found = pools.find_credential(label)
    assert found is not None
    return found.id


def _lead_through_everything(driven: Driven) -> None:
    _answers(driven)
    _upstream_failures(driven)
    _gateway_failures(driven)
    _refused_keys(driven)
    _keys_in_wrong_places(driven)
    for path in ("/healthz", "/readyz", "/openapi.json", "/v1/models"):
        assert driven.ask(path, method="GET") == 200
    assert driven.ask("/metrics", method="GET", authorization=f"Bearer {METRICS_TOKEN}") == 200
    assert driven.ask("/metrics", method="GET", authorization=f"Bearer {METRICS_TOKEN[:-1]}") == 403
    for row in [entry.exchange for entry in driven.gateway.entries()]:
        assert driven.ask(f"/v1/requests/{row}", method="GET") == 200


def _answers(driven: Driven) -> None:
    for model in ("plain", "formed", "anything-else"):
        for stream in (False, True):
            assert driven.chat(model, stream=stream) == 200
    assert driven.ask("/v1/embeddings", {"model": "plain", "input": PROMPT}) == 200
    assert driven.ask("/v1/audio/speech", {"model": "plain", "input": PROMPT, "voice": "v"}) == 200


def _upstream_failures(driven: Driven) -> None:
    """Each failure with the key in the upstream's own words, as careless ones write them."""
    for model, secret in (("plain", PLAIN_SECRET), ("formed", FORMED_SECRET), ("anything-else", ENVIRONMENT_SECRET)):
        told = error_object(f"Incorrect API key provided: {secret}. You sent Authorization: Bearer {secret}", code="odd")
        for status in (400, 401, 404, 409, 422, 429, 500, 503):
            driven.provider.script(CHAT, _refusal(status, told, secret))
            assert driven.chat(model) >= 400
        driven.provider.script(CHAT, ErrorEvent(told), ErrorEvent({"error": {**told["error"], "code": "context_length_exceeded"}}))
        assert driven.chat(model, stream=True) >= 400
        assert driven.chat(model, stream=True) >= 400
        for step in (Redirect(f"https://{secret}@evil.example/?key={secret}"), CloseAt(20)):
            driven.provider.script(CHAT, step)
            assert driven.chat(model) == 502
        driven.provider.script(CHAT, ResetAt(900))
        assert driven.chat(model, stream=True) == 200
        for status in (403, 402):
            driven.provider.script(CHAT, _refusal(status, told, secret))
            assert driven.chat(f"{model}-{status}") == 502
    driven.provider.script(CHAT, Silent())
    assert driven.chat("plain") == 504
    for model in ("unreachable", "no-such-name", "no-tls"):
        assert driven.chat(model) == 502
    driven.provider.script("/v1/models", Status(401, error_object(f"Incorrect API key provided: {ENVIRONMENT_SECRET}")))
    assert driven.ask("/v1/models", method="GET") == 200


def _refusal(status: int, told: dict[str, Any], secret: str) -> Step:
    return Status(status, told, headers=(("x-request-id", f"req-{secret}"), ("retry-after", "0")))


def _gateway_failures(driven: Driven) -> None:
    assert driven.chat("broken") == 500
    assert driven.chat("unreadable") == 503
    assert driven.chat("no-such-backend") == 503
    driven.provider.script(CHAT, Json({"choices": []}))
    assert driven.chat("plain", n=1) == 200


def _refused_keys(driven: Driven) -> None:
    gateway = driven.gateway
    revoked, unknown = gateway.new_key(gateway.new_user("other")), mint_key()
    driven.client_keys += [revoked, unknown]
    assert driven.ask("/v1/models", method="GET", key=revoked) == 200
    number = gateway.read(lambda: next(key.id for key in accounts.list_keys() if key.suffix == revoked[-4:]))
    gateway.write(lambda: accounts.revoke_key(number, now()))
    time.sleep(1.0)
    for key in (revoked, unknown, unknown[:-1], PLAIN_SECRET):
        assert driven.ask("/v1/models", method="GET", key=key) == 401
    assert driven.ask("/v1/models", method="GET", key=None, authorization=f"Basic {revoked}") == 401
    assert driven.ask("/v1/models", method="GET", key=None, x_api_key=revoked, cookie=f"key={revoked}") == 401


def _keys_in_wrong_places(driven: Driven) -> None:
    key = driven.gateway.key
    assert driven.ask(f"{CHAT}?api_key={key}&token={METRICS_TOKEN}", {"model": "plain"}) == 200
    assert driven.ask(f"/v1/models?key={key}", method="GET", key=None) == 401
    assert driven.ask(CHAT, {"model": "plain", "user": key, "api_key": key}) == 200
    assert driven.ask(CHAT, f'{{"model": "plain", "api_key": "{key}", oops'.encode()) == 400
    assert driven.ask(CHAT, {"model": "plain"}, referer=f"https://x/?key={key}", user_agent=f"agent {key}") == 200
    assert driven.ask(CHAT, f"model=plain&key={key}".encode(), content_type=f"multipart/form-data; boundary={key}") == 400
    echoed = len(driven.said)
    for path in (f"/v1/{key}", f"/v1/models/{key}", f"/v1/requests/{key}"):
        assert driven.ask(path, method="GET") == 404
    assert driven.ask(CHAT, {"model": "plain"}, transfer_encoding=key) in (400, 501)
    del driven.said[echoed:]  # these tell the client its own words


def _hits(secrets: tuple[str, ...], places: dict[str, bytes]) -> list[tuple[str, str]]:
    """Where which secret stands: as it is, as JSON or Python would write it, in base64 or hexadecimal digits."""
    found = []
    for secret in secrets:
        raw = secret.encode()
        forms = {raw, json.dumps(secret)[1:-1].encode(), repr(secret)[1:-1].encode(), base64.b64encode(raw).rstrip(b"="), raw.hex().encode()}
        found += [(name, secret[:12]) for name, content in places.items() if any(form in content for form in forms)]
    return found


def _files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_56_no_secret_in_what_clients_are_told(driven: Driven, measured: Measured) -> None:
    said = {f"answer {number}": raw for number, raw in enumerate(driven.said)}
    hits = _hits((*OPERATORS_SECRETS, *driven.client_keys), said)
    measured(56, f"{len(hits)} hits in {len(said)} answers, receipts and /metrics among them (0)")
    assert not hits


def test_56_no_secret_and_no_content_in_the_log(driven: Driven, measured: Measured) -> None:
    log = driven.gateway.log_path.read_bytes()
    hits = _hits((*OPERATORS_SECRETS, *driven.client_keys, PROMPT), {"log": log})
    measured(56, f"{len(hits)} hits in a log of {len(log) // 1024} KB at level debug (0)")
    assert not hits
    assert b"cannot sign in at" in log, "the search looks at the right log: the traceback is there, but for its secret"
    assert b"[redacted]" in log


def test_57_no_secret_in_the_database_or_the_run_directory(driven: Driven, measured: Measured) -> None:
    files = _files(driven.gateway.directory / "data")
    hits = _hits((*OPERATORS_SECRETS, *driven.client_keys, PROMPT), files)
    measured(57, f"{len(hits)} hits in {len(files)} files: database, WAL, run directory (0)")
    assert not hits
    assert {"gateway.db", "gateway.db-wal"} <= set(files)
    assert any(b"plain-key" in content for content in files.values()), "the search looks at the right files"


def test_57_secrets_of_the_environment_are_not_written_to_files(driven: Driven) -> None:
    assert not _hits(OPERATORS_SECRETS, _files(driven.gateway.directory))


def test_57_files_belong_to_their_owner_alone(driven: Driven) -> None:
    data = driven.gateway.directory / "data"
    assert data.stat().st_mode & 0o077 == 0
    readable = [path for path in data.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert all(path.is_relative_to(data / "run") for path in readable), readable


def test_57_secrets_that_a_first_start_makes_are_its_owners_alone(gateway: RunningGateway) -> None:
    directory = gateway.directory / "data-secrets"
    files = [path for path in directory.iterdir() if path.is_file()]
    assert {path.name for path in files} == {"master.key", "pepper.key"}
    assert directory.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    keys = tuple(path.read_text().strip().rpartition(":")[2] for path in files)
    assert not _hits(keys, _files(gateway.directory / "data") | {"log": gateway.log_path.read_bytes()})
