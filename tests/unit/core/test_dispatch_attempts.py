from __future__ import annotations

import dataclasses

import pytest

from gateway.backend import Call, Deadlines, Proxy, Reply, Secret, Target
from gateway.core.rests import Rest
from gateway.errors import Cancelled, RateLimited, UpstreamError, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from gateway.state.base import Limit
from gateway.store.pools import Pool
from tests.factories import JSON, Chunks, StillClient, call, exchange, principal, reply, sent
from tests.unit.core.stages import OK, Attempts, refused, served


def test_abort_that_a_backend_puts_into_its_own_words_is_nobodys_failure() -> None:
    stage = Attempts()
    client = StillClient()

    def gone(call: Call, target: Target) -> Reply:
        client.leave()
        raise UpstreamUnreachable("my socket is closed")

    first, second = served("a", gone), served("b")
    ex = exchange(clock=stage.clock, client=client)
    with pytest.raises(Cancelled):
        stage.dispatcher.send(ex, [first[0], second[0]])
    assert second[1].calls == []
    assert stage.pool.rest(first[0]) is None


def test_other_deployment_must_have_a_full_first_byte_period_left_itself() -> None:
    stage = Attempts()

    def slow(call: Call, target: Target) -> Reply:
        stage.clock.now += 60
        raise UpstreamTimeout("late", phase="first_byte")

    first = served("a", slow, deadlines=Deadlines(first_byte_s=60, total_s=900))
    too_slow = served("b", deadlines=Deadlines(first_byte_s=60, total_s=100))
    quick = served("c", deadlines=Deadlines(first_byte_s=40, total_s=100), priority=9)
    answer, ex = stage.send(first[0], too_slow[0], quick[0])
    assert answer.head == OK[0]
    assert [attempt.deployment for attempt in ex.attempts] == ["a", "c"]
    assert too_slow[1].calls == []


@pytest.mark.parametrize("phase", ["first_byte", "idle"])
def test_timeout_of_an_attempt_leaves_time_for_one_other(phase: str) -> None:
    answer, ex = Attempts().send(served("a", UpstreamTimeout("late", phase=phase))[0], served("b")[0])
    assert answer.head == OK[0]
    assert [attempt.outcome for attempt in ex.attempts] == ["upstream_timeout", "answered"]


def test_total_deadline_ends_the_call() -> None:
    second, backend = served("b")
    with pytest.raises(UpstreamTimeout):
        Attempts().send(served("a", UpstreamTimeout("late", phase="total"))[0], second)
    assert backend.calls == []


def test_body_that_cannot_be_sent_again_is_not() -> None:
    made = call()
    made = dataclasses.replace(made, body=dataclasses.replace(made.body, replayable=False))
    second, backend = served("b")
    with pytest.raises(UpstreamError):
        Attempts().send(served("a", refused(500))[0], second, made=made)
    assert backend.calls == []


def test_strangers_mistake_is_not_tried_again_and_gives_the_lease_back() -> None:
    stage = Attempts()
    first, _ = served("a", KeyError("bug"))
    ex = stage.exchange()
    with pytest.raises(KeyError):
        stage.dispatcher.send(ex, [first])
    assert stage.pool.standings.in_flight == {"deployment:a|credential:a": 0}
    assert [attempt.outcome for attempt in ex.attempts] == ["internal_error"]


def test_reply_whose_head_fails_is_closed() -> None:
    made = reply([b'data: {"error":{"message":"overloaded"}}\n\n'])
    with pytest.raises(UpstreamError):
        Attempts().send(served("a", lambda call, target: made)[0])
    assert isinstance(made.chunks, Chunks)
    assert made.chunks.closed == 1


def test_attempt_has_its_deployments_deadline_secret_and_name() -> None:
    seen: list[tuple[Call, Target]] = []

    def look(call: Call, target: Target) -> Reply:
        seen.append((call, target))
        return reply(OK, JSON)

    stage = Attempts()
    first, _ = served("a", look, deadlines=Deadlines(total_s=77), base_url="http://u/v1")
    _, ex = stage.send(first)
    ((sent_call, target),) = seen
    assert sent_call.deadline == ex.started + 77
    assert (target.base_url, target.model, target.secret.reveal(), target.deadlines) == ("http://u/v1", "m", "sk-secret", Deadlines(total_s=77))


def test_retries_of_an_outage_are_bounded_over_all_calls() -> None:
    stage = Attempts()
    first, primary = served("a", *[refused(401)] * 100)
    second, backend = served("b", *[refused(401)] * 100, priority=1)
    for number in range(40):
        with pytest.raises(UpstreamError):
            stage.send(first, second, user=number)
    assert len(primary.calls) + len(backend.calls) == 40 + 10


