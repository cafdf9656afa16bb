"""What a new user gets wrong: each mistake is told in one clear line in OpenAI's shape, and the next request is served.

Bodies that are too large are in tests/faults/test_20_large_bodies.py.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.secrets import mint_key
from tests.fakes.answers import Json
from tests.fakes.gateway import Answer, RunningGateway
from tests.fakes.provider import Provider

CHAT = "/v1/chat/completions"
SPEECH_TO_TEXT = "/v1/audio/transcriptions"
MODEL = "m"
BODY_S = 0.5
FORM = "multipart/form-data; boundary=edge"
CHUNKED = {"content-length": "", "transfer-encoding": "chunked"}
BEGUN, BEGUN_CHUNK = b'{"model": "m",', b'e\r\n{"model": "m",\r\n'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[RunningGateway]:
    """A short deadline for bodies, and no model without a price."""
    environment = {
        "GATEWAY_BODY_S": str(BODY_S),
        "GATEWAY_UNPRICED": "refuse",
    }
    with RunningGateway(tmp_path_factory.mktemp("gateway"), environment) as gateway:
        gateway.deploy(MODEL, provider.url)
        gateway.deploy("unpriced", provider.url, price=None)
        provider.always(CHAT, Json({"choices": []}))
        provider.always(SPEECH_TO_TEXT, Json({"text": ""}))
        gateway.wait_catalog()
        yield gateway


def ask(gateway: RunningGateway, path: str, body: Any = None, *, method: str = "POST", key: str | None = "", **headers: str) -> Answer:
    with gateway.client(key) as client:
        client.ask(path, body, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return client.answer()


def told(answer: Answer, status: int, *words: str) -> dict[str, Any]:
    """The error object, after a look at what every refusal has."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", answer.headers["x-request-id"])
    document = answer.json()
    assert set(document) == {"error"}
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    for word in words:
        assert word in error["message"]
    return error


@pytest.fixture(autouse=True)
def next_request_is_served(gateway: RunningGateway) -> Iterator[None]:
    yield
    assert ask(gateway, CHAT, {"model": MODEL}).status == 200


# the body


def test_unknown_model(gateway: RunningGateway) -> None:
    error = told(ask(gateway, CHAT, {"model": "gpt-5-ultra"}), 404, "gpt-5-ultra", "/v1/models")
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_missing_model(gateway: RunningGateway) -> None:
    assert told(ask(gateway, CHAT, {"messages": []}), 400, "'model'")["param"] == "model"


@pytest.mark.parametrize("body", [b"", b"hello", b"{'model': 'm'}", b'{"model": "m"', b"[]", b'"m"', b'{"model": "m", "temperature": NaN}'])
def test_not_a_json_object(gateway: RunningGateway, body: bytes) -> None:
    assert told(ask(gateway, CHAT, body), 400, "JSON")["type"] == "invalid_request_error"


def test_huge_nesting(gateway: RunningGateway) -> None:
    told(ask(gateway, CHAT, b'{"model": "m", "x": ' + b"[" * 2000 + b"]" * 2000 + b"}"), 400, "128")


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_store_true(gateway: RunningGateway, path: str) -> None:
    error = told(ask(gateway, path, {"model": MODEL, "store": True}), 400, "'store'")
    assert (error["code"], error["param"]) == ("store_not_served", "store")


@pytest.mark.parametrize("member", [{"background": True}, {"conversation": "c"}, {"previous_response_id": "r"}, {"prompt": {"id": "p"}}])
def test_a_response_that_refers_to_what_is_kept_upstream(gateway: RunningGateway, member: dict[str, Any]) -> None:
    (name,) = member
    assert told(ask(gateway, "/v1/responses", {"model": MODEL, **member}), 400, name)["param"] == name


def test_a_form_for_an_endpoint_of_json(gateway: RunningGateway) -> None:
    told(ask(gateway, CHAT, _form(), content_type=FORM), 400, "application/json")


def test_json_for_an_endpoint_of_forms(gateway: RunningGateway) -> None:
    told(ask(gateway, SPEECH_TO_TEXT, {"model": MODEL}), 400, "multipart/form-data")


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=other"])
def test_a_form_without_its_boundary(gateway: RunningGateway, content_type: str) -> None:
    told(ask(gateway, SPEECH_TO_TEXT, _form(), content_type=content_type), 400)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "zstd", "x"])
def test_a_compressed_body(gateway: RunningGateway, encoding: str) -> None:
    told(ask(gateway, CHAT, b"\x1f\x8b\x08", content_encoding=encoding), 400, "compressed")


def _form() -> bytes:
    parts = b'--edge\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--edge\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'
    return parts + b"\r\n--edge--\r\n"


# its end and its pace


