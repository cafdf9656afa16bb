"""Row 58: log injection. Figure: one line = one record, whatever clients and upstreams put into the fields that they can set."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from gateway.store import accounts
from tests.fakes.answers import ErrorEvent, Json, RawBytes, Status
from tests.fakes.gateway import Broken, RunningGateway, free_port, now
from tests.fakes.openai_answers import error_object
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT
from tests.faults.conftest import Measured

FORGED = '{"level":"info","msg":"forged"}'
EVIL = f"a\r\n{FORGED}\nb\x1b[2Jc\x1b]0;t\x07d\x00e\x08f\x85g\x9bh\u2028{FORGED}\u2029i\u202ej\u2066k\ufeffl\x7fm"
SURROGATE = "lone\ud800"
BIDIRECTIONAL = f"\u202e\u2066\u200f\ufeff\U000e0001{FORGED}"
"""What a model may be called: all but control characters, line separators and lone surrogates."""
IN_HEADERS = "a\tb\x80c\x85d\x9b[2Je\xa0f\xad" + FORGED
"""What a header's value may hold on its way through a parser: tabs and any byte from 0x80 on."""


def ask(gateway: RunningGateway, path: str, body: Any = None, *, key: str = "", method: str = "POST", **headers: str) -> int:
    """The status, 0 where there is none."""
    try:
        with gateway.client(key) as client:
            client.ask(path, body, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()})
            return client.answer().status
    except (Broken, ConnectionError):
        return 0


def raw(gateway: RunningGateway, request: bytes) -> None:
    """Bytes that are no request."""
    with gateway.client() as client:
        client.send(request)
        try:
            client.answer()
        except (Broken, ConnectionError, ValueError):
            return


def chat(gateway: RunningGateway, model: str, **more: str) -> int:
    return ask(gateway, CHAT, {"model": model, "messages": [{"role": "user", "content": EVIL}]}, **more)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], int]]:
    """The log of a gateway whose every field was tried, and how many calls there were."""
    directory = tmp_path_factory.mktemp("injected")
    with Provider() as provider, RunningGateway(directory, {"GATEWAY_CONNECT_S": "0.5"}) as gateway:
        _configure(gateway, provider)
        calls = _clients(gateway) + _upstreams(gateway, provider)
        _nonsense(gateway)
        time.sleep(0.3)
        gateway.stop()
        yield gateway.log_path.read_bytes().decode("ascii").removesuffix("\n").split("\n"), calls


def _configure(gateway: RunningGateway, provider: Provider) -> None:
    gateway.deploy("*", provider.url)
    gateway.deploy("refuses", f"http://127.0.0.1:{free_port()}/v1")
    gateway.deploy("broken", provider.url, secret=f"sk-{EVIL}".replace("\0", ""), backend="tests.faults.broken_backend:Broken")
    gateway.deploy("no-backend", provider.url, backend="tests.faults.missing:Missing\n" + FORGED)
    gateway.wait_catalog()


def _clients(gateway: RunningGateway) -> int:
    """What a client says: model, key's label, request id, path, query, headers."""
    user = gateway.write(lambda: accounts.create_user(EVIL.replace("\0", ""), now())).id
    key = gateway.new_key(user)
    row = gateway.read(lambda: accounts.list_keys(user))[0]
    gateway.write(lambda: accounts.ApiKeyRow.update(label=EVIL.replace("\0", "")).where(accounts.ApiKeyRow.id == row.id).execute())
    statuses = [
        chat(gateway, EVIL, key=key),
        ask(gateway, CHAT, json.dumps({"model": SURROGATE, "messages": []}).encode()),
        chat(gateway, BIDIRECTIONAL, key=key),
        chat(gateway, "m", x_request_id=IN_HEADERS),
        chat(gateway, "refuses", user_agent=IN_HEADERS, openai_beta=IN_HEADERS, accept=IN_HEADERS),
        chat(gateway, "broken"),
        chat(gateway, "no-backend"),
    ]
    assert statuses == [400, 400, 200, 200, 502, 500, 503]
    for path in (f"/v1/{quote(EVIL)}", f"/v1/models/{quote(EVIL)}", f"/v1/requests/{quote(EVIL)}?x={quote(EVIL)}", "/v1/%ff%85%1b%0a", "/\xff\x9b"):
        assert ask(gateway, path, method="GET") != 200
    assert ask(gateway, CHAT, EVIL.encode()) == 400
    assert ask(gateway, CHAT, {}, content_type=IN_HEADERS) in (400, 415)
    assert ask(gateway, CHAT, {}, authorization=f"Bearer {IN_HEADERS}") == 401
    return len(statuses) - 2  # the first two never became a call


