"""Row 7: an upstream that feeds a byte every 0.2 s for ever, wherever in its answer. Figure: the call ends within 0.5 s of its total deadline."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.fakes.answers import Endless, Step
from tests.fakes.gateway import Broken
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, Calls, Outcome
from tests.faults.conftest import Measured

TOTAL_S = 2.0
PAUSE_S = 0.2
FIGURE_S = 0.5
BOUND_S = 10 * FIGURE_S
SPEECH = "/v1/audio/speech"
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BEFORE_CONTENT: dict[str, tuple[str, Step]] = {
    "status line": (CHAT, Endless(b"HTTP/1.1 200 ", b"O", PAUSE_S)),
    "header": (CHAT, Endless(b"HTTP/1.1 200 OK\r\nx-a: ", b"a", PAUSE_S)),
    "first event": (CHAT, Endless(STREAM + b"data: ", b"a", PAUSE_S)),
    "comments": (CHAT, Endless(STREAM, b": x\n\n", PAUSE_S)),
    "JSON body": (CHAT, Endless(JSON + b"\r\n", b" ", PAUSE_S)),
    "JSON body of a known length": (CHAT, Endless(JSON + b"content-length: 100000\r\n\r\n", b" ", PAUSE_S)),
    "chunk size": (CHAT, Endless(JSON + b"transfer-encoding: chunked\r\n\r\n1;", b"a", PAUSE_S)),
}
STREAMS: dict[str, tuple[str, Step]] = {
    "later event": (CHAT, Endless(STREAM + EVENT + b"data: ", b"a", PAUSE_S)),
    "whole events": (CHAT, Endless(STREAM + EVENT, EVENT, PAUSE_S)),
}
BYTES: dict[str, tuple[str, Step]] = {
    "sound": (SPEECH, Endless(b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\n\r\n", b"a", PAUSE_S)),
    "sound of a known length": (SPEECH, Endless(b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: 5000000\r\n\r\n", b"a", PAUSE_S)),
}
DRIPS = BEFORE_CONTENT | STREAMS | BYTES


def test_07_drip_feed_ends_at_the_total_deadline(calls: Calls, measured: Measured) -> None:
    """All at once, each from a model of its own."""
    providers = {name: Provider() for name in DRIPS}
    for name, (path, step) in DRIPS.items():
        providers[name].__enter__()
        providers[name].always(path, step)
        calls.gateway.deploy(_model(calls, name), providers[name].url, total_s=TOTAL_S)
    calls.gateway.wait_catalog()
    with ThreadPoolExecutor(len(DRIPS)) as pool:
        seen = dict(zip(DRIPS, pool.map(lambda name: _asked(calls, name), DRIPS), strict=True))
    off = [seconds - TOTAL_S for _, seconds in seen.values()]
    measured(7, f"{len(off)} places of a drip feed: the call ends {min(off):+.2f} to {max(off):+.2f} s beside the total deadline (+-0.5 s)")
    assert min(off) > -FIGURE_S
    assert max(off) < BOUND_S
    for name, (outcome, _) in seen.items():
        _check(name, outcome)
        assert calls.gateway.wait_endings(_model(calls, name), 1) == {"timeout": 1}
        providers[name].wait_open(0)
        assert len(providers[name].requests) == 1, f"{name}: a deadline that was used up leaves nothing for another attempt"
        providers[name].__exit__()


def _model(calls: Calls, name: str) -> str:
    return f"{calls.model}-{name.replace(' ', '-')}"


def _asked(calls: Calls, name: str) -> tuple[Outcome, float]:
    path, _ = DRIPS[name]
    model = {"model": _model(calls, name)}
    document: dict[str, Any] = {"input": "x", "voice": "v"} | model if path == SPEECH else calls.body(stream="event" in name or name == "comments") | model
    begun = time.monotonic()
    with calls.gateway.client() as client:
        client.ask(path, document)
        head = client.head()
        try:
            outcome = Outcome(head.status, client.rest(), clean=True)
        except Broken as error:
            outcome = Outcome(head.status, error.body, clean=False)
    return outcome, time.monotonic() - begun


def _check(name: str, outcome: Outcome) -> None:
    """An explicit 504, an error event, or, where bytes have gone out, a connection that is broken off."""
    assert outcome.status == (504 if name in BEFORE_CONTENT else 200), name
    assert outcome.clean is (name not in BYTES), name
    if outcome.clean:
        assert (outcome.error() or {}).get("code") == "upstream_timeout", name
