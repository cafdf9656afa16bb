"""Row 5: an upstream takes the call and never answers. Figure: an explicit 504 within 0.2 s of the first-byte deadline, and nothing is held after it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fakes.answers import Default, RawBytes, Silent, Status, Step
from tests.fakes.gateway import RawClient
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, Calls, milliseconds
from tests.faults.conftest import Measured, open_exchanges

FIRST_BYTE_S = 0.6
FIGURE_S = 0.2
BOUND_S = 10 * FIGURE_S
PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Silence:
    """A model whose first choice is silent, and whose second, if it has one, is `second`."""

    calls: Calls
    model: str
    first: Provider
    second: Provider

    def body(self, **members: Any) -> dict[str, Any]:
        return self.calls.body(**members) | {"model": self.model}


@pytest.fixture
def silence(calls: Calls) -> Iterator[Silence]:
    with Provider() as first, Provider() as second:
        first.always(PATH, Silent())
        yield Silence(calls, f"silent-{calls.model}", first, second)


def _deployed(silence: Silence, *, second: bool = False, **deadlines: float) -> None:
    gateway = silence.calls.gateway
    deadlines = {"first_byte_s": FIRST_BYTE_S, "total_s": 30.0} | deadlines
    gateway.deploy(silence.model, silence.first.url, name=f"{silence.model}-1", **deadlines)
    if second:
        gateway.deploy(silence.model, silence.second.url, name=f"{silence.model}-2", priority=1, **deadlines)
    gateway.wait_catalog()


def _answered(silence: Silence, client: RawClient, stream: bool) -> tuple[int, str, float]:
    """Status, error code and seconds of one call."""
    begun = time.monotonic()
    client.ask(CHAT, silence.body(stream=stream))
    answer = client.answer()
    error = answer.json()["error"] if answer.headers["content-type"] == "application/json" and b'"error"' in answer.body else {}
    return answer.status, error.get("code", ""), time.monotonic() - begun


def test_05_silence_is_a_504_at_the_first_byte_deadline(silence: Silence, measured: Measured) -> None:
    _deployed(silence)
    count = 20
    outcomes = silence.calls.crowd(count, lambda client, number: _answered(silence, client, number % 2 == 0), clients=count)
    late = max(seconds for _, _, seconds in outcomes) - FIRST_BYTE_S
    measured(5, f"504 at most {milliseconds(late)} after the first-byte deadline, {count} calls at once (200 ms)")
    assert {(status, code) for status, code, _ in outcomes} == {(504, "upstream_timeout")}
    assert min(seconds for _, _, seconds in outcomes) > FIRST_BYTE_S - 0.05
    assert late < BOUND_S
    assert silence.calls.gateway.wait_endings(silence.model, count) == {"timeout": count}
    assert len(silence.first.requests) == count


def test_05_nothing_is_held_after_it(silence: Silence, measured: Measured) -> None:
    _deployed(silence)
    with silence.calls.gateway.client() as client:
        assert _answered(silence, client, True)[0] == 504
    told = time.monotonic()
    (closed,) = silence.first.wait_closed(1)
    silence.first.wait_open(0)
    measured(5, f"upstream connection closed {milliseconds(max(closed - told, 0))} after the client had its 504")
    (entry,) = [entry for entry in silence.calls.gateway.entries() if entry.model_asked == silence.model]
    assert (entry.ending, entry.amount, entry.usage_source) == ("timeout", 0, "none")
    deadline = time.monotonic() + 3  # the gauge is set once a second
    while open_exchanges(silence.calls.gateway):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_05_one_other_deployment_is_tried_if_a_full_period_is_left(silence: Silence, stream: bool) -> None:
    _deployed(silence, second=True)
    silence.second.always(PATH, Default())
    with silence.calls.gateway.client() as client:
        status, _, seconds = _answered(silence, client, stream)
    assert status == 200
    assert FIRST_BYTE_S < seconds < FIRST_BYTE_S + BOUND_S
    assert [len(provider.requests) for provider in (silence.first, silence.second)] == [1, 1]
    assert silence.calls.gateway.wait_endings(silence.model, 1) == {"complete": 1}


def test_05_no_other_is_tried_where_less_than_a_full_period_is_left(silence: Silence) -> None:
    _deployed(silence, second=True, total_s=1.9 * FIRST_BYTE_S)
    with silence.calls.gateway.client() as client:
        status, code, seconds = _answered(silence, client, False)
    assert (status, code) == (504, "upstream_timeout")
    assert FIRST_BYTE_S < seconds < FIRST_BYTE_S + BOUND_S
    assert silence.second.requests == []


def test_05_a_third_is_not_tried_after_two_that_were_silent(silence: Silence) -> None:
    _deployed(silence, second=True)
    silence.second.always(PATH, Silent())
    with Provider() as third:
        silence.calls.gateway.deploy(silence.model, third.url, name=f"{silence.model}-3", priority=2, first_byte_s=FIRST_BYTE_S)
        silence.calls.gateway.wait_catalog()
        with silence.calls.gateway.client() as client:
            status, _, seconds = _answered(silence, client, False)
        assert third.requests == []
    assert status == 504
    assert seconds < 2 * FIRST_BYTE_S + BOUND_S


@pytest.mark.parametrize(
    "step", [RawBytes(b"HTTP/1.1 102 Processing\r\n\r\n", 60.0), RawBytes(b"HTTP/1.1 200 OK\r\ncontent-", 60.0)], ids=["interim", "half a head"]
)
def test_05_an_answer_that_stops_before_its_content_is_a_504(silence: Silence, step: Step) -> None:
    _deployed(silence, idle_s=FIRST_BYTE_S)
    silence.first.always(PATH, step)
    with silence.calls.gateway.client() as client:
        status, code, seconds = _answered(silence, client, True)
    assert (status, code) == (504, "upstream_timeout")
    assert seconds < FIRST_BYTE_S + BOUND_S


def test_05_an_error_without_its_body_does_not_hold_up_the_other_deployment(silence: Silence, measured: Measured) -> None:
    _deployed(silence, second=True)
    answer = b"".join(action for action in Status(503, b"x" * 100).script() if isinstance(action, bytes))
    silence.first.always(PATH, RawBytes(answer[:-50], 60.0))
    silence.second.always(PATH, Default())
    with silence.calls.gateway.client() as client:
        status, _, seconds = _answered(silence, client, False)
    measured(5, f"another deployment answers {seconds:.2f} s after an error whose body never comes (2 s are waited)")
    assert status == 200
    assert seconds < 2 + BOUND_S


def test_05_call_that_waits_is_seen_as_open(silence: Silence) -> None:
    """What "nothing is held after it" is measured with can see something."""
    _deployed(silence, first_byte_s=20.0)
    with silence.calls.gateway.client() as client:
        client.ask(CHAT, silence.body())
        deadline = time.monotonic() + 5  # the gauge is set once a second
        while not open_exchanges(silence.calls.gateway):
            assert time.monotonic() < deadline
            time.sleep(0.05)
