"""/openapi.json against what is served: the document by the specification's own schema, every operation by Schemathesis, and what no document says."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31  # the specification's schema, which Schemathesis brings

from gateway.api.openai import ENDPOINTS
from gateway.store import catalog
from tests.conformance.exploration import EXAMPLES, TIMEOUT_S, Explored, explore
from tests.fakes.answers import (
    Answer,
    CloseAt,
    Default,
    ErrorEvent,
    GarbageStatusLine,
    Json,
    RateLimited,
    Redirect,
    ResetAt,
    ShortContentLength,
    Silent,
    Status,
    Step,
)
from tests.fakes.gateway import Answer as Answered
from tests.fakes.gateway import RunningGateway
from tests.fakes.provider import Provider
from tests.fakes.received import Received

A_FEW = 10
RELAYED = ("--include-tag", "relayed", "--include-tag", "own")
CHATS = ("openai_chat_completions_post", "openai_completions_post", "openai_request_get")
STREAMING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/images/generations")
FORMS = tuple("/v1" + endpoint.path for endpoint in ENDPOINTS if endpoint.body == "form")


def agreeing(received: Received) -> Answer:
    """A sane answer to whatever came: of what is refused, it is the gateway that refused it."""
    if received.path in FORMS:
        return Json({"text": "words", "created": 1, "data": []})
    streams = received.path in STREAMING and re.search(rb'"stream"\s*:\s*true', received.body) is not None
    body = json.dumps({"model": "m", "stream": streams}).encode()
    return Default()(Received("POST", received.path, "", (("content-type", "application/json"),), body, received.at, received.connection))


HTML = (("content-type", "text/html"),)
SANE = Json({"object": "list"})
FAILURES: tuple[Step, ...] = (
    *(Status(status) for status in (400, 401, 404, 408, 409, 413, 422, 500, 503, 529)),
    Status(418, b"<h1>Short and stout</h1>", HTML),
    Status(400, {"detail": [{"loc": ["body"]}]}, (("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT"), ("set-cookie", "a=b"))),
    *(CloseAt(0, SANE), ResetAt(0, SANE), GarbageStatusLine(), ShortContentLength(SANE), ErrorEvent(), Silent(), Redirect("http://127.0.0.1:1/")),
    *(Status(status, {"object": "list"}) for status in (201, 202)),
)
RESTING: tuple[Step, ...] = (Status(403), RateLimited(2), Status(402))
"""After these a credential rests: for a model, and at the last for every model."""


class InTurn:
    """One failure after the other, and from the `resting`th request on those after which nothing is fit to answer."""

    def __init__(self, resting: int) -> None:
        self._steps = itertools.chain(itertools.islice(itertools.cycle(FAILURES), resting), itertools.cycle(RESTING))

    def __call__(self, received: Received) -> Any:
        return next(self._steps)(received)


def served_by(provider: Provider, step: Step) -> None:
    for endpoint in ENDPOINTS:
        provider.always("/v1" + endpoint.path, step)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Any model, answered by a provider that agrees with everything."""
    with Provider() as provider, RunningGateway(tmp_path_factory.mktemp("agreeing")) as gateway:
        served_by(provider, agreeing)
        gateway.deploy("*", provider.url)
        gateway.deploy("gpt-4o", provider.url)  # a model of the document's examples; a glob is not listed
        gateway.write(without_echo)  # which serves chats only, and is found by its name in an answer
        gateway.wait_catalog()
        yield gateway


def without_echo() -> None:
    for deployment in catalog.list_deployments():
        if deployment.backend == "echo":
            catalog.delete_deployment(deployment.id)
            catalog.delete_model(deployment.model_id)


@pytest.fixture(scope="module")
def document(gateway: RunningGateway) -> dict[str, Any]:
    found: dict[str, Any] = gateway.get("/openapi.json", key=None).json()
    return found


# the document


def test_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    problems = [str(error) for error in jsonschema_rs.validator_for(OPENAPI_31).iter_errors(document)]
    assert problems == []


