"""Row 17: the client of a stream goes away while the upstream talks, or is silent. Figures: the upstream is closed within 50 ms at the
99th percentile, and each call is settled once."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from tests.fakes.answers import Events, Silent, StallAt, Step
from tests.fakes.gateway import RawClient
from tests.faults.calls import CHAT, Calls, milliseconds, percentile
from tests.faults.conftest import Measured

ABORTS = 70
FIGURE_S = 0.050
BOUND_S = 10 * FIGURE_S
CHUNK = {"id": "c", "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}
TALKING = Events(*[CHUNK] * 3000, pause_s=0.01)
SILENT_AFTER_CONTENT = StallAt(600, TALKING)

Leave = Callable[[RawClient], None]


def _close(client: RawClient) -> None:
    client.sock.close()


def _half_close(client: RawClient) -> None:
    client.sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [_close, RawClient.reset, _half_close], ids=["close", "reset", "half-close"])
@pytest.mark.parametrize(
    ("step", "mark"), [(TALKING, b"word"), (SILENT_AFTER_CONTENT, b"word"), (Silent(), b"")], ids=["talking", "silent", "silent-from-the-start"]
)
def test_17_upstream_is_closed_at_once(calls: Calls, measured: Measured, request: pytest.FixtureRequest, step: Step, mark: bytes, leave: Leave) -> None:
    calls.provider.always("/v1/chat/completions", step)
    took = [_aborted_after(calls, number, mark, leave) for number in range(1, ABORTS // 3 + 1)]
    slow = percentile(took, 0.99)
    how = request.node.callspec.id
    measured(17, f"upstream closed {milliseconds(percentile(took, 0.5))} median, {milliseconds(slow)} p99 of {len(took)} aborts, {how} (50 ms)")
    assert min(took) > 0
    assert slow < BOUND_S
    assert calls.gateway.wait_endings(calls.model, len(took)) == {"client_gone": len(took)}


def _aborted_after(calls: Calls, number: int, mark: bytes, leave: Leave) -> float:
    """Seconds from the client's leaving to the upstream's seeing its own connection closed."""
    with calls.gateway.client() as client:
        client.ask(CHAT, calls.body(stream=True))
        calls.provider.wait_requests(number)
        if mark:
            client.head()
            client.until(mark)
        left = time.monotonic()
        leave(client)
        return calls.provider.wait_closed(number)[-1] - left


def test_17_every_abort_of_a_crowd_is_settled_once(calls: Calls, measured: Measured) -> None:
    calls.provider.always("/v1/chat/completions", TALKING)
    streams = 200

    def abort(client: RawClient, number: int) -> None:
        client.ask(CHAT, calls.body(stream=True))
        client.head()
        client.until(b"word")
        (RawClient.reset if number % 2 else _close)(client)

    calls.crowd(streams, abort, clients=40)
    calls.provider.wait_closed(streams)
    endings = calls.gateway.wait_endings(calls.model, streams)
    measured(17, f"{sum(endings.values())} settlements of {streams} aborts in a crowd ({streams})")
    time.sleep(0.3)  # a second settlement would come now
    assert calls.gateway.endings(calls.model) == {"client_gone": streams}
    assert len(calls.provider.requests) == streams


def test_17_the_next_request_of_the_connection_is_not_taken_for_leaving(calls: Calls) -> None:
    """A pipelined request is data: the watch ends, the answer is whole, and the next one follows."""
    calls.provider.always("/v1/chat/completions", Events(*[CHUNK] * 20, pause_s=0.01))
    with calls.gateway.client() as client:
        client.ask(CHAT, calls.body(stream=True))
        client.ask(CHAT, calls.body(stream=True))
        for _ in range(2):
            assert client.answer().body.endswith(b"data: [DONE]\n\n")
    assert calls.gateway.wait_endings(calls.model, 2) == {"complete": 2}
