"""What a failure costs whom, until when, who finds out whether it is over, and what is told of it."""

from __future__ import annotations

import pytest

from gateway.backend import Proxy
from gateway.core.blame import LONG_S, SHORT_S
from gateway.core.exchange import Attempt, Exchange
from gateway.core.pool import WINDOW_S, Lease
from gateway.core.rests import NOT_CONNECTED, RECONNECTING, Rest
from gateway.core.routing import Candidate
from gateway.errors import (
    AgentFailed,
    AgentLost,
    UpstreamError,
    UpstreamInterrupted,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.state.base import Limit
from gateway.state.conditions import FOREVER
from gateway.store.pools import Pool as PoolOf
from tests.factories import Clock, Hosted, Hosting, Pooled, Scripted, candidate, conditions, exchange, principal

FIRST_S, LONGEST_S = SHORT_S
SPENT_S = LONG_S[0]
SHARED = PoolOf(1, "shared")


class Stage(Pooled):
    """A pool on a clock that stands still, with the longest rests that chance allows."""

    def call(self, one: Candidate, user: int = 1) -> Lease:
        lease = self.pool.lease(one, self.asked(user))
        assert isinstance(lease, Lease)
        return lease

    def asked(self, user: int = 1) -> Exchange:
        ex = exchange(clock=self.clock)
        ex.principal = principal(user, user)
        return ex

    def succeed(self, one: Candidate, user: int = 1) -> None:
        lease = self.call(one, user)
        self.pool.succeeded(one, lease)
        lease.close()

    def fail(self, one: Candidate, error: UpstreamError, principal: int = 1, last_fit: bool = False, times: int = 1, tried: int = 0) -> None:
        for _ in range(times):
            ex = self.asked(principal)
            ex.attempts += [Attempt("d", None, "m", 0.0)] * tried
            lease = self.pool.lease(one, ex)
            self.pool.failed(one, error, ex, lease if isinstance(lease, Lease) else None, last_fit)
            if isinstance(lease, Lease):
                lease.close()

    def rest(self, one: Candidate) -> tuple[str, float] | None:
        """The reason, and the seconds from now."""
        found = self.pool.rest(one)
        return None if found is None else (found.reason, round(found.until - self.clock.now, 6))

    def states(self) -> list[tuple[str, str, str]]:
        return [(each.before, each.after, each.reason) for each in self.told]


def refused(status: int, code: str | None = None, reset_s: float | None = None) -> UpstreamRefused:
    return UpstreamRefused(status, (), b"", upstream_code=code, reset_s=reset_s)


@pytest.mark.parametrize(
    ("error", "rest"),
    [
        (UpstreamUnreachable("no"), ("unreachable", FIRST_S)),
        (refused(401, "invalid_api_key"), ("quarantined", FOREVER)),
        (refused(401), None),
        (refused(401, "mystery"), None),
        (refused(402), ("quota_spent", SPENT_S)),
        (refused(429, "insufficient_quota"), ("quota_spent", SPENT_S)),
        (refused(429, "insufficient_quota", reset_s=7), ("quota_spent", 7)),
        (refused(403), ("forbidden", SPENT_S)),
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
        stage.succeed(one)
    assert stage.rest(one) is None


def test_success_forgets_who_saw_it_fail() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, refused(500), principal=2)
    stage.succeed(one)
    stage.fail(one, refused(500), principal=1, times=5)
    assert stage.rest(one) is None


def test_failures_of_one_of_several_callers_do_not_rest_a_deployment() -> None:
    stage, one = Stage(), candidate("a")
    stage.call(one, 2).close()
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
    stage.call(one, 2).close()
    stage.fail(one, refused(500), principal=1, times=9)
    assert stage.rest(one) is None


def test_caller_of_long_ago_does_not_count_as_another() -> None:
    stage, one = Stage(), candidate("a")
    stage.call(one, 2).close()
    stage.clock.now += WINDOW_S + 0.1
    stage.fail(one, refused(500), principal=1, times=3)
    assert stage.rest(one) is not None


def test_the_only_caller_is_told_from_several_however_they_take_turns() -> None:
    stage, one = Stage(), candidate("a")
    for user in (1, 2, 1, 1, 2, 2, 1):
        stage.call(one, user).close()
    stage.fail(one, refused(500), principal=1, times=9)
    assert stage.rest(one) is None


def test_rests_grow_up_to_a_minute_and_begin_anew_after_a_success() -> None:
    stage, one = Stage(), candidate("a")
    rests = []
    for _ in range(6):
        stage.fail(one, UpstreamUnreachable("no"))
        rests.append((stage.rest(one) or ("", 0.0))[1])
        stage.clock.now += 100
    assert rests == pytest.approx([2, 6, 18, 54, 60, 60])
    stage.succeed(one)
    stage.fail(one, UpstreamUnreachable("no"))
    assert stage.rest(one) == ("unreachable", FIRST_S)


def test_the_next_rest_is_drawn_between_the_first_and_three_times_the_last() -> None:
    stage, one = Stage(chance=0.0), candidate("a")
    for _ in range(3):
        stage.fail(one, UpstreamUnreachable("no"))
        stage.clock.now += 100
    stage.fail(one, UpstreamUnreachable("no"))
    assert stage.rest(one) == ("unreachable", FIRST_S)


def test_rest_is_shortened_by_chance_to_no_less_than_half() -> None:
    stage, one = Stage(chance=0.0), candidate("a")
    stage.fail(one, UpstreamUnreachable("no"))
    assert stage.rest(one) == ("unreachable", FIRST_S / 2)


def test_calls_that_were_under_way_together_fail_once() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, UpstreamUnreachable("no"), times=40)
    assert stage.rest(one) == ("unreachable", FIRST_S)
    stage.clock.now += FIRST_S
    assert stage.rest(one) is None
    stage.fail(one, UpstreamUnreachable("no"))
    assert stage.rest(one) == ("unreachable", 3 * FIRST_S)


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
    first, second = stage.call(one), stage.call(one)
    first.close()
    first.close()
    assert stage.pool.standings.busy(one) == 1
    second.close()
    assert stage.pool.standings.busy(one) == 0


# who finds out


def test_a_rest_without_a_named_end_is_probed_by_one_call_and_the_others_wait() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, refused(429))
    stage.clock.now += FIRST_S
    assert stage.rest(one) is None
    probe = stage.call(one)
    assert stage.rest(one) is not None
    assert isinstance(stage.pool.lease(one, stage.asked()), Rest)
    stage.pool.succeeded(one, probe)
    assert stage.rest(one) is None
    assert stage.states() == [("active", "cooling", "rate_limited"), ("cooling", "probing", "rate_limited"), ("probing", "active", "recovered")]


