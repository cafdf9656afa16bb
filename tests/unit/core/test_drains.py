from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from gateway.backend import Reply
from gateway.core.claim import Claim, sealed_at
from gateway.core.drains import Drains
from gateway.core.exchange import Attempt, Ending, Exchange
from gateway.core.head import Answer, Framing, read_head
from gateway.core.metering import Source
from gateway.core.relay import Relay
from gateway.errors import Cancelled, UpstreamInterrupted
from gateway.secrets import Vault
from tests.factories import SSE, Chunks, StillClient, call, exchange, reply
from tests.unit.core.stages import DONE, STREAM, USAGE, Book, chunk

FAILED = b'data: {"error": {"message": "no"}}\n\n'
VAULT = Vault({1: b"m" * 32}, 1)


@pytest.fixture
def book() -> Book:
    return Book()


def asked(raw: bytes = STREAM, drains: bool = True) -> tuple[Exchange, StillClient]:
    client = StillClient()
    made = exchange(call(raw), client)
    made.drains = drains
    made.attempts.append(Attempt("d", None, "m", 0.0))
    return made, client


def test_a_stream_whose_client_left_is_read_on_to_its_usage(book: Book) -> None:
    made, client = asked()
    relay = Relay(read_head(reply([chunk("a"), chunk("b"), chunk("c"), USAGE, DONE])), made, book, Drains())  # type: ignore[arg-type]
    next(relay)
    client.leave()
    assert list(relay) == []
    relay.close()
    relay.close()
    ((ending, metered),) = book.settled
    assert (ending, metered.source, metered.usage.output_text) == (Ending.CLIENT_GONE, Source.PROVIDER, 2)
    assert made.call.cancel.reason is None


def test_a_server_that_cannot_write_to_its_client_has_the_rest_read_on(book: Book) -> None:
    made, _ = asked()
    relay = Relay(read_head(reply([chunk("a"), chunk("b"), USAGE, DONE])), made, book, Drains())  # type: ignore[arg-type]
    next(relay)
    relay.close()
    assert [(ending, metered.source) for ending, metered in book.settled] == [(Ending.CLIENT_GONE, Source.PROVIDER)]


def kept_of(made: Exchange) -> bytes | None:
    """What is stored under the Idempotency-Key of a call."""
    assert made.claim is not None
    completion = made.claim.ended(made.id, 0.0, charged=True, good=True)
    assert completion is not None
    return None if completion.body is None else VAULT.open_bytes(completion.body, sealed_at(made.id))


@pytest.mark.parametrize("hides", [True, False])
def test_what_is_read_on_is_there_for_who_asks_again(book: Book, hides: bool) -> None:
    made, client = asked()
    made.claim = Claim((1, "k"), "", None, VAULT)
    made.claim.opened(made.id, "owner", 1, 0.0)
    answer = read_head(reply([chunk("a"), chunk("b"), USAGE, DONE]))
    answer.hides_usage = hides
    relay = Relay(answer, made, book, Drains())  # type: ignore[arg-type]
    next(relay)
    client.leave()
    relay.close()
    assert kept_of(made) == chunk("a") + chunk("b") + (b"" if hides else USAGE) + DONE


def test_an_answer_whose_end_is_in_hand_is_booked_and_kept_without_a_wait_for_its_upstream(book: Book) -> None:
    made, _ = asked()
    made.claim = Claim((1, "k"), "", None, VAULT)
    made.claim.opened(made.id, "owner", 1, 0.0)

    def silent() -> Iterator[bytes]:
        yield chunk("b") + USAGE + DONE
        raise AssertionError("the upstream is asked for more")

    drains = Drains()
    relay = Relay(Answer(Reply(200, SSE, silent(), lambda: None), Framing.EVENTS, chunk("a")), made, book, drains)  # type: ignore[arg-type]
    assert [next(relay), next(relay)] == [chunk("a"), chunk("b") + USAGE]
    relay.close()
    assert [(ending, metered.source) for ending, metered in book.settled] == [(Ending.CLIENT_GONE, Source.PROVIDER)]
    assert kept_of(made) == chunk("a") + chunk("b") + USAGE + DONE
    assert drains.count == 0


@pytest.mark.parametrize("drains", [True, False])
def test_an_answer_whose_end_was_in_hand_when_its_client_left_is_there_for_who_asks_again(book: Book, drains: bool) -> None:
    made, client = asked(drains=drains)
    made.claim = Claim((1, "k"), "", None, VAULT)
    made.claim.opened(made.id, "owner", 1, 0.0)
    relay = Relay(read_head(reply([chunk("a") + chunk("b") + USAGE + DONE, AssertionError("nothing is read after the end")])), made, book, Drains())  # type: ignore[arg-type]
    next(relay)
    client.leave()
    relay.close()
    assert kept_of(made) == chunk("a") + chunk("b") + USAGE + DONE
    assert [(ending, metered.source) for ending, metered in book.settled] == [(Ending.CLIENT_GONE, Source.PROVIDER)]


