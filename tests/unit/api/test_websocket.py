from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.api.websocket import NotAWebSocket, WebSocket, WebSocketClosed
from tests.fakes.socket_server import SocketServer, echo, environ_of
from tests.fakes.websocket import BINARY, CLOSE, CONTINUATION, GONE, NO_CODE, PING, PONG, TEXT, Frame, Refused, WebSocketClient, frame_bytes

LIMIT = 1000


@pytest.fixture(scope="module")
def server() -> Iterator[SocketServer]:
    """One that echoes messages of at most LIMIT bytes."""
    with SocketServer(echo, ("second", "first"), max_bytes=LIMIT) as server:
        yield server


@pytest.fixture
def client(server: SocketServer) -> Iterator[WebSocketClient]:
    with WebSocketClient(server.port) as client:
        yield client


# the handshake


def test_first_of_our_subprotocols_that_was_offered_is_chosen(server: SocketServer) -> None:
    for offered, chosen in (((), None), (("first", "second"), "second"), (("other", "first"), "first"), (("other",), None)):
        with WebSocketClient(server.port, subprotocols=offered) as client:
            assert client.subprotocol == chosen


def test_no_extension_is_agreed_to(server: SocketServer) -> None:
    offered = "permessage-deflate; client_max_window_bits, x-webkit-deflate-frame"
    with WebSocketClient(server.port, headers={"sec-websocket-extensions": offered}) as client:
        assert "sec-websocket-extensions" not in client.headers
        client.send_frame(TEXT, b"\xf2H\xcd\xc9\xc9\x07\x00", rsv=4)
        assert client.end().code == 1002


def test_what_came_with_the_request_is_the_first_message(server: SocketServer) -> None:
    early = frame_bytes(TEXT, b"early") + frame_bytes(TEXT, b"half")[:5]
    with WebSocketClient(server.port, first=early) as client:
        assert client.receive() == "early"
        client.send_raw(frame_bytes(TEXT, b"half")[5:])
        assert client.receive() == "half"


@pytest.mark.parametrize(
    "headers",
    [
        {"upgrade": ""},
        {"upgrade": "h2c"},
        {"connection": ""},
        {"connection": "keep-alive"},
        {"sec-websocket-version": ""},
        {"sec-websocket-version": "8"},
        {"sec-websocket-key": ""},
        {"sec-websocket-key": "short"},
        {"sec-websocket-key": "A" * 24},
        {"content-length": "5"},
        {"transfer-encoding": "chunked"},
    ],
)
def test_other_request_is_no_websocket(server: SocketServer, headers: dict[str, str]) -> None:
    with pytest.raises(Refused) as refused:
        WebSocketClient(server.port, headers=headers)
    assert (refused.value.status, refused.value.body) == (400, b"Bad Request")
    assert refused.value.headers["sec-websocket-version"] == "13"


@pytest.mark.parametrize("headers", [{"upgrade": "WebSocket"}, {"connection": "keep-alive, Upgrade"}, {"connection": "UPGRADE"}, {"content-length": "0"}])
def test_request_may_be_written_differently(server: SocketServer, headers: dict[str, str]) -> None:
    with WebSocketClient(server.port, headers=headers) as client:
        client.send("hello")
        assert client.receive() == "hello"


@pytest.mark.parametrize(
    ("name", "value"), [("REQUEST_METHOD", "POST"), ("REQUEST_METHOD", "HEAD"), ("SERVER_PROTOCOL", "HTTP/1.0"), ("gateway.take_over", None)]
)
def test_nothing_is_written_where_it_is_no_websocket(name: str, value: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        head = b"GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="
        environ = environ_of(head, b"", ours)
        with pytest.raises(NotAWebSocket):
            WebSocket.accept(environ | {name: value})
        ours.close()
        assert theirs.recv(1) == b""


# messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 999, 1000])
def test_message_of_any_length_comes_back(client: WebSocketClient, size: int) -> None:
    client.send("x" * size)
    assert client.receive() == "x" * size


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 1_000_000])
def test_long_message_comes_back_whole(size: int) -> None:
    text = "".join(itertools.islice(itertools.cycle("0123456789\u20ac\U0001f600"), size))
    with SocketServer(echo, max_bytes=10_000_000) as server, WebSocketClient(server.port) as client:
        client.send(text)
        frame = client.frame()
        assert (frame.opcode, frame.fin) == (TEXT, True)
        assert frame.payload.decode() == text