def test_a_failed_probe_rests_longer_than_before() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, refused(429))
    stage.clock.now += FIRST_S
    stage.fail(one, refused(429))
    assert stage.rest(one) == ("rate_limited", 3 * FIRST_S)


def test_one_failure_of_a_probe_is_enough() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, refused(500), times=3)
    stage.clock.now += FIRST_S
    stage.fail(one, refused(500))
    assert stage.rest(one) == ("failing", 3 * FIRST_S)


def test_a_probe_that_was_given_up_is_anothers_to_make() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, refused(429))
    stage.clock.now += FIRST_S
    stage.call(one).close()
    assert stage.rest(one) is None
    assert stage.states()[-1] == ("probing", "cooling", "rate_limited")
    stage.succeed(one)
    assert stage.states()[-1] == ("probing", "active", "recovered")


def test_a_clients_mistake_shows_that_the_upstream_is_back() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, UpstreamUnreachable("no"))
    stage.clock.now += FIRST_S
    stage.fail(one, refused(400))
    assert (stage.rest(one), stage.states()[-1]) == (None, ("probing", "active", "recovered"))


def test_a_refusal_that_blames_the_credential_shows_that_the_deployment_is_back() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, UpstreamUnreachable("no"))
    stage.clock.now += FIRST_S
    stage.fail(one, refused(429, reset_s=30))
    assert stage.rest(one) == ("rate_limited", 30)
    assert stage.rest(candidate("a", "other")) is None


def test_a_rest_whose_end_was_named_ends_then_for_everybody() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, refused(429, reset_s=30))
    stage.clock.now += 30
    first, second = stage.call(one), stage.call(one)
    assert (first.probes, second.probes) == ([], [])


def test_a_prober_whose_worker_is_gone_does_not_block_the_others() -> None:
    shared, clock = conditions(), Clock()
    gone, here = Stage(clock, shared=shared, owner="gone"), Stage(clock, shared=shared, owner="here")
    here.pool._alive = lambda owner: owner != "gone"
    one = candidate("a")
    gone.fail(one, refused(429))
    clock.now += FIRST_S
    gone.call(one)
    assert here.rest(one) is None
    here.succeed(one)
    assert here.rest(one) is None


