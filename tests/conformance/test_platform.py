"""go-chatgpt-api's clients of the official API, with a key or a session key of their own: what comes back is what the upstream said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.families import Families, families
from tests.fakes.answers import Events, Json, RateLimited, Redirect, ResetAt, Status
from tests.fakes.openai_answers import error_object

KEY = "sk-callers-own"
GETS = [
    *("/v1/models", "/v1/models/gpt-4", "/v1/models/ft:gpt-3.5-turbo:acme::abc", "/v1/files"),
    *("/dashboard/billing/credit_grants", "/dashboard/billing/subscription", "/dashboard/user/api_keys"),
]
POSTS = ["/v1/completions", "/v1/chat/completions", "/v1/edits", "/v1/images/generations", "/v1/embeddings", "/v1/moderations"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    with families(tmp_path_factory.mktemp("platform")) as running:
        yield running


@pytest.fixture
def old(running: Families) -> Families:
    running.forget()
    return running


@pytest.mark.parametrize("path", GETS)
def test_list_is_copied(old: Families, path: str) -> None:
    old.api.script(path, Json({"of": "the upstream"}))
    answer = old.ask("GET", f"/platform{path}?limit=1&after=a%20b", token=f"Bearer {KEY}")
    assert (answer.status, answer.json()) == (200, {"of": "the upstream"})
    (received,) = old.api.requests
    assert (received.path, received.query, received.headers["authorization"]) == (path, "limit=1&after=a+b", f"Bearer {KEY}")


def test_session_key_is_forwarded_raw_or_with_its_scheme(old: Families) -> None:
    old.api.always("/dashboard/user/api_keys", Json({"data": []}))
    for shown in ("sess-key", "Bearer sess-key"):
        assert old.ask("GET", "/platform/dashboard/user/api_keys", token=shown).status == 200
    assert {received.headers["authorization"] for received in old.api.requests} == {"Bearer sess-key"}


@pytest.mark.parametrize("path", POSTS)
def test_fault_13_body_reaches_the_upstream_byte_for_byte(old: Families, path: str) -> None:
    raw = b'{"model":"gpt-4", "temperature":0.7,"top_p":0,"stop":["a","b"],"tools":[{"type":"x"}],"new_field":1e2,"prompt":["p"],"input":["i"],"messages":[]}'
    old.api.script(path, Json({"of": "the upstream"}))
    answer = old.ask("POST", f"/platform{path}", raw, token=f"Bearer {KEY}")
    assert (answer.status, answer.json()) == (200, {"of": "the upstream"})
    (received,) = old.api.requests
    assert (received.body, received.headers["content-type"]) == (raw, "application/json")


def test_fault_13_stream_comes_as_it_is_and_nothing_is_added_to_the_request(old: Families) -> None:
    raw = b'{"model":"gpt-4","stream":true,"temperature":0,"messages":[]}'
    events = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("Hel", "lo")]
    old.api.script("/v1/chat/completions", Events(*events))
    answer = old.ask("POST", "/platform/v1/chat/completions", raw, token=KEY, headers={"accept": "text/event-stream"})
    assert answer.headers["content-type"] == "text/event-stream"
    assert [json.loads(line[6:]) for line in answer.body.split(b"\n\n") if line[6:7] == b"{"] == events
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert old.api.requests[0].body == raw


REFUSALS: list[tuple[Any, int]] = [
    (Status(401, error_object("Incorrect API key provided: sk-cal*****own.", code="invalid_api_key")), 401),
    (Status(402), 402),
    (Status(403), 403),
    (Status(404), 404),
    (RateLimited(7), 429),
    (Status(500), 500),
    (Status(503, b"<html>busy</html>", (("content-type", "text/html"),)), 503),
]


@pytest.mark.parametrize(("refusal", "status"), REFUSALS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/models"])
def test_fault_13_refusal_keeps_its_status_and_its_body(old: Families, refusal: Any, status: int, path: str) -> None:
    old.api.script(path, refusal)
    get = path.endswith("models")
    answer = old.ask("GET" if get else "POST", f"/platform{path}", None if get else {"model": "m", "messages": [], "stream": True}, token=KEY)
    assert (answer.status, answer.body) == (status, refusal.blocks[0])
    assert answer.headers["content-type"] == dict(refusal.headers)["content-type"]
    if status == 429:
        assert answer.headers["retry-after"] == "7"
    assert len(old.api.requests) == 1
    row = old.gateway.exchange(answer.headers["x-request-id"])
    assert row is not None
    assert (row.status, row.ending) == (status, "upstream_error")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/files", "/dashboard/billing/subscription"])
def test_fault_19_upstream_that_breaks_off_is_an_error_and_not_the_end(old: Families, path: str) -> None:
    old.api.always(path, ResetAt(0))
    answer = old.ask("GET", f"/platform{path}", token=KEY)
    assert (answer.status, list(answer.json())) == (500, ["errorMessage"])
    old.api.always(path, Json({"data": []}))
    assert old.ask("GET", f"/platform{path}", token=KEY).status == 200


def test_redirect_is_not_followed(old: Families) -> None:
    old.api.script("/v1/models", Redirect(f"{old.web.root}/elsewhere"))
    assert old.ask("GET", "/platform/v1/models", token=KEY).status == 500
    assert old.web.requests == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", path) for path in ("/nowhere", "/v1/modelsx", "/v1/models/..", "/v1/models/a/b", "/v1/chat/completions", "/dashboard", "/v1/models/%2e")],
        *[("POST", path) for path in ("/v1/models", "/v1/audio/speech", "/v1/files", "/v1/threads")],
        *[(method, "/v1/models") for method in ("PUT", "PATCH", "DELETE")],
    ],
)
def test_path_that_is_not_in_the_table_is_none(old: Families, method: str, path: str) -> None:
    with old.gateway.client(KEY) as client:
        client.ask(f"/platform{path}", {} if method == "POST" else None, method=method)
        answer = client.answer()
    assert (answer.status, answer.json()) == (404, {"message": "Route not found"})
    assert old.api.requests == []


def test_body_that_is_no_json_is_refused(old: Families) -> None:
    answer = old.ask("POST", "/platform/v1/embeddings", b"input=x", token=KEY)
    assert (answer.status, answer.json()) == (400, {"errorMessage": "Failed to parse json request body."})


def test_usage_is_booked_to_the_callers_account(old: Families) -> None:
    answer = old.ask("POST", "/platform/v1/chat/completions", {"model": "gpt-4", "messages": [{"role": "user", "content": "Hi"}]}, token=KEY)
    entry = old.gateway.entry(answer.headers["x-request-id"])
    assert entry is not None
    assert (entry.usage_source, entry.model_asked, entry.deployment, entry.ending) == ("provider", "gpt-4", "platform", "complete")
    assert KEY not in old.gateway.log_path.read_text()
