from __future__ import annotations

import pytest

from gateway.operations.discrepancies import CAUSES, Compared, Evidence, Side, cause

OURS = Side({"input": 1_000, "cache_read": 0, "output": 100}, 10, 5_000)


def compared(theirs: Side, evidence: Evidence | None = None, tolerance: int = 10, ours: Side = OURS) -> Compared:
    return Compared(ours, theirs, evidence or Evidence(), tolerance)


def side(input_tokens: int = 1_000, output: int = 100, calls: int | None = 10, cost: int | None = 5_000, cache_read: int = 0) -> Side:
    return Side({"input": input_tokens, "cache_read": cache_read, "output": output}, calls, cost)


CASES: list[tuple[str | None, Side, Evidence]] = [
    (None, side(), Evidence()),
    (None, Side(None, None, None), Evidence()),
    (None, side(calls=8), Evidence(unmetered=2)),
    ("rounding", side(cost=5_009), Evidence()),
    ("price", side(cost=6_000), Evidence()),
    ("price", side(cost=4_000), Evidence(unpriced=1)),
    ("unpriced", side(cost=6_000), Evidence(unpriced=1)),
    ("cache_bucket", side(600, cache_read=400), Evidence(estimated=1)),
    ("missing_here", side(1_400, calls=14), Evidence(further=2)),
    ("retries", side(1_200, calls=12), Evidence(further=2)),
    ("missing_there", side(600, calls=6), Evidence(unmetered=1)),
    ("missing_there", side(0, 0, 0, 0), Evidence()),
    ("estimated", side(950), Evidence(estimated=1)),
    ("retries", side(1_100), Evidence(unmetered=1)),
    ("counts", side(1_100), Evidence()),
    ("retries", side(calls=11), Evidence(further=1)),
    ("estimated", side(1_300, calls=None), Evidence(estimated=1, estimated_tokens=50)),
    ("retries", side(1_300, calls=None), Evidence(unmetered=1)),
    ("missing_here", side(9_000, calls=None), Evidence(unmetered=1, estimated=1)),
    ("missing_there", side(200, calls=None), Evidence()),
    ("unclear", Side(None, None, 9_000), Evidence()),
]


@pytest.mark.parametrize(("expected", "theirs", "evidence"), CASES)
def test_the_likely_cause_follows_from_the_figures_and_what_our_entries_say(expected: str | None, theirs: Side, evidence: Evidence) -> None:
    assert cause(compared(theirs, evidence)) == expected


def test_what_the_day_beside_has_the_other_way_round_is_midnight() -> None:
    less, more = compared(side(900, 90, 9, 4_500)), compared(side(1_100, 110, 11, 5_500))
    assert (cause(less, (None, more)), cause(more, (less, None)), cause(more, (None, None))) == ("late_day", "late_day", "missing_here")
    assert cause(compared(Side(None, None, 4_000)), (None, compared(Side(None, None, 6_000)))) == "late_day"


def test_a_model_that_we_have_no_call_of_is_missing_here_or_a_fee() -> None:
    nothing = Side({"input": 0, "cache_read": 0, "output": 0}, 0, 0)
    assert cause(compared(side(), ours=nothing)) == "missing_here"
    assert cause(compared(side(0, 0, None, 5_000), ours=nothing)) == "fee"
    assert cause(compared(Side(None, None, 5_000), ours=nothing)) == "missing_here"


def test_every_cause_is_explained() -> None:
    assert {expected for expected, _, _ in CASES if expected} <= CAUSES.keys()