@pytest.mark.parametrize(("begun", "headers"), [(BEGUN, {"content-length": "100"}), (BEGUN_CHUNK, CHUNKED)], ids=["content-length", "chunked"])
def test_a_short_body(gateway: RunningGateway, begun: bytes, headers: dict[str, str]) -> None:
    """The client says that it has sent all, and has not."""
    with gateway.client() as client:
        client.ask(CHAT, begun, headers=headers)
        client.sock.shutdown(socket.SHUT_WR)
        told(client.answer(), 400, "body")


@pytest.mark.parametrize(("begun", "headers"), [(BEGUN, {"content-length": "100"}), (BEGUN_CHUNK, CHUNKED)], ids=["content-length", "chunked"])
def test_a_slow_body(gateway: RunningGateway, begun: bytes, headers: dict[str, str]) -> None:
    with gateway.client() as client:
        started = time.monotonic()
        client.ask(CHAT, begun, headers=headers)
        told(client.answer(), 408, f"{BODY_S:g} s")
        assert BODY_S <= time.monotonic() - started < BODY_S + 1
        assert client.ended(2)


def test_a_dripping_body(gateway: RunningGateway) -> None:
    """The deadline is for the whole body: a byte now and then does not move it."""
    with gateway.client() as client:
        client.ask(CHAT, b"", headers={"content-length": "1000"})
        started = time.monotonic()
        while client.silent(0.05) and time.monotonic() - started < 5:
            client.send(b" ")
        told(client.answer(), 408)
        assert time.monotonic() - started < BODY_S + 1


def test_a_body_of_bad_chunks(gateway: RunningGateway) -> None:
    with gateway.client() as client:
        client.ask(CHAT, BEGUN_CHUNK + b"zz\r\n{}\r\n0\r\n\r\n", headers=CHUNKED)
        told(client.answer(), 400, "framed")
        assert client.ended(2)


# the route and the key


@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/audio/speech"])
def test_a_method_that_the_route_does_not_take(gateway: RunningGateway, path: str, method: str) -> None:
    answer = ask(gateway, path, method=method)
    if method == "HEAD":
        assert (answer.status, answer.body) == (405, b"")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"]
    else:
        told(answer, 405, method, path)


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/", "/v1/chat", "/v1/chat/completions/", "/v2/x", "/admin", "//v1/models", "/v1//models", "/v1/../v1/models", "/%00"],
)
def test_an_unknown_path(gateway: RunningGateway, path: str) -> None:
    told(ask(gateway, path, method="GET"), 404, "/openapi.json")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", "/v1/responses/resp_1"), ("DELETE", "/v1/responses/resp_1"), ("GET", "/v1/responses"), ("POST", "/v1/responses/resp_1/cancel")],
        *[("POST", "/v1/files"), ("GET", "/v1/files/f/content"), ("POST", "/v1/batches"), ("POST", "/v1/threads/t/runs"), ("GET", CHAT)],
        *[("POST", "/v1/uploads/u/parts"), ("GET", "/v1/vector_stores"), ("POST", "/v1/fine_tuning/jobs"), ("POST", "/v1/assistants")],
    ],
)
def test_objects_kept_upstream_are_not_served(gateway: RunningGateway, method: str, path: str) -> None:
    answer = ask(gateway, path, {"model": MODEL} if method == "POST" else None, method=method)
    assert told(answer, 501, "not")["code"] == "not_served"
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong", "Basic Zm9v", f"Bearer {mint_key()}"], ids=["none", "no key", "no form", "basic", "unknown"]
)
def test_a_wrong_key(gateway: RunningGateway, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    assert told(ask(gateway, CHAT, {"model": MODEL}, key=None, **headers), 401)["code"] == "invalid_api_key"


def test_a_model_that_the_key_may_not_use(gateway: RunningGateway) -> None:
    key = gateway.new_key(gateway.new_user("restricted"), models=("echo", "gpt-*"))
    told(ask(gateway, CHAT, {"model": MODEL}, key=key), 403, MODEL)
    assert [model["id"] for model in ask(gateway, "/v1/models", method="GET", key=key).json()["data"]] == ["echo"]


def test_an_unpriced_model_is_refused(gateway: RunningGateway, provider: Provider) -> None:
    provider.requests.clear()
    told(ask(gateway, CHAT, {"model": "unpriced"}), 403, "unpriced", "price")
    assert not provider.requests


def test_another_users_receipt(gateway: RunningGateway) -> None:
    exchange = ask(gateway, CHAT, {"model": MODEL}).headers["x-request-id"]
    assert ask(gateway, f"/v1/requests/{exchange}", method="GET").json()["id"] == exchange
    other = gateway.new_key(gateway.new_user("curious"))
    for asked in (exchange, exchange.lower(), "nothing", "%27%20OR%201=1"):
        told(ask(gateway, f"/v1/requests/{asked}", method="GET", key=other), 404)
