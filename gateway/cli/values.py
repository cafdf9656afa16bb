"""Values as operators write them: points in time, periods, durations, prices. All times are UTC."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import click

from gateway.errors import BadRequest

_DURATION = re.compile(r"(\d{1,6})([smhdw])\Z", re.ASCII)
_UNIT_MS = MappingProxyType({"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000})
_MONTH = re.compile(r"(\d{4})-(\d{2})\Z", re.ASCII)


def _milliseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def parse_duration(text: str) -> int:
    """ "30d" in milliseconds; s, m, h, d and w are known. Raises ValueError."""
    match = _DURATION.match(text)
    if match is None:
        raise ValueError("write a number and a unit, such as 90s, 30m, 24h, 30d or 4w")
    return int(match[1]) * _UNIT_MS[match[2]]


def parse_moment(text: str) -> int:
    """ "2026-12-31" (its first moment) or "2026-12-31T18:00", with a zone or in UTC; Unix milliseconds. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("write a date such as 2026-12-31, or a time such as 2026-12-31T18:00; times are UTC") from None
    return _milliseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def parse_beginning(text: str) -> int:
    """The same, or "always", 0: as `moment` prints it, with its " UTC"."""
    return 0 if text == "always" else parse_moment(text.removesuffix(" UTC"))


def parse_month(text: str) -> tuple[int, int]:
    """ "2026-11": its first moment and the next month's. Raises ValueError."""
    match = _MONTH.match(text)
    if match is None or not 1 <= int(match[2]) <= 12 or not 1970 <= int(match[1]) < 9999:
        raise ValueError("write a month such as 2026-11")
    year, month = int(match[1]), int(match[2])
    following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return _milliseconds(datetime(year, month, 1, tzinfo=UTC)), _milliseconds(following)


def period(month: tuple[int, int] | None, since: int | None, until: int | None, now: int) -> tuple[int, int]:
    """What --month, --since and --until ask for: this month where nothing is given. Raises click.UsageError."""
    if month is not None and (since is not None or until is not None):
        raise click.UsageError("give --month, or --since and --until")
    if month is not None:
        return month
    if since is None and until is not None:
        raise click.UsageError("--until needs --since")
    this_month = parse_month(datetime.fromtimestamp(now // 1000, UTC).strftime("%Y-%m"))
    return (this_month[0] if since is None else since), (now + 1 if until is None else until)


def parse_expiry(text: str, now: int) -> int:
    """A duration from now, or a point in time; Unix milliseconds. Raises ValueError."""
    if _DURATION.match(text):
        return now + parse_duration(text)
    try:
        return parse_moment(text)
    except ValueError:
        raise ValueError("write a duration such as 30d, or a date such as 2026-12-31") from None


class Parsed(click.ParamType[Any]):
    """A value that `parse` reads; its ValueError or BadRequest is the usage error's text."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except (ValueError, BadRequest) as error:
            self.fail(f"{error}", param, ctx)


def parse_names(text: str) -> tuple[str, ...]:
    """ "a,b*" as names; empty ones are passed over."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_assignment(text: str) -> tuple[str, str]:
    """ "name=value". Raises ValueError."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ValueError("write name=value")
    return name, value


DURATION = Parsed("duration", parse_duration)
MOMENT = Parsed("time", parse_moment)
BEGINNING = Parsed("time", parse_beginning)
MONTH = Parsed("month", parse_month)
NAMES = Parsed("names", parse_names)
ASSIGNMENT = Parsed("name=value", parse_assignment)
NUMBER = click.IntRange(min=0)
