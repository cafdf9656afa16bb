"""A request's body is read whole and in time or refused, and edits always begin from the bytes that came."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.api.body import DOCUMENT_BYTES, LINGER_S, OFFLOAD_BYTES, Received, breaks_off, linger, read_body
from gateway.backend import Body
from gateway.errors import BadRequest, BodyTimeout, BodyTooLarge
from gateway.settings import Settings

SETTINGS = Settings()
FORM = "multipart/form-data; boundary=b0undary"


def environ(raw: bytes, *, chunked: bool = False, **more: Any) -> dict[str, Any]:
    framing = {"HTTP_TRANSFER_ENCODING": "chunked"} if chunked else {"CONTENT_LENGTH": str(len(raw))}
    return {"wsgi.input": io.BytesIO(raw), **framing, **more}


def receive(raw: bytes, kind: str = "json", content_type: str = "application/json", settings: Settings = SETTINGS, **more: Any) -> Received:
    return read_body(environ(raw, **more), kind, content_type, settings)


def form(content: bytes = b"\0\xff", model: bytes = b"whisper-1") -> bytes:
    return b"".join(
        [
            b'--b0undary\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model + b"\r\n",
            b'--b0undary\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n' + content + b"\r\n",
            b"--b0undary--\r\n",
        ]
    )


def content(body: Body) -> bytes:
    whole = b"".join(body.open())
    assert body.size == len(whole)
    return whole


def edited(body: Body, **members: Any) -> Body:
    assert body.edit is not None
    return body.edit(members)


# JSON


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("padding", [0, OFFLOAD_BYTES])
def test_json_is_kept_byte_for_byte(chunked: bool, padding: int) -> None:
    raw = b'{ "model" : "m", "x": 1E400, "pad": "' + b"p" * padding + b'" }\n'
    received = receive(raw, chunked=chunked)
    assert content(received.body) == content(received.body) == raw
    assert (received.fields.model, received.content_type, received.body.replayable) == ("m", "application/json", True)
    assert received.body.member is not None
    assert received.body.member("x") == b"1E400"
    assert received.document()["model"] == "m"


def test_later_edits_keep_earlier_ones_and_begin_from_the_received_bytes() -> None:
    body = receive(b'{"model":"m", "n":1}').body
    first = edited(body, model="longer-name", store=False)
    second = edited(first, model="x")
    assert content(first) == b'{"store":false,"model":"longer-name", "n":1}'
    assert content(second) == b'{"store":false,"model":"x", "n":1}'
    assert content(body) == b'{"model":"m", "n":1}'


def test_document_of_a_translated_call_is_bounded() -> None:
    received = receive(b'{"model":"m","x":"' + b"x" * DOCUMENT_BYTES + b'"}')
    with pytest.raises(BodyTooLarge):
        received.document()


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_compressed_body_is_refused(encoding: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        receive(b"{}", HTTP_CONTENT_ENCODING=encoding)
    assert refusal.value.code == "content_encoding_not_served"


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
def test_identity_is_no_compression(encoding: str) -> None:
    assert receive(b"{}", HTTP_CONTENT_ENCODING=encoding).fields.model is None


@pytest.mark.parametrize("coding", ["gzip, chunked", "identity, chunked", "identity", "gzip", ""])
def test_transfer_coding_other_than_chunked_is_refused(coding: str) -> None:
    with pytest.raises(BadRequest) as caught:
        receive(b"{}", HTTP_TRANSFER_ENCODING=coding)
    assert caught.value.code == "transfer_coding_not_served"


def test_blocks_of_a_chunked_body_are_small() -> None:
    """Each may be thousands of chunks, and nobody else has a turn before it is read."""
    asked: list[int] = []

    class Input(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            asked.append(size or 0)
            return super().read(size)

    raw = json.dumps({"model": "m", "x": "a" * 200_000}).encode()
    read_body(environ(raw, chunked=True) | {"wsgi.input": Input(raw)}, "json", "application/json", SETTINGS)
    assert asked[0] == 4096
    assert max(asked) == 16_384


@pytest.mark.parametrize(
    ("kind", "content_type", "takes"),
    [
        ("json", "application/json", True),
        ("json", "", True),
        ("json", "text/plain", True),
        ("json", FORM, False),
        ("form", FORM, True),
        ("form", "application/json", False),
        ("form", "", False),
        ("either", FORM, True),
        ("either", "application/json", True),
    ],
)
def test_endpoint_takes_its_kind_of_body_only(kind: str, content_type: str, takes: bool) -> None:
    raw = form() if content_type == FORM else b'{"model":"whisper-1"}'
    if takes:
        assert receive(raw, kind, content_type).fields.model == "whisper-1"
    else:
        with pytest.raises(BadRequest):
            receive(raw, kind, content_type)


# limits


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", ["json", "form"])
def test_limit_is_exact_at_the_byte(chunked: bool, kind: str) -> None:
    def of_size(size: int) -> bytes:
        return b'{"x":"' + b"x" * (size - 8) + b'"}' if kind == "json" else form(b"x" * (size - len(form(b""))))

    settings = dataclasses.replace(SETTINGS, json_limit=1000, upload_limit=1000)
    for size in (999, 1000):
        body = receive(of_size(size), kind, FORM if kind == "form" else "", settings, chunked=chunked).body
        assert len(content(body)) == size
    with pytest.raises(BodyTooLarge) as refusal:
        receive(of_size(1001), kind, FORM if kind == "form" else "", settings, chunked=chunked)
    assert refusal.value.status == 413


def test_declared_length_over_the_limit_is_refused_before_a_byte_is_read() -> None:
    made = environ(b"{}", CONTENT_LENGTH="100000001")
    with pytest.raises(BodyTooLarge):
        read_body(made, "json", "", SETTINGS)
    assert made["wsgi.input"].tell() == 0


def test_body_without_end_is_left_at_the_limit() -> None:
    class Endless:
        taken = 0

        def read(self, size: int) -> bytes:
            self.taken += size
            return b" " * size

    endless = Endless()
    with pytest.raises(BodyTooLarge):
        read_body({"wsgi.input": endless, "HTTP_TRANSFER_ENCODING": "chunked"}, "json", "", dataclasses.replace(SETTINGS, json_limit=200_000))
    assert endless.taken < 400_000


def test_body_that_is_shorter_than_declared_is_refused() -> None:
    with pytest.raises(BadRequest, match="shorter"):
        read_body(environ(b"{}", CONTENT_LENGTH="3"), "json", "", SETTINGS)


def test_body_that_breaks_off_is_refused() -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise OSError("reset")

    with pytest.raises(BadRequest, match="broke off") as refusal:
        read_body({"wsgi.input": Broken(), "CONTENT_LENGTH": "9"}, "json", "", SETTINGS)
    assert refusal.value.status == 400


# time


@pytest.fixture
def client() -> Iterator[tuple[socket.socket, dict[str, Any]]]:
    """A client's end of a connection, and the environ of a request with 1000 bytes on it."""
    theirs, ours = socket.socketpair()
    with theirs, ours, ours.makefile("rb", buffering=0) as stream:
        yield theirs, {"wsgi.input": stream, "CONTENT_LENGTH": "1000", "gunicorn.socket": ours}


