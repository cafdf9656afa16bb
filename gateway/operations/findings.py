"""What the doctor's checks say."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `text` is one line; where something is wrong it says what to do."""

    verdict: Verdict
    subject: str
    text: str


def ok(subject: str, text: str) -> Finding:
    return Finding(Verdict.OK, subject, text)


def warning(subject: str, text: str) -> Finding:
    return Finding(Verdict.WARNING, subject, text)


def problem(subject: str, text: str) -> Finding:
    return Finding(Verdict.PROBLEM, subject, text)
