"""Row 6: a stream falls silent. Figures: comments while it does, at the boundaries of events only, and an explicit error within 0.5 s of the idle deadline."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import openai
import pytest

from tests.fakes.answers import Answer, Delay, End, Events, RawBytes, StallAt, Step
from tests.fakes.gateway import RawClient, RunningGateway
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, DONE, Calls, outcome
from tests.faults.conftest import Measured

HEARTBEAT_S = 0.2
IDLE_S = 1.2
FIGURE_S = 0.5
BOUND_S = 10 * FIGURE_S
PATH = "/v1/chat/completions"
COMMENT = b": waiting\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def _chunk(text: str, finish: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


WORDS = Events(_chunk("one "), _chunk("two "), _chunk("", "stop"))
FIRST, SECOND, *REST = WORDS.blocks


@pytest.fixture(scope="module")
def beating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), {"GATEWAY_HEARTBEAT_S": str(HEARTBEAT_S)}) as gateway, Provider() as provider:
        gateway.deploy("m", provider.url, idle_s=IDLE_S)
        gateway.wait_catalog()
        yield Calls(gateway, provider, "m")


def _paused(pause_s: float, *blocks: bytes) -> Step:
    """A stream of these blocks with a pause between each two, the end of the connection at its end."""
    return RawBytes(HEAD, *(action for block in blocks for action in (block, pause_s)))


def test_06_idle_deadline_is_an_explicit_error_among_heartbeats(beating: Calls, measured: Measured) -> None:
    beating.provider.script(PATH, StallAt(len(HEAD + FIRST), RawBytes(HEAD + FIRST, End.HOLD)))
    with beating.gateway.client() as client:
        client.ask(CHAT, beating.body(stream=True))
        client.head()
        client.until(FIRST)
        begun, moments = time.monotonic(), [time.monotonic()]
        while block := client.block():
            if block == COMMENT:
                moments.append(time.monotonic())
            else:
                last = block
        took = time.monotonic() - begun
    measured(6, f"explicit error {took - IDLE_S:+.2f} s beside the idle deadline of {IDLE_S:g} s (+-0.5 s), after {len(moments) - 1} heartbeats")
    assert b'"upstream_timeout"' in last
    assert IDLE_S - FIGURE_S < took < IDLE_S + BOUND_S
    assert len(moments) - 1 == int((IDLE_S - 0.01) / HEARTBEAT_S)
    assert min(after - before for before, after in pairwise(moments)) > HEARTBEAT_S / 2
    beating.provider.wait_closed(1)


def test_06_stream_that_goes_on_is_the_same_but_for_comments_between_events(beating: Calls) -> None:
    """Silences stand between events, within one, and within a line end; nothing but whole events is ever cut by a comment."""
    pause_s = 2.5 * HEARTBEAT_S
    whole = b"".join(WORDS.blocks).replace(b"\n", b"\r\n")
    edge = whole.index(b"\r\n\r\n") + 4
    cuts = [0, edge, edge + 20, whole.index(b"\r\n\r\n", edge) + 3, len(whole)]
    beating.provider.script(PATH, _paused(pause_s, *(whole[start:end] for start, end in pairwise(cuts))))
    seen = beating.outcome(stream=True)
    assert seen.clean
    assert seen.body.count(COMMENT) == 6
    assert seen.body.replace(COMMENT, b"") == whole
    parts = seen.body.split(COMMENT)
    assert all(part == b"" or part.endswith(b"\r\n\r\n") for part in parts)
    assert beating.gateway.wait_endings("m", 1).get("complete", 0) >= 1


def test_06_no_comment_before_the_first_event_or_after_the_last(beating: Calls) -> None:
    pause_s = 2.5 * HEARTBEAT_S
    first = b": the upstream's own\n\n" + FIRST
    beating.provider.script(PATH, RawBytes(HEAD, pause_s, first[:30], pause_s, first[30:] + SECOND + b"".join(REST), pause_s))
    with beating.gateway.client() as client:
        client.ask(CHAT, beating.body(stream=True))
        assert client.silent(1.6 * pause_s)
        assert client.answer().body == first + SECOND + b"".join(REST)


def test_06_half_an_event_that_never_ends_is_followed_by_an_error(beating: Calls) -> None:
    beating.provider.script(PATH, RawBytes(HEAD + FIRST + SECOND[:-1], End.HOLD))
    seen = beating.outcome(stream=True)
    assert seen.clean
    assert b"two" not in seen.body
    assert (seen.error() or {})["code"] == "upstream_timeout"


def test_06_comments_are_no_content(beating: Calls) -> None:
    """What is booked of a stream that breaks off is the same with and without them."""
    booked = set()
    for pause_s in (0.0, 4 * HEARTBEAT_S):
        beating.provider.script(PATH, RawBytes(HEAD + FIRST, pause_s, SECOND * 3))
        with beating.gateway.client() as client:
            client.ask(CHAT, beating.body(stream=True))
            exchange = client.head().headers["x-request-id"]
            assert (COMMENT in client.rest()) is (pause_s > 0)
        entry = beating.gateway.entry(exchange)
        assert entry is not None
        booked.add((entry.ending, entry.usage.output_text, entry.usage.input_uncached, entry.amount))
    assert len(booked) == 1


def test_06_whole_answers_and_bytes_get_no_comment(beating: Calls) -> None:
    beating.provider.script(PATH, Delay(3 * HEARTBEAT_S))
    beating.provider.script("/v1/audio/speech", Answer(200, (("content-type", "audio/mpeg"),), (b"a" * 100, b"b" * 100), "chunked", 3 * HEARTBEAT_S))
    assert beating.ask().json()["choices"]
    with beating.gateway.client() as client:
        client.ask("/v1/audio/speech", {"model": "m", "input": "x", "voice": "v"})
        assert client.answer().body == b"a" * 100 + b"b" * 100


def test_06_openai_sdk_passes_over_the_comments(beating: Calls) -> None:
    paused = Events(_chunk("one "), _chunk("two "), _chunk("", "stop"), pause_s=1.5 * HEARTBEAT_S)
    responses = Events(
        {"type": "response.output_text.delta", "delta": "one ", "item_id": "i", "output_index": 0, "content_index": 0, "sequence_number": 1, "logprobs": []},
        {"type": "response.completed", "sequence_number": 2, "response": {"id": "r", "output": []}},
        done=False,
        pause_s=1.5 * HEARTBEAT_S,
    )
    with_ids = RawBytes(HEAD, b"id: 1\n" + FIRST, 1.5 * HEARTBEAT_S, b"id: 2\n" + SECOND + b"".join(REST))
    beating.provider.script(PATH, paused, paused, with_ids)
    beating.provider.script("/v1/responses", responses)
    texts: dict[str, str] = {}
    with openai.OpenAI(base_url=beating.gateway.url, api_key=beating.gateway.key, max_retries=0) as client:
        for name in ("sync", "with ids"):
            if name == "with ids":
                texts["async"] = asyncio.run(_asked(beating))
            stream = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
            texts[name] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        kinds = [event.type for event in client.responses.create(model="m", input="x", stream=True)]
    assert texts == dict.fromkeys(("sync", "async", "with ids"), "one two ")
    assert kinds == ["response.output_text.delta", "response.completed"]


async def _asked(calls: Calls) -> str:
    async with openai.AsyncOpenAI(base_url=calls.gateway.url, api_key=calls.gateway.key, max_retries=0) as client:
        stream = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_06_many_silent_streams_end_together_in_time(beating: Calls, measured: Measured) -> None:
    count = 100
    beating.provider.always(PATH, RawBytes(HEAD + FIRST, End.HOLD))
    lateness: list[float] = []
    guard = threading.Lock()

    def one(client: RawClient, number: int) -> bytes:
        begun = time.monotonic()
        body = outcome(client, CHAT, beating.body(stream=True)).body
        with guard:
            lateness.append(time.monotonic() - begun - IDLE_S)
        return body

    bodies = beating.crowd(count, one, clients=count)
    measured(6, f"{count} silent streams at once: the error comes {min(lateness):+.2f} to {max(lateness):+.2f} s beside the idle deadline (+-0.5 s)")
    assert all(b'"upstream_timeout"' in body and not body.endswith(DONE) for body in bodies)
    assert min(lateness) > -FIGURE_S
    assert max(lateness) < BOUND_S
    beating.provider.wait_open(0)
