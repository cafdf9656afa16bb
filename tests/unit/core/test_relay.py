from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.exchange import Ending
from gateway.core.metering import Source
from gateway.errors import Cancelled, UpstreamInterrupted, UpstreamTimeout
from tests.factories import StillClient, call, exchange
from tests.fakes.chatgpt_web import cumulative, event, line
from tests.unit.core.stages import DONE, STREAM, USAGE, Book, chunk, drained, relayed


def test_stream_arrives_unchanged_and_is_settled_before_its_terminal_event() -> None:
    book = Book()
    items = [chunk("a"), chunk("b"), USAGE, DONE]
    assert drained(relayed(items, book), book) == b"".join(items)
    ((ending, metered),) = book.settled
    assert ending is Ending.COMPLETE
    assert metered.source is Source.PROVIDER
    assert (metered.usage.input_tokens, metered.usage.output_tokens) == (7, 2)
    assert book.delivered_at_settle == len(b"".join(items)) - len(DONE)


@given(st.lists(st.integers(0, 400), max_size=12))
def test_stream_arrives_unchanged_however_it_is_cut(cuts: list[int]) -> None:
    whole = chunk("häß€😀") + chunk("b") + USAGE + DONE
    marks = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    items = [whole[a:b] for a, b in itertools.pairwise(marks)]
    book = Book()
    assert drained(relayed(items, book), book) == whole
    assert book.settled[0][1].usage.output_tokens == 2
    assert book.delivered_at_settle <= len(whole) - len(DONE)


def test_stream_with_carriage_returns_arrives_unchanged() -> None:
    whole = (chunk("a") + USAGE + DONE).replace(b"\n", b"\r\n")
    for size in (1, 2, 3, 7):
        book = Book()
        assert drained(relayed([whole[i : i + size] for i in range(0, len(whole), size)], book), book) == whole
        assert book.settled[0][0] is Ending.COMPLETE


@pytest.mark.parametrize("size", [1, 5, 64, 10_000])
def test_usage_event_that_we_asked_for_is_hidden_and_nothing_else(size: int) -> None:
    items = chunk("a", usage=None) + chunk('the "choices":[] of "usage"') + USAGE + DONE
    book = Book()
    out = drained(relayed([items[i : i + size] for i in range(0, len(items), size)], book, hides=True), book)
    assert out == items.replace(USAGE, b"")
    assert book.settled[0][1].usage.input_tokens == 7


def test_event_with_usage_and_choices_is_never_hidden() -> None:
    items = [chunk("a", usage={"prompt_tokens": 1, "completion_tokens": 1}), DONE]
    book = Book()
    assert drained(relayed(items, book, hides=True), book) == b"".join(items)


def test_stream_that_breaks_ends_with_an_error_event_and_no_done() -> None:
    book = Book()
    out = drained(relayed([chunk("a"), b'data: {"choi', UpstreamInterrupted("The upstream broke off.")], book), book)
    assert out.startswith(chunk("a"))
    error = json.loads(out[len(chunk("a")) :].removeprefix(b"data: "))
    assert error["error"]["code"] == "upstream_interrupted"
    assert b"[DONE]" not in out
    assert book.settled[0][0] is Ending.UPSTREAM_TRUNCATED
    assert book.settled[0][1].source is Source.ESTIMATED


def test_conversation_that_breaks_ends_with_an_error_that_its_clients_read() -> None:
    book = Book()
    items = [*(line(event(text)) for text in cumulative(["word "] * 12)), UpstreamInterrupted("The upstream broke off.")]
    out = drained(relayed(items, book, dialect="chatgpt_web", raw=b'{"model":"m","action":"next"}'), book)
    assert json.loads(out.rpartition(b"data: ")[2]) == {"message": None, "conversation_id": None, "error": "The upstream broke off."}
    assert b"[DONE]" not in out
    ((ending, metered),) = book.settled
    assert (ending, metered.source, metered.usage.output_tokens) == (Ending.UPSTREAM_TRUNCATED, Source.ESTIMATED, 10)


def test_stream_that_ends_without_done_or_finish_reason_is_an_error() -> None:
    book = Book()
    out = drained(relayed([chunk("a"), chunk("b")], book), book)
    assert json.loads(out.rpartition(b"data: ")[2])["error"]["code"] == "upstream_interrupted"
    assert book.settled[0][0] is Ending.UPSTREAM_TRUNCATED


