"""Row 21: request smuggling. Figures: no second response, nothing smuggled upstream, over 170 cases, directly and through nginx."""

from __future__ import annotations

import itertools
import re

import pytest

from tests.fakes.gateway import ROOT
from tests.faults.conftest import Measured
from tests.faults.front import DIRECTLY, ROADS, Front
from tests.faults.smuggling import PAGE, Corpus, Outcome, rows, table, written
from tests.faults.smuggling_cases import cases

OURS_TO_REFUSE = (
    ("no Host", "Host twice", "Host twice, the same", "Host with a path", "Host with a user", "Host as a list", "Host with a space"),
    ("Host with a port that is none", "Host with a byte above 127", "absolute-form without Host", "absolute-form of another scheme"),
    ("folded field", "folded field, tab", "folded first field", "Host, folded", "TE.TE: folded", "TE.TE: folded name"),
    ("gzip, chunked", "identity, chunked", "chunked, identity", "chunked twice", "CL.TE: a length and a coding"),
    ("bare LF everywhere", "bare LF between fields", "bare LF ends the head", "two spaces after the method"),
    ("chunk size before a bare LF", "chunk extension with a bare LF", "trailer Authorization", "trailer Host", "trailer Content-Length"),
)
ACCEPTED = ("one request", "chunked, announced", "chunk extension", "trailer", "absolute-form", "Expect: 100-continue", "Host with a port")


@pytest.fixture(scope="module")
def outcomes(front: Front) -> dict[str, list[Outcome]]:
    corpus = Corpus(front, tuple(cases()))
    return {road: corpus.outcomes(road) for road in ROADS}


@pytest.mark.parametrize("road", ROADS)
def test_21_nothing_is_smuggled_and_nothing_is_answered_twice(outcomes: dict[str, list[Outcome]], road: str, measured: Measured) -> None:
    wrong = {outcome.case.name: outcome.wrong for outcome in outcomes[road] if outcome.wrong}
    kinds = [outcome.kind for outcome in outcomes[road]]
    measured(21, f"{road}: {len(wrong)} of {len(kinds)} cases answered twice or smuggled (0); {kinds.count('one request')} read as one request")
    assert not wrong
    assert len(kinds) >= 40
    assert "waits for the rest" not in kinds


def test_21_the_connection_is_closed_after_a_refusal(outcomes: dict[str, list[Outcome]]) -> None:
    assert [outcome.case.name for outcome in outcomes[DIRECTLY] if outcome.left_open] == []


@pytest.mark.parametrize("name", list(itertools.chain(*OURS_TO_REFUSE)))
def test_21_what_this_gateway_refuses_itself(outcomes: dict[str, list[Outcome]], name: str) -> None:
    (outcome,) = (outcome for outcome in outcomes[DIRECTLY] if outcome.case.name == name)
    assert outcome.kind == "refused"
    assert outcome.closed


def test_21_the_strict_parser_is_chosen_by_name() -> None:
    """Left alone, gunicorn takes its parser in C wherever that is installed: it reads bare LF, folded fields and doubled spaces."""
    assert re.search(r'^http_parser = "python"', (ROOT / "gunicorn.conf.py").read_text(), re.MULTILINE)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", ACCEPTED)
def test_21_what_is_only_unusual_is_served(outcomes: dict[str, list[Outcome]], road: str, name: str) -> None:
    (outcome,) = (outcome for outcome in outcomes[road] if outcome.case.name == name)
    assert (outcome.kind, len(outcome.upstream)) == ("one request", 1)


def test_21_the_table_in_the_documentation_is_current(outcomes: dict[str, list[Outcome]]) -> None:
    """Its last column only where this nginx is the one that it names."""
    page = PAGE.read_text()
    told, seen = rows(page), rows(written(page, table(*(outcomes[road] for road in ROADS))))
    cells = 3 if told[0] == seen[0] else 2
    assert [row[:cells] for row in told[1:]] == [row[:cells] for row in seen[1:]], "write it anew: python -m tests.faults.smuggling"
