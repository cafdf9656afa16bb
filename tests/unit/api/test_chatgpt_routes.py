from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.chatgpt_routes import EVERYTHING_ELSE, FALLBACK, ROUTES, completed, page, route_of
from gateway.errors import BadRequest


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{'/'.join(route.methods)} {route.name}")
def test_route_is_found_by_its_own_path_and_method(route: Any) -> None:
    for method in route.methods:
        assert route_of(method, route.name.replace("{id}", "0f-1"), FALLBACK) is route
    assert route_of("GET", route.name + "/more/of/it", FALLBACK) is FALLBACK


def test_what_is_no_route_falls_back_where_its_method_is_taken() -> None:
    assert route_of("PUT", "x", FALLBACK) is None
    assert route_of("PUT", "x", EVERYTHING_ELSE) is EVERYTHING_ELSE
    assert route_of("HEAD", "models", EVERYTHING_ELSE) is None


@pytest.mark.parametrize(
    ("pairs", "query"),
    [([], "offset=0&limit=20"), ([("limit", "1"), ("a", "b")], "offset=0&limit=1"), ([("offset", ""), ("limit", "a&b")], "offset=0&limit=a%26b")],
)
def test_page_has_both_its_numbers_and_nothing_else(pairs: list[tuple[str, str]], query: str) -> None:
    assert page(pairs) == query


@pytest.mark.parametrize("given", [{"title": 1}, {"is_visible": "yes"}, {"title": ["x"]}])
def test_title_of_the_wrong_kind_is_refused(given: dict[str, Any]) -> None:
    route = route_of("PATCH", "conversation/1", FALLBACK)
    assert route is not None
    assert route.body is not None
    with pytest.raises(BadRequest):
        route.body(lambda: given)


def test_clearing_reads_no_document() -> None:
    route = route_of("POST", "conversations", FALLBACK)
    assert route is not None
    assert route.body is not None
    assert json.loads(route.body(lambda: pytest.fail("it was read"))) == {"title": None, "is_visible": False}


def test_messages_are_completed_and_keep_what_they_have() -> None:
    given = {"a": 1, "messages": [{"id": "1", "author": {"role": "tool", "name": "n"}, "metadata": {"k": 1}}, {"id": "2"}, "odd"]}
    assert completed(given) == {
        "a": 1,
        "messages": [
            {"id": "1", "author": {"role": "tool", "name": "n"}, "metadata": {"k": 1}},
            {"id": "2", "author": {"role": "user"}, "metadata": {}},
            "odd",
        ],
    }
    assert completed({"messages": None}) == {"messages": None}
