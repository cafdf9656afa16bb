"""What an operator sees of a running gateway: the line of a call, the metrics of what happened, the doctor's look through a proxy."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.answers import Status
from tests.fakes.gateway import ROOT, RunningGateway, free_port
from tests.fakes.openai_answers import error_object
from tests.fakes.provider import Provider

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), {"GATEWAY_LOG_LEVEL": "info"}) as gateway:
        gateway.deploy("m", provider.url, upstream_model="real-m")
        gateway.deploy("paced", "", backend="echo", options={"pause_s": 0.05})
        gateway.deploy("twice", f"http://127.0.0.1:{free_port()}/v1", name="first", priority=0)
        gateway.deploy("twice", provider.url, name="second", priority=1)
        gateway.deploy("spoilt", provider.url)
        gateway.wait_catalog()
        yield gateway


def chat(gateway: RunningGateway, model: str, **members: Any) -> dict[str, Any]:
    """The line of one call."""
    with gateway.client() as client:
        client.ask(CHAT, {"model": model, "messages": [{"role": "user", "content": "one two three"}], **members}, headers={"x-request-id": "client-7"})
        answer = client.answer()
    exchange = answer.headers["x-request-id"]
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        for line in gateway.log_lines():
            if line["msg"] == "exchange" and line["exchange"] == exchange:
                return line | {"answered": answer}
        time.sleep(0.02)
    raise AssertionError(f"no line of {exchange}")


def metrics(gateway: RunningGateway) -> dict[str, float]:
    text = gateway.get("/metrics", key=None).body.decode()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if not line.startswith("#")}


def test_line_of_a_streamed_call_says_who_asked_what_of_whom_and_what_became_of_it(gateway: RunningGateway) -> None:
    line = chat(gateway, "m", stream=True)
    (entry,) = [entry for entry in gateway.entries() if entry.exchange == line["exchange"]]
    answered = line.pop("answered")
    assert line["ts"].endswith("Z")
    assert (line["level"], line["msg"], line["client_request_id"]) == ("info", "exchange", "client-7")
    assert (line["key_label"], line["endpoint"], line["model"], line["stream"]) == ("test", "/chat/completions", "m", True)
    assert (line["deployment"], line["upstream_model"], line["credential"], line["attempts"]) == ("m", "real-m", "m-key", 1)
    assert (line["status"], line["ending"], line["error"]) == (200, "complete", None)
    assert (line["amount_nano"], line["tokens"]) == (entry.amount, entry.usage.counted())
    assert line["bytes_out"] == len(answered.body)
    assert line["bytes_in"] > 50
    assert 0 <= line["gateway_ms"] <= line["first_byte_ms"] + 1 <= line["total_ms"] + 1


def test_every_member_of_the_line_is_on_the_operators_page(gateway: RunningGateway) -> None:
    page = (ROOT / "docs" / "operator.md").read_text().partition("### Logs")[2].partition("### Metrics")[0]
    explained = {name for cell in re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)}
    assert set(chat(gateway, "m")) - {"answered", "ts", "level", "logger", "msg"} == explained


def test_line_of_a_whole_answer_and_of_one_that_failed(gateway: RunningGateway, provider: Provider) -> None:
    whole = chat(gateway, "m")
    assert whole["bytes_out"] == len(whole["answered"].body)
    provider.script(CHAT, Status(400, error_object("no")))
    refused = chat(gateway, "m")
    assert (refused["status"], refused["ending"], refused["amount_nano"]) == (400, "upstream_error", 0)
    unknown = chat(gateway, "no-such-model")
    assert (unknown["status"], unknown["ending"], unknown["error"], unknown["deployment"], unknown["tokens"]) == (404, "refused", "model_not_found", None, None)


def test_calls_attempts_tokens_and_rests_are_counted(gateway: RunningGateway) -> None:
    before = metrics(gateway)
    assert chat(gateway, "twice")["attempts"] == 2
    after = metrics(gateway)
    grown = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    assert grown['gateway_exchanges_total{deployment="second",ending="complete",endpoint="/chat/completions",status="200"}'] == 1
    assert grown['gateway_attempts_total{deployment="first",outcome="upstream_unreachable"}'] == 1
    assert grown['gateway_attempts_total{deployment="second",outcome="answered"}'] == 1
    assert grown['gateway_deployments_resting{deployment="first",reason="unreachable"}'] == 1
    assert grown['gateway_first_byte_seconds_count{deployment="second"}'] == 1
    assert grown['gateway_exchange_seconds_count{endpoint="/chat/completions"}'] == 1
    assert grown["gateway_overhead_seconds_count"] == 1
    assert grown["gateway_commit_seconds_count"] >= 1
    assert any(name.startswith('gateway_tokens_total{bucket="output_text",deployment="second"') for name in grown)


def test_states_are_shown(gateway: RunningGateway, provider: Provider) -> None:
    chat(gateway, "m")
    found = metrics(gateway)
    assert found["gateway_database_up"] == 1
    assert found["gateway_catalog_generation"] > 1
    assert abs(found["gateway_catalog_confirmed_timestamp_seconds"] - time.time()) < 5
    assert found["gateway_open_exchanges"] == 0
    assert found["gateway_hub_stalls_total"] >= 0
    assert found["gateway_credentials_quarantined"] == 0
    (pid,) = {pid for name in found if name.startswith("process_open_fds") for pid in re.findall(r'pid="(\d+)"', name)}
    assert found[f'process_resident_memory_bytes{{pid="{pid}"}}'] > 10_000_000
    provider.script(CHAT, Status(401, error_object("bad key", code="invalid_api_key")))
    chat(gateway, "spoilt")
    found = metrics(gateway)
    assert found["gateway_credentials_quarantined"] == 1
    assert found['gateway_deployments_resting{deployment="spoilt",reason="quarantined"}'] == 1


def test_refusals_before_a_call_are_counted_by_their_code(gateway: RunningGateway) -> None:
    assert gateway.post(CHAT, b"nonsense").status == 400
    assert gateway.post(CHAT, {}, key="gw_user_wrong").status == 401
    found = metrics(gateway)
    assert found['gateway_refusals_total{code="invalid_request",status="400"}'] == 1
    assert found['gateway_refusals_total{code="invalid_api_key",status="401"}'] == 1


# the doctor, through what stands in front


class Proxy(http.server.ThreadingHTTPServer):
    """Passes on what it hears, a whole answer at a time: a proxy that buffers. `drops`: the header that it loses."""

    daemon_threads = True
    to = 0
    drops = ""


class _Passing(http.server.BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in (self.server.drops, "host")}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.to, timeout=20)
        connection.request(self.command, self.path, body or None, headers | {"X-Forwarded-For": "192.0.2.1"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def proxy(gateway: RunningGateway) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", 0), _Passing) as proxy:
        proxy.to = gateway.port
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


def doctor(gateway: RunningGateway, port: int, *more: str) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    """The exit code, and the findings by subject."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "OPENAI_", "DATABASE_URL"))}
    environment |= gateway.settings_environment() | {"PYTHONPATH": str(ROOT), "GATEWAY_KEY": gateway.key}
    command = [sys.executable, "-m", "gateway.cli", "doctor", "--json", "--url", f"http://127.0.0.1:{port}/v1", *more]
    done = subprocess.run(command, cwd=gateway.directory, env=environment, capture_output=True, text=True, timeout=50)
    assert gateway.key not in done.stdout + done.stderr
    found: dict[str, list[tuple[str, str]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        found.setdefault(finding["subject"], []).append((finding["verdict"], finding["text"]))
    return done.returncode, found


def test_doctor_finds_nothing_wrong_with_a_gateway_that_is_asked_directly(gateway: RunningGateway) -> None:
    _, found = doctor(gateway, gateway.port, "--model", "paced")
    (streams,) = found["streams"]
    assert streams[0] == "ok", streams
    assert [verdict for subject in ("metrics", "keys", "TLS", "address") for verdict, _ in found[subject]].count("problem") == 0
    assert any("the running server" in text for _, text in found["open files"])
    assert found["core dumps"] == [("ok", "off in the running server")]


def test_doctor_finds_a_proxy_that_holds_streams_back(gateway: RunningGateway, proxy: Proxy) -> None:
    code, found = doctor(gateway, proxy.server_address[1], "--model", "paced")
    ((verdict, text),) = found["streams"]
    assert (code, verdict, "held back by a proxy" in text) == (1, "problem", True)
    assert found["metrics"][0][0] == "ok"


def test_doctor_finds_a_proxy_that_drops_the_key(gateway: RunningGateway, proxy: Proxy) -> None:
    proxy.drops = "authorization"
    code, found = doctor(gateway, proxy.server_address[1])
    assert code == 1
    assert any(verdict == "problem" and "drops the Authorization header" in text for verdict, text in found["keys"])


def test_doctor_needs_a_key_to_call_a_model(gateway: RunningGateway) -> None:
    command = [sys.executable, "-m", "gateway.cli", "doctor", "--model", "m"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, "GATEWAY_KEY" in done.stderr) == (2, True)
