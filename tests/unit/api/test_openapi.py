from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.routing import Map, Rule

from gateway.api.openai import ENDPOINTS
from gateway.api.openapi import document as described
from gateway.api.shapes import OPENAI, SHAPES, shape_of
from gateway.dialects.document import Fields
from tests.unit.api.served import Served, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("openapi")) as served:
        yield served


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    answer = served.ask("GET", "/openapi.json", key=None)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.get_json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_route_is_described_and_nothing_else(served: Served, document: dict[str, Any]) -> None:
    served_routes = {
        (re.sub(r"<(?:path:)?([a-z_]+)>", r"{\1}", rule.rule), method.lower())
        for rule in served.app.url_map.iter_rules()
        if shape_of(rule.rule) is OPENAI
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in operations(document)} == served_routes


def test_what_is_not_described_belongs_to_a_family_with_a_shape_of_its_own(served: Served, document: dict[str, Any]) -> None:
    left_out = [rule.rule for rule in served.app.url_map.iter_rules() if shape_of(rule.rule) is not OPENAI]
    assert {"/" + path.split("/")[1] for path in left_out} == set(SHAPES)
    assert not any(path.startswith(tuple(f"{prefix}/" for prefix in SHAPES)) for path in document["paths"])


def test_every_described_route_answers_and_no_other_method_does(served: Served, document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        real = re.sub(r"\{[a-z_]+\}", "x", path)
        for method in ("get", "post", "put", "patch", "delete"):
            status = served.ask(method.upper(), real).status_code
            assert (status != 405) is (method in methods), (method, path)


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    assert all(operation["summary"] for _, _, operation in operations(document))


def test_parameters_of_a_path_are_declared(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        declared = {each["name"] for each in operation.get("parameters", []) if "$ref" not in each and each["in"] == "path" and each["required"]}
        assert declared == set(re.findall(r"\{([a-z_]+)\}", path))


def test_route_of_which_nothing_is_known_is_no_part_of_a_document() -> None:
    def view() -> None: ...

    with pytest.raises(KeyError):
        described(Map([Rule("/v1/new", endpoint="openai.new", methods=["GET"])]), {"openai.new": view})


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for each in value.values():
                yield from walk(each)
        elif isinstance(value, list):
            for each in value:
                yield from walk(each)

    used = set(walk(document))
    components = document["components"]
    there = {f"#/components/{kind}/{name}" for kind in ("headers", "links", "parameters", "responses", "schemas") for name in components[kind]}
    assert used == there


def test_links_lead_to_operations(document: dict[str, Any]) -> None:
    names = {operation["operationId"] for _, _, operation in operations(document)}
    assert {link["operationId"] for link in document["components"]["links"].values()} <= names


def test_routes_that_ask_for_a_key_say_so(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        assert (operation.get("security") == [{"key": []}]) is path.startswith("/v1"), path
        assert ("401" in operation["responses"]) is path.startswith("/v1"), path
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/metrics"]["get"]["security"] == [{}, {"metrics": []}]


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/v1/chat/completions", {"application/json"}),
        ("/v1/audio/transcriptions", {"multipart/form-data"}),
        ("/v1/images/edits", {"application/json", "multipart/form-data"}),
    ],
)
def test_bodies_are_described_by_their_kinds(document: dict[str, Any], path: str, kinds: set[str]) -> None:
    assert set(document["paths"][path]["post"]["requestBody"]["content"]) == kinds


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_bodies_must_name_a_model_where_the_api_knows_no_default(document: dict[str, Any], endpoint: Any) -> None:
    for media in document["paths"]["/v1" + endpoint.path]["post"]["requestBody"]["content"].values():
        assert ("model" in media["schema"]["required"]) is (endpoint.default_model is None)
        assert media["schema"]["properties"]["model"].get("default") == endpoint.default_model
        assert media["schema"]["additionalProperties"] is True


def test_every_member_that_the_gateway_reads_is_described(document: dict[str, Any]) -> None:
    contents = [operation["requestBody"]["content"] for _, _, operation in operations(document) if operation["tags"] == ["relayed"]]
    members = {name for content in contents for media in content.values() for name in media["schema"]["properties"]}
    assert members == {*Fields.__struct_fields__, "prompt"}


def test_receipt_is_described_as_it_is(served: Served, document: dict[str, Any]) -> None:
    receipt = served.ask("GET", f"/v1/requests/{served.chat().headers['x-request-id']}").get_json()
    schema = document["components"]["schemas"]["Receipt"]
    assert list(receipt) == schema["required"]
    assert [name for name in schema["properties"] if name not in receipt] == ["excluded_more", "affinity"]  # where there is something to tell
    booked = schema["properties"]["booked"]
    assert list(booked["properties"]) == list(receipt["booked"]) == booked["required"]
    assert list(booked["properties"]["usage"]["properties"]) == list(receipt["booked"]["usage"])
    (attempt,) = receipt["attempts"]
    assert list(schema["properties"]["attempts"]["items"]["properties"]) == list(attempt)


def test_relayed_endpoints_take_an_idempotency_key_and_nothing_else_does(document: dict[str, Any]) -> None:
    named = {"$ref": "#/components/parameters/IdempotencyKey"}
    taking = {path for path, _, operation in operations(document) if named in operation.get("parameters", [])}
    assert taking == {"/v1" + endpoint.path for endpoint in ENDPOINTS}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_statuses_that_a_relayed_endpoint_gives_are_described(document: dict[str, Any], endpoint: Any) -> None:
    statuses = set(document["paths"]["/v1" + endpoint.path]["post"]["responses"])
    ours = {"400", "401", "402", "403", "404", "408", "409", "413", "422", "429", "500", "502", "503", "504"}
    assert statuses == {"200", *ours, "2XX", "4XX"}


def test_what_is_not_served_is_described_as_such(document: dict[str, Any]) -> None:
    assert set(document["paths"]["/v1/files"]["get"]["responses"]) == {"401", "403", "500", "501", "503"}
    assert set(document["paths"]["/v1/files/{rest}"]["get"]["responses"]) == {"401", "403", "404", "500", "501", "503"}
    assert "501" in document["paths"]["/v1/responses"]["delete"]["responses"]
    assert "200" in document["paths"]["/v1/responses"]["post"]["responses"]
