from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.api.openai import ENDPOINTS, NOT_SERVED
from tests import factories
from tests.factories import sent
from tests.unit.api.served import Served, serving

JSON_ENDPOINTS = [endpoint for endpoint in ENDPOINTS if endpoint.body != "form"]
FORM_ENDPOINTS = [endpoint for endpoint in ENDPOINTS if endpoint.body != "json"]


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("openai")) as served:
        yield served


@pytest.fixture
def served(application: Served) -> Served:
    application.backend.calls.clear()
    return application


def form(**fields: str) -> dict[str, Any]:
    data, content_type = factories.form(fields, b"sound")
    return {"data": data, "content_type": content_type}


def told(answer: Any) -> tuple[int, str, str | None]:
    error = answer.get_json()["error"]
    return answer.status_code, error["code"], error["param"]


# endpoints that are relayed


def test_json_endpoints_are_relayed_as_they_came(served: Served) -> None:
    raw = b'{ "model":"m",\t"store":false, "x": 1.50e3, "y":"\\u00e4" }'
    for endpoint in JSON_ENDPOINTS:
        answer = served.post(f"/v1{endpoint.path}", raw)
        call = served.backend.calls[-1]
        assert answer.status_code == 200, endpoint.path
        assert (call.path, call.method, call.dialect, sent(call.body)) == (endpoint.path, "POST", endpoint.dialect, raw)
    assert len(served.backend.calls) == len(JSON_ENDPOINTS)


def test_form_endpoints_are_relayed_as_they_came(served: Served) -> None:
    for endpoint in FORM_ENDPOINTS:
        answer = served.ask("POST", f"/v1{endpoint.path}", **form(model="m"))
        call = served.backend.calls[-1]
        assert answer.status_code == 200, endpoint.path
        assert (call.path, call.dialect) == (endpoint.path, endpoint.dialect)
        assert dict(call.headers)["content-type"] == "multipart/form-data; boundary=b"
        assert b"sound" in sent(call.body)


def test_json_where_a_form_belongs_and_a_form_where_json_belongs_are_refused(served: Served) -> None:
    for endpoint in ENDPOINTS:
        if endpoint.body == "form":
            assert served.post(f"/v1{endpoint.path}", {"model": "m"}).status_code == 400
        if endpoint.body == "json":
            assert served.ask("POST", f"/v1{endpoint.path}", **form(model="m")).status_code == 400
    assert served.backend.calls == []


@pytest.mark.parametrize("endpoint", [endpoint for endpoint in ENDPOINTS if endpoint.default_model], ids=lambda endpoint: endpoint.path)
def test_endpoint_with_a_default_model_needs_none(served: Served, endpoint: Any) -> None:
    if endpoint.default_model not in served.gateway.catalog.snapshot.deployments:
        served.deploy(endpoint.default_model)
    body = form(prompt="a") if endpoint.body == "form" else {"data": b'{"input":"a"}', "content_type": "application/json"}
    answer = served.ask("POST", f"/v1{endpoint.path}", **body)
    assert answer.status_code == 200
    entry = served.entry(answer)
    assert entry is not None
    assert entry.model_asked == endpoint.default_model


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings", "/responses", "/audio/speech"])
@pytest.mark.parametrize("raw", [b"{}", b'{"model":null}'])
def test_other_endpoints_need_a_model(served: Served, path: str, raw: bytes) -> None:
    answer = served.post(f"/v1{path}", raw)
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (400, "model")


def test_aliased_model_is_renamed_in_a_form_too(served: Served) -> None:
    served.deploy("alias", upstream_model="real")
    served.ask("POST", "/v1/audio/transcriptions", **form(model="alias"))
    assert b"\r\n\r\nreal\r\n" in sent(served.backend.calls[-1].body)
    assert b"alias" not in sent(served.backend.calls[-1].body)


# what would be kept upstream


@pytest.mark.parametrize("store", [True, 1, "true", "on", [True], {}, 0, 0.0, ""])
def test_chat_that_would_be_stored_is_refused(served: Served, store: Any) -> None:
    assert told(served.chat(store=store)) == (400, "store_not_served", "store")
    assert served.backend.calls == []


@pytest.mark.parametrize("store", [False, None])
def test_chat_that_is_not_stored_is_served_untouched(served: Served, store: Any) -> None:
    assert served.chat(store=store).status_code == 200
    assert json.loads(sent(served.backend.calls[-1].body))["store"] is store


