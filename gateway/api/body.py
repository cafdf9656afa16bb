"""Reading a request's body: bounded, timed, and to its end or not at all. JSON stays in memory, a large form goes to a temporary file."""

from __future__ import annotations

import contextlib
import mmap
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.backend import Body
from gateway.concurrency import after, offload
from gateway.dialects import document as json_document
from gateway.dialects import multipart
from gateway.dialects.document import Document, Fields
from gateway.errors import BadRequest, BodyTimeout, BodyTooLarge
from gateway.settings import Settings

BLOCK = 64 << 10
OFFLOAD_BYTES = 1 << 20
DOCUMENT_BYTES = 4 << 20
"""A translated call builds the whole document, and is limited to this size."""
TURN_S = 0.005
"""How long a body that comes faster than it is read may hold the hub before others have their turn."""
CHUNKED_BLOCKS = (4 << 10, 16 << 10)
"""The smallest and the largest block read of a chunked body: one of 16 KB may be 16,384 chunks, each parsed for itself."""
LINGER_BYTES, LINGER_S = 64 << 20, 2.0
READ = "gateway.body_read"
"""In an environ: nothing of the request is still to be read from its connection."""


@dataclass(frozen=True, slots=True)
class Received:
    """A request's body, whatever its kind. `content_type` is what the upstream is told."""

    body: Body
    fields: Fields
    content_type: str
    document: Callable[[], Mapping[str, Any]]


def read_body(environ: dict[str, Any], kind: str, content_type: str, settings: Settings) -> Received:
    """Read the body as `kind` says ("json", "form" or "either"). Raises BadRequest, BodyTooLarge or BodyTimeout."""
    _check_codings(environ)
    is_form = content_type.lower().startswith("multipart/form-data")
    if is_form and kind != "json":
        return _form(environ, content_type, settings)
    if kind == "form":
        raise BadRequest("This endpoint takes a form: Content-Type multipart/form-data.")
    if is_form:
        raise BadRequest("This endpoint takes a JSON object: Content-Type application/json.")
    return _json(environ, settings)


def read_raw(environ: dict[str, Any], settings: Settings, most: int | None = None) -> bytes:
    """The body as it is, of `most` bytes, or of a JSON body's size at most. Raises BadRequest, BodyTooLarge or BodyTimeout."""
    _check_codings(environ)
    return b"".join(_blocks(environ, settings.json_limit if most is None else min(most, settings.json_limit), settings.body_s))


def _check_codings(environ: Mapping[str, Any]) -> None:
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() not in ("", "identity"):
        raise BadRequest("A compressed request body is not taken; send it as it is.", code="content_encoding_not_served")
    if environ.get("HTTP_TRANSFER_ENCODING", "chunked").lower() != "chunked":  # gunicorn takes "gzip, chunked" too, and decodes the last alone
        raise BadRequest("The only transfer coding taken is chunked.", code="transfer_coding_not_served")


def _json(environ: dict[str, Any], settings: Settings) -> Received:
    raw = b"".join(_blocks(environ, settings.json_limit, settings.body_s))
    document = offload(lambda: json_document.read(raw)) if len(raw) > OFFLOAD_BYTES else json_document.read(raw)
    return Received(json_body(document, {}), document.fields, "application/json", lambda: _whole(document))


def _whole(document: Document) -> Mapping[str, Any]:
    if len(document.raw) > DOCUMENT_BYTES:
        raise BodyTooLarge(f"This model takes requests of at most {DOCUMENT_BYTES} bytes.")
    return document.parsed()


def json_body(document: Document, members: Mapping[str, Any]) -> Body:
    """The document with `members` set; further edits begin again from the received bytes."""
    raw = document.spliced(members) if members else document.raw
    return Body(
        open=lambda: iter((raw,)),
        replayable=True,
        size=len(raw),
        edit=lambda more: json_body(document, {**members, **more}),
        member=document.member,
    )


def _form(environ: dict[str, Any], content_type: str, settings: Settings) -> Received:
    content = _spooled(_blocks(environ, settings.upload_limit, settings.body_s))
    size = len(content)

    def scan() -> multipart.Form:
        return multipart.read(lambda offset, length: content[offset : offset + length], size, content_type)

    form = offload(scan) if size > OFFLOAD_BYTES else scan()
    return Received(_form_body(form, {}), form.fields, content_type, _no_document)


