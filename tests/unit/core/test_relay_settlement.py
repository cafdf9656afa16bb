from __future__ import annotations

import gc
import weakref

import pytest

from gateway.backend import Reply
from gateway.core.drains import Drains
from gateway.core.exchange import Ending
from gateway.core.head import Answer, Framing
from gateway.core.metering import Source
from gateway.core.relay import Relay
from gateway.dialects.events import Usage
from gateway.errors import SettleFailed, UpstreamInterrupted
from tests.factories import JSON, SSE, Chunks, call, exchange
from tests.unit.core.stages import DONE, STREAM, USAGE, Book, chunk, drained, relayed


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n"])
def test_terminal_event_counts_without_the_blank_line_that_should_follow(end: bytes) -> None:
    book = Book()
    assert drained(relayed([chunk("a"), USAGE, end], book), book) == chunk("a") + USAGE + end
    assert book.settled[0][0] is Ending.COMPLETE
    assert book.delivered_at_settle == len(chunk("a") + USAGE)


def test_usage_in_a_terminal_event_without_its_blank_line_is_read() -> None:
    first = b'event: response.created\ndata: {"type":"response.created"}\n\n'
    last = b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":5,"output_tokens":6,"total_tokens":11}}}'
    book = Book()
    assert drained(relayed([first, last], book, dialect="openai_rest"), book) == first + last
    assert book.settled[0][1].usage.output_tokens == 6


def test_failed_commit_withholds_a_terminal_event_without_its_blank_line() -> None:
    book = Book(fails=True)
    out = drained(relayed([chunk("a"), b"data: [DONE]\n"], book), book)
    assert b"[DONE]" not in out
    assert b"settle_failed" in out


def test_event_that_only_looks_like_a_usage_does_not_push_out_the_usage() -> None:
    lookalike = b'data: {"choices":[],"x_extra":{"usage":{"prompt_tokens":1}}}\n\n'
    book = Book()
    drained(relayed([chunk("a"), USAGE, lookalike, lookalike, DONE], book), book)
    assert book.settled[0][1].source is Source.PROVIDER
    assert book.settled[0][1].usage.output_tokens == 2


def test_comments_are_not_counted_as_words() -> None:
    book = Book()
    items: list[bytes | Exception] = [chunk("a"), *[b": still there\n\n"] * 50, chunk("b"), chunk("c"), UpstreamInterrupted("cut")]
    drained(relayed(items, book), book)
    assert book.settled[0][1].usage.output_tokens == 1


def test_words_of_a_stream_with_carriage_returns_are_counted() -> None:
    book = Book()
    items = [chunk(str(number)).replace(b"\n", b"\r\n") for number in range(12)]
    drained(relayed([*items, UpstreamInterrupted("cut")], book), book)
    assert book.settled[0][1].usage.output_tokens == 10


def test_counted_answer_that_ends_too_early_is_broken_off() -> None:
    book = Book()
    chunks = Chunks([b"y"])
    answer = Answer(Reply(200, (), chunks, chunks.close), Framing.COUNTED, b"x", length=10)
    relay = Relay(answer, exchange(call(dialect="openai_rest")), book, Drains())  # type: ignore[arg-type]
    assert [next(relay), next(relay)] == [b"x", b"y"]
    with pytest.raises(UpstreamInterrupted):
        next(relay)
    relay.close()
    assert [ending for ending, _ in book.settled] == [Ending.UPSTREAM_TRUNCATED]


def test_failed_commit_breaks_a_counted_answer_before_its_last_block() -> None:
    book = Book(fails=True)
    chunks = Chunks([b"y" * 5, b"z" * 4])
    relay = Relay(Answer(Reply(200, (), chunks, chunks.close), Framing.COUNTED, b"x", length=10), exchange(call(dialect="openai_rest")), book, Drains())  # type: ignore[arg-type]
    assert [next(relay), next(relay)] == [b"x", b"y" * 5]
    with pytest.raises(SettleFailed):
        next(relay)
    assert list(relay) == []


