"""Row 22, a sample over HTTP (the codec's own fuzz tests are in tests/unit/dialects): hostile JSON is a 400 in the family's shape, odd but
valid JSON passes unchanged. Figures: no 500, the hub is not stalled for more than 100 ms."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.answers import Json
from tests.fakes.gateway import RawClient
from tests.faults.calls import CHAT, Calls, milliseconds
from tests.faults.conftest import Measured

STALL_S = 0.1
ANSWER = Json({"choices": []})
REFUSED: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\t",
    "no JSON": b"hello",
    "a form": b"model=M&messages=1",
    "array": b'[{"model": "M"}]',
    "text": b'"M"',
    "number": b"5",
    "null": b"null",
    "cut": b'{"model": "M", "messages": [',
    "cut within a text": b'{"model": "M',
    "cut within an escape": b'{"model": "M\\u00',
    "surplus": b'{"model": "M"} x',
    "two documents": b'{"model": "M"}{"model": "M"}',
    "trailing comma": b'{"model": "M",}',
    "single quotes": b"{'model': 'M'}",
    "bare name": b'{model: "M"}',
    "comment": b'{"model": "M" /* hi */}',
    "NaN": b'{"model": "M", "temperature": NaN}',
    "Infinity": b'{"model": "M", "temperature": Infinity}',
    "-Infinity": b'{"model": "M", "x": [-Infinity]}',
    "hexadecimal": b'{"model": "M", "seed": 0x10}',
    "leading zero": b'{"model": "M", "seed": 007}',
    "plus sign": b'{"model": "M", "seed": +7}',
    "bare fraction": b'{"model": "M", "temperature": .5}',
    "byte order mark": b'\xef\xbb\xbf{"model": "M"}',
    "UTF-16": '{"model": "M"}'.encode("utf-16"),
    "bytes that are no UTF-8": b'{"model": "M", "user": "\xff\xfe"}',
    "overlong UTF-8": b'{"model": "M", "user": "\xc0\xaf"}',
    "encoded surrogate": b'{"model": "M", "user": "\xed\xa0\x80"}',
    "control character": b'{"model": "M", "user": "a\x00b"}',
    "line break within a text": b'{"model": "M", "user": "a\nb"}',
    "bad escape": b'{"model": "M", "user": "\\x41"}',
    "depth of 129": b'{"model": "M", "x": ' + b"[" * 128 + b"]" * 128 + b"}",
    "depth of 100,000": b'{"model": "M", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "depth without an end": b'{"model": "M", "x": ' + b"[" * 100_000,
    "deep objects": b'{"x":' * 5000 + b"1" + b"}" * 5000,
    "model twice": b'{"model": "M", "model": "other"}',
    "model twice, escaped": b'{"model": "M", "\\u006dodel": "other"}',
    "stream twice": b'{"model": "M", "stream": false, "stream": true}',
    "max_tokens twice": b'{"model": "M", "max_tokens": 1, "max_tokens": 100000}',
    "n twice": b'{"model": "M", "n": 1, "n": 100}',
    "stream_options twice": b'{"model": "M", "stream_options": {}, "stream_options": {"include_usage": false}}',
    "no model": b'{"messages": []}',
    "model null": b'{"model": null}',
    "model empty": b'{"model": ""}',
    "model a number": b'{"model": 5}',
    "model a list": b'{"model": ["M"]}',
    "model with a line break": b'{"model": "M\\r\\nX-Evil: 1"}',
    "model with NUL": b'{"model": "M\\u0000"}',
    "model a lone surrogate": b'{"model": "\\ud800"}',
    "model very long": b'{"model": "' + b"m" * 300 + b'"}',
    "stream a text": b'{"model": "M", "stream": "true"}',
    "stream a number": b'{"model": "M", "stream": 1}',
    "stream_options a list": b'{"model": "M", "stream_options": [1]}',
}
PASSED: dict[str, bytes] = {
    "odd numbers": b'{"model":"M","a":1E400,"b":-0.0,"c":1e-999,"d":123456789012345678901234567890,"e":0.1000,"f":' + b"7" * 5000 + b"}",
    "odd space": b' \t\r\n{ "model"\n:\t"M" , "messages" : [ ] }\r\n ',
    "escapes": b'{"\\u006dodel": "M", "x": "\\/\\u0041\\ud83d\\ude00\\u2028\\b"}',
    "lone surrogates elsewhere": b'{"model": "M", "user": "\\ud800x\\udfff"}',
    "unknown members twice": b'{"model": "M", "x": 1, "x": 2}',
    "depth of 128": b'{"model": "M", "x": ' + b"[" * 127 + b"]" * 127 + b"}",
    "names that look like ours, deeper": b'{"model": "M", "x": {"model": 1, "model": 2, "stream": "yes"}}',
    "text that looks like structure": b'{"model": "M", "x": "}{][\\"model\\": \\\\"}',
    "values of other kinds": b'{"model": "M", "max_tokens": "many", "n": null, "messages": {"a": 1}, "store": null}',
    "empty names": b'{"": 1, "model": "M", " ": {}}',
    "every Unicode plane": '{"model": "M", "x": "ü€𝄞\u2028\ufeff\U0010ffff"}'.encode(),
    "stream false": b'{"model": "M", "stream": false}',
    "stream null": b'{"model": "M", "stream": null}',
}


def test_22_hostile_json_is_a_400_in_openais_shape(calls: Calls, measured: Measured) -> None:
    statuses = {name: _refusal(calls, raw) for name, raw in REFUSED.items()}
    fives = [name for name, status in statuses.items() if status >= 500]
    measured(22, f"{len(fives)} answers of 500 and above to {len(statuses)} hostile bodies (0)")
    assert statuses == dict.fromkeys(REFUSED, 400)
    assert not calls.provider.requests


def _refusal(calls: Calls, raw: bytes) -> int:
    with calls.gateway.client() as client:
        client.ask(CHAT, raw.replace(b'"M"', json.dumps(calls.model).encode()))
        answer = client.answer()
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    assert answer.headers["x-request-id"]
    return answer.status


def test_22_odd_but_valid_json_passes_unchanged(calls: Calls) -> None:
    calls.provider.always("/v1/chat/completions", ANSWER)
    sent = [raw.replace(b'"M"', json.dumps(calls.model).encode()) for raw in PASSED.values()]
    for raw in sent:
        with calls.gateway.client() as client:
            client.ask(CHAT, raw)
            assert client.answer().status == 200, raw[:80]
    assert [received.body for received in calls.provider.requests] == sent


def _large(model: str) -> dict[str, bytes]:
    """Bodies of about 4 MB that are expensive to read in one way or another."""
    begin = b'{"model": ' + json.dumps(model).encode() + b', "x": '
    size = 4_000_000
    return {
        "one long text": begin + b'"' + b"a" * size + b'"}',
        "escapes": begin + b'"' + b"\\n" * (size // 2) + b'"}',
        "many members": b'{"model": ' + json.dumps(model).encode() + b"".join(b',"k%d":%d' % (number, number) for number in range(size // 16)) + b"}",
        "many small arrays": begin + b"[" + b"[]," * (size // 3) + b"[]]}",
        "many quotes": begin + b"[" + b'"",' * (size // 3) + b'""]}',
        "brackets within a text": begin + b'"' + b"[{" * (size // 2) + b'"}',
        "broken at its end": begin + b'"' + b"a" * size,
        "too deep at its end": begin + b"[" + b"1," * (size // 2) + b"[" * 200 + b"]" * 200 + b"]}",
    }


@pytest.fixture
def longest_stall(calls: Calls) -> Iterator[list[float]]:
    """The longest answer time of a route that does nothing, in seconds, as long as the test runs."""
    longest, over = [0.0], threading.Event()

    def watch(client: RawClient) -> None:
        while not over.wait(0.002):
            asked = time.monotonic()
            client.ask("/healthz", method="GET")
            client.answer()
            longest[0] = max(longest[0], time.monotonic() - asked)

    with calls.gateway.client(key=None) as client:
        watcher = threading.Thread(target=watch, args=(client,))
        watcher.start()
        yield longest
        over.set()
        watcher.join()


def test_22_large_hostile_bodies_do_not_stall_the_hub(calls: Calls, measured: Measured, longest_stall: list[float]) -> None:
    calls.provider.always("/v1/chat/completions", ANSWER)
    answers: dict[str, Any] = {}
    for name, raw in _large(calls.model).items():
        with calls.gateway.client() as client:
            client.ask(CHAT, raw)
            answers[name] = client.answer().status
    measured(22, f"longest stall {milliseconds(longest_stall[0])} under {len(answers)} bodies of 4 MB (100 ms)")
    refused = {"broken at its end", "too deep at its end"}
    assert answers == {name: 400 if name in refused else 200 for name in answers}
    assert longest_stall[0] < 10 * STALL_S
