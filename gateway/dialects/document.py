"""A JSON request body as it was received: the few members the gateway reads, where the top-level members stand, and edits by splicing.

Nothing is ever written back from a parsed document: an edit replaces one value's bytes, the rest keeps every byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.errors import BadRequest

MAX_DEPTH = 128
LENIENT_BYTES = 1 << 20
"""Up to this size a body that msgspec refuses is tried with `json`, which takes lone surrogates and 1e999."""

_EMPTY = re.compile(rb"[ \t\r\n]*\{[ \t\r\n]*\}")
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOP = re.compile(rb'(?:[^"{}\[\],]++|' + _STRING + rb"){0,64}+([{}\[\],]?)", re.DOTALL)
_NESTED = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb"){0,64}+([{}\[\]]?)", re.DOTALL)
"""Up to the next bracket (or comma); after 64 strings at the latest, so that no single step holds the interpreter for long."""
_MODEL_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{1,256}\Z")


class Fields(msgspec.Struct, frozen=True):
    """The top-level members that routing, metering and policy read; everything else passes unread."""

    model: Any = None
    stream: Any = None
    n: Any = None
    best_of: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    stream_options: Any = None
    store: Any = None
    background: Any = None
    conversation: Any = None
    previous_response_id: Any = None


_FIELD_NAMES = frozenset(Fields.__struct_fields__)
_KEPT_NAMES = _FIELD_NAMES | {"prompt"}
"""`prompt` is long in completions and is not decoded; whether it is an object says that it is a stored one."""
_FIELDS = msgspec.json.Decoder(Fields)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a value stands in the body: raw[start:end]."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """A valid JSON object. `kept` says where those members stand that the gateway reads or sets; of a repeated one, the last."""

    raw: bytes
    fields: Fields
    kept: Mapping[str, Span]

    @property
    def spans(self) -> Mapping[str, Span]:
        """Where every top-level member stands; scans the document again."""
        return scan(self.raw)

    def member(self, name: str) -> bytes | None:
        """The raw JSON of a top-level member, or None."""
        span = (self.kept if name in _KEPT_NAMES else self.spans).get(name)
        return None if span is None else self.raw[span.start : span.end]

    def parsed(self) -> dict[str, Any]:
        """The whole document. Costs time and memory in proportion: only a translated call needs it."""
        parsed: dict[str, Any] = json.loads(self.raw, parse_int=_integer)
        return parsed

    def spliced(self, members: Mapping[str, Any]) -> bytes:
        """The body with these top-level members set: present ones in place, absent ones at the front. A msgspec.Raw value goes in as it is."""
        return _spliced(self.raw, self.kept if members.keys() <= _KEPT_NAMES else self.spans, members)


def _spliced(raw: bytes, spans: Mapping[str, Span], members: Mapping[str, Any]) -> bytes:
    edits = [(spans[name], _encoded(value)) for name, value in members.items() if name in spans]
    added = [json.dumps(name).encode() + b":" + _encoded(value) for name, value in members.items() if name not in spans]
    if added:
        brace = raw.index(b"{") + 1
        tail = b"" if _EMPTY.match(raw) else b","
        edits.append((Span(brace, brace), b",".join(added) + tail))
    pieces, at = [], 0
    for span, value in sorted(edits, key=lambda edit: edit[0].start):
        pieces += [raw[at : span.start], value]
        at = span.end
    return b"".join([*pieces, raw[at:]])


def _encoded(value: Any) -> bytes:
    return bytes(value) if isinstance(value, msgspec.Raw) else json.dumps(value).encode()


def read(raw: bytes) -> Document:
    """Read a request body. Raises BadRequest for anything but one JSON object (RFC 8259, UTF-8, no BOM), nested at most 128 deep,
    in which no member that the gateway reads stands twice."""
    fields = _decode(raw)
    kept = scan(raw, _KEPT_NAMES)
    check_fields(fields)
    return Document(raw, fields, kept)


def check_fields(fields: Fields) -> None:
    """Raises BadRequest where a member has a type with which nothing can be routed."""
    if fields.model is not None and not (isinstance(fields.model, str) and _MODEL_NAME.match(fields.model)):
        raise BadRequest("'model' must be a string of 1 to 256 characters without control characters.", param="model")
    if not (fields.stream is None or isinstance(fields.stream, bool)):
        raise BadRequest("'stream' must be true or false.", param="stream")
    if fields.stream_options is not None and not isinstance(fields.stream_options, dict):
        raise BadRequest("'stream_options' must be an object.", param="stream_options")


def _decode(raw: bytes) -> Fields:
    try:
        str(raw, "utf-8")  # msgspec does not look into the strings that it skips
        return _FIELDS.decode(raw)
    except UnicodeDecodeError as error:
        raise BadRequest(f"The request body is not valid UTF-8 (byte {error.start}).") from None
    except RecursionError:
        raise BadRequest(f"The request body is nested more than {MAX_DEPTH} levels deep.") from None
    except msgspec.DecodeError as error:
        if raw.startswith(b"\xef\xbb\xbf"):
            raise BadRequest("The request body begins with a byte order mark; send plain UTF-8.") from None
        if len(raw) > LENIENT_BYTES:
            raise BadRequest(f"The request body is not a JSON object: {_reason(error)}") from None
    return _decode_leniently(raw)


def _decode_leniently(raw: bytes) -> Fields:
    try:
        # From text: given bytes, `json` would take UTF-16 and UTF-32 as well.
        document = json.loads(str(raw, "utf-8"), parse_constant=_refuse_constant, parse_int=_integer)
    except RecursionError:
        raise BadRequest(f"The request body is nested more than {MAX_DEPTH} levels deep.") from None
    except ValueError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadRequest("The request body must be a JSON object.")
    return Fields(**{name: document[name] for name in _FIELD_NAMES & document.keys()})


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float("inf")  # int() refuses over 4,300 digits; JSON does not


def _reason(error: Exception) -> str:
    return str(error).removeprefix("JSON is malformed: ")


def scan(raw: bytes, names: frozenset[str] | None = None) -> dict[str, Span]:
    """Find the top-level members of a valid JSON object: those of these names, or all. Raises BadRequest where it nests too deep
    or repeats a member that we read.

    Pure Python on purpose: in a native thread it is pre-empted, as a C decoder is not.
    """
    spans: dict[str, Span] = {}
    depth, at, member_start = 0, 0, 0
    while True:
        step = (_TOP if depth == 1 else _NESTED).match(raw, at)
        if step is None or step.end() == at:
            return spans
        at = step.end()
        kind = step[1]
        if not kind:
            continue
        if kind in b"{[":
            depth += 1
            if depth > MAX_DEPTH:
                raise BadRequest(f"The request body is nested more than {MAX_DEPTH} levels deep.")
            if depth == 1:
                member_start = at
        elif kind in b"}]":
            depth -= 1
            if depth == 0:
                _add_member(raw, member_start, at - 1, spans, names)
                return spans
        elif kind == b",":  # at depth 1 only
            _add_member(raw, member_start, at - 1, spans, names)
            member_start = at


_KEY = re.compile(rb"[ \t\r\n]*(" + _STRING + rb")[ \t\r\n]*:[ \t\r\n]*", re.DOTALL)


def _add_member(raw: bytes, start: int, end: int, spans: dict[str, Span], names: frozenset[str] | None) -> None:
    key = _KEY.match(raw, start, end)
    if key is None:
        return  # an empty object
    name = json.loads(key[1])
    if names is not None and name not in names:
        return
    if name in spans and name in _FIELD_NAMES:
        raise BadRequest(f"The member '{name}' stands twice in the request body.", param=name)
    while raw[end - 1] in b" \t\r\n":
        end -= 1
    spans[name] = Span(key.end(), end)


def with_member(raw: bytes | None, name: str, value: Any) -> msgspec.Raw:
    """The JSON object `raw` (None or null: an empty one) with one member set, its other bytes kept."""
    if raw is None or raw == b"null":
        raw = b"{}"
    return msgspec.Raw(_spliced(raw, scan(raw), {name: value}))
