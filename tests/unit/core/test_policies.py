from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.policies import Weighted
from tests.factories import candidate

JUST_BELOW_ONE = 1 - 2**-53


def chosen(weights: list[int], draw: float) -> str:
    candidates = [candidate(str(number), weight=weight) for number, weight in enumerate(weights)]
    return Weighted(lambda: draw).choose(candidates).deployment.name


def test_choice_follows_the_weights() -> None:
    names = Counter(chosen([1, 3, 6], step / 1000) for step in range(1000))
    assert names == {"0": 100, "1": 300, "2": 600}


@pytest.mark.parametrize("draw", [0.0, 0.5, JUST_BELOW_ONE])
def test_weight_of_zero_is_not_chosen_beside_others(draw: float) -> None:
    assert chosen([0, 1, 0], draw) == "1"


def test_where_every_weight_is_zero_each_has_the_same_chance() -> None:
    assert Counter(chosen([0, 0, 0, 0], step / 400) for step in range(400)) == {"0": 100, "1": 100, "2": 100, "3": 100}


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.floats(0, JUST_BELOW_ONE))
def test_some_candidate_is_always_chosen(weights: list[int], draw: float) -> None:
    name = chosen(weights, draw)
    assert weights[int(name)] > 0 or not any(weights)
