from __future__ import annotations

import json

import pytest

from gateway.backend import Call, Deadlines, Reply, Target
from gateway.core.dispatch import RetryBudget
from gateway.core.routing import Candidate
from gateway.errors import Cancelled, GatewayError, NoDeploymentAvailable, RateLimited, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from tests.factories import Clock, Scripted, call, candidate, reply, sent
from tests.unit.core.stages import OK, Attempts, refused, served


def test_first_answer_is_the_calls() -> None:
    first, backend = served("a")
    answer, ex = Attempts().send(first)
    assert answer.head == OK[0]
    assert [(attempt.deployment, attempt.outcome, attempt.status) for attempt in ex.attempts] == [("a", "answered", 200)]
    assert len(backend.calls) == 1


@pytest.mark.parametrize(
    "error", [UpstreamUnreachable("no"), UpstreamTimeout("late", phase="first_byte"), refused(500), refused(429), refused(401), refused(402), refused(403)]
)
def test_failed_attempt_goes_to_another_deployment(error: Exception) -> None:
    first, _ = served("a", error)
    second, backend = served("b", priority=1)
    answer, ex = Attempts().send(first, second)
    assert answer.head == OK[0]
    assert [attempt.deployment for attempt in ex.attempts] == ["a", "b"]
    assert len(backend.calls) == 1


def test_lower_priority_waits_its_turn() -> None:
    stage = Attempts()
    second, backend = served("b", priority=1)
    for _ in range(5):
        stage.send(served("a")[0], second)
    assert backend.calls == []


def test_equal_priorities_are_the_policys_to_choose_from() -> None:
    first, second, stage = served("a"), served("b"), Attempts()
    for _ in range(6):
        stage.send(first[0], second[0])
    assert (len(first[1].calls), len(second[1].calls)) == (3, 3)


def test_clients_mistake_is_relayed_word_for_word_and_not_tried_again() -> None:
    first, _ = served("a", refused(400))
    second, backend = served("b")
    stage = Attempts()
    answer, _ = stage.send(first, second)
    assert (answer.reply.status, answer.head) == (400, b'{"error":{"message":"no"}}')
    assert backend.calls == []
    assert stage.pool.rest(first) is None


def test_at_most_two_further_attempts() -> None:
    backends = [served(name, refused(500)) for name in "abcd"]
    with pytest.raises(UpstreamError) as caught:
        Attempts().send(*(one for one, _ in backends))
    assert caught.value.status == 502
    assert [len(backend.calls) for _, backend in backends] == [1, 1, 1, 0]


@pytest.mark.parametrize("status", [401, 402, 403])
def test_refusal_of_our_credential_is_ours_to_tell(status: int) -> None:
    with pytest.raises(UpstreamError) as caught:
        Attempts().send(served("a", refused(status))[0])
    assert (caught.value.status, caught.value.code) == (502, "upstream_refused_credential")


def test_rate_limit_of_every_deployment_is_a_429_with_the_smallest_wait() -> None:
    stage = Attempts()
    with pytest.raises(RateLimited) as caught:
        stage.send(served("a", refused(429, reset_s=30))[0], served("b", refused(429, reset_s=7))[0])
    assert caught.value.retry_after_s == pytest.approx(7)


def test_limited_credential_is_left_alone_until_its_reset() -> None:
    stage = Attempts()
    first, backend = served("a", refused(429, reset_s=30))
    with pytest.raises(RateLimited):
        stage.send(first)
    with pytest.raises(RateLimited) as caught:
        stage.send(first)
    assert caught.value.retry_after_s == pytest.approx(30)
    assert len(backend.calls) == 1
    stage.clock.now += 30.1
    assert stage.send(first)[0].head == OK[0]


def test_invalid_key_quarantines_the_credential() -> None:
    stage = Attempts()
    first, backend = served("a", refused(401, "invalid_api_key"))
    with pytest.raises(UpstreamError):
        stage.send(first)
    stage.clock.now += 10_000
    with pytest.raises(NoDeploymentAvailable) as caught:
        stage.send(first)
    assert "quarantined" in str(caught.value)
    assert caught.value.retry_after_s is None
    assert len(backend.calls) == 1


def test_other_401_costs_the_credential_nothing() -> None:
    stage = Attempts()
    first, _ = served("a", refused(401))
    with pytest.raises(UpstreamError):
        stage.send(first)
    assert stage.pool.rest(first) is None


def test_spent_quota_is_told_as_a_refused_credential_whatever_its_status() -> None:
    stage = Attempts()
    first, _ = served("a", refused(429, "insufficient_quota"))
    with pytest.raises(UpstreamError) as caught:
        stage.send(first)
    assert (caught.value.status, caught.value.code) == (502, "upstream_refused_credential")
    with pytest.raises(NoDeploymentAvailable, match="quota_spent"):
        stage.send(first)


def test_unreachable_deployment_rests_unless_it_is_the_last() -> None:
    stage = Attempts()
    first, second = served("a", UpstreamUnreachable("no"))[0], served("b")[0]
    stage.send(first, second)
    assert stage.pool.rest(first) is not None
    alone = served("c", UpstreamUnreachable("no"))[0]
    with pytest.raises(UpstreamUnreachable):
        stage.send(alone)
    assert stage.pool.rest(alone) is None