def test_bytes_are_sent_as_text(server: SocketServer) -> None:
    with SocketServer(lambda websocket: websocket.send("\u00e4".encode())) as own, WebSocketClient(own.port) as client:
        assert client.frame() == Frame(TEXT, b"\xc3\xa4")


@pytest.mark.parametrize("pieces", [(b"ab", b"cd"), (b"", b"ab", b"", b"cd", b""), (b"", b"")])
def test_fragments_become_one_message(client: WebSocketClient, pieces: tuple[bytes, ...]) -> None:
    for number, piece in enumerate(pieces):
        client.send_frame(CONTINUATION if number else TEXT, piece, fin=number == len(pieces) - 1)
    assert client.receive().encode() == b"".join(pieces)


def test_frames_may_arrive_a_byte_at_a_time(client: WebSocketClient) -> None:
    data = frame_bytes(TEXT, b"ab", fin=False) + frame_bytes(PING, b"p") + frame_bytes(CONTINUATION, b"c" * 200)
    for at in range(len(data)):
        client.send_raw(data[at : at + 1])
    assert client.frame() == Frame(PONG, b"p")
    assert client.receive() == "ab" + "c" * 200


def test_frames_may_arrive_many_at_once(client: WebSocketClient) -> None:
    client.send_raw(b"".join(frame_bytes(TEXT, b"%d" % number) for number in range(2000)))
    assert [client.receive() for _ in range(2000)] == [str(number) for number in range(2000)]


def test_codepoint_may_be_split_over_fragments(client: WebSocketClient) -> None:
    raw = "\u20ac\U0001f600".encode()
    for number in range(len(raw)):
        client.send_frame(CONTINUATION if number else TEXT, raw[number : number + 1], fin=number == len(raw) - 1)
    assert client.receive() == raw.decode()


