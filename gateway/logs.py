"""Structured logs: one JSON object a line, with secrets taken out. A line about a call carries its exchange id.

One formatter, one handler, one write a line. Whatever stands in a record, the line is printable ASCII and a JSON object.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote

import msgspec

LOGGER = "gateway"
_SECRET_FORMS = re.compile(
    # JSON has been written by then: what stands before a secret may be the letter of an escaped line break, or of a terminal's colour.
    r"(?i)(?:(?<![A-Za-z0-9])|(?<=[0-9]m)|(?<=\\[bfnrt])|(?<=\\u[0-9a-f]{4}))(?:gw_[a-z]+_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_\-]{8,}|eyJ[A-Za-z0-9_\-]{10,}(?:\.[A-Za-z0-9_\-.]+)?)"
    r"|(?:bearer|basic)\s+[A-Za-z0-9._~+/=\-]{8,}"
    r"|(?<=://)[^/\s\"\\]+(?=@)"
)
_SIGNS = ("gw_", "sk-", "eyj", "bearer", "basic", "://")
"""In lower case: without one of these no secret form is there, and the expression, 15 times as dear, is not asked."""
_SIGN_LENGTH = 4
"""By so many first characters known values are grouped: most upstream keys begin alike, and one look rules out all of them."""
_DEPTH = 8
REDACTED = "[redacted]"


class Redactor:
    """Takes out secrets of a known form (our keys, OpenAI's, JWTs, Authorization values, passwords in URLs) and known values."""

    def __init__(self) -> None:
        self._values: frozenset[str] = frozenset()
        self._groups: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def learn(self, *secrets: str) -> None:
        """Never show these again. Values of fewer than 8 characters are too common to search for and are passed over."""
        known = {form for secret in secrets if len(secret) >= 8 for form in _written(secret)}
        if known <= self._values:
            return
        self._values |= known
        groups: dict[str, list[str]] = {}
        for value in self._values:
            groups.setdefault(value[:_SIGN_LENGTH], []).append(value)
        # Replaced whole, since other threads are reading it.
        self._groups = tuple((sign, tuple(values)) for sign, values in groups.items())

    def __call__(self, text: str) -> str:
        if found := [value for sign, values in self._groups if sign in text for value in values if value in text]:
            for value in sorted(found, key=len, reverse=True):  # or a shorter one within a longer one would leave its rest
                text = text.replace(value, REDACTED)
        lowered = text.lower()
        for sign in _SIGNS:
            if sign in lowered:
                return _SECRET_FORMS.sub(REDACTED, text)
        return text


def _written(secret: str) -> Iterable[str]:
    """The ways in which a line may hold a value: as it is, as a part of a Python literal or a URL, each as JSON writes it."""
    for form in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe="", errors="replace"), quote(secret, errors="replace")):
        yield form
        yield json.dumps(form)[1:-1]


def _text(value: object) -> str:
    """`str(value)`, also where a stranger's `__str__` fails."""
    try:
        return str(value)
    except Exception as error:  # nobody else can tell
        return f"<{type(value).__name__}, of which str() raises {type(error).__name__}>"


_encode = msgspec.json.Encoder(enc_hook=_text).encode


def _line(members: Mapping[str, Any]) -> str:
    """One JSON object in printable ASCII: no terminal escape, no U+2028, no line break of any kind can come through."""
    try:
        text = _encode(members).decode()
    except Exception:  # a lone surrogate, an odd key, a number without end: the slow way takes whatever comes
        text = ""
    if text and text.isascii() and "\x7f" not in text:
        return text
    return json.dumps(_plain(members, _DEPTH), separators=(",", ":"))


