"""OpenAI's npm package, unmodified, through the gateway: node/conformance.mjs asks, here it is said what is right."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import BODY_LIMIT
from tests.conformance.models import SERVED
from tests.fakes.gateway import RunningGateway
from tests.fakes.openai_answers import AUDIO, TEXT, form_fields
from tests.fakes.provider import Provider
from tests.fakes.received import Received

pytestmark = [
    pytest.mark.skipif(shutil.which("npm") is None or shutil.which("node") is None, reason="npm is missing: apt-get install nodejs npm"),
    pytest.mark.timeout(300),  # the first test installs the package
]
SCRIPT = Path(__file__).parent / "node"
VECTOR = [0.25, -0.5, 0.125, 1.0]
Told = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "conformance.mjs"):
        shutil.copy(SCRIPT / name, directory)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def told(installed: Path, gateway: RunningGateway, restricted_key: str) -> Told:
    """What came of each case: {"value": ...} or {"error": ...}."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environment |= {"BASE_URL": gateway.url, "KEY": gateway.key, "RESTRICTED_KEY": restricted_key, "BODY_LIMIT": str(BODY_LIMIT)}
    done = subprocess.run(["node", "conformance.mjs"], cwd=installed, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {line.pop("case"): line for line in map(json.loads, done.stdout.splitlines())}


@pytest.fixture
def received(serving: Provider, told: Told) -> list[Received]:
    return serving.requests


def ending(gateway: RunningGateway, model: str) -> str:
    (entry,) = [entry for entry in gateway.entries() if entry.model_asked == model]
    return entry.ending


def test_chat_is_answered_whole(told: Told, gateway: RunningGateway) -> None:
    value = told["chat_whole"]["value"]
    assert (value["text"], value["tokens"]) == (TEXT, 21)
    assert value["request_id"] == value["own_id"]
    assert gateway.get(f"/v1/requests/{value['request_id']}").json()["booked"]["amount_nano_usd"] == 53


def test_chat_is_streamed(told: Told) -> None:
    assert told["chat_streamed"]["value"] == {"text": TEXT, "usages": 0}
    assert told["chat_streamed_with_usage"]["value"] == {"text": TEXT, "tokens": 21}
    assert told["echo_streamed"]["value"] == "Grüße 👋"
    assert told["runner"]["value"] == TEXT


def test_tool_calls_come_whole_and_streamed(told: Told) -> None:
    call = {"name": "weather", "arguments": '{"place": "word", "days": 7}'}
    assert told["tools_whole"]["value"] == call
    assert told["tools_streamed"]["value"] == call | {"finish": "tool_calls"}


def test_pictures_are_passed_on(told: Told, received: list[Received]) -> None:
    assert told["vision"]["value"] == TEXT
    (picture,) = [request.json()["messages"][0]["content"][1] for request in received if b'"image_url"' in request.body]
    assert picture == {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo=" * 9000}}


def test_an_answer_follows_its_schema(told: Told) -> None:
    assert told["json_schema"]["value"] == {"place": "word", "days": 7}


def test_embeddings_come_as_numbers(told: Told) -> None:
    assert told["embeddings"]["value"] == [[VECTOR, VECTOR], [VECTOR, VECTOR]]


def test_responses_come_whole_and_streamed_and_are_not_kept_upstream(told: Told, received: list[Received]) -> None:
    assert told["response_whole"]["value"] == {"text": TEXT, "tokens": 21}
    assert told["response_streamed"]["value"] == {"first": "response.created", "last": "response.completed", "text": TEXT}
    assert {request.json()["store"] for request in received if request.path == "/v1/responses"} == {False}


def test_speech_comes_byte_for_byte(told: Told) -> None:
    assert told["speech"]["value"] == {"sha256": hashlib.sha256(AUDIO).hexdigest(), "type": "audio/flac"}


def test_a_long_recording_arrives_byte_for_byte(told: Told, received: list[Received]) -> None:
    value = told["transcription"]["value"]
    (form,) = [form_fields(request) for request in received if request.path == "/v1/audio/transcriptions"]
    assert value["text"] == TEXT
    assert form["model"] == "whisper-1"
    assert hashlib.sha256(form["file"]).hexdigest() == value["sha256"]


def test_models_are_those_that_the_key_may_use(told: Told) -> None:
    assert told["models"]["value"] == [SERVED[0]]


@pytest.mark.parametrize(
    ("case", "name", "status", "code"),
    [
        ("refused_by_the_upstream", "BadRequestError", 400, "unknown_tool"),
        ("refused_by_the_gateway", "BadRequestError", 400, "store_not_served"),
        ("wrong_key", "AuthenticationError", 401, "invalid_api_key"),
        ("not_allowed", "PermissionDeniedError", 403, "model_not_allowed"),
        ("unknown_model", "NotFoundError", 404, "model_not_found"),
        ("too_large", "APIError", 413, "body_too_large"),
        ("far_too_large", "APIError", 413, "body_too_large"),
        ("limited", "RateLimitError", 429, "upstream_rate_limited"),
        ("failed", "InternalServerError", 502, "upstream_error"),
        ("failed_in_its_first_event", "InternalServerError", 502, "upstream_error"),
        ("unreachable", "InternalServerError", 502, "upstream_unreachable"),
        ("too_slow", "InternalServerError", 504, "upstream_timeout"),
        ("not_served", "InternalServerError", 501, "not_served"),
    ],
)
def test_each_failure_raises_the_class_that_fits(told: Told, case: str, name: str, status: int, code: str) -> None:
    error = told[case]["error"]
    assert (error["name"], error["status"], error["code"]) == (name, status, code)
    assert error["request_id"]


def test_a_rate_limit_tells_when_to_come_back(told: Told) -> None:
    assert 1 <= int(told["limited"]["error"]["retry_after"]) <= 7


def test_what_is_not_served_is_asked_for_once(told: Told, gateway: RunningGateway) -> None:
    """With the package's default retries."""
    assert "error" in told["not_served"]
    lines = [json.loads(line) for line in gateway.log_path.read_text().splitlines() if line.startswith("{")]
    assert sum(line.get("path") == "/v1/files" for line in lines) == 1


@pytest.mark.parametrize(("case", "model", "first"), [("broken_off", "stalls", "assistant"), ("abandoned", "stalls-too", "response.created")])
def test_leaving_a_stream_ends_the_upstreams_work(told: Told, gateway: RunningGateway, serving: Provider, case: str, model: str, first: str) -> None:
    assert told[case]["value"]["first"] == first
    serving.wait_closed(3)  # with the one that timed out; the provider itself would hold each connection for ever
    entry = gateway.entry(told[case]["value"]["request_id"])
    assert entry is not None
    assert (entry.model_asked, entry.ending) == (model, "client_gone")


def test_giving_up_on_a_silent_upstream_ends_its_work(told: Told, gateway: RunningGateway, serving: Provider) -> None:
    assert told["timed_out"]["error"]["name"] == "APIConnectionTimeoutError"
    serving.wait_closed(3)
    assert ending(gateway, "is-silent") == "client_gone"


@pytest.mark.parametrize("case", ["cut", "cut_without_a_trace", "cut_response"])
def test_a_cut_stream_is_an_error_and_no_silent_end(told: Told, case: str) -> None:
    error = told[case]["error"]
    assert (error["name"], error["code"]) == ("APIError", "upstream_interrupted")
    assert error["seen"] > 1