def test_failed_commit_breaks_an_open_answer_before_its_end() -> None:
    book = Book(fails=True)
    relay = relayed([b"a"], book, headers=(("content-type", "audio/mpeg"),), dialect="openai_rest", raw=b'{"model":"m"}')
    assert next(relay) == b"a"
    with pytest.raises(SettleFailed):
        next(relay)


def test_error_object_under_a_good_status_is_not_charged() -> None:
    book = Book()
    relay = relayed([b'{"error":{"message":"overloaded"}}'], book, headers=JSON, raw=b'{"model":"m"}')
    assert relay.status == 200
    ((ending, metered),) = book.settled
    assert ending is Ending.UPSTREAM_ERROR
    assert (metered.source, metered.usage) == (Source.NONE, Usage())


def test_error_object_with_a_usage_is_what_the_provider_bills() -> None:
    book = Book()
    relayed([b'{"error":{"message":"filtered"},"usage":{"prompt_tokens":3,"completion_tokens":0}}'], book, headers=JSON, raw=b'{"model":"m"}')
    assert book.settled[0][0] is Ending.COMPLETE
    assert book.settled[0][1].usage.input_tokens == 3


def test_upstreams_refusal_is_not_charged_whatever_it_says() -> None:
    book = Book()
    chunks = Chunks([])
    body = b'{"error":{},"usage":{"prompt_tokens":3,"completion_tokens":9}}'
    Relay(Answer(Reply(400, JSON, chunks, chunks.close), Framing.WHOLE, body), exchange(call()), book, Drains())  # type: ignore[arg-type]
    assert [(ending, metered.source) for ending, metered in book.settled] == [(Ending.UPSTREAM_ERROR, Source.NONE)]


def test_reply_is_closed_where_its_relay_could_not_be_built() -> None:
    chunks = Chunks([])
    with pytest.raises(SettleFailed):
        Relay(Answer(Reply(200, JSON, chunks, chunks.close), Framing.WHOLE, b"{}"), exchange(call()), Book(fails=True), Drains())  # type: ignore[arg-type]
    assert chunks.closed == 1


def test_backend_whose_close_fails_does_not_cost_the_entry() -> None:
    def stuck() -> None:
        raise OSError("stuck")

    book = Book()
    relay = Relay(Answer(Reply(200, SSE, Chunks([]), stuck), Framing.EVENTS, chunk("a")), exchange(call(STREAM)), book, Drains())  # type: ignore[arg-type]
    with pytest.raises(OSError, match="stuck"):
        relay.close()
    assert [ending for ending, _ in book.settled] == [Ending.CLIENT_GONE]


@pytest.mark.parametrize("items", [[DONE], []])
def test_backend_whose_usage_fails_does_not_cost_the_entry(items: list[bytes | Exception]) -> None:
    def broken() -> Usage | None:
        raise KeyError("usage")

    book = Book()
    chunks = Chunks(items)
    relay = Relay(Answer(Reply(200, SSE, chunks, chunks.close, broken), Framing.EVENTS, chunk("a") + USAGE), exchange(call(STREAM)), book, Drains())  # type: ignore[arg-type]
    drained(relay, book)
    assert len(book.settled) == 1
    assert book.settled[0][1].usage.output_tokens == 2


def test_usage_of_a_backend_goes_before_what_the_bytes_say() -> None:
    book = Book()
    chunks = Chunks([DONE])
    own = Usage(input_uncached=70, output_text=80)
    relay = Relay(Answer(Reply(200, SSE, chunks, chunks.close, lambda: own), Framing.EVENTS, chunk("a") + USAGE), exchange(call(STREAM)), book, Drains())  # type: ignore[arg-type]
    drained(relay, book)
    assert book.settled[0][1].usage == own


def test_bytes_of_a_call_do_not_wait_for_the_garbage_collector() -> None:
    book = Book()
    gc.disable()
    try:
        gone = []
        for headers, items in [(SSE, [chunk("a"), DONE]), (JSON, [b"{}"]), ((("content-type", "audio/mpeg"),), [b"a", b"b"])]:
            relay = relayed(items, book, headers=headers)
            for _ in relay:
                pass
            relay.close()
            gone.append(weakref.ref(relay))
            del relay
        assert [each() for each in gone] == [None, None, None]
    finally:
        gc.enable()