def _plain(value: Any, depth: int) -> Any:
    """The same of what JSON has; deeper than `depth` as text, so that no cycle goes on for ever."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth and isinstance(value, Mapping):
        return {_text(key): _plain(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth - 1) for item in value]
    return _text(value)


class JsonFormatter(logging.Formatter):
    """`extra={"exchange": id, "fields": {...}}` become members of the line."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"ts": _stamp(record.created), "level": record.levelname.lower(), "logger": record.name, "msg": _message(record)}
        extra = record.__dict__
        if exchange := extra.get("exchange"):
            line["exchange"] = exchange
        if fields := extra.get("fields"):
            line |= fields
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return self._redactor(_line(line))

    def call(self, logger: str, exchange: str, fields: Mapping[str, Any]) -> str:
        """The line of a call: what `format` makes of its record."""
        return self._redactor(_line({"ts": _stamp(time.time()), "level": "info", "logger": logger, "msg": "exchange", "exchange": exchange, **fields}))


def call_ended(log: logging.Logger, exchange: str, fields: Mapping[str, Any]) -> None:
    """Write the one line of a call. Straight to the handler where it is ours alone: a record, which nobody sees, costs as much as the line."""
    handlers = logging.root.handlers
    if len(handlers) == 1 and isinstance(handler := handlers[0], LineHandler) and isinstance(handler.formatter, JsonFormatter):
        if log.isEnabledFor(logging.INFO):
            handler.call(handler.formatter, log.name, exchange, fields)
    else:
        log.info("exchange", extra={"exchange": exchange, "fields": fields})


def _stamp(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=4)
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # arguments that do not fit, or cannot be written: the line is worth more than its form
        return f"{_text(record.msg)} {_text(record.args)} [{type(error).__name__}]"


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each record at once and whole: lines of several workers and threads do not mix.

    No lock, which under gevent costs more than the write: a whole line is handed to the stream in one call.
    """

    def createLock(self) -> None:
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        if not self.filter(record):
            return False
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + "\n")
            self.stream.flush()
        except Exception as error:  # a full disk, a closed pipe: nothing is left to tell it to but the same stream
            self._give_up(record.name, error)

    def call(self, formatter: JsonFormatter, logger: str, exchange: str, fields: Mapping[str, Any]) -> None:
        """What `emit` does, for the line of a call."""
        try:
            self.stream.write(formatter.call(logger, exchange, fields) + "\n")
            self.stream.flush()
        except Exception as error:  # as above
            self._give_up(logger, error)

    def _give_up(self, logger: str, error: Exception) -> None:
        told = {"level": "error", "logger": __name__, "msg": "a record could not be written", "error": type(error).__name__, "of": _text(logger)}
        try:
            self.stream.write(_line(told) + "\n")
        except (OSError, ValueError):
            return


class StrayLines(io.TextIOBase):
    """Takes the place of `sys.stderr`: what a library prints there becomes a record too, each line one. `of` is the stream that it was."""

    def __init__(self, of: TextIO) -> None:
        self.of, self._rest = of, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                logging.getLogger("stderr").warning("%s", line)
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """For faulthandler, whose dump of a process that hangs is the one thing that stays as it is."""
        return self.of.fileno()


def _true_stderr() -> TextIO:
    """Asked by attribute: a server that reloads has another StrayLines than the class of this module."""
    stream: TextIO = getattr(sys.stderr, "of", sys.stderr)
    return stream


def take_stderr() -> None:
    """From here on uncaught errors and whatever is printed to standard error are records. For a server's process, after `set_up`."""
    log = logging.getLogger(__name__)

    def in_a_thread(told: threading.ExceptHookArgs) -> None:
        if told.exc_value is not None:
            log.error("uncaught in %s", told.thread.name if told.thread else "a thread", exc_info=told.exc_value)

    def in_the_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        log.critical("uncaught", exc_info=(kind, error, trace))

    sys.stderr = StrayLines(_true_stderr())
    sys.excepthook, threading.excepthook = in_the_end, in_a_thread


def set_up(level: str, redactor: Redactor, stream: TextIO | None = None) -> logging.Logger:
    """Send every log of the process to `stream` (standard error) as JSON lines; returns the gateway's logger."""
    handler = LineHandler(stream or _true_stderr())
    handler.setFormatter(JsonFormatter(redactor))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("peewee").setLevel(logging.INFO)  # at debug it writes every statement with its values
    logging.captureWarnings(True)
    return logging.getLogger(LOGGER)
