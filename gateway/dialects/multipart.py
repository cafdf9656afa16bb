"""A multipart form as it was received: where its small fields stand, and edits by splicing. Source: RFC 7578, RFC 2046 section 5.1."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gateway.dialects.document import Fields, Span, check_fields
from gateway.errors import BadRequest

ReadAt = Callable[[int, int], bytes]
"""read_at(offset, size): that many bytes of the body, fewer at its end."""

WINDOW = 256 << 10
MAX_PARTS = 200
PART_HEAD_BYTES = 8 << 10
FIELD_BYTES = 1 << 10
_NAME = re.compile(rb';[ \t]*name="?((?:[^"\\\r\n;]|\\.)*)"?', re.IGNORECASE)
_FILENAME = re.compile(rb";[ \t]*filename\*?=", re.IGNORECASE)
_BOUNDARY = re.compile(r'boundary="?([A-Za-z0-9\'()+_,./:=? -]{1,70})"?', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Form:
    """`spans` has every field that is not a file, by name; of a repeated one, the last."""

    read_at: ReadAt
    size: int
    boundary: bytes
    fields: Fields
    spans: Mapping[str, Span]

    def spliced(self, members: Mapping[str, str]) -> tuple[Callable[[], Iterator[bytes]], int]:
        """The body with these fields set: a way to open it, and its size."""
        added = b"".join(self._part(name, value) for name, value in members.items() if name not in self.spans)
        present = [(self.spans[name], value.encode()) for name, value in members.items() if name in self.spans]
        edits = [(Span(0, 0), added), *sorted(present, key=lambda edit: edit[0].start)]
        size = self.size + sum(len(value) - (span.end - span.start) for span, value in edits)

        def opened() -> Iterator[bytes]:
            at = 0
            for span, value in edits:
                yield from self._between(at, span.start)
                yield value
                at = span.end
            yield from self._between(at, self.size)

        return opened, size

    def _part(self, name: str, value: str) -> bytes:
        return b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (self.boundary, name.encode(), value.encode())

    def _between(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            block = self.read_at(start, min(WINDOW, end - start))
            if not block:
                return
            start += len(block)
            yield block


def read(read_at: ReadAt, size: int, content_type: str) -> Form:
    """Scan a form without holding it in memory. Raises BadRequest where it is malformed, or repeats `model` or `stream`."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise BadRequest("The Content-Type of a form must be multipart/form-data with a boundary.")
    spans: dict[str, Span] = {}
    boundary = match[1].strip().encode()
    for name, span in _parts(read_at, size, b"--" + boundary):
        if name in spans and name in ("model", "stream"):
            raise BadRequest(f"The field '{name}' stands twice in the form.", param=name)
        spans[name] = span
    model, stream = (_value(read_at, spans.get(name)) for name in ("model", "stream"))
    fields = Fields(model=model, stream={"true": True, "false": False}.get((stream or "").lower()))
    check_fields(fields)
    return Form(read_at, size, boundary, fields, spans)


def _value(read_at: ReadAt, span: Span | None) -> str | None:
    if span is None or span.end - span.start > FIELD_BYTES:
        return None
    return read_at(span.start, span.end - span.start).decode("utf-8", "replace")


def _parts(read_at: ReadAt, size: int, delimiter: bytes) -> Iterator[tuple[str, Span]]:
    at = 0
    if read_at(0, len(delimiter)) != delimiter:
        at = _find(read_at, size, b"\r\n" + delimiter, 0) + 2
    for _ in range(MAX_PARTS):
        at += len(delimiter)
        if read_at(at, 2) == b"--":
            return
        head_start = _find(read_at, size, b"\r\n", at, PART_HEAD_BYTES)
        head_end = head_start if read_at(head_start, 4) == b"\r\n\r\n" else _find(read_at, size, b"\r\n\r\n", head_start, PART_HEAD_BYTES)
        body_end = _find(read_at, size, b"\r\n" + delimiter, head_end + 2)
        head = read_at(head_start, head_end - head_start)
        name = _field_name(head)
        if name is not None:
            yield name, Span(head_end + 4, body_end)
        at = body_end + 2
    raise BadRequest(f"The form has more than {MAX_PARTS} parts.")


def _field_name(head: bytes) -> str | None:
    """The name of a part that is not a file."""
    line = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"content-disposition:")), b"")
    name = _NAME.search(line)
    if name is None or _FILENAME.search(line):
        return None
    return name[1].decode("utf-8", "replace")


def _find(read_at: ReadAt, size: int, needle: bytes, start: int, limit: int | None = None) -> int:
    """The offset of `needle` at or after `start`. Reads in windows, between which other threads run."""
    end = size if limit is None else min(size, start + limit)
    at = start
    while at < end:
        window = read_at(at, min(WINDOW, end - at) + len(needle) - 1)
        found = window.find(needle)
        if found >= 0:
            return at + found
        if len(window) < len(needle):
            break
        at += len(window) - len(needle) + 1
    raise BadRequest("The form is malformed: a part has no end.")
