from __future__ import annotations

import pytest

from gateway.core.pool import BACKOFF_S, FOREVER, TIDY_AT, WINDOW_S, MemoryCooldowns, Pool
from gateway.core.routing import Candidate
from gateway.errors import UpstreamError, UpstreamInterrupted, UpstreamProtocolError, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from tests.factories import Clock, candidate

FIRST_S, LONGEST_S = BACKOFF_S


class Stage:
    """A pool on a clock that stands still, with the longest jitter."""

    def __init__(self, jitter: float = 1.0) -> None:
        self.clock = Clock()
        self.cooldowns = MemoryCooldowns(self.clock)
        self.pool = Pool(self.cooldowns, self.clock, lambda: jitter)

    def fail(self, one: Candidate, error: UpstreamError, principal: int = 1, last_fit: bool = False, times: int = 1) -> None:
        for _ in range(times):
            self.pool.lease(one, principal).close()
            self.pool.failed(one, error, principal, last_fit)

    def rest(self, one: Candidate) -> tuple[str, float] | None:
        """The reason, and the seconds from now."""
        found = self.pool.rest(one)
        return None if found is None else (found.reason, round(found.until - self.clock.now, 6))


def refused(status: int, code: str | None = None, reset_s: float | None = None) -> UpstreamRefused:
    return UpstreamRefused(status, (), b"", upstream_code=code, reset_s=reset_s)


@pytest.mark.parametrize(
    ("error", "rest"),
    [
        (UpstreamUnreachable("no"), ("unreachable", FIRST_S)),
        (refused(401, "invalid_api_key"), ("quarantined", FOREVER)),
        (refused(401), None),
        (refused(401, "mystery"), None),
        (refused(402), ("quota_spent", LONGEST_S)),
        (refused(429, "insufficient_quota"), ("quota_spent", LONGEST_S)),
        (refused(429, "insufficient_quota", reset_s=7), ("quota_spent", 7)),
        (refused(403), ("forbidden", LONGEST_S)),
        (refused(429), ("rate_limited", FIRST_S)),
        (refused(429, reset_s=31), ("rate_limited", 31)),
        (refused(429, reset_s=0), None),
        (refused(429, reset_s=-5), None),
        (refused(400), None),
        (refused(404), None),
        (refused(500), None),
        (UpstreamTimeout("late", phase="first_byte"), None),
        (UpstreamProtocolError("no HTTP"), None),
        (UpstreamInterrupted("cut"), None),
    ],
)
def test_one_failure_costs_what_the_blame_table_says(error: UpstreamError, rest: tuple[str, float] | None) -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, error)
    assert stage.rest(one) == rest


@pytest.mark.parametrize(
    "error", [refused(500), refused(503), UpstreamTimeout("late", phase="idle"), UpstreamProtocolError("no HTTP"), UpstreamInterrupted("cut")]
)
def test_third_failure_in_the_window_rests_the_deployment(error: UpstreamError) -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, error, times=2)
    assert stage.rest(one) is None
    stage.fail(one, error)
    assert stage.rest(one) == ("failing", FIRST_S)


@pytest.mark.parametrize("error", [refused(400), refused(404), refused(401), refused(422)])
def test_clients_mistakes_never_rest_anything(error: UpstreamError) -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, error, times=50)
    assert stage.rest(one) is None


@pytest.mark.parametrize("error", [UpstreamUnreachable("no"), refused(500)])
def test_last_fit_deployment_is_never_rested(error: UpstreamError) -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, error, times=10, last_fit=True)
    assert stage.rest(one) is None


def test_failures_of_the_last_fit_deployment_count_once_there_is_another() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, refused(500), times=5, last_fit=True)
    stage.fail(one, refused(500))
    assert stage.rest(one) is not None


def test_failures_further_apart_than_the_window_do_not_add_up() -> None:
    stage, one = Stage(), candidate("a")
    for _ in range(5):
        stage.clock.now += WINDOW_S / 2 + 0.1
        stage.fail(one, refused(500))
        assert stage.rest(one) is None


def test_failures_within_the_window_add_up() -> None:
    stage, one = Stage(), candidate("a")
    for _ in range(3):
        stage.clock.now += WINDOW_S / 2 - 0.1
        stage.fail(one, refused(500))
    assert stage.rest(one) is not None


def test_success_begins_the_count_anew() -> None:
    stage, one = Stage(), candidate("a")
    for _ in range(5):
        stage.fail(one, refused(500), times=2)
        stage.pool.succeeded(one)
    assert stage.rest(one) is None


def test_success_forgets_who_saw_it_fail() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, refused(500), principal=2)
    stage.pool.succeeded(one)
    stage.fail(one, refused(500), principal=1, times=5)
    assert stage.rest(one) is None


def test_failures_of_one_of_several_callers_do_not_rest_a_deployment() -> None:
    stage, one = Stage(), candidate("a")
    stage.pool.lease(one, 2)
    stage.fail(one, refused(500), principal=1, times=20)
    assert stage.rest(one) is None


def test_second_witness_rests_it() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, refused(500), principal=2)
    stage.fail(one, refused(500), principal=1, times=2)
    assert stage.rest(one) is not None


