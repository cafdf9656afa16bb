from __future__ import annotations

import gc
import socket
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from gateway.request import Asked
from gateway.server import STEP_BYTES, Response


def asking(method: str = "POST", version: tuple[int, int] = (1, 1), closes: bool = False) -> Asked:
    return Asked({}, method, version, closes)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def sent(pair: Pair, request: Asked, status: str, headers: list[tuple[str, str]], *blocks: bytes) -> tuple[bytes, bytes]:
    """The head's bytes and the rest of an answer."""
    response = Response(request, pair[0])
    response.start_response(status, headers)
    for block in blocks:
        response.write(block)
    response.end()
    pair[0].shutdown(socket.SHUT_WR)
    received = b""
    while data := pair[1].recv(65_536):
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


def test_answer_of_known_length_leaves_in_one_piece(pair: Pair) -> None:
    response = Response(asking(), pair[0])
    response.start_response("200 OK", [("content-type", "text/plain"), ("Content-Length", "5")])
    response.write(b"hello")
    received = pair[1].recv(4096)
    assert received.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nContent-Length: 5\r\ndate: ")
    assert received.endswith(b"GMT\r\nconnection: keep-alive\r\n\r\nhello")
    response.end()
    assert not response.must_close


def test_answer_of_unknown_length_is_chunked(pair: Pair) -> None:
    head, body = sent(pair, asking(), "200 OK", [], b"hello", b"", b"x" * 26)
    assert b"\r\ntransfer-encoding: chunked\r\n" in head
    assert body == b"5\r\nhello\r\n1a\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n"


def test_empty_answer_of_unknown_length_is_chunked_too(pair: Pair) -> None:
    head, body = sent(pair, asking(), "200 OK", [])
    assert b"transfer-encoding: chunked" in head
    assert body == b"0\r\n\r\n"


def test_older_client_gets_no_chunks_and_the_end_of_the_connection(pair: Pair) -> None:
    response = Response(asking(version=(1, 0)), pair[0])
    response.start_response("200 OK", [])
    response.write(b"hello")
    response.end()
    received = pair[1].recv(4096)
    assert b"transfer-encoding" not in received
    assert b"connection: close\r\n\r\nhello" in received
    assert response.must_close


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not Modified")])
def test_answer_without_a_body_has_none_whatever_the_application_gives(pair: Pair, method: str, status: str) -> None:
    head, body = sent(pair, asking(method=method), status, [], b"hello")
    assert b"transfer-encoding" not in head
    assert body == b""


def test_no_more_than_the_stated_length_is_sent(pair: Pair) -> None:
    assert sent(pair, asking(), "200 OK", [("content-length", "3")], b"he", b"llo", b"more")[1] == b"hel"


def test_body_that_ends_early_is_no_clean_end(pair: Pair) -> None:
    with pytest.raises(ConnectionAbortedError):
        sent(pair, asking(), "200 OK", [("content-length", "6")], b"hello")


@pytest.mark.parametrize(
    ("name", "value"),
    [("a\r\nb", "c"), ("a b", "c"), ("", "c"), ("a:", "c"), ("a", "b\r\nc: d"), ("a", "b\nc"), ("a", "b\rc"), ("a", "b\x00c"), ("a", "\u2028"), ("a", "\x1b")],
)
def test_header_that_would_be_read_as_another_is_refused(pair: Pair, name: str, value: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        Response(asking(), pair[0]).start_response("200 OK", [(name, value)])


@pytest.mark.parametrize("status", ["", "200", "99 X", "600 X", "200 OK\r\nx: y", "200 \u00e4"])
def test_status_that_is_none_is_refused(pair: Pair, status: str) -> None:
    with pytest.raises(ValueError, match="status"):
        Response(asking(), pair[0]).start_response(status, [])


def test_applications_word_about_the_connection_is_not_passed_on(pair: Pair) -> None:
    own = [("Connection", "close"), ("Transfer-Encoding", "gzip"), ("Keep-Alive", "x"), ("Upgrade", "h2c"), ("TE", "x"), ("x-own", "y")]
    head, _ = sent(pair, asking(), "200 OK", own, b"a")
    names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
    assert names == [b"x-own", b"date", b"transfer-encoding", b"connection"]
    assert b"connection: keep-alive" in head


def test_first_start_may_be_taken_back_until_something_was_sent(pair: Pair) -> None:
    response = Response(asking(), pair[0])
    response.start_response("200 OK", [("content-length", "3")])
    with pytest.raises(RuntimeError):
        response.start_response("500 Oh", [])
    response.start_response("500 Oh", [], (ValueError, ValueError(), None))
    response.write(b"no")
    with pytest.raises(RuntimeError):
        response.start_response("500 Oh", [], (ValueError, ValueError(), None))
    assert pair[1].recv(4096).startswith(b"HTTP/1.1 500 Oh\r\n")


def test_body_without_a_head_is_a_mistake_of_the_application(pair: Pair) -> None:
    with pytest.raises(RuntimeError):
        Response(asking(), pair[0]).end()


def test_clients_wish_and_the_applications_end_the_connection(pair: Pair) -> None:
    asked = Response(asking(closes=True), pair[0])
    told = Response(asking(), pair[0])
    assert (asked.must_close, told.must_close) == (True, False)
    told.force_close()
    told.start_response("200 OK", [("content-length", "0")])
    told.end()
    assert b"connection: close\r\n" in pair[1].recv(4096)


def test_reader_that_takes_nothing_is_given_up(pair: Pair) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    response = Response(asking(), ours, send_s=0.3)
    response.start_response("200 OK", [])
    with pytest.raises(TimeoutError):
        response.write(b"x" * (8 * STEP_BYTES))
    theirs.setblocking(False)
    assert len(theirs.recv(1 << 20)) < 8 * STEP_BYTES


def test_reader_that_takes_little_at_a_time_gets_all(pair: Pair) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = bytes(range(256)) * 600
    response = Response(asking(), ours, send_s=0.5)
    taken = bytearray()

    def read() -> None:
        while not taken.endswith(body):
            taken.extend(theirs.recv(8192))
            time.sleep(0.05)

    reader = threading.Thread(target=read)
    reader.start()
    response.start_response("200 OK", [("content-length", str(len(body)))])
    began = time.monotonic()
    response.write(body)
    response.end()
    reader.join(10)
    assert time.monotonic() - began > 0.5
    assert taken.endswith(b"\r\n\r\n" + body)


def test_connection_that_was_taken_over_ends_with_its_answer_and_what_was_read_of_it_is_handed_on(pair: Pair) -> None:
    response = Response(asking("GET"), pair[0])
    assert response.take_over(lambda: b"more") == b"more"
    assert (response.taken, response.sent, response.must_close) == (True, True, True)
    response.start_response("200 OK", [("content-length", "0")])
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)


def test_cut_answer_is_no_clean_end_for_an_older_client_either() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 5) as theirs:
        ours, _ = server.accept()
        response = Response(asking(version=(1, 0)), ours)
        response.start_response("200 OK", [])
        response.write(b"hello")
        assert theirs.recv(4096).endswith(b"hello")
        response.break_off()
        ours.close()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)


class Marker:
    """Something of a request."""


def test_nothing_of_a_request_waits_for_the_garbage_collector(pair: Pair) -> None:
    gc.disable()
    try:
        marker = Marker()
        kept = weakref.ref(marker)
        asked = Asked({"marker": marker}, "POST", (1, 1), False)
        response = Response(asked, pair[0])
        asked.environ["gateway.force_close"] = response.force_close
        del marker, asked, response
        assert kept() is None
    finally:
        gc.enable()