def test_one_callers_failures_do_not_take_a_deployment_from_others() -> None:
    stage = Attempts()
    first, second = served("a", None, *[refused(500)] * 9)[0], served("b", priority=1)[0]
    stage.send(first, second, user=2)
    for _ in range(5):
        stage.send(first, second, user=1)
    assert stage.pool.rest(first) is None
    stage.send(first, second, user=2)
    assert stage.pool.rest(first) is not None


def test_failures_of_the_only_caller_count() -> None:
    stage = Attempts()
    first, second = served("a", *[refused(500)] * 9)[0], served("b", priority=1)[0]
    for _ in range(3):
        stage.send(first, second)
    assert stage.pool.rest(first) is not None


def test_second_first_byte_timeout_is_the_last() -> None:
    late = UpstreamTimeout("late", phase="first_byte")
    backends = [served(name, late) for name in "abc"]
    with pytest.raises(UpstreamTimeout):
        Attempts().send(*(one for one, _ in backends))
    assert [len(backend.calls) for _, backend in backends] == [1, 1, 0]


def test_first_byte_timeout_ends_the_call_where_no_full_period_is_left() -> None:
    stage = Attempts()
    deadlines = Deadlines(first_byte_s=60, total_s=100)

    def slow(call: Call, target: Target) -> Reply:
        stage.clock.now += 60
        raise UpstreamTimeout("late", phase="first_byte")

    first, second = served("a", slow, deadlines=deadlines), served("b", deadlines=deadlines)
    with pytest.raises(UpstreamTimeout):
        stage.send(first[0], second[0])
    assert second[1].calls == []


def test_failure_within_the_head_is_tried_again() -> None:
    def broken(call: Call, target: Target) -> Reply:
        return reply([b'data: {"error":{"message":"overloaded"}}\n\n'])

    answer, ex = Attempts().send(served("a", broken)[0], served("b")[0])
    assert answer.head == OK[0]
    assert [attempt.outcome for attempt in ex.attempts] == ["upstream_refused", "answered"]


def test_cancelled_call_is_not_tried_again() -> None:
    def gone(call: Call, target: Target) -> Reply:
        raise Cancelled("client_gone")

    second, backend = served("b")
    with pytest.raises(Cancelled):
        Attempts().send(served("a", gone)[0], second)
    assert backend.calls == []


def test_lease_is_given_back_after_a_failed_attempt() -> None:
    stage = Attempts()
    first, second = served("a", refused(500))[0], served("b")[0]
    _, ex = stage.send(first, second)
    assert stage.pool.standings.in_flight == {"deployment:a|credential:a": 0, "deployment:b|credential:b": 1}
    ex.release()
    assert stage.pool.standings.in_flight == {"deployment:a|credential:a": 0, "deployment:b|credential:b": 0}


def test_alias_replaces_the_models_name_and_nothing_else() -> None:
    backend = Scripted()
    raw = b'{ "model" : "m", "x": 1.50e3, "messages":[] }'
    Attempts().send(Candidate(candidate("a", backend=backend).deployment, "real-name", None), made=call(raw))
    assert sent(backend.calls[0].body) == raw.replace(b'"m"', b'"real-name"')


def test_usage_is_asked_for_only_where_it_is_streamed() -> None:
    first, backend = served("a")
    stage = Attempts()
    stage.send(first, made=call(b'{"model":"m"}'))
    assert sent(backend.calls[0].body) == b'{"model":"m"}'
    stage.send(first, made=call(b'{"model":"m","stream":true}'))
    assert json.loads(sent(backend.calls[1].body))["stream_options"] == {"include_usage": True}
    raw = b'{"model":"m","stream":true,"stream_options":{"x":1.0,"include_usage":false}}'
    stage.send(first, made=call(raw))
    assert sent(backend.calls[2].body) == raw.replace(b"false", b"true")


def test_usage_that_the_client_asked_for_is_left_alone() -> None:
    first, backend = served("a")
    raw = b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'
    answer, _ = Attempts().send(first, made=call(raw))
    assert sent(backend.calls[0].body) == raw
    assert not answer.hides_usage


def test_deployment_may_do_without_usage() -> None:
    first, backend = served("a", include_usage=False)
    Attempts().send(first, made=call(b'{"model":"m","stream":true}'))
    assert sent(backend.calls[0].body) == b'{"model":"m","stream":true}'


def test_retries_are_bounded_by_a_share_of_the_calls() -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    for _ in range(100):
        budget.note_call()
    assert sum(budget.take() for _ in range(100)) == 20
    clock.now += 10.1
    assert sum(budget.take() for _ in range(100)) == 10


def test_nothing_fit_says_why() -> None:
    stage = Attempts()
    first = candidate("a", backend=Scripted())
    stage.cool("deployment:a", 5, "unreachable")
    with pytest.raises(NoDeploymentAvailable) as caught:
        stage.send(first)
    assert isinstance(caught.value, GatewayError)
    assert "unreachable" in str(caught.value)
    assert caught.value.retry_after_s == pytest.approx(5)