def test_excluded_candidates_are_told_with_the_reason_of_their_rest() -> None:
    stage = Attempts()
    stage.cool("deployment:a", 5, "unreachable")
    _, ex = stage.send(served("a")[0], served("b", priority=1)[0])
    assert ex.excluded == {"a": "unreachable"}


def test_upstreams_text_about_our_credential_never_reaches_the_client() -> None:
    leak = UpstreamRefused(401, (), b'{"error":{"message":"Incorrect API key provided: sk-secr*cret"}}', upstream_code="invalid_api_key")
    with pytest.raises(UpstreamError) as caught:
        Attempts().send(served("a", leak)[0])
    assert "sk-" not in str(caught.value)
    assert caught.value.status == 502


def test_mixed_failures_are_a_502_of_ours() -> None:
    with pytest.raises(UpstreamError) as caught:
        Attempts().send(served("a", refused(429, reset_s=9))[0], served("b", refused(500), priority=1)[0])
    assert (caught.value.status, caught.value.code) == (502, "upstream_error")


def test_wait_for_a_rate_limit_is_between_a_second_and_an_hour() -> None:
    for asked, told in [(0, 1.0), (0.2, 1.0), (86_400, 3600)]:
        with pytest.raises(RateLimited) as caught:
            Attempts().send(served("a", refused(429, reset_s=asked))[0])
        assert caught.value.retry_after_s == pytest.approx(told)


def test_two_keys_of_one_user_are_one_witness() -> None:
    stage = Attempts()
    first, second = served("a", None, *[refused(500)] * 6)[0], served("b", priority=1)[0]
    stage.send(first, second, user=5)
    for key_id in (1, 2, 1, 2, 1, 2):
        ex = stage.exchange()
        ex.principal = principal(key_id, user_id=9)
        stage.dispatcher.send(ex, [first, second])
    assert stage.pool.rest(first) is None


def test_answer_in_between_begins_the_count_of_failures_anew() -> None:
    stage = Attempts()
    first, second = served("a", refused(500), refused(500), None, refused(500), refused(500))[0], served("b", priority=1)[0]
    for _ in range(5):
        stage.send(first, second)
    assert stage.pool.rest(first) is None


def test_model_that_keeps_its_name_keeps_its_bytes() -> None:
    first, backend = served("a")
    raw = b'{"model":"\\u006d","messages":[]}'
    Attempts().send(first, made=call(raw))
    assert sent(backend.calls[0].body) == raw


@pytest.mark.parametrize(("proxy", "asked"), [(None, []), ("http://other:1", ["b"])], ids=["the same way", "another proxy"])
def test_unreachable_upstream_is_tried_again_only_on_another_way(proxy: str | None, asked: list[str]) -> None:
    pool = Pool(1, "p")
    first, _ = served("d", UpstreamUnreachable("no"), pool=pool, credential="a", credential_subject="credential:1-9.1")
    way = None if proxy is None else Proxy.parse(proxy)
    second, backend = served("d", pool=pool, credential="b", credential_subject="credential:2-9.1", proxy=way, weight=0)
    stage = Attempts()
    ex = stage.exchange()
    if asked:
        stage.dispatcher.send(ex, [first, second])
    else:
        with pytest.raises(UpstreamUnreachable):
            stage.dispatcher.send(ex, [first, second])
    assert len(backend.calls) == len(asked)


def test_what_the_upstream_repeats_of_our_secrets_is_taken_out_of_its_words() -> None:
    echo = UpstreamRefused(400, (("x-echo", "_puid=user-cookie"),), b'{"error":"sk-secret and user-cookie"}')
    first, _ = served("a", echo, extras={"puid": Secret("user-cookie")})
    answer, _ = Attempts().send(first)
    assert answer.head == b'{"error":"[redacted] and [redacted]"}'
    assert dict(answer.reply.headers)["x-echo"] == "_puid=[redacted]"


def test_credentials_at_the_operators_own_limits_are_a_429_with_the_smallest_wait() -> None:
    stage = Attempts()
    waits = iter((30.0, 7.0))
    stage.pool._take = lambda exchange, deployment, attempt: Rest("concurrency", stage.clock.now + next(waits))
    limited = [served(name, limit=Limit(name, concurrency=1))[0] for name in "ab"]
    with pytest.raises(RateLimited) as caught:
        stage.send(*limited)
    assert caught.value.retry_after_s == pytest.approx(7)