def test_witness_of_long_ago_is_none() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, refused(500), principal=2)
    stage.clock.now += WINDOW_S + 0.1
    stage.pool.lease(one, 2)
    stage.fail(one, refused(500), principal=1, times=9)
    assert stage.rest(one) is None


def test_caller_of_long_ago_does_not_count_as_another() -> None:
    stage, one = Stage(), candidate("a")
    stage.pool.lease(one, 2)
    stage.clock.now += WINDOW_S + 0.1
    stage.fail(one, refused(500), principal=1, times=3)
    assert stage.rest(one) is not None


def test_the_only_caller_is_told_from_several_however_they_take_turns() -> None:
    stage, one = Stage(), candidate("a")
    for principal in (1, 2, 1, 1, 2, 2, 1):
        stage.pool.lease(one, principal)
    stage.fail(one, refused(500), principal=1, times=9)
    assert stage.rest(one) is None


def test_rests_double_up_to_a_minute_and_begin_anew_after_a_success() -> None:
    stage, one = Stage(), candidate("a")
    rests = []
    for _ in range(7):
        stage.fail(one, UpstreamUnreachable("no"))
        rests.append(stage.cooldowns.until("deployment:a") - stage.clock.now)
        stage.clock.now += 100
    assert rests == pytest.approx([2, 4, 8, 16, 32, 60, 60])
    stage.pool.succeeded(one)
    stage.fail(one, UpstreamUnreachable("no"))
    assert stage.rest(one) == ("unreachable", FIRST_S)


def test_rest_is_shortened_by_chance_to_no_less_than_half() -> None:
    stage, one = Stage(jitter=0.0), candidate("a")
    stage.fail(one, UpstreamUnreachable("no"))
    assert stage.rest(one) == ("unreachable", FIRST_S / 2)


def test_calls_that_were_under_way_together_fail_once() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, UpstreamUnreachable("no"), times=40)
    assert stage.rest(one) == ("unreachable", FIRST_S)
    stage.clock.now += FIRST_S
    assert stage.rest(one) is None
    stage.fail(one, UpstreamUnreachable("no"))
    assert stage.rest(one) == ("unreachable", 2 * FIRST_S)


def test_rate_limit_rests_the_credential_for_that_model_only() -> None:
    stage = Stage()
    stage.fail(candidate("a", "m"), refused(429, reset_s=30))
    assert stage.rest(candidate("a", "other")) is None
    assert stage.rest(candidate("b", "m", credential_subject="credential:a")) == ("rate_limited", 30)
    assert stage.rest(candidate("c", "m")) is None


@pytest.mark.parametrize("error", [refused(402), refused(401, "invalid_api_key")])
def test_spent_or_invalid_credential_rests_for_every_model(error: UpstreamError) -> None:
    stage = Stage()
    stage.fail(candidate("a", "m"), error)
    assert stage.rest(candidate("b", "other", credential_subject="credential:a")) is not None
    assert stage.rest(candidate("a", "m", credential_subject="credential:a.2")) is None


def test_longest_of_the_rests_is_told() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, UpstreamUnreachable("no"))
    stage.fail(one, refused(429, reset_s=30))
    assert stage.rest(one) == ("rate_limited", 30)
    stage.fail(one, refused(402, reset_s=20))
    assert stage.rest(one) == ("rate_limited", 30)


def test_lease_is_counted_until_it_is_closed_once() -> None:
    stage, one = Stage(), candidate("a")
    first, second = stage.pool.lease(one, 1), stage.pool.lease(one, 1)
    first.close()
    first.close()
    assert stage.pool.in_flight == {"deployment:a": 1}
    second.close()
    assert stage.pool.in_flight == {"deployment:a": 0}


def test_later_end_of_a_rest_wins() -> None:
    clock = Clock(10)
    cooldowns = MemoryCooldowns(clock)
    cooldowns.cool("s", 30, "long")
    cooldowns.cool("s", 20, "short")
    assert (cooldowns.until("s"), cooldowns.reason("s")) == (30, "long")
    cooldowns.cool("s", 40, "longer")
    assert (cooldowns.until("s"), cooldowns.reason("s")) == (40, "longer")


def test_rest_ends_by_itself_and_by_clearing() -> None:
    clock = Clock(10)
    cooldowns = MemoryCooldowns(clock)
    cooldowns.cool("s", 20, "why")
    cooldowns.cool("t", 20, "why")
    cooldowns.clear("t")
    assert (cooldowns.until("t"), cooldowns.reason("t")) == (0.0, "")
    clock.now = 20
    assert (cooldowns.until("s"), cooldowns.reason("s")) == (0.0, "")
    cooldowns.cool("s", 25, "again")
    assert cooldowns.reason("s") == "again"


def test_rests_that_are_over_do_not_pile_up_whatever_names_clients_invent() -> None:
    clock = Clock(10)
    cooldowns = MemoryCooldowns(clock)
    cooldowns.cool("credential:1", FOREVER, "quarantined")
    for number in range(5 * TIDY_AT):
        cooldowns.cool(f"credential:2:{number}", clock.now + 1, "forbidden")
        clock.now += 0.1
    assert len(cooldowns) <= TIDY_AT
    assert cooldowns.reason("credential:1") == "quarantined"