@pytest.mark.parametrize("raw", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"ab\x80"])
def test_message_that_is_not_utf8_closes_with_1007(server: SocketServer, raw: bytes) -> None:
    with WebSocketClient(server.port) as whole:
        whole.send_frame(TEXT, raw)
        assert whole.end().code == 1007
    with WebSocketClient(server.port) as split:
        split.send_frame(TEXT, raw[:1], fin=False)
        split.send_frame(CONTINUATION, raw[1:])
        assert split.end().code == 1007


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_limit_is_exact_to_the_byte(client: WebSocketClient, size: int, count: int) -> None:
    text, step = b"x" * size, -(-size // count)
    pieces = [text[start : start + step] for start in range(0, size, step)]
    with contextlib.suppress(OSError):
        for number, piece in enumerate(pieces):
            client.send_frame(CONTINUATION if number else TEXT, piece, fin=number == len(pieces) - 1)
    if size <= LIMIT:
        assert client.receive().encode() == text
    else:
        assert client.end().code == 1009


def test_limit_counts_bytes_and_not_characters(client: WebSocketClient) -> None:
    client.send("\u20ac" * (LIMIT // 3))
    assert len(client.receive()) == LIMIT // 3
    client.send("\u20ac" * (LIMIT // 3 + 1))
    assert client.end().code == 1009


@pytest.mark.parametrize("length", [LIMIT + 1, 1 << 20, 1 << 62, (1 << 63) - 1])
def test_announced_length_over_the_limit_closes_before_it_comes(client: WebSocketClient, length: int) -> None:
    client.send_raw(frame_bytes(TEXT, b"", length=length))
    assert client.end().code == 1009


def test_binary_message_closes_with_1003_by_its_header(client: WebSocketClient) -> None:
    client.send_raw(frame_bytes(BINARY, b"", length=500))
    assert client.end().code == 1003


# what breaks the protocol


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_unknown_opcode_closes_with_1002(client: WebSocketClient, opcode: int) -> None:
    client.send_frame(opcode, b"x")
    assert client.end().code == 1002


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, PING, CLOSE])
def test_reserved_bits_close_with_1002(client: WebSocketClient, opcode: int, rsv: int) -> None:
    client.send_frame(opcode, b"\x03\xe8" if opcode == CLOSE else b"x", rsv=rsv)
    assert client.end().code == 1002


@pytest.mark.parametrize("opcode", [TEXT, PING, CLOSE])
def test_frame_without_a_mask_closes_with_1002(client: WebSocketClient, opcode: int) -> None:
    client.send_frame(opcode, b"", mask=None)
    assert client.end().code == 1002


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
@pytest.mark.parametrize("shape", [{"payload": b"\x03\xe8" + b"x" * 124}, {"payload": b"\x03\xe8", "fin": False}])
def test_control_frame_that_is_long_or_in_pieces_closes_with_1002(client: WebSocketClient, opcode: int, shape: dict[str, Any]) -> None:
    client.send_frame(opcode, **shape)
    assert client.end().code == 1002


@pytest.mark.parametrize("raw", [b"\x81\xfe\x00\x05", b"\x81\xff\x00\x00\x00\x00\x00\x00\x00\x05", b"\x81\xff\x80\x00\x00\x00\x00\x00\x00\x00"])
def test_length_that_is_written_wrongly_closes_with_1002(client: WebSocketClient, raw: bytes) -> None:
    client.send_raw(raw + b"\x00\x00\x00\x00hello")
    assert client.end().code == 1002


def test_continuation_of_nothing_closes_with_1002(client: WebSocketClient) -> None:
    client.send_frame(CONTINUATION, b"x")
    assert client.end().code == 1002


def test_continuation_after_the_end_closes_with_1002(client: WebSocketClient) -> None:
    client.send_frame(TEXT, b"a", fin=False)
    client.send_frame(CONTINUATION, b"b")
    client.send_frame(CONTINUATION, b"c")
    assert client.receive() == "ab"
    assert client.end().code == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_message_within_a_message_closes_with_1002(client: WebSocketClient, opcode: int) -> None:
    client.send_frame(TEXT, b"a", fin=False)
    client.send_frame(opcode, b"b")
    assert client.end().code == 1002


def test_peer_that_broke_the_protocol_learns_why_whatever_it_sent_before(server: SocketServer) -> None:
    """Bytes that nobody reads would turn the end into a reset, in which the close frame may be lost."""
    with WebSocketClient(server.port) as client:
        client.send_raw(frame_bytes(3, b"x") + b"y" * 200_000)
        closed = client.end()
        assert (closed.code, closed.reason) == (1002, "Invalid opcode 0x3")
        client.sock.close()


# pings


@pytest.mark.parametrize("payload", [b"", b"p", b"\x00\xff" * 62, b"x" * 125])
def test_ping_is_answered_with_its_payload(client: WebSocketClient, payload: bytes) -> None:
    client.ping(payload)
    assert client.frame() == Frame(PONG, payload)


def test_ping_between_fragments_is_answered_before_the_message(client: WebSocketClient) -> None:
    client.send_frame(TEXT, b"a", fin=False)
    client.ping(b"1")
    client.send_frame(CONTINUATION, b"b", fin=False)
    client.ping(b"2")
    assert [client.frame(), client.frame()] == [Frame(PONG, b"1"), Frame(PONG, b"2")]
    client.send_frame(CONTINUATION, b"c")
    assert client.receive() == "abc"


def test_pong_that_nobody_asked_for_is_ignored(client: WebSocketClient) -> None:
    client.send_frame(PONG, b"x")
    client.send("hello")
    assert client.receive() == "hello"


def test_pings_do_not_prolong_a_receive() -> None:
    took: list[float] = []

    def wait(websocket: WebSocket) -> None:
        began = time.monotonic()
        assert websocket.receive(0.3) is None
        took.append(time.monotonic() - began)
        websocket.close(4000)

    with SocketServer(wait) as server, WebSocketClient(server.port) as client:
        with contextlib.suppress(OSError):
            while not took:
                client.ping(b"x")
        assert client.end().code in (4000, GONE)
    assert 0.25 < took[0] < 5


# the end


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999])
def test_close_code_that_may_be_sent_is_answered_and_told(code: int) -> None:
    with SocketServer(echo) as server, WebSocketClient(server.port) as client:
        closed = client.close(code, "because")
        assert (closed.code, closed.reason) == (code, "because")
        assert client.is_ended()
        end = server.end()
        assert (end.code, end.reason) == (code, "because")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535])
def test_close_code_that_may_not_be_sent_closes_with_1002(client: WebSocketClient, code: int) -> None:
    assert client.close(code).code == 1002


def test_close_without_a_code_is_answered_without_one() -> None:
    with SocketServer(echo) as server, WebSocketClient(server.port) as client:
        assert client.close(None).code == NO_CODE
        assert server.end().code == NO_CODE


def test_close_frame_of_one_byte_or_with_a_reason_that_is_not_utf8(server: SocketServer) -> None:
    for payload, code in ((b"\x03", 1002), (b"\x03\xe8\xff", 1007)):
        with WebSocketClient(server.port) as client:
            client.send_frame(CLOSE, payload)
            assert client.end().code == code


