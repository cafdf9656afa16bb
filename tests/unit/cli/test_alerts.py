from __future__ import annotations

import pytest

from tests.fakes.answers import Status
from tests.fakes.provider import Provider
from tests.unit.cli.conftest import Typed


def test_a_webhook_is_made_tried_listed_and_ended(installed: Typed) -> None:
    assert "No webhooks yet" in installed("alert", "list").out
    with Provider() as receiver:
        receiver.script("/hook/hidden", Status(200, b""), Status(500))
        made = installed("alert", "set", "--url", f"{receiver.root}/hook/hidden", "--threshold", "50,80%")
        assert (made.code, "budgets at 50 %, 80 % and calls whose worker was lost" in made.out, "hidden" in made.out) == (0, True, False)
        assert made.out.splitlines()[-1].startswith("whsec_")
        good, bad = installed("alert", "test"), installed("alert", "test")
        assert (good.code, good.out, bad.code, bad.out) == (0, "webhook main: answered with 200\n", 1, "webhook main: answered with 500\n")
        assert len(receiver.requests) == 2
    assert installed("alert", "test").code == 1
    assert "Nothing was sent yet." in installed("alert", "list").out
    assert installed("alert", "list", "--json").json()["webhooks"][0]["thresholds"] == [50, 80]
    assert "whsec_" not in installed("alert", "set", "--rule", "budget").out
    assert installed("alert", "set", "--new-secret", "--json").json()["secret"].startswith("whsec_")
    assert installed("alert", "end", "main").code == 0
    assert [installed(*words).code for words in (("alert", "end", "main"), ("alert", "test"))] == [3, 3]


def test_a_url_may_come_from_standard_input(installed: Typed) -> None:
    assert installed("alert", "set", "--url", "-", stdin="https://hooks.example.com/T0/secret\n").code == 0
    assert "https://hooks.example.com/..." in installed("alert", "list").out


@pytest.mark.parametrize(
    "words", [(), ("--url", "nonsense"), ("--url", "https://example.com/", "--threshold", "many"), ("--url", "https://example.com/", "--rule", "weather")]
)
def test_what_cannot_be_is_one_line(installed: Typed, words: tuple[str, ...]) -> None:
    result = installed("alert", "set", *words)
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