Client = tuple[socket.socket, dict[str, Any]]


def test_silent_client_is_given_up_in_time(client: Client) -> None:
    _, made = client
    begun = time.monotonic()
    with pytest.raises(BodyTimeout) as refusal:
        read_body(made, "json", "", dataclasses.replace(SETTINGS, body_s=0.2))
    assert refusal.value.status == 408
    assert 0.19 <= time.monotonic() - begun < 2


def test_dripping_client_is_given_up_in_time(client: Client) -> None:
    theirs, made = client
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.02):
            theirs.send(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(BodyTimeout):
        read_body(made, "json", "", dataclasses.replace(SETTINGS, body_s=0.3))
    stop.set()
    thread.join()
    assert time.monotonic() - begun < 3


def test_timer_of_a_body_in_time_never_touches_the_connection() -> None:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        read_body(environ(b"{}") | {"gunicorn.socket": ours}, "json", "", dataclasses.replace(SETTINGS, body_s=0.05))
        time.sleep(0.15)
        theirs.send(b"next")
        assert ours.recv(10) == b"next"


# forms


@pytest.mark.parametrize("size", [10, OFFLOAD_BYTES * 2])
@pytest.mark.parametrize("chunked", [False, True])
def test_form_is_kept_byte_for_byte_whatever_its_size(size: int, chunked: bool) -> None:
    raw = form(os.urandom(size))
    received = receive(raw, "form", FORM, chunked=chunked)
    assert content(received.body) == content(received.body) == raw
    assert (received.fields.model, received.content_type, received.body.replayable) == ("whisper-1", FORM, True)


@pytest.mark.parametrize("size", [10, OFFLOAD_BYTES * 2])
def test_fields_of_a_form_are_edited_again_from_the_received_bytes(size: int) -> None:
    file = os.urandom(size)
    body = receive(form(file), "form", FORM).body
    first = edited(body, model="a-longer-name", stream=True)
    second = edited(first, model="x")
    added = b'--b0undary\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
    assert content(first) == added + form(file, b"a-longer-name")
    assert content(second) == added + form(file, b"x")
    assert content(body) == form(file)


def test_form_has_no_document() -> None:
    with pytest.raises(BadRequest):
        receive(form(), "form", FORM).document()


def test_two_attempts_may_read_a_large_form_at_once() -> None:
    raw = form(os.urandom(OFFLOAD_BYTES * 2))
    body = receive(raw, "form", FORM).body
    pairs = zip(body.open(), body.open(), strict=True)
    assert b"".join(first for first, second in pairs if first == second) == raw


def test_large_form_leaves_no_descriptor_and_no_file(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path_factory.mktemp("spool")
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    gc.collect()  # what earlier tests left open is not this one's
    before = len(os.listdir("/proc/self/fd"))
    received = receive(form(b"x" * OFFLOAD_BYTES * 2), "form", FORM)
    assert len(os.listdir("/proc/self/fd")) > before
    assert list(directory.iterdir()) == []
    del received
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("raw", [b"", form()[:-3], form() + b"x", b"x" * (OFFLOAD_BYTES * 2)])
def test_malformed_form_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        receive(raw, "form", FORM)


# the connection behind an unread body


class Closing:
    """An environ whose connection can be told to close."""

    def __init__(self, source: Any, **more: Any) -> None:
        self.closed = 0
        self.environ: dict[str, Any] = {"wsgi.input": source, "gateway.force_close": self._close, **more}

    def _close(self) -> None:
        self.closed += 1


def test_connection_goes_on_after_a_body_that_was_read_to_its_end() -> None:
    closing = Closing(io.BytesIO(b"{}"), CONTENT_LENGTH="2")
    read_body(closing.environ, "json", "", SETTINGS)
    assert not breaks_off(closing.environ)
    assert closing.closed == 0


@pytest.mark.parametrize("more", [{}, {"CONTENT_LENGTH": "0"}, {"CONTENT_LENGTH": ""}])
def test_connection_goes_on_after_a_request_without_a_body(more: dict[str, str]) -> None:
    closing = Closing(io.BytesIO(b"next"), **more)
    assert not breaks_off(closing.environ)
    assert closing.closed == 0
    assert closing.environ["wsgi.input"].tell() == 0


@pytest.mark.parametrize("more", [{"CONTENT_LENGTH": "500000"}, {"HTTP_TRANSFER_ENCODING": "chunked"}])
def test_connection_closes_behind_an_unread_body(more: dict[str, str]) -> None:
    closing = Closing(io.BytesIO(b"x" * 500_000), **more)
    assert breaks_off(closing.environ)
    assert closing.closed == 1


def test_connection_closes_behind_a_refused_body() -> None:
    closing = Closing(io.BytesIO(b"x" * 2000), CONTENT_LENGTH="2000")
    with pytest.raises(BodyTooLarge):
        read_body(closing.environ, "json", "", dataclasses.replace(SETTINGS, json_limit=1000))
    assert breaks_off(closing.environ)
    assert closing.closed == 1


def test_server_without_a_way_to_close_is_no_error() -> None:
    made = environ(b"x" * 10)
    assert breaks_off(made)
    linger(made)


def test_client_that_still_sends_its_body_reads_its_answer(client: Client) -> None:
    theirs, made = client
    made["gunicorn.socket"].sendall(b"answer")

    def send() -> None:
        for _ in range(50):
            theirs.sendall(b"x" * 65_536)
        theirs.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    linger(made)
    thread.join()
    assert theirs.recv(100) == b"answer"
    assert theirs.recv(100) == b""


def test_client_that_never_sends_its_body_is_not_waited_for(client: Client) -> None:
    _, made = client
    begun = time.monotonic()
    linger(made)
    assert time.monotonic() - begun < LINGER_S + 2


def test_client_that_ends_is_not_waited_for(client: Client) -> None:
    theirs, made = client
    theirs.close()
    begun = time.monotonic()
    linger(made)
    assert time.monotonic() - begun < LINGER_S / 2


def test_refused_json_tells_why() -> None:
    refused: list[tuple[bytes, Callable[[str], bool]]] = [(b"", lambda text: "JSON" in text), (b"[]", lambda text: "object" in text)]
    for raw, says in refused:
        with pytest.raises(BadRequest) as refusal:
            receive(raw)
        assert says(refusal.value.message)
    assert json.loads(content(receive(b'{"model":"m"}').body)) == {"model": "m"}