def test_nothing_is_served_after_a_close_frame(client: WebSocketClient) -> None:
    client.send_raw(frame_bytes(CLOSE, b"\x03\xe8") + frame_bytes(TEXT, b"late") + frame_bytes(PING, b"late"))
    assert client.frame() == Frame(CLOSE, b"\x03\xe8")
    assert client.is_ended()


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_connection_that_ends_without_a_close_frame_is_1006(how: str) -> None:
    with SocketServer(echo) as server:
        client = WebSocketClient(server.port)
        client.send_frame(TEXT, b"half", fin=False)
        client.reset() if how == "reset" else client.sock.close()
        assert server.end().code == GONE


def test_our_close_wakes_who_receives_once_the_peer_has_closed() -> None:
    woken: list[WebSocketClosed] = []

    def close(websocket: WebSocket) -> None:
        listener = threading.Thread(target=lambda: woken.append(ending(websocket)))
        listener.start()
        time.sleep(0.05)
        websocket.close(4409, "another came")
        websocket.close(1000)
        listener.join(5)

    with SocketServer(close) as server, WebSocketClient(server.port) as client:
        closed = client.end()
        assert (closed.code, closed.reason) == (4409, "another came")
        assert client.is_ended()
    assert [(end.code, end.reason) for end in woken] == [(4409, "another came")]


def ending(websocket: WebSocket) -> WebSocketClosed:
    """How a receive of the websocket ends."""
    try:
        websocket.receive(None)
    except WebSocketClosed as closed:
        return closed
    raise AssertionError("a message came")


@pytest.mark.parametrize("someone_receives", [True, False])
def test_close_does_not_wait_for_a_peer_that_never_closes(someone_receives: bool) -> None:
    took: list[float] = []

    def close(websocket: WebSocket) -> None:
        listener = threading.Thread(target=ending, args=(websocket,))
        if someone_receives:
            listener.start()
            time.sleep(0.05)
        began = time.monotonic()
        websocket.close(1012)
        took.append(time.monotonic() - began)
        if someone_receives:
            listener.join(5)
            assert not listener.is_alive()

    with SocketServer(close) as server, WebSocketClient(server.port) as client:
        assert client.frame() == Frame(CLOSE, b"\x03\xf4")
        assert client.is_ended()
        deadline = time.monotonic() + 5
        while not took:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert took[0] < 2.5


def test_long_reason_is_cut_at_a_character() -> None:
    with SocketServer(lambda websocket: websocket.close(4000, "\u20ac" * 100)) as server, WebSocketClient(server.port) as client:
        assert client.end().reason == "\u20ac" * 41


def test_closed_websocket_sends_and_receives_no_more() -> None:
    raised: list[int] = []

    def serve(websocket: WebSocket) -> None:
        websocket.close(4001)
        acts: list[Callable[[], object]] = [lambda: websocket.send("x"), lambda: websocket.receive(None), lambda: websocket.receive(0)]
        for act in acts:
            with pytest.raises(WebSocketClosed) as closed:
                act()
            raised.append(closed.value.code)
        websocket.close(4002)

    with SocketServer(serve) as server, WebSocketClient(server.port) as client:
        assert client.end().code == 4001
        assert client.is_ended()
    assert raised == [4001] * 3


# time


def test_receive_gives_up_in_time_and_keeps_what_came() -> None:
    got: list[tuple[str | None, float]] = []

    def serve(websocket: WebSocket) -> None:
        for timeout_s in (0, 0.2, 5, 5):
            began = time.monotonic()
            got.append((websocket.receive(timeout_s), time.monotonic() - began))
            websocket.send("next")

    with SocketServer(serve) as server, WebSocketClient(server.port) as client:
        assert client.receive() == "next"
        client.send_raw(frame_bytes(TEXT, b"hello")[:8])
        assert client.receive() == "next"
        client.send_raw(frame_bytes(TEXT, b"hello")[8:] + frame_bytes(TEXT, b"there"))
        assert [client.receive(), client.receive()] == ["next", "next"]
    assert [message for message, _ in got] == [None, None, "hello", "there"]
    assert got[0][1] < 0.1
    assert 0.15 < got[1][1] < 1