def test_stream_that_ends_after_its_finish_reason_is_complete_without_done() -> None:
    items = [chunk("a"), b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n']
    book = Book()
    assert drained(relayed(items, book), book) == b"".join(items)
    assert book.settled[0][0] is Ending.COMPLETE


def test_line_ends_after_the_last_event_are_no_broken_event() -> None:
    items = [chunk("a"), b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n', b"\n"]
    book = Book()
    assert drained(relayed(items, book), book) == b"".join(items)
    assert book.settled[0][0] is Ending.COMPLETE


def test_two_choices_need_done() -> None:
    items = [chunk("a"), b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n']
    book = Book()
    drained(relayed(items, book, raw=b'{"model":"m","stream":true,"n":2}'), book)
    assert book.settled[0][0] is Ending.UPSTREAM_TRUNCATED


def test_idle_deadline_is_a_timeout() -> None:
    book = Book()
    out = drained(relayed([chunk("a"), UpstreamTimeout("Too slow.", phase="idle")], book), book)
    assert b"upstream_timeout" in out
    assert book.settled[0][0] is Ending.TIMEOUT


def test_failed_commit_withholds_the_terminal_event() -> None:
    book = Book(fails=True)
    out = drained(relayed([chunk("a"), DONE], book), book)
    assert b"[DONE]" not in out
    assert json.loads(out.rpartition(b"data: ")[2])["error"]["code"] == "settle_failed"


def test_client_that_left_gets_nothing_more_and_is_settled_once() -> None:
    client, book = StillClient(), Book()
    ex = exchange(call(STREAM), client)
    relay = relayed([chunk("a"), Cancelled("client_gone")], book, ex=ex)
    assert next(relay) == chunk("a")
    client.leave()
    assert ex.call.cancel.reason == "client_gone"
    with pytest.raises(StopIteration):
        next(relay)
    relay.close()
    relay.close()
    assert [ending for ending, _ in book.settled] == [Ending.CLIENT_GONE]


def test_close_before_the_first_pull_settles_and_closes_the_upstream() -> None:
    book = Book()
    relay = relayed([chunk("a"), DONE], book)
    relay.close()
    assert [ending for ending, _ in book.settled] == [Ending.CLIENT_GONE]
    assert list(relay) == []


def test_break_after_the_terminal_event_changes_nothing() -> None:
    book = Book()
    assert drained(relayed([chunk("a"), DONE, UpstreamInterrupted("late")], book), book) == chunk("a") + DONE
    assert book.settled[0][0] is Ending.COMPLETE


def test_overlong_event_passes_in_pieces() -> None:
    big = b'data: {"choices":[{"delta":{"content":"' + b"x" * (3 << 20) + b'"}}]}\n\n'
    items = [chunk("a"), *(big[i : i + 65536] for i in range(0, len(big), 65536)), DONE]
    book = Book()
    assert drained(relayed(items, book), book) == b"".join(items)


def test_long_terminal_event_waits_for_the_commit() -> None:
    head = b'event: image_generation.completed\ndata: {"type":"image_generation.completed","b64_json":"'
    big = head + b"x" * (3 << 20) + b'","usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}}\n\n'
    first = b'event: image_generation.partial_image\ndata: {"type":"image_generation.partial_image"}\n\n'
    book = Book()
    items = [first, *(big[i : i + 65536] for i in range(0, len(big), 65536))]
    assert drained(relayed(items, book, dialect="openai_rest"), book) == first + big
    assert book.delivered_at_settle == len(first)
    assert book.settled[0][1].usage.output_tokens == 4


def test_whole_answer_is_settled_before_the_relay_exists() -> None:
    book = Book()
    body = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}'
    relay = relayed([body[:9], body[9:]], book, headers=(("content-type", "application/json"),), raw=b'{"model":"m"}')
    assert relay.body == body
    assert book.settled[0][1].usage.output_tokens == 4


def test_counted_answer_is_settled_before_the_block_that_completes_it() -> None:
    book = Book()
    size = (4 << 20) + 10
    items = [b"x" * (4 << 20), b"y" * 10]
    relay = relayed(items, book, headers=(("content-type", "audio/mpeg"), ("content-length", str(size))), dialect="openai_rest", raw=b'{"model":"m"}')
    assert relay.length == size
    assert next(relay) == items[0]
    assert book.settled == []
    assert next(relay) == items[1]
    assert book.settled[0][0] is Ending.COMPLETE


def test_open_answer_is_settled_before_the_end_of_the_iteration() -> None:
    book = Book()
    relay = relayed([b"a", b"b"], book, headers=(("content-type", "audio/mpeg"),), dialect="openai_rest", raw=b'{"model":"m"}')
    assert [next(relay), next(relay)] == [b"a", b"b"]
    assert book.settled == []
    with pytest.raises(StopIteration):
        next(relay)
    assert book.settled[0][0] is Ending.COMPLETE


def test_bytes_that_break_off_break_the_answer() -> None:
    book = Book()
    relay = relayed([b"a", UpstreamInterrupted("cut")], book, headers=(("content-type", "audio/mpeg"),), dialect="openai_rest", raw=b'{"model":"m"}')
    next(relay)
    with pytest.raises(UpstreamInterrupted):
        next(relay)
    assert book.settled[0][0] is Ending.UPSTREAM_TRUNCATED
    assert list(relay) == []


def test_responses_stream_ends_with_its_own_terminal_event() -> None:
    events = [
        b'event: response.created\ndata: {"type":"response.created"}\n\n',
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"response.completed"}\n\n',
    ]
    last = b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":5,"output_tokens":6,"total_tokens":11}}}\n\n'
    book = Book()
    assert drained(relayed([*events, last], book, dialect="openai_rest"), book) == b"".join(events) + last
    assert book.delivered_at_settle == len(b"".join(events))
    assert book.settled[0][1].usage.output_tokens == 6
