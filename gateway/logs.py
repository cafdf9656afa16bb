"""Structured logs: one JSON object a line, with secrets taken out. A line about a call carries its exchange id."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

LOGGER = "gateway"
_SECRET_FORMS = re.compile(
    # JSON has been written by then: what stands before a secret may be the letter of an escaped line break.
    r"(?i)(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt])|(?<=\\u[0-9a-f]{4}))(?:gw_[a-z]+_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_\-]{8,}|eyJ[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-.]+)"
    r"|(?:bearer|basic)\s+[A-Za-z0-9._~+/=\-]{8,}"
    r"|(?<=://)[^/\s\"\\]+(?=@)"
)
REDACTED = "[redacted]"


class Redactor:
    """Takes out secrets of a known form (our keys, OpenAI's, JWTs, Authorization values, passwords in URLs) and known values."""

    def __init__(self) -> None:
        self._values: tuple[str, ...] = ()

    def learn(self, *secrets: str) -> None:
        """Never show these again. Values of fewer than 8 characters are too common to search for and are passed over."""
        known = {secret for secret in secrets if len(secret) >= 8}
        forms = known | {json.dumps(secret)[1:-1] for secret in known} | set(self._values)
        # The longest first, or a shorter one within it would leave its rest; replaced whole, since other threads are reading it.
        self._values = tuple(sorted(forms, key=len, reverse=True))

    def __call__(self, text: str) -> str:
        for value in self._values:
            if value in text:
                text = text.replace(value, REDACTED)
        return _SECRET_FORMS.sub(REDACTED, text)


class JsonFormatter(logging.Formatter):
    """`extra={"exchange": id, "fields": {...}}` become members of the line."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if exchange := getattr(record, "exchange", None):
            line["exchange"] = exchange
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # ASCII only: no terminal escape, no U+2028, no line break of any kind can come through.
        return self._redactor(json.dumps(line, default=str))


def set_up(level: str, redactor: Redactor, stream: TextIO | None = None) -> logging.Logger:
    """Send every log of the process to `stream` (standard error) as JSON lines; returns the gateway's logger."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(redactor))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("peewee").setLevel(logging.INFO)  # at debug it writes every statement with its values
    return logging.getLogger(LOGGER)
