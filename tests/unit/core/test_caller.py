from __future__ import annotations

import pytest

from gateway.backend import Deadlines, Proxy, Secret
from gateway.core.caller import CallersUpstream
from gateway.core.routing import Candidate
from gateway.errors import Cancelled, UpstreamError, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from tests.factories import Scripted, call, price
from tests.unit.core.stages import OK, Attempts, refused

PROXY = Proxy("http", "proxy", 3128)


def own(backend: Scripted, secret: str = "callers-own") -> Candidate:
    return CallersUpstream("chatgpt", "access_token", backend, "http://web", Deadlines(), PROXY).candidate(Secret(secret), "gpt-4", price("gpt-4"))


def test_candidate_is_led_to_the_operators_upstream_with_the_callers_secret() -> None:
    backend = Scripted()
    Attempts().send(own(backend))
    (target,) = backend.targets
    assert (target.base_url, target.secret.reveal(), target.model, target.proxy) == ("http://web", "callers-own", "gpt-4", PROXY)


def test_nothing_that_is_shown_holds_the_secret() -> None:
    made = own(Scripted())
    assert "callers-own" not in repr(made)
    assert (made.deployment.credential, made.deployment.subject) == (None, "caller:chatgpt")


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, 500, 503])
def test_refusal_is_the_callers_to_read_under_its_own_status(status: int) -> None:
    stage, backend = Attempts(), Scripted().play(refused(status))
    with pytest.raises(UpstreamRefused) as error:
        stage.send(own(backend))
    assert (error.value.status, error.value.upstream_status) == (status, status)
    assert len(backend.calls) == 1


@pytest.mark.parametrize("error", [UpstreamUnreachable("down"), UpstreamTimeout("late", phase="first_byte"), UpstreamError("odd")])
def test_upstream_that_says_nothing_is_a_500(error: UpstreamError) -> None:
    with pytest.raises(type(error)) as raised:
        Attempts().send(own(Scripted().play(error)))
    assert raised.value.status == 500


def test_nobody_is_blamed_and_nothing_rests() -> None:
    stage, backend = Attempts(), Scripted()
    for error in (refused(401, "invalid_api_key"), refused(429), refused(402), refused(403), *[UpstreamUnreachable("down")] * 9, *[refused(500)] * 9):
        backend.play(error)
        with pytest.raises(UpstreamError):
            stage.send(own(backend))
    assert stage.conditions.current() == {}
    assert stage.told == []
    answer, exchange = stage.send(own(backend, "another"))
    assert answer.head == backend.answer
    exchange.release()
    assert not any(stage.pool.standings.in_flight.values())


def test_call_that_was_given_up_is_nobodys_failure() -> None:
    stage, made = Attempts(), call()

    def gives_up(*_: object) -> None:
        made.cancel.fire("client_gone")
        raise refused(500)

    with pytest.raises(Cancelled):
        stage.send(own(Scripted().play(gives_up)), made=made)  # type: ignore[arg-type]


def test_body_is_sent_as_it_came_also_where_it_streams() -> None:
    raw = b'{"model":"gpt-4","stream":true}'
    backend = Scripted().play()
    backend.answer = OK[0]
    Attempts().send(own(backend), made=call(raw))
    assert b"".join(backend.calls[0].body.open()) == raw