@pytest.mark.parametrize(
    "rest",
    [
        [UpstreamInterrupted("gone")],
        [chunk("b")],
        [b"data: " + b"x" * (2 << 20), b"\n\n", DONE],
        [FAILED, USAGE, DONE],
        [chunk("b"), FAILED, USAGE, DONE],
    ],
    ids=["broken", "without end", "overlong", "failed before", "failed"],
)
def test_what_is_not_read_to_its_end_is_not(book: Book, rest: list[bytes | Exception]) -> None:
    made, _ = asked()
    made.claim = Claim((1, "k"), "", None, VAULT)
    made.claim.opened(made.id, "owner", 1, 0.0)
    relay = Relay(read_head(reply([chunk("a"), *rest])), made, book, Drains())  # type: ignore[arg-type]
    next(relay)
    if len(rest) == 3:
        next(relay)  # a piece of the overlong event, or the error
    relay.close()
    assert kept_of(made) is None


def test_without_drain_the_upstream_is_closed_at_once_and_what_was_delivered_is_counted(book: Book) -> None:
    made, client = asked(drains=False)
    relay = Relay(read_head(reply([chunk("a"), chunk("b"), USAGE, DONE])), made, book, Drains())  # type: ignore[arg-type]
    next(relay)
    client.leave()
    relay.close()
    assert made.call.cancel.reason == "client_gone"
    assert [(ending, metered.source) for ending, metered in book.settled] == [(Ending.CLIENT_GONE, Source.ESTIMATED)]


def test_an_upstream_that_breaks_meanwhile_leaves_an_estimate_of_what_was_delivered(book: Book) -> None:
    made, _ = asked()
    relay = Relay(read_head(reply([chunk("a"), chunk("b"), UpstreamInterrupted("gone")])), made, book, Drains())  # type: ignore[arg-type]
    next(relay)
    relay.close()
    assert [(ending, metered.source) for ending, metered in book.settled] == [(Ending.CLIENT_GONE, Source.ESTIMATED)]


@pytest.mark.parametrize("drains", [Drains(most=0), Drains(most_bytes=10)])
def test_what_is_read_on_is_bounded_in_number_and_bytes(book: Book, drains: Drains) -> None:
    made, _ = asked()
    relay = Relay(read_head(reply([chunk("a"), *[chunk("b")] * 5, USAGE, DONE])), made, book, drains)  # type: ignore[arg-type]
    next(relay)
    relay.close()
    assert book.settled[0][1].source is Source.ESTIMATED
    assert drains.count == 0


def test_what_is_read_on_is_bounded_in_time(book: Book) -> None:
    made, _ = asked()

    def endless() -> Iterator[bytes]:
        while made.call.cancel.reason is None:
            time.sleep(0.01)
            yield chunk("b")
        raise Cancelled(made.call.cancel.reason)

    relay = Relay(Answer(Reply(200, SSE, endless(), lambda: None), Framing.EVENTS, chunk("a")), made, book, Drains(most_s=0.1))  # type: ignore[arg-type]
    next(relay)
    relay.close()
    assert [(ending, metered.source) for ending, metered in book.settled] == [(Ending.CLIENT_GONE, Source.ESTIMATED)]


def test_a_worker_that_ends_settles_what_it_was_reading_on(book: Book) -> None:
    made, _ = asked()

    class Killed(BaseException):
        pass

    def dying() -> Iterator[bytes]:
        yield chunk("b")
        raise Killed

    relay = Relay(Answer(Reply(200, SSE, dying(), lambda: None), Framing.EVENTS, chunk("a")), made, book, Drains())  # type: ignore[arg-type]
    next(relay)
    with pytest.raises(Killed):
        relay.close()
    assert [ending for ending, _ in book.settled] == [Ending.CLIENT_GONE]


def test_a_client_that_leaves_before_an_upstream_was_asked_ends_the_call(book: Book) -> None:
    made, client = asked()
    made.attempts.clear()
    client.leave()
    assert made.call.cancel.reason == "client_gone"


def test_a_whole_answer_whose_client_left_is_booked_as_such_by_the_providers_usage(book: Book) -> None:
    made, client = asked(b'{"model":"m"}')
    client.leave()
    chunks = Chunks([b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'])
    Relay(read_head(Reply(200, (("content-type", "application/json"),), chunks, chunks.close)), made, book, Drains())  # type: ignore[arg-type]
    assert [(ending, metered.usage.output_text) for ending, metered in book.settled] == [(Ending.CLIENT_GONE, 4)]
