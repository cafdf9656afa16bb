"""Row 10: a short Content-Length, a bad chunk, a status line that is none. Figure: an explicit 502, always; later than the first content an error event."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.answers import BadChunk, CloseAt, GarbageStatusLine, Json, RawBytes, ShortContentLength, Step
from tests.fakes.gateway import Broken
from tests.faults.calls import CHAT, Calls, outcome
from tests.faults.conftest import Measured

EACH = 25
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
BROKEN: dict[str, Step] = {
    "short content-length": ShortContentLength(Json({"choices": []})),
    "bad chunk": BadChunk(),
    "garbage status line": GarbageStatusLine(),
    "another protocol": RawBytes(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "an old protocol": RawBytes(b"<html>hello</html>"),
    "status of two digits": RawBytes(b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n"),
    "status of 999": RawBytes(b"HTTP/1.1 999 What\r\ncontent-length: 0\r\n\r\n"),
    "two lengths": RawBytes(OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} "),
    "negative length": RawBytes(OK + b"content-length: -2\r\n\r\n{}"),
    "length and chunks": RawBytes(OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}"),
    "unknown transfer encoding": RawBytes(OK + b"transfer-encoding: gzip\r\n\r\n{}"),
    "chunk size with a sign": RawBytes(OK + b"transfer-encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n"),
    "chunk longer than its size": RawBytes(OK + b"transfer-encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n"),
    "head without an end": RawBytes(OK + b"x-half: "),
    "nothing": CloseAt(0),
    "chunk cut": RawBytes(OK + b"transfer-encoding: chunked\r\n\r\nff\r\n{}"),
    "final chunk missing": RawBytes(OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"),
    "switched protocols": RawBytes(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"),
}


def test_10_every_break_of_framing_is_an_explicit_502(calls: Calls, measured: Measured) -> None:
    failed = []
    for name, step in BROKEN.items():
        calls.provider.always("/v1/chat/completions", step)
        outcomes = calls.crowd(EACH, lambda client, number: outcome(client, CHAT, calls.body(stream=number % 2 == 0)), clients=5)
        failed += [(name, one) for one in outcomes if one.status != 502 or not one.error()]
    measured(10, f"{1 - len(failed) / (EACH * len(BROKEN)):.0%} of {EACH * len(BROKEN)} answered with an explicit 502 (100 %)")
    assert not failed


@pytest.mark.parametrize("end", [b"zz\r\nwhat\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"5\r\nab"], ids=["letters", "negative", "huge", "cut"])
def test_10_bad_chunk_after_content_is_an_error_event(calls: Calls, end: bytes) -> None:
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}\n\n'
    head = STREAM + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(event), event)
    calls.provider.script("/v1/chat/completions", RawBytes(head, 0.05, end))
    seen = calls.outcome(stream=True)
    assert seen.status == 200
    assert seen.clean
    assert seen.body.startswith(event)
    assert (seen.error() or {}).get("code") == "upstream_interrupted"


@pytest.mark.parametrize("framing", [b"content-length: 5000000", b"transfer-encoding: chunked"], ids=["length", "chunked"])
def test_10_a_long_answer_that_breaks_off_breaks_off_for_the_client(calls: Calls, framing: bytes) -> None:
    """Its status has gone out: all that can be told is that it is not whole."""
    size = b"%x\r\n" % 4_500_000 if b"chunked" in framing else b""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n" + framing + b"\r\n\r\n" + size
    calls.provider.script("/v1/audio/speech", RawBytes(head + b"a" * 4_400_000))
    document: dict[str, Any] = {"model": calls.model, "input": "x", "voice": "v"}
    with calls.gateway.client() as client:
        client.ask("/v1/audio/speech", document)
        assert client.head().status == 200
        with pytest.raises(Broken):
            client.rest()
    assert calls.gateway.wait_endings(calls.model, 1) == {"upstream_truncated": 1}
