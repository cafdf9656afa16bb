"""A multipart form as it was received: where its small fields stand, and edits by splicing. Source: RFC 7578, RFC 2046 section 5.1.

Read strictly: where parsers differ (text around the form, folded or repeated headers, encoded names), the upstream could
read another model than the one that was authorised here. No client of today writes such forms.
"""

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
END_BYTES = 4
FIELD_BYTES = 1 << 10
"""The longest value that is read: `model` and `stream` are shorter."""
_READ_FIELDS = ("model", "stream")
_PARAMETER = re.compile(r';[ \t]*([A-Za-z0-9_*-]+)=(?:"((?:[^"\\\r\n]|\\.)*)"|([^\s;"\\]*))[ \t]*')
_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]")
_HEADER = re.compile(r"([!-9;-~]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]*)")
_PLAIN_ENCODINGS = ("7bit", "8bit", "binary")


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
        start = _start(self.read_at)
        edits = [(Span(start, start), added), *sorted(present, key=lambda edit: edit[0].start)]
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
    boundary = boundary_of(content_type)
    spans: dict[str, Span] = {}
    for name, span in _parts(read_at, size, b"--" + boundary):
        if name in spans and name in _READ_FIELDS:
            raise BadRequest(f"The field '{name}' stands twice in the form.", param=name)
        spans[name] = span
    model, stream = (_value(read_at, name, spans.get(name)) for name in _READ_FIELDS)
    if stream is not None and stream.lower() not in ("true", "false"):
        raise BadRequest("'stream' must be true or false.", param="stream")
    fields = Fields(model=model, stream=None if stream is None else stream.lower() == "true")
    check_fields(fields)
    return Form(read_at, size, boundary, fields, spans)


def boundary_of(content_type: str) -> bytes:
    """Raises BadRequest."""
    kind, parameters = _header_value(content_type)
    boundary = parameters.get("boundary", "")
    if kind != "multipart/form-data" or not _BOUNDARY.fullmatch(boundary) or not parameters.keys() <= {"boundary", "charset"}:
        raise BadRequest("The Content-Type of a form must be multipart/form-data with a boundary of 1 to 70 characters.")
    return boundary.encode()


def _header_value(text: str) -> tuple[str, dict[str, str]]:
    """A header's value in lower case up to the first semicolon, and its parameters, names in lower case."""
    text = text.rstrip("; \t")
    kind, _, _ = text.partition(";")
    at, parameters = len(kind), dict[str, str]()
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None or match[1].lower() in parameters:
            raise BadRequest("The form is malformed: a header's parameters cannot be read.")
        parameters[match[1].lower()] = match[3] if match[2] is None else match[2]
        at = match.end()
    return kind.strip().lower(), parameters


def _value(read_at: ReadAt, name: str, span: Span | None) -> str | None:
    if span is None:
        return None
    if span.end - span.start > FIELD_BYTES:
        raise BadRequest(f"The field '{name}' is too long.", param=name)
    try:
        return str(read_at(span.start, span.end - span.start), "utf-8")
    except UnicodeDecodeError:
        raise BadRequest(f"The field '{name}' is not valid UTF-8.", param=name) from None


def _start(read_at: ReadAt) -> int:
    """Where the first boundary stands: behind an empty preamble, which older clients write."""
    return 2 if read_at(0, 2) == b"\r\n" else 0


def _parts(read_at: ReadAt, size: int, delimiter: bytes) -> Iterator[tuple[str, Span]]:
    """The fields that are not files, in order."""
    at = _start(read_at)
    if read_at(at, len(delimiter)) != delimiter:
        raise BadRequest("The form is malformed: it does not begin with its boundary.")
    for _ in range(MAX_PARTS + 1):
        at += len(delimiter)
        mark = read_at(at, 2)
        if mark == b"--":
            return _check_end(read_at(at + 2, END_BYTES + 1))
        head_end = _find(read_at, size, b"\r\n\r\n", at, PART_HEAD_BYTES)
        if mark != b"\r\n" or head_end == at:
            raise BadRequest("The form is malformed: a part does not begin with a line end and its headers.")
        body_end = _find(read_at, size, b"\r\n" + delimiter, head_end + 2)
        if body_end < head_end + 4:
            raise BadRequest("The form is malformed: a part ends within its headers.")
        name, is_file = _part(read_at(at + 2, head_end - at - 2))
        if not is_file:
            yield name, Span(head_end + 4, body_end)
        elif name in _READ_FIELDS:
            raise BadRequest(f"The field '{name}' must not be a file.", param=name)
        at = body_end + 2
    raise BadRequest(f"The form has more than {MAX_PARTS} parts.")


def _check_end(rest: bytes) -> None:
    if len(rest) > END_BYTES or rest.strip(b"\r\n"):
        raise BadRequest("The form is malformed: something follows its end.")


def _part(head: bytes) -> tuple[str, bool]:
    """A part's name, and whether it is a file."""
    headers: dict[str, str] = {}
    for line in head.decode("utf-8", "replace").split("\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None or match[1].lower() in headers:
            raise BadRequest("The form is malformed: a part's headers cannot be read.")
        headers[match[1].lower()] = match[2]
    kind, parameters = _header_value(headers.get("content-disposition", ""))
    name = parameters.get("name", "")
    if kind != "form-data" or not name or "\\" in name or "name*" in parameters:
        raise BadRequest("The form is malformed: a part has no plain name.")
    if headers.get("content-transfer-encoding", "binary").strip().lower() not in _PLAIN_ENCODINGS:
        raise BadRequest("The form is malformed: a part has a transfer encoding.")
    return name, bool({"filename", "filename*"} & parameters.keys())


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