def _upstreams(gateway: RunningGateway, provider: Provider) -> int:
    """What an upstream says: error text and code, headers, a status line, events, a body that is no JSON."""
    told = error_object(EVIL, code=EVIL)
    steps = (
        *(Status(status, told, headers=(("x-request-id", IN_HEADERS), ("retry-after", "0"))) for status in (400, 401, 404, 422, 429, 500, 503)),
        RawBytes(f"HTTP/1.1 500 {IN_HEADERS}\r\ncontent-length: 0\r\n\r\n".encode("latin-1")),
        RawBytes(f"HTTP/1.1 200 OK\r\nx: {EVIL}\r\n\r\n".encode()),
        RawBytes(f"{EVIL}\r\n\r\n".encode()),
        RawBytes(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\x1b[2J\n"),
        ErrorEvent(told),
        Json({"model": EVIL, "choices": [{"finish_reason": EVIL}]}),
    )
    for number, step in enumerate(steps):
        provider.script(CHAT, step)
        assert chat(gateway, f"up-{number}") > 0
    return len(steps)


def _nonsense(gateway: RunningGateway) -> None:
    """What the server itself refuses, and says so in its own words."""
    raw(gateway, f"GET /\x1b[2J{FORGED} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    raw(gateway, b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n")
    raw(gateway, f"{FORGED}\r\n\r\n".encode())
    raw(gateway, f"GET / HTTP/1.1\r\nhost: x\r\nbad\x1b[2Jname\x85: {FORGED}\r\n\r\n".encode("latin-1"))
    raw(gateway, b"GET / HTTP/1.1\r\nhost: x\r\nbad: value\x00\x0b" + FORGED.encode() + b"\r\n\r\n")
    raw(gateway, f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: -1{FORGED}\r\n\r\n".encode())
    raw(gateway, f"POST {CHAT} HTTP/9.{FORGED}\r\nhost: x\r\n\r\n".encode())


def test_58_every_line_is_a_record_of_printable_ascii(attacked: tuple[list[str], int], measured: Measured) -> None:
    lines, _ = attacked
    broken = [line for line in lines if not line.isprintable() or not isinstance(_read(line), dict)]
    measured(58, f"{len(lines) - len(broken)} records in {len(lines)} lines of a log that clients and upstreams tried to forge (one line = one record)")
    assert broken == []
    assert all(isinstance(_read(line).get("msg"), str) and _read(line)["msg"] != "forged" for line in lines)


def test_58_every_call_is_one_record_with_what_was_said_in_it(attacked: tuple[list[str], int]) -> None:
    lines, calls = attacked
    records = [record for record in map(_read, lines) if record["msg"] == "exchange"]
    assert len(records) == calls == len({record["exchange"] for record in records})
    models = {record["model"] for record in records}
    assert BIDIRECTIONAL in models
    assert any(record["key_label"] == EVIL.replace("\0", "") for record in records)
    assert any(record["client_request_id"] and FORGED in record["client_request_id"] for record in records)


def test_58_a_traceback_is_part_of_its_record(attacked: tuple[list[str], int]) -> None:
    lines, _ = attacked
    traces = [record["traceback"] for record in map(_read, lines) if "traceback" in record]
    assert any("broken_backend" in trace and "\n" in trace for trace in traces)


def _read(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def test_58_the_whole_suites_log_is_records(gateway: RunningGateway) -> None:
    """Whatever the rows before this one did."""
    lines = Path(gateway.log_path).read_bytes().decode("ascii").splitlines()
    assert [line for line in lines if not isinstance(_read(line), dict)] == []
