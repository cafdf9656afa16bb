from __future__ import annotations

import pytest

from tests.unit.cli.conftest import Typed


@pytest.fixture
def filled(installed: Typed) -> Typed:
    installed("credential", "create", "main", "-", "--pool", "shared", stdin="sk-0123456789abcdefg")
    return installed


def test_a_quarantine_is_shown_with_its_pool_listed_as_an_event_and_cleared(filled: Typed) -> None:
    assert "Nothing has happened to main yet" in filled("credential", "events", "main").out
    assert "undo: gateway credential clear main" in filled("credential", "quarantine", "main", "--reason", "leaked").out
    assert "quarantined (by_operator)" in filled("pool", "show", "shared").out
    assert "quarantined (by_operator)" in filled("credential", "list").out
    assert filled("credential", "list", "--json").json()[0]["conditions"][0]["reason"] == "by_operator"
    assert filled("pool", "show", "shared", "--json").json()["conditions"]["main"][0]["state"] == "quarantined"
    listed = filled("credential", "events", "main").out
    assert "active -> quarantined" in listed
    assert "leaked" in listed
    assert "1 condition cleared" in filled("credential", "clear", "main").out
    assert filled("pool", "show", "shared", "--json").json()["conditions"] == {"main": []}
    assert [event["after"] for event in filled("credential", "events", "main", "--json").json()] == ["active", "quarantined"]


def test_a_credential_without_a_deployment_cannot_be_tested_and_says_so(filled: Typed) -> None:
    for verb in ("test", "probe"):
        tested = filled("credential", verb, "main")
        assert tested.code != 0
        assert "no deployment presents it" in tested.out
    assert filled("credential", "test", "main", "--json").json()["works"] is False


def test_what_is_not_there_is_said_in_one_line(filled: Typed) -> None:
    for verb in ("test", "probe", "clear", "quarantine", "events"):
        refused = filled("credential", verb, "nobody")
        assert refused.code != 0
        assert "there is no credential 'nobody'" in refused.err
