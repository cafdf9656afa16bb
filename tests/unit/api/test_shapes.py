from __future__ import annotations

import pytest

from gateway.api.shapes import OPENAI, SHAPES, lowered, shape_of
from gateway.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound, RateLimited


@pytest.mark.parametrize(
    ("path", "prefix"), [("/chatgpt", "/chatgpt"), ("/chatgpt/a/b", "/chatgpt"), ("/platform/v1", "/platform"), ("/imitate/", "/imitate"), ("/api/x", "/api")]
)
def test_first_segment_says_whose_a_path_is(path: str, prefix: str) -> None:
    assert shape_of(path) is SHAPES[prefix]


@pytest.mark.parametrize("path", ["/", "/v1/models", "/chatgptx", "/x/chatgpt", "//chatgpt", "/apis/x", ""])
def test_every_other_path_is_openais(path: str) -> None:
    assert shape_of(path) is OPENAI
    assert not OPENAI.open_to_browsers


@pytest.mark.parametrize(
    ("error", "first", "second"),
    [
        (BadRequest("A thing is wrong."), {"errorMessage": "A thing is wrong."}, {"errorMessage": "a thing is wrong"}),
        (RateLimited("Wait."), {"errorMessage": "Wait."}, {"errorMessage": "wait"}),
        (NotFound("There is no such page."), {"message": "Route not found"}, {"message": "Route not found"}),
        (MethodNotAllowed("Not so."), {"message": "Not so."}, {"message": "Not so."}),
    ],
)
def test_error_is_worded_as_each_version_did(error: GatewayError, first: object, second: object) -> None:
    assert shape_of("/chatgpt/x").document(error, error.message) == first
    assert shape_of("/api/x").document(error, error.message) == second


def test_sentence_loses_its_capital_and_its_stop_alone() -> None:
    assert [lowered(text) for text in ("Failed to get models.", "A.B", "", "x")] == ["failed to get models", "a.B", "", "x"]