def test_schemas_in_it_are_json_schemas(document: dict[str, Any]) -> None:
    def found(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            yield from (each for name, each in value.items() if name == "schema")
            for each in value.values():
                yield from found(each)
        elif isinstance(value, list):
            for each in value:
                yield from found(each)

    schemas = [*found(document), *document["components"]["schemas"].values()]
    assert len(schemas) > 50
    for schema in schemas:
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    examples = [media for methods in document["paths"].values() for media in methods.get("post", {}).get("requestBody", {}).get("content", {}).values()]
    examples = [media for media in examples if "example" in media]
    assert len(examples) == len([endpoint for endpoint in ENDPOINTS if endpoint.body != "form"])
    for media in examples:
        jsonschema_rs.validate(media["schema"], media["example"])


# what is served


def told(explored: Explored) -> Counter[int]:
    """How many answers of each status there were, after a look at what every exploration has. Shows both to whoever asks with -s."""
    statuses = explored.statuses()
    print(f"{sum(statuses.values())} answers: {dict(sorted(statuses.items()))}")
    assert explored.passed, explored.output
    assert statuses[500] == 0
    return statuses


@pytest.mark.timeout(TIMEOUT_S)
def test_every_operation_is_as_described(gateway: RunningGateway, document: dict[str, Any], tmp_path: Path) -> None:
    # What is not served answers alike whatever it is sent: two cases of each are enough.
    few = '[[operations]]\ninclude-tag = "not served"\ngeneration.max-examples = 2\nphases.coverage.unexpected-methods = ["TRACE"]'
    explored = explore(gateway, tmp_path, examples=A_FEW, config=few)
    statuses = told(explored)
    assert set(statuses) == {200, 400, 401, 404, 405, 501}
    served = {path for path, methods in document["paths"].items() if any(operation["tags"] != ["not served"] for operation in methods.values())}
    found = {path for path, status in explored.answers if status == 200}
    assert found == served - {"/v1/me/redeem"}  # a code that is good cannot be guessed; tests/unit/api/test_me.py has one


@pytest.mark.timeout(TIMEOUT_S)
def test_every_failure_of_an_upstream_is_as_described(tmp_path: Path) -> None:
    # An upstream that fails takes no request, whether it is valid or not.
    lenient = "[checks.positive_data_acceptance]\nenabled = false"
    with Provider() as provider, RunningGateway(tmp_path / "gateway") as gateway:
        served_by(provider, InTurn(resting=150 + 7 * EXAMPLES))
        gateway.deploy("*", provider.url, first_byte_s=0.1)
        gateway.wait_catalog()
        statuses = told(explore(gateway, tmp_path, *RELAYED, examples=A_FEW, config=lenient))
    assert {201, 202, 400, 401, 404, 408, 409, 413, 418, 422, 429, 502, 503, 504} <= set(statuses)


@pytest.mark.timeout(TIMEOUT_S)
def test_every_chat_is_as_described_where_echo_answers(tmp_path: Path) -> None:
    # A backend that speaks no HTTP reads more than the gateway: it refuses a chat without messages.
    strict = "[checks.positive_data_acceptance]\nenabled = false"
    with RunningGateway(tmp_path / "gateway") as gateway:
        gateway.deploy("*", "", backend="echo")
        gateway.wait_catalog()
        chats = [word for name in CHATS for word in ("--include-operation-id", name)]
        explored = explore(gateway, tmp_path, *chats, examples=3 * A_FEW, config=strict)
    assert set(told(explored)) == {200, 400, 401, 404, 405}
    assert {path for path, status in explored.answers if status == 200} == {"/v1/chat/completions", "/v1/completions", "/v1/requests/{exchange_id}"}


# what every path answers to what it does not describe


def refused(answer: Answered, status: int) -> dict[str, Any]:
    """The error object, after a look at what every refusal has."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    found: dict[str, Any] = answer.json()
    assert set(found) == {"error"}
    assert set(found["error"]) == {"message", "type", "param", "code"}
    return found


def real(path: str) -> str:
    return re.sub(r"\{[a-z_]+\}", "x", path)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", "PROPFIND", "X-NEW"])
def test_methods_that_a_path_does_not_describe_are_refused_with_those_that_it_does(gateway: RunningGateway, document: dict[str, Any], method: str) -> None:
    for path, methods in document["paths"].items():
        if method.lower() in methods:
            continue
        with gateway.client(None) as client:  # no key is asked for
            client.ask(real(path), method=method)
            answer = client.answer()
        if (method, path) == ("OPTIONS", "/v1/chat/completions"):  # an older project's answer to a page that asks
            assert (answer.status, answer.json()) == (200, {"message": "pong"})
            continue
        refused(answer, 405)
        described = {name.upper() for name in methods} | ({"HEAD"} if "get" in methods else set())
        assert set(answer.headers["allow"].split(", ")) == described, path


def test_head_is_get_without_its_body(gateway: RunningGateway, document: dict[str, Any]) -> None:
    for path in [path for path, methods in document["paths"].items() if "get" in methods]:
        with gateway.client() as client:
            answers = []
            for method in ("GET", "HEAD"):
                client.ask(real(path), method=method)
                answers.append(client.answer())
        got, head = answers
        assert (head.status, head.body) == (got.status, b""), path
        assert head.headers.keys() == got.headers.keys()
        assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("accept", ["text/html", "application/xml;q=0.9", "*/*;q=0", "image/png, ;;q=x", "\xff", ""])
def test_answers_are_json_whatever_is_accepted(gateway: RunningGateway, accept: str) -> None:
    wanted = {"accept": accept, "accept-encoding": "identity;q=0, br", "accept-charset": "utf-16", "accept-language": "\xe4"}
    with gateway.client() as client:
        for path, body, status in (("/v1/models", None, 200), ("/v1/chat/completions", {"model": "m"}, 200), ("/nowhere", None, 404)):
            client.ask(path, body, method="POST" if body else "GET", headers=wanted)
            answer = client.answer()
            assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
            assert "content-encoding" not in answer.headers
            answer.json()


CHARSETS = [
    "application/json; charset=utf-16",
    'application/json; charset="',
    "text/plain; charset=ebcdic",
    "application/x-www-form-urlencoded",
    "/",
    ";",
    "\xff",
]


@pytest.mark.parametrize("content_type", CHARSETS)
def test_json_is_read_as_utf_8_whatever_its_type_says(gateway: RunningGateway, content_type: str) -> None:
    document = {"model": "m", "messages": [{"role": "user", "content": "Gr\u00fc\u00dfe"}]}
    with gateway.client() as client:
        for encoding in ("utf-8", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1"):
            client.ask("/v1/chat/completions", json.dumps(document, ensure_ascii=False).encode(encoding), headers={"content-type": content_type})
            answer = client.answer()
            if encoding == "utf-8":
                assert answer.status == 200
            else:
                refused(answer, 400)


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/files", "/healthz", "/nowhere"])
def test_body_that_nobody_reads_changes_no_answer(gateway: RunningGateway, path: str, method: str) -> None:
    """The connection ends behind it: what follows is no request of anybody."""
    answers = []
    for body in (None, b"GET /metrics HTTP/1.1\r\nhost: gateway\r\n\r\n"):
        with gateway.client() as client:
            client.ask(path, body, method=method)
            answers.append(client.answer())
            assert body is None or client.ended(5)
    without, behind = answers
    assert (behind.status, behind.headers["content-type"]) == (without.status, without.headers["content-type"])
    assert behind.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"get /healthz HTTP/1.1\r\nhost: g\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: g\r\n\r\n", 414),
        (b"GET /healthz HTTP/1.1\r\nhost: g\r\nexpect: miracles\r\n\r\n", 417),
        (b"GET /healthz HTTP/1.1\r\nhost: g\r\n" + b"x-more: 1\r\n" * 200 + b"\r\n", 431),
        (b"POST /healthz HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunky\r\n\r\n", 501),
    ],
    ids=["method", "line", "expect", "headers", "coding"],
)
def test_request_that_is_not_read_to_its_end_is_refused_in_the_same_shape(gateway: RunningGateway, raw: bytes, status: int) -> None:
    with gateway.client() as client:
        client.send(raw)
        refused(client.answer(), status)
        assert client.ended(5)
