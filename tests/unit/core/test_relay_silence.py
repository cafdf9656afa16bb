"""What the relay does on a tick, and with an answer that says of itself that it failed."""

from __future__ import annotations

import json

import pytest

from gateway.core.exchange import Ending
from gateway.core.metering import Source
from gateway.dialects import CODECS, sse
from gateway.dialects.sse import HEARTBEAT
from gateway.errors import Cancelled, UpstreamInterrupted, UpstreamTimeout
from tests.factories import JSON, StillClient, call, exchange
from tests.fakes.chatgpt_web import event, line
from tests.unit.core.stages import DONE, STREAM, USAGE, Book, chunk, drained, relayed

TICK = b""
BYTES = (("content-type", "audio/mpeg"),)
ERROR = b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n'
CREATED = b'event: response.created\ndata: {"type":"response.created"}\n\n'
FAILED = b'event: response.failed\ndata: {"type":"response.failed","response":{"status":"failed","error":{"code":"server_error"},"usage":%b}}\n\n'
SPENT = b'{"input_tokens":5,"output_tokens":6,"total_tokens":11}'


# heartbeats


def test_tick_becomes_a_comment_between_two_events() -> None:
    book = Book()
    out = drained(relayed([chunk("a"), TICK, TICK, chunk("b"), USAGE, DONE], book), book)
    assert out == chunk("a") + HEARTBEAT * 2 + chunk("b") + USAGE + DONE
    assert [sse.parse(raw).data for raw in sse.split(HEARTBEAT)] == [None]


def test_tick_sends_nothing_where_clients_of_the_dialect_pass_over_no_comment() -> None:
    book, ex = Book(), exchange(call(STREAM, "chatgpt_web"))
    said = line(event("a"))
    assert drained(relayed([said, TICK, said, DONE], book, dialect="chatgpt_web", ex=ex), book) == said * 2 + DONE
    assert ex.heartbeats == 0


def test_tick_before_the_first_event_sends_nothing() -> None:
    book = Book()
    relay = relayed([TICK, TICK, chunk("a"), DONE], book)
    assert next(relay) == chunk("a")


def test_half_an_event_that_was_held_back_follows_the_comment() -> None:
    book = Book()
    half, rest = chunk("b")[:20], chunk("b")[20:]
    assert drained(relayed([chunk("a") + half, TICK, rest, DONE], book), book) == chunk("a") + HEARTBEAT + half + rest + DONE


def test_half_a_line_end_is_held_back_before_the_comment() -> None:
    book = Book()
    event = chunk("b").replace(b"\n", b"\r\n")
    assert drained(relayed([chunk("a"), event[:-1], TICK, event[-1:], DONE], book), book) == chunk("a") + HEARTBEAT + event + DONE


def test_event_that_leaves_in_pieces_is_not_broken_by_a_comment() -> None:
    big = b'data: {"x":"' + b"x" * (3 << 20) + b'"}\n\n'
    pieces = [big[start : start + (1 << 20) + 1] for start in range(0, len(big), (1 << 20) + 1)]
    ticked = [item for piece in pieces for item in (piece, TICK)]
    book = Book()
    assert drained(relayed([chunk("a"), *ticked, DONE], book), book) == chunk("a") + big + HEARTBEAT + DONE


def test_terminal_event_is_the_last_word() -> None:
    book = Book()
    assert drained(relayed([chunk("a"), DONE, TICK, TICK], book), book) == chunk("a") + DONE


def test_comment_is_not_counted_as_an_answer() -> None:
    def estimate(*ticks: bytes) -> int:
        book = Book()
        drained(relayed([chunk("a"), *ticks, chunk("b"), chunk("c"), *ticks, UpstreamInterrupted("cut")], book), book)
        assert book.settled[0][1].source is Source.ESTIMATED
        return book.settled[0][1].usage.output_text

    assert estimate(*[TICK] * 50) == estimate()


def test_stream_whose_events_have_ids_gets_no_comment() -> None:
    """OpenAI's Python SDK takes the comment's blank line for an event without data once it saw an id."""
    for field in (b"id: 1\n", b"id\n", b"event: x\r\nid:1\r\n"):
        book = Book()
        items = [field + chunk("a"), TICK, DONE]
        assert drained(relayed(items, book), book) == b"".join(items)
    book = Book()
    items = [chunk("a"), b"id: 1\n" + chunk("b"), chunk("c"), TICK, DONE]  # it never forgets one
    assert drained(relayed(items, book), book) == b"".join(items)
    book = Book()
    assert HEARTBEAT in drained(relayed([chunk("\nid: 1"), TICK, DONE], book), book)


def test_client_that_left_gets_no_comment() -> None:
    client, book = StillClient(), Book()
    relay = relayed([chunk("a"), TICK, Cancelled("client_gone")], book, ex=exchange(call(STREAM), client))
    next(relay)
    client.leave()
    with pytest.raises(StopIteration):
        next(relay)
    assert book.settled[0][0] is Ending.CLIENT_GONE


