"""Reading a request's body: bounded, timed, and to its end or not at all. JSON stays in memory, a large form goes to a temporary file."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

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
LINGER_BYTES, LINGER_S = 64 << 10, 1.0
_READ = "gateway.body_read"


@dataclass(frozen=True, slots=True)
class Received:
    """A request's body, whatever its kind. `content_type` is what the upstream is told."""

    body: Body
    fields: Fields
    content_type: str
    document: Callable[[], Mapping[str, Any]]


def read_body(environ: dict[str, Any], kind: str, content_type: str, settings: Settings) -> Received:
    """Read the body as `kind` says ("json", "form" or "either"). Raises BadRequest, BodyTooLarge or BodyTimeout."""
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() not in ("", "identity"):
        raise BadRequest("A compressed request body is not taken; send it as it is.", code="content_encoding_not_served")
    is_form = content_type.lower().startswith("multipart/form-data")
    if is_form and kind != "json":
        return _form(environ, content_type, settings)
    if kind == "form":
        raise BadRequest("This endpoint takes a form: Content-Type multipart/form-data.")
    if is_form:
        raise BadRequest("This endpoint takes a JSON object: Content-Type application/json.")
    return _json(environ, settings)


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
    # A file of mode 0600 without a name, gone with its last reader: the body is read again at each attempt.
    spool = tempfile.SpooledTemporaryFile(max_size=OFFLOAD_BYTES)  # noqa: SIM115
    size = 0
    for block in _blocks(environ, settings.upload_limit, settings.body_s):
        size += len(block)
        spool.write(block)
    read_at = _reader(spool)
    form = offload(lambda: multipart.read(read_at, size, content_type)) if size > OFFLOAD_BYTES else multipart.read(read_at, size, content_type)
    return Received(_form_body(form, {}), form.fields, content_type, _no_document)


def _no_document() -> Mapping[str, Any]:
    raise BadRequest("This model takes no forms.")


def _reader(spool: Any) -> multipart.ReadAt:
    """Random access without a shared position, so that a retry can read while an earlier attempt still does."""
    spool.flush()
    inner: BinaryIO = spool._file  # SpooledTemporaryFile has no public way to tell where it keeps its bytes
    if isinstance(inner, io.BytesIO):
        content = inner.getbuffer()
        return lambda offset, length: bytes(content[offset : offset + length])
    return lambda offset, length: os.pread(spool.fileno(), length, offset)


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
        raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
    timed_out: list[bool] = []
    cancel = after(timeout_s, lambda: _stop_reading(environ, timed_out))
    size = 0
    try:
        while block := _read_block(environ, timed_out):
            size += len(block)
            if size > limit:
                raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
            yield block
    finally:
        cancel()
    if timed_out:
        raise BodyTimeout(f"The request body did not arrive within {timeout_s:g} s.")
    if length is not None and size < length:
        raise BadRequest("The request body is shorter than its Content-Length.")
    environ[_READ] = True


def _read_block(environ: Mapping[str, Any], timed_out: list[bool]) -> bytes:
    try:
        return environ["wsgi.input"].read(BLOCK)  # type: ignore[no-any-return]
    except Exception as error:  # the server's parser raises types of its own for a body that breaks off or is framed badly
        if timed_out:
            return b""
        raise BadRequest("The request body broke off or is framed badly.") from error


def _stop_reading(environ: Mapping[str, Any], timed_out: list[bool]) -> None:
    timed_out.append(True)
    if (sock := environ.get("gunicorn.socket")) is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RD)


def finish_connection(environ: dict[str, Any]) -> None:
    """Before an answer to a request whose body was not read to its end: have the connection closed after it, and take in
    a little of the rest, so that the client reads the answer instead of a reset. Bounded in bytes and time."""
    has_body = environ.get("HTTP_TRANSFER_ENCODING") or (environ.get("CONTENT_LENGTH") or "0") != "0"
    if environ.get(_READ) or not has_body:
        return
    environ[_READ] = True
    if (force_close := environ.get("gateway.force_close")) is not None:
        force_close()
    timed_out: list[bool] = []
    cancel = after(LINGER_S, lambda: _stop_reading(environ, timed_out))
    try:
        deadline, taken = time.monotonic() + LINGER_S, 0
        while taken < LINGER_BYTES and time.monotonic() < deadline:
            block = environ["wsgi.input"].read(BLOCK)
            if not block:
                break
            taken += len(block)
    except Exception as error:  # as in _read_block; the connection ends anyway
        environ["gateway.body_error"] = type(error).__name__
    finally:
        cancel()