def test_where_there_is_no_other_a_deployment_is_called_also_while_it_is_probed() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, UpstreamUnreachable("no"))
    stage.clock.now += FIRST_S
    stage.call(one)
    assert isinstance(stage.pool.lease(one, stage.asked()), Rest)
    assert isinstance(stage.pool.lease(one, stage.asked(), last=True), Lease)


def test_workers_see_each_others_rests_at_once() -> None:
    shared, clock = conditions(), Clock()
    first, second = Stage(clock, shared=shared, owner="a"), Stage(clock, shared=shared, owner="b")
    one = candidate("a")
    first.fail(one, refused(401, "invalid_api_key"))
    assert second.rest(one) == ("quarantined", FOREVER)


def test_failures_that_different_workers_saw_add_up() -> None:
    shared, clock = conditions(), Clock()
    stages = [Stage(clock, shared=shared, owner=str(number)) for number in range(3)]
    one = candidate("a")
    for stage in stages:
        stage.fail(one, refused(500))
    assert stages[0].rest(one) == ("failing", FIRST_S)


def test_who_called_in_another_worker_is_no_less_another_caller() -> None:
    shared, clock = conditions(), Clock()
    first, second = Stage(clock, shared=shared, owner="a"), Stage(clock, shared=shared, owner="b")
    one = candidate("a")
    second.succeed(one, user=2)
    first.fail(one, refused(500), times=9)
    assert first.rest(one) is None


@pytest.mark.parametrize(("answered", "rest"), [("a", ("failing", FIRST_S)), ("b", None)], ids=["the same deployment", "another"])
def test_failures_of_calls_that_another_credential_of_the_deployment_answered_are_anybodys(answered: str, rest: tuple[str, float] | None) -> None:
    stage, one = Stage(), candidate("a", pool=SHARED, credential_subject="credential:1.1")
    other = candidate(answered, pool=SHARED, credential_subject="credential:2.1")
    stage.call(one, 2).close()
    for _ in range(2):
        ex = stage.asked(1)
        stage.pool.failed(one, refused(500), ex, None, False)
        stage.pool.acquit(ex, other)
    stage.fail(one, refused(500), principal=1)
    assert stage.rest(one) == rest


# pools and limits


def test_behind_a_pool_an_upstreams_failures_rest_the_credential_that_was_called() -> None:
    stage = Stage()
    one = candidate("a", pool=SHARED, credential_subject="credential:1.1")
    other = candidate("a", pool=SHARED, credential_subject="credential:2.1")
    for _ in range(3):
        stage.succeed(other)
        stage.fail(one, refused(500))
    assert stage.rest(one) == ("failing", FIRST_S)
    assert stage.rest(other) is None


def test_where_credentials_have_proxies_of_their_own_what_is_out_of_reach_is_one_way() -> None:
    def through(number: int, proxy: str | None) -> Candidate:
        return candidate("a", pool=SHARED, credential_subject=f"credential:{number}-9.1", proxy=None if proxy is None else Proxy.parse(proxy))

    stage, one = Stage(), through(1, "http://u:password@p:1")
    stage.fail(one, UpstreamUnreachable("no"))
    assert stage.rest(one) == stage.rest(through(2, "http://u:password@p:1")) == ("unreachable", FIRST_S)
    assert stage.rest(through(3, "http://p:2")) is None
    assert stage.rest(through(4, None)) is None
    assert "password" not in str(stage.told) + str(stage.conditions.current())


def test_the_last_fit_credential_is_not_rested_on_a_guess_by_a_calls_further_attempts() -> None:
    stage, one = Stage(), candidate("a", pool=SHARED)
    stage.fail(one, refused(429), last_fit=True, tried=2)
    assert stage.rest(one) is None
    stage.fail(one, refused(429, reset_s=9), last_fit=True, tried=2)
    assert stage.rest(one) == ("rate_limited", 9)


def test_a_credential_at_its_limits_is_not_leased_and_its_probe_stays_due() -> None:
    stage, one = Stage(), candidate("a", limit=Limit("credential:1", rpm=1))
    stage.pool._take = lambda exchange, deployment, attempt: Rest("requests", stage.clock.now + 7)
    stage.fail(one, refused(429))
    stage.clock.now += FIRST_S
    assert stage.pool.lease(one, stage.asked()) == Rest("requests", stage.clock.now + 7)
    assert stage.rest(one) is None


