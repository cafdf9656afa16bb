"""Row 8: the upstream resets the connection in mid-stream. Figure: 0 silent truncations of 1,000. What was delivered is settled, nothing is sent twice."""

from __future__ import annotations

from tests.fakes.answers import Events, ResetAt, Step
from tests.faults.calls import DONE, Calls
from tests.faults.conftest import Measured

STREAMS = 1_000
PIECES = 8
ANSWER = Events(
    {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    *({"id": "c", "choices": [{"index": 0, "delta": {"content": f"Stück {number}"}, "finish_reason": None}]} for number in range(PIECES)),
    {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
)


def _offsets() -> range:
    """Every place of the wire from behind the first event to within `[DONE]`, which ends with its event's blank line."""
    sent = [action for action in ANSWER.script() if isinstance(action, bytes)]
    first_event = len(sent[0]) + len(sent[1])
    end = sum(map(len, sent)) - len(b"\n\r\n") - len(b"0\r\n\r\n")
    return range(first_event, end)


def test_08_no_silent_truncation(calls: Calls, measured: Measured) -> None:
    offsets = _offsets()
    steps: list[Step] = [ResetAt(offsets[number * len(offsets) // STREAMS], ANSWER) for number in range(STREAMS)]
    calls.provider.script("/v1/chat/completions", *steps)
    outcomes = calls.crowd_of_streams(STREAMS, clients=40)
    silent = [one for one in outcomes if one.truncated_silently() or one.done or not one.clean]
    measured(8, f"{len(silent)} silent truncations of {STREAMS} (0)")
    assert not silent
    assert {(one.status, (one.error() or {}).get("code")) for one in outcomes} == {(200, "upstream_interrupted")}
    assert len(calls.provider.requests) == STREAMS, "a stream was sent again after its first content"
    assert calls.gateway.wait_endings(calls.model, STREAMS) == {"upstream_truncated": STREAMS}


def test_08_what_was_delivered_is_settled(calls: Calls) -> None:
    offsets = _offsets()
    calls.provider.script("/v1/chat/completions", ResetAt(offsets[len(offsets) // 2], ANSWER))
    seen = calls.outcome(stream=True)
    entry = next(one for one in calls.gateway.entries() if one.model_asked == calls.model)
    assert seen.body.count(b"St\xc3\xbcck") - 2 < entry.usage.output_text <= seen.body.count(b"\n\n")
    assert entry.usage_source == "estimated"
    assert entry.amount > 0


def test_08_reset_behind_done_is_a_whole_answer(calls: Calls) -> None:
    whole = sum(len(action) for action in ANSWER.script() if isinstance(action, bytes))
    calls.provider.script("/v1/chat/completions", ResetAt(whole - len(b"0\r\n\r\n"), ANSWER))
    seen = calls.outcome(stream=True)
    assert seen.clean
    assert seen.body == b"".join(ANSWER.blocks)
    assert seen.body.endswith(DONE)
    assert calls.gateway.wait_endings(calls.model, 1) == {"complete": 1}


def test_08_reset_within_the_first_event_is_a_502(calls: Calls) -> None:
    head = len(next(action for action in ANSWER.script() if isinstance(action, bytes)))
    calls.provider.script("/v1/chat/completions", ResetAt(head + 20, ANSWER))
    seen = calls.outcome(stream=True)
    assert seen.status == 502
    assert seen.error()
