from __future__ import annotations

import time

import pytest

from gateway.api.openai import ENDPOINTS
from gateway.store import ledger
from tests.unit.cli.conftest import Typed


@pytest.fixture
def ann(installed: Typed) -> Typed:
    installed("user", "create", "ann")
    installed("key", "create", "--user", "ann", "--label", "laptop", "--models", "echo,gpt-*")
    return installed


def test_a_report_of_nothing_says_so(installed: Typed) -> None:
    assert "Nothing was booked from 2026-11-01 00:00 UTC to 2026-12-01 00:00 UTC" in installed("report", "--month", "2026-11").out
    document = installed("report", "--since", "2026-11-01", "--until", "2026-11-02", "--by", "user,day", "--json").json()
    assert (document["lines"], document["total"]["amount_nano_usd"], document["by"]) == ([], 0, ["user", "day"])


@pytest.mark.parametrize(
    "words", [("--month", "2026-11", "--since", "2026-11-01"), ("--until", "2026-11-01"), ("--since", "2026-11-02", "--until", "2026-11-01")]
)
def test_a_period_that_makes_no_sense_is_refused(installed: Typed, words: tuple[str, ...]) -> None:
    assert installed("report", *words).code == 2


def test_a_report_can_be_csv_or_json_lines(installed: Typed) -> None:
    assert installed("report", "--by", "team,day", "--format", "csv").out.startswith("team,day,team_id,calls,input_uncached,")
    assert installed("report", "--by", "team", "--format", "jsonl", "-o", "report.jsonl").code == 0
    assert installed("report", "--format", "csv", "--json").code == 2
    assert installed("report", "-o", "report.csv").code == 2


def test_a_report_of_many_entries_may_take_its_time(installed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    read = ledger.totals
    monkeypatch.setattr("gateway.cli.opened.PATIENCE_S", 0.2)
    monkeypatch.setattr("gateway.store.ledger.totals", lambda *words: (time.sleep(0.5), read(*words))[1])
    assert "Nothing was booked" in installed("report", "--month", "2026-11").out


def test_a_route_is_explained(ann: Typed) -> None:
    result = ann("route", "explain", "--key", "laptop", "--model", "echo")
    assert result.code == 0
    assert "1  echo        echo     echo" in result.out
    assert ann("route", "explain", "--key", "1", "--model", "echo", "--json").json()["candidates"][0]["deployment"] == "echo"


def test_every_endpoint_can_be_explained(ann: Typed) -> None:
    for endpoint in ENDPOINTS:
        result = ann("route", "explain", "--key", "1", "--model", "echo", "--endpoint", endpoint.path, "--json")
        assert result.code == (0 if endpoint.dialect in ("openai_chat", "openai_completions") else 1), endpoint.path
    assert ann("route", "explain", "--key", "1", "--model", "echo", "--endpoint", "/v1/chat/completions").code == 0


def test_a_refusal_is_told_in_the_clients_words_and_by_the_exit_code(ann: Typed) -> None:
    unknown = ann("route", "explain", "--key", "1", "--model", "gpt-9")
    assert (unknown.code, "The client would be told: The model 'gpt-9' does not exist" in unknown.out) == (3, True)
    forbidden = ann("route", "explain", "--key", "1", "--model", "echo", "--endpoint", "/embeddings")
    assert (forbidden.code, "endpoint_not_served" in forbidden.out) == (1, True)


def test_an_unknown_endpoint_is_refused_with_those_that_exist(ann: Typed) -> None:
    result = ann("route", "explain", "--key", "1", "--model", "echo", "--endpoint", "/nonsense")
    assert (result.code, "/embeddings" in result.err) == (2, True)