def test_an_expired_secret_is_not_fit_and_is_told_once() -> None:
    stage = Stage()
    one = candidate("a", expires_at=stage._wall() + 1000)
    assert stage.rest(one) is None
    stage.clock.now += 1
    assert stage.rest(one) == ("expired", FOREVER)
    for _ in range(3):
        stage.pool.sweep([one.deployment])
    assert stage.states() == [("active", "expired", "expired")]


def test_a_named_end_is_told_without_a_call() -> None:
    stage, one = Stage(), candidate("a")
    stage.fail(one, refused(429, reset_s=30))
    stage.clock.now += 29
    stage.pool.sweep([one.deployment])
    assert len(stage.told) == 1
    stage.clock.now += 1
    stage.pool.sweep([one.deployment])
    assert (stage.states()[-1], stage.told[-1].model) == (("cooling", "active", "recovered"), "m")


# what is told


def test_a_transition_has_its_evidence_and_no_secret() -> None:
    stage, one = Stage(), candidate("a")
    body = b'{"error":{"message":"Key sk-secret\\nof sk-other-key is over its limit"}}'
    headers = (("retry-after", "30"), ("set-cookie", "session=1"))
    ex = stage.asked()
    stage.pool.failed(one, UpstreamRefused(429, headers, body, reset_s=30), ex, None, False)
    (told,) = stage.told
    assert told.evidence["status"] == 429
    assert told.evidence["headers"] == {"retry-after": "30"}
    assert "over its limit" in told.evidence["excerpt"]
    assert "sk-" not in str(told.evidence)
    assert (told.credential, told.deployment, told.model, told.exchange, told.host) == ("a-key", None, "m", ex.id, "owner")
    assert told.until_at == stage._wall() + 30_000


def test_many_names_that_clients_invent_do_not_pile_up() -> None:
    stage = Stage()
    for number in range(2_100):
        stage.fail(candidate("a", f"m{number}"), refused(429, reset_s=1))
    stage.clock.now += 2
    stage.pool.sweep([])
    assert len(stage.conditions.current()) < 100


# agents


def test_an_agent_rests_as_its_host_says_and_nobody_else_does() -> None:
    hosts = Hosted()
    stage = Stage(hosts=hosts)
    agent, other = candidate("a", backend=Hosting()), candidate("b", backend=Scripted())
    hosts.rests = {"a": Rest(RECONNECTING, stage.clock.now + 5), "b": Rest(RECONNECTING, FOREVER)}
    assert (stage.rest(agent), stage.rest(other)) == ((RECONNECTING, 5), None)
    hosts.rests.clear()
    assert stage.rest(agent) is None
    stage.fail(agent, refused(429, reset_s=31))
    assert stage.rest(agent) == ("rate_limited", 31)


def test_where_no_agent_can_come_every_agent_is_away() -> None:
    assert Stage().rest(candidate("a", backend=Hosting())) == (NOT_CONNECTED, FOREVER)


def test_an_agent_is_leased_within_what_its_host_says_that_it_takes() -> None:
    hosts, taken = Hosted(), list[Limit | None]()
    stage = Stage(hosts=hosts)
    stage.pool._take = lambda exchange, deployment, attempt: taken.append(deployment.limit) or stage.take(exchange, deployment, attempt)  # type: ignore[func-returns-value]
    own = Limit("credential:1-9", concurrency=9)
    hosts.limits = {"credential:1-9": Limit("credential:1-9", concurrency=2)}
    for backend in (Hosting(), Scripted()):
        stage.call(candidate("a", backend=backend, credential_subject="credential:1-9.1", limit=own)).close()
    stage.call(candidate("b", backend=Hosting(), credential_subject="credential:2-9.1")).close()
    assert taken == [hosts.limits["credential:1-9"], own]


@pytest.mark.parametrize("error", [AgentLost("gone"), AgentFailed("no", cause="busy"), AgentFailed("no", cause="unknown_request")])
def test_an_agent_that_was_lost_or_busy_is_not_blamed(error: UpstreamError) -> None:
    stage, one = Stage(hosts=Hosted()), candidate("a", backend=Hosting(), pool=SHARED)
    stage.fail(one, error, times=20)
    assert stage.rest(one) is None


def test_an_agent_that_fails_rests_and_the_others_of_its_pool_do_not() -> None:
    stage = Stage(hosts=Hosted())
    one, other = (candidate("d", backend=Hosting(), pool=SHARED, credential=name, credential_subject=f"credential:{name}") for name in "ab")
    stage.fail(one, AgentFailed("no", cause="internal"), times=3)
    assert stage.rest(one) == ("failing", FIRST_S)
    assert stage.rest(other) is None