def test_idle_deadline_ends_a_stream_that_ticked() -> None:
    book = Book()
    out = drained(relayed([chunk("a"), TICK, TICK, UpstreamTimeout("The upstream fell silent.", phase="idle")], book), book)
    assert out.startswith(chunk("a") + HEARTBEAT * 2 + b"data: ")
    assert json.loads(out.rpartition(b"data: ")[2])["error"]["code"] == "upstream_timeout"
    assert book.settled[0][0] is Ending.TIMEOUT


@pytest.mark.parametrize("headers", [JSON, BYTES, (("content-type", "audio/mpeg"), ("content-length", str(5 << 20)))], ids=["whole", "open", "counted"])
def test_answer_that_is_no_stream_of_events_never_gets_an_empty_block_or_a_comment(headers: tuple[tuple[str, str], ...]) -> None:
    """The server would take an empty block for the end."""
    blocks = [b"{", b"x" * ((5 << 20) - 2), b"}"]
    book = Book()
    items = [TICK, blocks[0], TICK, blocks[1], TICK, blocks[2], TICK]
    relay = relayed(items, book, headers=headers, raw=b'{"model":"m"}', dialect="openai_rest")
    got = list(relay)
    assert b"" not in got
    assert b"".join(got) == b"".join(blocks)
    assert book.settled[0][0] is Ending.COMPLETE


def test_every_dialect_has_a_heartbeat_that_is_no_event_but_for_those_whose_clients_choke_on_it_or_stream_nothing() -> None:
    assert [name for name, codec in CODECS.items() if not codec.heartbeat] == ["api_server", "chatgpt_web"]
    for codec in [codec for codec in CODECS.values() if codec.heartbeat]:
        assert codec.heartbeat.endswith(b"\n\n")
        assert all(sse.parse(raw).data is None for raw in sse.split(codec.heartbeat))


# answers that say they failed


@pytest.mark.parametrize(("usage", "source"), [(SPENT, Source.PROVIDER), (b"null", Source.ESTIMATED)])
@pytest.mark.parametrize("cut", [0, 2], ids=["whole", "without the blank line"])
def test_failed_response_passes_unchanged_and_is_not_booked_as_complete(usage: bytes, source: Source, cut: int) -> None:
    failed = (FAILED % usage)[: -cut or None]
    book, ex = Book(), exchange(call(STREAM, "openai_rest"))
    assert drained(relayed([CREATED, failed], book, dialect="openai_rest", ex=ex), book) == CREATED + failed
    ((ending, metered),) = book.settled
    assert (ending, ex.error) == (Ending.UPSTREAM_TRUNCATED, "upstream_error")
    assert metered.source is source
    assert book.delivered_at_settle == len(CREATED)
    assert source is Source.ESTIMATED or metered.usage.output_tokens == 6


def test_response_that_is_incomplete_or_completed_is_complete() -> None:
    for kind in (b"response.completed", b"response.incomplete"):
        last = b'event: %b\ndata: {"type":"%b","response":{"error":null,"usage":%b}}\n\n' % (kind, kind, SPENT)
        book = Book()
        drained(relayed([CREATED, last], book, dialect="openai_rest"), book)
        assert book.settled[0][0] is Ending.COMPLETE


@pytest.mark.parametrize(
    "items",
    [
        [chunk("a"), ERROR, DONE],
        [chunk("a"), ERROR + DONE],
        [chunk("a") + ERROR + DONE],
        [chunk("a"), ERROR, USAGE + DONE],
        [chunk("a"), b"event: error\ndata: nonsense\n\n", DONE],
        [chunk("a"), ERROR, b"data: [DONE]"],
        [chunk("a"), b'data: {"error":{"message":"no"},"choices":[{"index":0,"delta":{},"finish_reason":"error"}]}\n\n'],
    ],
)
def test_error_before_the_end_passes_unchanged_and_is_not_booked_as_complete(items: list[bytes | Exception]) -> None:
    book, ex = Book(), exchange(call(STREAM))
    assert drained(relayed(items, book, ex=ex), book) == b"".join(item for item in items if isinstance(item, bytes))
    assert book.settled[0][0] is Ending.UPSTREAM_TRUNCATED
    assert ex.error == "upstream_error"


def test_error_before_a_hidden_usage_is_not_booked_as_complete() -> None:
    book = Book()
    assert drained(relayed([chunk("a"), ERROR, USAGE, DONE], book, hides=True), book) == chunk("a") + ERROR + DONE
    ((ending, metered),) = book.settled
    assert (ending, metered.usage.output_tokens) == (Ending.UPSTREAM_TRUNCATED, 2)


@pytest.mark.parametrize("text", ['"error"', '{"error": {"message": "x"}}', "event: error"])
def test_answer_that_speaks_of_an_error_is_complete(text: str) -> None:
    book = Book()
    drained(relayed([chunk("a"), chunk(text, error=None), DONE], book), book)
    assert book.settled[0][0] is Ending.COMPLETE