def _spooled(blocks: Iterator[bytes]) -> bytes | mmap.mmap:
    """All blocks, to be read at any offset and by several attempts at once: in memory up to 1 MB, else in a file of mode 0600
    without a name. The file is gone with the last who can read it."""
    held = bytearray()
    for block in blocks:
        held += block
        if len(held) > OFFLOAD_BYTES:
            break
    else:
        return bytes(held)
    with tempfile.TemporaryFile() as file:
        file.write(held)
        file.writelines(blocks)
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _no_document() -> Mapping[str, Any]:
    raise BadRequest("This model takes no forms.")


def _form_body(form: multipart.Form, members: Mapping[str, Any]) -> Body:
    opened, size = form.spliced({name: _field_text(value) for name, value in members.items()})
    return Body(open=opened, replayable=True, size=size, edit=lambda more: _form_body(form, {**members, **more}))


def _field_text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _blocks(environ: dict[str, Any], limit: int, timeout_s: float) -> Iterator[bytes]:
    """The body's blocks, all of them within `timeout_s`. Marks the environ once the body is read to its end."""
    declared = environ.get("CONTENT_LENGTH") or ""
    length = int(declared) if declared.isdecimal() else None
    if length is not None and length > limit:
        environ.pop(READ, None)  # also where it is in hand: a body of that size ends the connection
        raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
    if environ.get(READ):  # it came with the head
        yield environ["wsgi.input"].read()
        return
    smallest, largest = (BLOCK, BLOCK) if length is not None else CHUNKED_BLOCKS
    step, turn = smallest, time.monotonic()
    timed_out: list[bool] = []
    cancel = after(timeout_s, lambda: _stop_reading(environ, timed_out))
    size = 0
    try:
        while block := _read_block(environ, step, timed_out):
            size += len(block)
            if size > limit:
                raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
            yield block
            step = min(2 * step, largest)
            if time.monotonic() - turn > TURN_S:
                # While bytes wait to be read, no read waits: nobody else would run, nor would the timer above. Not sleep(0): the hub
                # takes up to 50 such turns before it looks at a socket.
                time.sleep(0.0005)
                step, turn = smallest, time.monotonic()
    finally:
        cancel()
    if timed_out:
        raise BodyTimeout(f"The request body did not arrive within {timeout_s:g} s.")
    if length is not None and size < length:
        raise BadRequest("The request body is shorter than its Content-Length.")
    environ[READ] = True


def _read_block(environ: Mapping[str, Any], size: int, timed_out: list[bool]) -> bytes:
    try:
        return environ["wsgi.input"].read(size)  # type: ignore[no-any-return]
    except Exception as error:  # the server's parser raises types of its own for a body that breaks off or is framed badly
        if timed_out:
            return b""
        raise BadRequest("The request body broke off or is framed badly.") from error


def _stop_reading(environ: Mapping[str, Any], timed_out: list[bool]) -> None:
    timed_out.append(True)
    if (sock := environ.get("gunicorn.socket")) is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RD)


def breaks_off(environ: dict[str, Any]) -> bool:
    """Whether a request is answered before its body was read to its end. If so, has its connection closed after the answer."""
    has_body = environ.get("HTTP_TRANSFER_ENCODING") or (environ.get("CONTENT_LENGTH") or "0") != "0"
    if environ.get(READ) or not has_body:
        return False
    if (force_close := environ.get("gateway.force_close")) is not None:
        force_close()
    return True


def linger(environ: Mapping[str, Any]) -> None:
    """After the answer to such a request: say that no more comes, and take in what the client still sends, within bounds.
    A connection that is closed with bytes unread is reset, and the client would never read the answer."""
    sock: socket.socket | None = environ.get("gunicorn.socket")
    if sock is None:
        return
    deadline, taken = time.monotonic() + LINGER_S, 0
    with contextlib.suppress(OSError):  # the client is gone, or late
        sock.shutdown(socket.SHUT_WR)
        while taken < LINGER_BYTES and (left_s := deadline - time.monotonic()) > 0:
            sock.settimeout(left_s)
            block = sock.recv(BLOCK)
            if not block:
                return
            taken += len(block)
