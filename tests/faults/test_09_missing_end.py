"""Row 9: a stream ends as HTTP should, but without `[DONE]` or a finish_reason, or is cut where only the connection's end ends it.
Figure: 0 silent truncations of 1,000."""

from __future__ import annotations

from tests.fakes.answers import Answer, CloseDelimited, Default, Events, Step, WithoutDone
from tests.faults.calls import CHAT, Calls, Outcome, outcome
from tests.faults.conftest import Measured

STREAMS = 1_000


def _choice(index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, object]:
    return {"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


ANSWER = Events(_choice(0, {"role": "assistant"}), *(_choice(0, {"content": f"número {number}"}) for number in range(6)), _choice(0, {}, "stop"))


def _cut(keep: int) -> Step:
    """The first `keep` bytes; the connection's end, or an orderly final chunk, makes them look like all."""
    body = b"".join(ANSWER.blocks)[:keep]
    return Answer(200, ANSWER.headers, (body,), "chunked") if keep % 2 else CloseDelimited(ANSWER, keep)


def test_09_no_silent_truncation(calls: Calls, measured: Measured) -> None:
    first, whole = len(ANSWER.blocks[0]), sum(map(len, ANSWER.blocks))
    keeps = [first + number * (whole - first) // STREAMS for number in range(STREAMS)]
    calls.provider.script("/v1/chat/completions", *map(_cut, keeps))
    outcomes = calls.crowd_of_streams(STREAMS)
    silent = [one for one in outcomes if one.truncated_silently()]
    measured(9, f"{len(silent)} silent truncations of {STREAMS} (0)")
    assert not silent
    endings = calls.gateway.wait_endings(calls.model, STREAMS)
    finished = [one for one in outcomes if one.error() is None]
    assert endings == {"upstream_truncated": STREAMS - len(finished), "complete": len(finished)}
    said = b"".join(ANSWER.blocks[:-1])
    assert {one.body for one in finished} == {said, said + b"data: [DONE]", said + b"data: [DONE]\n"}, "cut behind the finish_reason, or behind [DONE]"


def test_09_without_done_but_finished_is_complete(calls: Calls) -> None:
    calls.provider.always("/v1/chat/completions", WithoutDone())
    seen = calls.outcome(stream=True)
    assert (seen.clean, seen.error(), seen.done) == (True, None, False)
    assert calls.gateway.wait_endings(calls.model, 1) == {"complete": 1}


def test_09_without_finish_reason_is_an_error_event(calls: Calls) -> None:
    calls.provider.always("/v1/chat/completions", WithoutDone(drop=3))  # the usage that the gateway asked for stands between
    assert _code(calls.outcome(stream=True)) == "upstream_interrupted"


def test_09_one_of_two_choices_finished_is_an_error_event(calls: Calls) -> None:
    half = Events(_choice(0, {"content": "a"}), _choice(1, {"content": "b"}), _choice(0, {}, "stop"), done=False)
    calls.provider.always("/v1/chat/completions", half)
    assert _code(calls.outcome(stream=True, n=2)) == "upstream_interrupted"


def test_09_finish_reason_as_content_does_not_count(calls: Calls) -> None:
    told = Events(_choice(0, {"content": '{"finish_reason": "stop"}'}), done=False)
    calls.provider.always("/v1/chat/completions", told)
    assert _code(calls.outcome(stream=True)) == "upstream_interrupted"


def test_09_every_dialect_tells_its_missing_end(calls: Calls) -> None:
    for path, member, drop in (("/v1/completions", "prompt", 3), ("/v1/responses", "input", 1)):
        calls.provider.always(path, WithoutDone(Default(), drop))
        with calls.gateway.client() as client:
            seen = outcome(client, path, {"model": calls.model, member: "Hello", "stream": True})
        assert seen.clean
        assert b"upstream_interrupted" in seen.body


def test_09_a_whole_answer_without_length_is_not_a_stream(calls: Calls) -> None:
    """Nothing tells a cut of such a body but its JSON; the ledger then has no usage to price."""
    calls.provider.script("/v1/chat/completions", CloseDelimited(Default()))
    answer = calls.ask(CHAT)
    assert answer.status == 200
    assert answer.json()["choices"]


def _code(seen: Outcome) -> str | None:
    error = seen.error()
    assert seen.clean
    return error["code"] if error else None
