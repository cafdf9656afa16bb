from __future__ import annotations

import pytest

from gateway.core.head import WHOLE_BYTES, Framing, read_head
from gateway.errors import Blame, UpstreamInterrupted, UpstreamProtocolError, UpstreamRefused
from tests.factories import reply

JSON = (("content-type", "application/json"),)
CONTENT = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'


def test_stream_begins_with_its_first_event() -> None:
    answer = read_head(reply([b": hi\n\n", b"event: ping\ndata: {}\n\n", CONTENT[:9], CONTENT[9:], b"data: more\n\n"]))
    assert answer.framing is Framing.EVENTS
    assert answer.head == b": hi\n\nevent: ping\ndata: {}\n\n" + CONTENT
    assert next(answer.reply.chunks) == b"data: more\n\n"


@pytest.mark.parametrize(
    ("event", "status", "blame"),
    [
        (b'data: {"error":{"message":"busy","type":"server_error"}}\n\n', 500, Blame.DEPLOYMENT),
        (b'data: {"error":{"message":"slow down","code":"rate_limit_exceeded"}}\n\n', 429, Blame.CREDENTIAL_MODEL),
        (b'data: {"id":"x","error":{"code":503,"message":"overloaded"}}\n\n', 503, Blame.DEPLOYMENT),
        (b'event: error\ndata: {"type":"invalid_request_error","message":"no"}\n\n', 400, Blame.CLIENT),
        (b"event: error\ndata: nonsense\n\n", 500, Blame.DEPLOYMENT),
    ],
)
def test_error_in_place_of_content_is_an_attempts_failure(event: bytes, status: int, blame: Blame) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        read_head(reply([event]))
    assert (caught.value.upstream_status, caught.value.blame) == (status, blame)


def test_content_that_speaks_of_an_error_is_content() -> None:
    event = b'data: {"choices":[{"delta":{"content":"\\"error\\""}}],"error":null}\n\n'
    assert read_head(reply([event])).head == event


def test_stream_that_ends_before_its_first_event_is_a_failure() -> None:
    with pytest.raises(UpstreamProtocolError):
        read_head(reply([b": only a comment\n\n"]))


def test_head_of_a_stream_is_bounded() -> None:
    answer = read_head(reply([b": " + b"x" * 40_000 + b"\n\n"] * 5))
    assert len(answer.head) < 100_000


def test_json_answer_is_read_whole() -> None:
    answer = read_head(reply([b'{"a"', b":1}"], JSON))
    assert (answer.framing, answer.head) == (Framing.WHOLE, b'{"a":1}')


def test_json_answer_that_breaks_off_is_an_attempts_failure() -> None:
    with pytest.raises(UpstreamInterrupted):
        read_head(reply([b'{"a"', UpstreamInterrupted("cut")], JSON))


def test_large_json_answer_streams() -> None:
    answer = read_head(reply([b"x" * WHOLE_BYTES, b"y", b"z"], JSON))
    assert answer.framing is Framing.OPEN
    assert (len(answer.head), list(answer.more)) == (WHOLE_BYTES, [b"y"])
    assert next(answer.reply.chunks) == b"z"


def test_bytes_of_known_length_are_read_whole_up_to_the_bound() -> None:
    audio = (("content-type", "audio/mpeg"), ("content-length", "2"))
    assert read_head(reply([b"a", b"b"], audio)).framing is Framing.WHOLE
    large = (("content-type", "audio/mpeg"), ("content-length", str(WHOLE_BYTES + 1)))
    answer = read_head(reply([b"a", b"b"], large))
    assert (answer.framing, answer.head, answer.length) == (Framing.COUNTED, b"a", WHOLE_BYTES + 1)


def test_bytes_of_unknown_length_begin_with_their_first_block() -> None:
    answer = read_head(reply([b"", b"a", b"b"], (("content-type", "audio/mpeg"),)))
    assert (answer.framing, answer.head) == (Framing.OPEN, b"a")


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("kind", ["audio/mpeg", "text/event-stream", "application/json"])
def test_answer_that_has_no_body_is_whole_at_once(status: int, kind: str) -> None:
    answer = read_head(reply([], (("content-type", kind),), status))
    assert (answer.framing, answer.head) == (Framing.WHOLE, b"")


def test_bytes_that_end_before_the_first_are_whole() -> None:
    answer = read_head(reply([b""], (("content-type", "audio/mpeg"),)))
    assert (answer.framing, answer.head) == (Framing.WHOLE, b"")
