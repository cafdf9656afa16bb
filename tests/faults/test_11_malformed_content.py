"""Row 11: malformed events and JSON, unknown fields, UTF-8 split at any byte. They pass, or there is an explicit error. Figure: 0 exceptions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.fakes.answers import Answer, RawBytes, RawEvents
from tests.faults.calls import DONE, Calls
from tests.faults.conftest import Measured

FIRST = b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
UNICODE = (
    FIRST
    + 'data: {"choices":[{"index":0,"delta":{"content":"ü€𝄞 \u2028 日本"},"finish_reason":null}],"neu":{"x":[1e400]}}\r\n\r\n'.encode()
    + ': gr\u00fc\u00dfe\n\ndata: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'.encode()
    + DONE
)
PASSED = {
    "data that is no JSON": FIRST + b"data: {not json\n\n" + DONE,
    "no JSON from the start": b"data: hello\n\n" + DONE,
    "JSON of other kinds": FIRST + b'data: 1\n\ndata: null\n\ndata: []\n\ndata: "text"\n\n' + DONE,
    "choices of another kind": b'data: {"choices": 5}\n\ndata: {"choices": [null]}\n\ndata: {"choices": {}}\n\n' + DONE,
    "usage of another kind": FIRST + b'data: {"choices": [], "usage": []}\n\ndata: {"usage": "much"}\n\n' + DONE,
    "usage with odd numbers": FIRST + b'data: {"choices": [1], "usage": {"prompt_tokens": -5, "completion_tokens": 1e99, "total_tokens": "x"}}\n\n' + DONE,
    "usage of huge numbers": FIRST + b'data: {"choices": [1], "usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}\n\n" + DONE,
    "deep nesting": FIRST + b'data: {"usage": {"x": ' + b"[" * 3000 + b"]" * 3000 + b"}}\n\n" + DONE,
    "bytes that are no UTF-8": FIRST + b'data: \xff\xfe\x80 {"usage": {\xc3\n\n' + DONE,
    "fields without a colon": b"data\n\n" + FIRST + b"data\nevent\n\nnonsense\n\n" + DONE,
    "empty events": b"\n\n\n\n" + FIRST + b"\n\n\n" + DONE,
    "a byte order mark": b"\xef\xbb\xbf" + FIRST + DONE,
    "NUL and control characters": FIRST + b"data: \x00\x01\x1b[31m\n\nid: \x00\n\n" + DONE,
    "lone surrogates": FIRST + b'data: {"choices":[1],"usage":{"x":"\\ud800"}, "y":"\\udfff"}\n\n' + DONE,
    "carriage returns": FIRST.replace(b"\n", b"\r") + b"data: a\rdata: b\r\r" + DONE,
    "a long event": FIRST + b'data: {"choices":[{"delta":{"content":"' + b"x" * 1_500_000 + b'"}}]}\n\n' + DONE,
    "an error object in mid-stream": FIRST + b'data: {"error": {"message": "overloaded"}}\n\n' + DONE,
    "data after the end": FIRST + DONE + b"data: more\n\n: bye\n\n",
}
WHOLE = (
    *(b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe{}", b"{}{}{}", b"[" * 5000 + b"]" * 5000),
    *(b'{"usage": {"prompt_tokens": "nine"}}', b'{"usage": 7}', b'{"usage": {"prompt_tokens": 1e999, "completion_tokens": -1}}'),
    b'{"usage": {"prompt_tokens": ' + b"9" * 6000 + b"}}",
)


@pytest.fixture(autouse=True)
def no_exceptions(calls: Calls) -> Iterator[None]:
    before = calls.gateway.log_path.stat().st_size
    yield
    written = calls.gateway.log_path.read_bytes()[before:].decode()
    assert "raceback" not in written
    assert '"level": "error"' not in written


def test_11_utf8_split_at_every_byte(calls: Calls, measured: Measured) -> None:
    calls.provider.script("/v1/chat/completions", *(RawEvents(UNICODE, (offset,), pause_s=0.003) for offset in range(1, len(UNICODE))))
    outcomes = calls.crowd_of_streams(len(UNICODE) - 1)
    changed = [one for one in outcomes if one.body != UNICODE or not one.clean]
    measured(11, f"{len(changed)} of {len(outcomes)} streams changed by a cut at every byte (0); 0 exceptions (0)")
    assert not changed
    assert calls.gateway.wait_endings(calls.model, len(outcomes)) == {"complete": len(outcomes)}


def test_11_malformed_events_pass_unchanged(calls: Calls) -> None:
    booked = Counter[str]()
    for number, (name, raw) in enumerate(PASSED.items(), 1):
        calls.provider.script("/v1/chat/completions", RawEvents(raw))
        seen = calls.outcome(stream=True)
        assert (seen.status, seen.clean) == (200, True), name
        assert seen.body == raw, name
        booked["upstream_truncated" if "error object" in name else "complete"] += 1
        assert calls.gateway.wait_endings(calls.model, number) == booked, name


def test_11_malformed_whole_answers_pass_unchanged(calls: Calls) -> None:
    for body in WHOLE:
        calls.provider.script("/v1/chat/completions", Answer(200, (("content-type", "application/json"),), (body,)))
        seen = calls.outcome()
        assert (seen.status, seen.clean, seen.body) == (200, True, body)
    assert calls.gateway.wait_endings(calls.model, len(WHOLE)) == {"complete": len(WHOLE)}
    for entry in calls.gateway.entries():
        assert entry.amount >= 0
        assert all(count >= 0 for count in entry.usage.buckets().values())


def test_11_no_event_at_all_is_a_502(calls: Calls) -> None:
    for raw in (b"", b": only a comment\n\n", b"event: ping\n\n", b"data: half an event", b"\n\n\n"):
        calls.provider.script("/v1/chat/completions", RawEvents(raw))
        seen = calls.outcome(stream=True)
        assert seen.status == 502
        assert seen.error()


def test_11_an_error_object_first_is_no_answer(calls: Calls) -> None:
    told = json.dumps({"error": {"message": "The server is overloaded", "code": "overloaded"}}).encode()
    for raw in (b"data: " + told + b"\n\n", b": hi\n\nevent: error\ndata: " + told + b"\n\n", b"event: error\ndata: not json\n\n"):
        calls.provider.script("/v1/chat/completions", RawEvents(raw))
        assert calls.outcome(stream=True).status == 502


def test_11_a_stream_where_a_whole_answer_was_due_passes(calls: Calls) -> None:
    calls.provider.script("/v1/chat/completions", RawEvents(UNICODE))
    assert calls.outcome().body == UNICODE


def test_11_a_whole_answer_where_a_stream_was_due_passes(calls: Calls) -> None:
    calls.provider.script("/v1/chat/completions", RawBytes(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"))
    assert calls.outcome(stream=True).body == b"{}"