@pytest.mark.parametrize(
    ("raw", "arrives"),
    [
        (b'{"model":"m","input":"a"}', b'{"store": false,"model":"m","input":"a"}'),
        (b'{"model":"m","store":null}', b'{"model":"m","store":false}'),
        (b'{"model":"m","store":"true"}', b'{"model":"m","store":false}'),
        (b'{"model":"m","store":1}', b'{"model":"m","store":false}'),
        (b'{"model":"m", "store" : false }', b'{"model":"m", "store" : false }'),
        (b'{"model":"m","background":false,"store":false}', b'{"model":"m","background":false,"store":false}'),
        (b'{"model":"m","previous_response_id":null,"store":false}', b'{"model":"m","previous_response_id":null,"store":false}'),
        (b'{"model":"m","prompt":null,"store":false}', b'{"model":"m","prompt":null,"store":false}'),
    ],
)
def test_response_is_never_stored_upstream(served: Served, raw: bytes, arrives: bytes) -> None:
    assert served.post("/v1/responses", raw).status_code == 200
    assert sent(served.backend.calls[-1].body).replace(b" ", b"") == arrives.replace(b" ", b"")


@pytest.mark.parametrize(
    ("member", "value", "code"),
    [
        ("store", True, "store_not_served"),
        ("background", True, "background_not_served"),
        ("background", 0, "background_not_served"),
        ("conversation", "conv_1", "conversation_not_served"),
        ("conversation", {"id": "conv_1"}, "conversation_not_served"),
        ("previous_response_id", "resp_1", "previous_response_id_not_served"),
        ("previous_response_id", 0.0, "previous_response_id_not_served"),
        ("prompt", {"id": "pmpt_1"}, "prompt_not_served"),
    ],
)
def test_response_that_refers_to_what_is_kept_upstream_is_refused(served: Served, member: str, value: Any, code: str) -> None:
    assert told(served.post("/v1/responses", {"model": "m", member: value})) == (400, code, member)
    assert served.backend.calls == []


@pytest.mark.parametrize("name", NOT_SERVED)
def test_objects_kept_upstream_are_not_served(served: Served, name: str) -> None:
    for path in (f"/v1/{name}/x", f"/v1/{name}/x/cancel", f"/v1/{name}/a%2Fb"):
        for method in ("GET", "POST", "DELETE"):
            answer = served.ask(method, path)
            assert told(answer) == (501, "not_served", None)
            assert answer.headers["x-should-retry"] == "false"
    assert told(served.ask("GET", f"/v1/{name}"))[0] == 501


# models


def test_models_are_those_of_the_key(served: Served) -> None:
    served.deploy("gpt-a")
    key = served.new_key(served.ann, models=("gpt-*",))
    assert {"echo", "gpt-a", "m"} <= {each["id"] for each in served.ask("GET", "/v1/models").get_json()["data"]}
    assert [each["id"] for each in served.ask("GET", "/v1/models", key=key).get_json()["data"]] == ["gpt-a"]
    assert served.ask("GET", "/v1/models/gpt-a", key=key).get_json()["id"] == "gpt-a"
    assert told(served.ask("GET", "/v1/models/m", key=key)) == (404, "model_not_found", "model")
    assert told(served.ask("GET", "/v1/models/m2")) == (404, "model_not_found", "model")


def test_model_with_a_slash_in_its_name_is_found(served: Served) -> None:
    served.deploy("vendor/model:tag")
    answer = served.ask("GET", "/v1/models/vendor/model:tag")
    assert answer.get_json() == {"id": "vendor/model:tag", "object": "model", "created": 0, "owned_by": "gateway"}


# receipts


def test_receipt_is_its_users_alone(served: Served) -> None:
    answer = served.chat()
    path = f"/v1/requests/{answer.headers['x-request-id']}"
    receipt = served.ask("GET", path).get_json()
    assert (receipt["status"], receipt["booked"]["usage"]["output_text"]) == (200, 4)
    other = served.new_key(served.new_user("bob"))
    assert told(served.ask("GET", path, key=other)) == (404, "not_found", None)
    assert told(served.ask("GET", "/v1/requests/nothing"))[0] == 404


def test_receipt_of_a_refused_call_is_there_too(served: Served) -> None:
    answer = served.post("/v1/chat/completions", {"model": "none"})
    receipt = served.ask("GET", f"/v1/requests/{answer.headers['x-request-id']}").get_json()
    assert (receipt["status"], receipt["ending"], receipt["error"], receipt["booked"]) == (404, "refused", "model_not_found", None)


def test_receipt_holds_no_secret(served: Served) -> None:
    answer = served.chat()
    text = served.ask("GET", f"/v1/requests/{answer.headers['x-request-id']}").get_data(as_text=True)
    assert served.key not in text
    assert served.secrets.hasher.hash(served.key) not in text
