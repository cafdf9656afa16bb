from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.policies import Cheapest, Fastest, FillFirst, LeastBusy, LongestUnused, Policies, SelectionPolicy, Weighted
from gateway.core.routing import Candidate
from gateway.core.standing import Standings
from gateway.store.pools import Pool
from tests.factories import Clock, candidate, price


def standings() -> Standings:
    return Standings(Clock())


def weighted(*weights: int) -> list[Candidate]:
    return [candidate(str(number), weight=weight) for number, weight in enumerate(weights)]


def names(policy: SelectionPolicy, candidates: list[Candidate], times: int, among: Standings | None = None) -> list[str]:
    seen = among or standings()
    return [policy.choose(candidates, seen).deployment.name for _ in range(times)]


def test_turns_follow_the_weights_exactly_and_are_spread() -> None:
    turns = names(Weighted(), weighted(1, 3, 6), 100)
    assert [abs(Counter(turns)[name] - share) <= 1 for name, share in (("0", 10), ("1", 30), ("2", 60))] == [True] * 3
    assert max(len(run) for run in "".join(turns).replace("0", " ").replace("1", " ").split()) <= 2


def test_credentials_of_a_pool_share_its_deployments_turns() -> None:
    pool = Pool(1, "p")
    shared = [candidate("d", weight=2, share=share, credential=str(share), credential_subject=f"credential:{share}", pool=pool) for share in (0.25, 0.75)]
    alone = candidate("e", weight=2)
    policy, seen = Weighted(), standings()
    chosen = Counter(policy.choose([*shared, alone], seen).deployment.credential for _ in range(80))
    assert [abs(chosen[name] - share) <= 1 for name, share in (("0.25", 10), ("0.75", 30), ("e-key", 40))] == [True] * 3


def test_who_was_away_has_no_run_of_turns_when_it_is_back() -> None:
    policy, three = Weighted(), weighted(1, 1, 1)
    names(policy, three[:2], 500)
    turns = names(policy, three, 9)
    assert Counter(turns[:3]) == Counter(turns[3:6]) == Counter(turns[6:]) == {"0": 1, "1": 1, "2": 1}


def test_it_stays_fair_while_one_of_three_comes_and_goes() -> None:
    policy, three = Weighted(), weighted(1, 1, 1)
    chosen: Counter[str] = Counter()
    for turn in range(300):
        chosen.update(names(policy, three if turn % 2 else three[:2], 1))
    assert abs(chosen["0"] - chosen["1"]) <= 2


def test_a_model_of_few_calls_has_its_turns_beside_one_of_many() -> None:
    policy, busy = Weighted(), weighted(1, 1)
    quiet = [candidate(name, "other") for name in ("x", "y")]
    turns = []
    for _ in range(10):
        names(policy, busy, 50)
        turns += names(policy, quiet, 1)
    assert Counter(turns) == {"x": 5, "y": 5}


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_some_candidate_is_always_chosen_and_none_of_weight_zero_beside_others(weights: list[int]) -> None:
    for name in names(Weighted(), weighted(*weights), 20):
        assert weights[int(name)] > 0 or not any(weights)


def test_where_every_weight_is_zero_each_has_the_same_turns() -> None:
    assert Counter(names(Weighted(), weighted(0, 0, 0, 0), 400)) == {"0": 100, "1": 100, "2": 100, "3": 100}


def test_who_was_unused_for_the_longest_time_is_chosen_and_a_new_one_first() -> None:
    clock, policy, three = Clock(), LongestUnused(), weighted(1, 5, 0)
    seen = Standings(clock)
    for number in (1, 0, 2):
        seen.began(three[number])
        seen.ended(three[number])
        clock.now += 1
    assert policy.choose(three, seen) is three[1]
    new = candidate("new")
    assert policy.choose([*three, new], seen) is new
    seen.began(three[1])
    assert policy.choose(three, seen) is three[0]
    clock.now += 1
    seen.began(three[0])
    assert policy.choose(three[:2], seen) is three[1]


def test_the_least_busy_for_its_weight_is_chosen() -> None:
    seen, (small, large) = standings(), weighted(1, 4)
    for _ in range(3):
        seen.began(large)
    seen.began(small)
    assert LeastBusy().choose([small, large], seen) is large
    seen.began(large)
    seen.began(large)
    assert LeastBusy().choose([small, large], seen) is small


def test_the_cheapest_is_chosen_and_equals_take_turns() -> None:
    dear, cheap, same = candidate("a", price=price(rate=20)), candidate("b", price=price(rate=10)), candidate("c", price=price(rate=10))
    assert names(Cheapest(), [dear, cheap, same], 4) == ["b", "c", "b", "c"]


def test_who_answers_soonest_is_chosen_and_the_others_are_tried_now_and_then() -> None:
    seen, (slow, quick) = standings(), weighted(1, 1)
    seen.answered(slow, 2.0)
    seen.answered(quick, 0.1)
    turns = Counter(names(Fastest(), [slow, quick], 100, seen))
    assert turns["1"] >= 90
    assert turns["0"] >= 1


def test_the_first_is_filled_before_the_next() -> None:
    assert names(FillFirst(), weighted(1, 1, 1)[::-1], 5) == ["0"] * 5


def test_a_pools_policy_is_built_once_and_a_broken_one_is_the_gateways(caplog: pytest.LogCaptureFixture) -> None:
    built: list[str] = []

    def build(name: str) -> SelectionPolicy:
        built.append(name)
        if name == "broken":
            raise RuntimeError("no")
        return FillFirst()

    policies = Policies(Weighted(), build)
    assert policies.named("fill_first") is policies.named("fill_first")
    assert policies.named("broken") is policies.named("broken") is policies.gateway
    assert built == ["fill_first", "broken"]
    assert "the policy broken cannot be built" in caplog.text