def test_message_that_drips_is_given_up() -> None:
    with SocketServer(echo, message_s=0.4) as server, WebSocketClient(server.port) as client:
        client.send("before")
        assert client.receive() == "before"
        time.sleep(0.5)  # not within a message
        began = time.monotonic()
        for at in itertools.count():
            client.send_raw((frame_bytes(TEXT, b"", length=500) + b"x" * 500)[at : at + 1])
            if client.sock in readable(client, 0.05):
                break
        assert client.end().code == 1008
        assert 0.3 < time.monotonic() - began < 5


@pytest.mark.parametrize("part", [b"\x81", b"\x81\xfe", frame_bytes(TEXT, b"abc", fin=False), frame_bytes(TEXT, b"", fin=False)])
def test_message_that_stays_unfinished_is_given_up(part: bytes) -> None:
    with SocketServer(echo, message_s=0.2) as server, WebSocketClient(server.port) as client:
        client.send_raw(part)
        assert client.end().code == 1008


def test_pings_are_no_progress_of_a_message() -> None:
    with SocketServer(echo, message_s=0.2) as server, WebSocketClient(server.port) as client:
        client.send_frame(TEXT, b"abc", fin=False)
        frame, deadline = Frame(PONG, b""), time.monotonic() + 5
        while frame.opcode == PONG and time.monotonic() < deadline:
            client.ping(b"x")
            frame = client.frame()
        assert frame.payload[:2] == (1008).to_bytes(2, "big")


def test_time_in_which_nobody_receives_does_not_count() -> None:
    ready = threading.Event()

    def serve(websocket: WebSocket) -> None:
        assert websocket.receive(0.1) is None
        ready.set()
        time.sleep(0.5)
        websocket.send(websocket.receive(5) or "")

    with SocketServer(serve, message_s=0.3) as server, WebSocketClient(server.port) as client:
        client.send_frame(TEXT, b"a", fin=False)
        assert ready.wait(5)
        client.send_frame(CONTINUATION, b"b")
        assert client.receive() == "ab"


def readable(client: WebSocketClient, seconds: float) -> list[socket.socket]:
    client.sock.settimeout(seconds)
    try:
        return [client.sock] if client.sock.recv(1, socket.MSG_PEEK) is not None else []
    except TimeoutError:
        return []
    finally:
        client.sock.settimeout(5)


def flood(websocket: WebSocket) -> None:
    while True:
        websocket.send("x" * 200_000)


def test_peer_that_takes_nothing_is_gone() -> None:
    with SocketServer(flood, send_s=0.3, send_buffer=8192) as server, WebSocketClient(server.port, receive_buffer=8192):
        end = server.end()
        assert (end.code, end.reason) == (GONE, "it takes nothing")


def test_peer_that_takes_little_at_a_time_gets_all() -> None:
    text = "0123456789" * 20_000

    def serve(websocket: WebSocket) -> None:
        websocket.send(text)
        websocket.close()

    with SocketServer(serve, send_s=0.5, send_buffer=8192) as server, WebSocketClient(server.port, receive_buffer=8192) as client:
        taken, began = bytearray(client.inbox), time.monotonic()
        while block := client.sock.recv(8192):
            taken += block
            time.sleep(0.04)
        assert time.monotonic() - began > 0.5
        assert text.encode() in taken
        assert taken.endswith(b"\x88\x02\x03\xe8")


def test_sender_that_waits_is_woken_by_a_close() -> None:
    ended: list[int] = []

    def serve(websocket: WebSocket) -> None:
        def send() -> None:
            with pytest.raises(WebSocketClosed) as closed:
                flood(websocket)
            ended.append(closed.value.code)

        sender = threading.Thread(target=send)
        sender.start()
        time.sleep(0.3)
        websocket.close(4408)
        sender.join(5)

    with SocketServer(serve, send_buffer=8192) as server, WebSocketClient(server.port, receive_buffer=8192):
        deadline = time.monotonic() + 10
        while not ended:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert ended == [4408]


def test_messages_of_many_senders_do_not_mix() -> None:
    def serve(websocket: WebSocket) -> None:
        def send(letter: str) -> None:
            for size in range(1, 40):
                websocket.send(letter * size * 1000)

        senders = [threading.Thread(target=send, args=(letter,)) for letter in "abcd"]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()

    with SocketServer(serve, send_buffer=8192) as server, WebSocketClient(server.port) as client:
        messages = [client.receive() for _ in range(4 * 39)]
    for letter in "abcd":
        assert [len(message) for message in messages if message == letter * len(message)] == [size * 1000 for size in range(1, 40)]
