"""The gateway as it really runs: gunicorn in a process of its own, on a free port, with a database of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.operations.server import prepare
from gateway.secrets import Secrets, key_prefix, key_suffix, mint_key
from gateway.settings import Settings
from gateway.store import accounts, budgets, catalog, conditions, exchanges, ledger, pools
from gateway.store.conditions import Transition
from gateway.store.database import Database
from tests.factories import put_database

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class Answer:
    """What an HTTP client of the simplest kind sees."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Broken(Exception):
    """An answer that ended before it was whole. `body` is what came of it."""

    def __init__(self, body: bytes) -> None:
        super().__init__(f"the answer broke off after {len(body)} bytes of its body")
        self.body = body


class RawClient:
    """One connection to a server, for tests that look at every byte. A context manager; kept between requests as long as the server keeps it.

    `ask`, then either `answer`, or `head` and as many `block` as there are. `read_bytes`: how much it takes from the socket at a time.
    `keeps_body`: whether it remembers what `block` returned, for `rest`, `until` and Broken.
    """

    read_bytes = 65_536
    keeps_body = True

    def __init__(self, port: int, key: str = "", timeout_s: float = 20.0) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._key, self._inbox, self._method = key, bytearray(), "GET"
        self._framing, self._left, self._body = "length", 0, bytearray()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, raw: bytes) -> None:
        self.sock.sendall(raw)

    def ask(self, path: str, body: Any = None, *, method: str = "POST", headers: Mapping[str, str] | None = None) -> None:
        """Send a request. `body` is bytes, or becomes JSON. A header named here takes the place of one that would be sent; an empty one is left out."""
        self._method = method
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        fields = {"host": "gateway", "content-type": "application/json", "content-length": str(len(raw))}
        fields |= {"authorization": f"Bearer {self._key}"} if self._key else {}
        fields |= dict(headers or {})
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value), "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + raw)

    def head(self) -> Answer:
        """The status and the headers, names in lower case. Raises Broken where there is no answer."""
        self._body = bytearray()
        status = int(self._line().split(b" ")[1])
        headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        self._left = 0
        if self._method == "HEAD" or status in (204, 304):
            self._framing = "length"
        elif headers.get("transfer-encoding") == "chunked":
            self._framing = "chunked"
        elif "content-length" in headers:
            self._framing, self._left = "length", int(headers["content-length"])
        else:
            self._framing = "close"
        return Answer(status, headers, b"")

    def block(self) -> bytes:
        """What came next of the body; b"" at its clean end. Raises Broken where the connection ends before that."""
        if self._framing == "close":
            with contextlib.suppress(Broken):
                return self._some(1 << 20)
            return b""
        if self._framing == "chunked" and not self._left:
            self._left = int(self._line(), 16)
            if not self._left:
                self._line()
                self._framing = "length"
        if not self._left:
            return b""
        data = self._some(self._left)
        self._left -= len(data)
        if self._framing == "chunked" and not self._left:
            self._line()
        return data

    def rest(self) -> bytes:
        """The body from here to its clean end. Raises Broken, which has what came of the whole body."""
        start = len(self._body)
        while self.block():
            pass
        return bytes(self._body[start:])

    def answer(self) -> Answer:
        """The whole answer. Raises Broken."""
        head = self.head()
        return Answer(head.status, head.headers, self.rest())

    def until(self, mark: bytes) -> bytes:
        """Reads the body until `mark` was in it; returns the body so far. Raises Broken, or ValueError where the body ended without it."""
        while mark not in self._body:
            if not self.block():
                raise ValueError(f"the body ended without {mark!r}")
        return bytes(self._body)

    def silent(self, seconds: float) -> bool:
        """Whether nothing arrives for so long."""
        return not self._inbox and not select.select([self.sock], [], [], seconds)[0]

    def ended(self, seconds: float) -> bool:
        """Whether the server closes the connection within so long, having sent nothing more."""
        self.sock.settimeout(seconds)
        try:
            return not self._inbox and self.sock.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def reset(self) -> None:
        """Close so that the server gets a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _line(self) -> bytes:
        while b"\r\n" not in self._inbox:
            self._fill()
        line, _, rest = bytes(self._inbox).partition(b"\r\n")
        self._inbox = bytearray(rest)
        return line

    def _some(self, limit: int) -> bytes:
        if not self._inbox:
            self._fill()
        data = bytes(self._inbox[:limit])
        del self._inbox[:limit]
        if self.keeps_body:
            self._body += data
        return data

    def _fill(self) -> None:
        try:
            data = self.sock.recv(self.read_bytes)
        except ConnectionError as error:
            raise Broken(bytes(self._body)) from error
        if not data:
            raise Broken(bytes(self._body))
        self._inbox += data


@dataclass(slots=True)
class RunningGateway:
    """Use as a context manager. `environment` adds settings; `database_url` defaults to SQLite in `directory`."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    database_url: str | None = None
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    key: str = ""
    database: Database = field(init=False)
    secrets: Secrets = field(init=False)

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    @property
    def log_path(self) -> Path:
        return self.directory / "gateway.log"

    def settings_environment(self) -> dict[str, str]:
        own = {"GATEWAY_PORT": str(self.port), "GATEWAY_DATA_DIR": str(self.directory / "data"), "GATEWAY_LOG_LEVEL": "debug", "GATEWAY_DRAIN_S": "3"}
        if self.database_url:
            own["DATABASE_URL"] = self.database_url
        return own | self.environment

    def prepare(self) -> None:
        """Migrate, seed, and make a user with a key: `self.key`."""
        settings = Settings.load(self.settings_environment(), self.directory)
        if self.database_url is None and not (settings.data_dir / "gateway.db").exists():
            put_database(settings.data_dir / "gateway.db")
        self.database = Database(settings.database)
        self.database.bind()
        self.secrets = prepare(settings, self.database, now()).secrets
        user = self.write(lambda: accounts.create_user("tester", now()))
        self.key = self.new_key(user.id)

    def write(self, work: Any) -> Any:
        self.database.bind()
        return self.database.write(work)

    def read(self, work: Any) -> Any:
        self.database.bind()
        return self.database.read(work)

    def new_key(self, user_id: int, **fields: Any) -> str:
        key = mint_key()
        digest = self.secrets.hasher.hash(key)
        self.write(lambda: accounts.create_key(user_id, digest, now(), label="test", prefix=key_prefix(key), suffix=key_suffix(key), **fields))
        return key

    def budget(self, limit_nano: int, kind: str = "user", subject: int = 1, period: str = "total", timezone: str = "UTC", *, soft: bool = False) -> int:
        """A budget of the tester (the user 1) or of another account; its id."""
        return int(self.write(lambda: budgets.set_budget(kind, subject, period, timezone, limit_nano, now(), soft=soft)).id)

    def limit(self, kind: str = "user", subject: int = 1, *, rpm: int | None = None, tpm: int | None = None, concurrency: int | None = None) -> None:
        """Limits of the tester (the user 1) or of another account."""
        self.write(lambda: budgets.set_limits(kind, subject, rpm, tpm, concurrency))

    def limit_model(self, name: str, **fields: Any) -> None:
        self.write(lambda: catalog.set_model(catalog.find_model(name).id, **fields))  # type: ignore[union-attr]

    def windows(self, *budget_ids: int) -> list[budgets.Window]:
        found: list[budgets.Window] = self.read(lambda: budgets.windows_of(budget_ids, now()))
        return found

    def new_user(self, name: str) -> int:
        return int(self.write(lambda: accounts.create_user(name, now())).id)

    def deploy(
        self,
        model: str,
        base_url: str,
        *,
        name: str | None = None,
        secret: str = "sk-upstream-secret",
        price: int | None = 1000,
        backend: str = "openai",
        **fields: Any,
    ) -> str:
        """A model served by an OpenAI-like upstream or another backend; each deployment has its own credential. `price` is pico-dollars for every token."""
        name = name or model.replace("*", "any").replace("/", "-")

        def work() -> None:
            at = now()
            row = catalog.find_model(model) or catalog.create_model(model, at)
            place = pools.credential_place
            credential = pools.create_credential(f"{name}-key", secret[-4:], at, lambda id: self.secrets.vault.seal(secret, place(id)))
            catalog.create_deployment(name, row.id, backend, at, base_url=base_url, credential_id=credential.id, **fields)
            upstream = fields.get("upstream_model") or model
            if price is not None and not any(known.model == upstream for known in catalog.list_prices()):
                rates = dict.fromkeys(("input_uncached", "cache_read", "output_text", "reasoning", "audio_in", "audio_out", "image_in"), price)
                catalog.add_price(upstream, 0, rates, at, source="test")

        self.write(work)
        return name

    def deploy_pool(self, model: str, base_url: str, *secrets: str, backend: str = "openai", affinity: str | None = None, **fields: Any) -> str:
        """A model over a pool of its own name, whose credentials are labelled by their secrets; `fields` are the deployment's."""

        def work() -> None:
            at = now()
            row = catalog.find_model(model) or catalog.create_model(model, at)
            for secret in secrets:
                seal = lambda id, secret=secret: self.secrets.vault.seal(secret, pools.credential_place(id))  # noqa: E731
                pool_id = pools.create_credential(secret, secret[-4:], at, seal, model).pool_id
            pools.set_pool(pool_id, None, affinity)
            catalog.create_deployment(model, row.id, backend, at, base_url=base_url, pool_id=pool_id, **fields)

        self.write(work)
        return model

    def transitions(self, credential: str) -> list[Transition]:
        """What happened to a credential, the newest first."""
        found: list[Transition] = self.read(lambda: conditions.transitions_of(credential, (), 10_000))
        return found

    def wait_transition(self, credential: str, after: str, timeout_s: float = 5.0) -> Transition:
        """The newest, once it led there. Raises AssertionError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (found := self.transitions(credential)) and found[0].after == after:
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"{credential} did not become {after}: {self.transitions(credential)[:3]}")

    def start(self, ready: int = 200) -> None:
        """Returns when /readyz answers so."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "OPENAI_", "DATABASE_URL"))}
        environment |= {"PYTHONPATH": str(ROOT)} | self.settings_environment()
        command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py")]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.directory, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the gateway ended with {self.process.returncode}:\n{self.log_path.read_text()[-4000:]}")
            try:
                if self.get("/readyz", key=None).status == ready:
                    return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"the gateway is not ready:\n{self.log_path.read_text()[-4000:]}")

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Ends the server; its exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(sig)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(5)

    def __enter__(self) -> RunningGateway:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.prepare()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.database.close()

    # a client

    def get(self, path: str, key: str | None = "", headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("GET", path, None, key, headers)

    def post(self, path: str, body: Any, key: str | None = "", headers: Mapping[str, str] | None = None) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, raw, key, {"content-type": "application/json"} | dict(headers or {}))

    def request(self, method: str, path: str, body: bytes | None, key: str | None = "", headers: Mapping[str, str] | None = None) -> Answer:
        sent = dict(headers or {})
        if key is not None:
            sent["authorization"] = f"Bearer {key or self.key}"
        asked = urllib.request.Request(self.root + path, data=body, method=method, headers=sent)
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return Answer(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {name.lower(): value for name, value in error.headers.items()}, error.read())

    def client(self, key: str | None = "", timeout_s: float = 20.0) -> RawClient:
        """A connection that presents the tester's key, another one, or none."""
        return RawClient(self.port, self.key if key == "" else key or "", timeout_s)

    def wait_catalog(self) -> None:
        """Returns once a server of one worker serves what the database holds. Raises AssertionError after 3 s."""
        generation = self.read(catalog.generation)
        deadline = time.monotonic() + 3
        while self.get("/readyz", key=None).json()["generation"] < generation:
            assert time.monotonic() < deadline, "the catalog does not follow the database"
            time.sleep(0.02)

    # what the ledger knows

    def entry(self, exchange_id: str) -> ledger.Entry | None:
        found: ledger.Entry | None = self.read(lambda: ledger.find_entry(exchange_id))
        return found

    def entries(self) -> list[ledger.Entry]:
        return list(self.read(lambda: ledger.entries(0, 2**62, 0, 10_000)))

    def endings(self, model: str) -> dict[str, int]:
        """How many calls of this model are booked, by ending."""
        found = self.read(lambda: ledger.totals(0, 2**62, ("model", "ending")))
        return {str(total.group["ending"]): total.calls for total in found if total.group["model"] == model}

    def wait_endings(self, model: str, count: int, timeout_s: float = 5.0) -> dict[str, int]:
        """`endings` once `count` calls are booked, or when the time is up."""
        deadline = time.monotonic() + timeout_s
        while sum((found := self.endings(model)).values()) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def log_lines(self) -> list[dict[str, Any]]:
        """The gateway's own lines: what the server under it writes is left out."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]

    def exchange(self, exchange_id: str) -> exchanges.ExchangeRow | None:
        found: exchanges.ExchangeRow | None = self.read(lambda: exchanges.find_exchange(exchange_id))
        return found

    def wait_entries(self, count: int, timeout_s: float = 5.0) -> list[ledger.Entry]:
        """At least `count` entries, or all there are when the time is up."""
        deadline = time.monotonic() + timeout_s
        while len(found := self.entries()) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        return found


def now() -> int:
    return time.time_ns() // 1_000_000
