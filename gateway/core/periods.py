"""When a budget's period begins and ends: days and months of a time zone, daylight saving time included."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_GRAIN_MS = 60_000
"""Offsets from UTC are whole minutes, so no period begins within one."""


def known_zone(name: str) -> bool:
    """Whether `name` is an IANA time zone, such as "Europe/Berlin" or "UTC"."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def window(period: str, timezone: str, at: int) -> tuple[int, int | None]:
    """The first moment of the period ("day", "month", "total") that holds `at`, and the first one after it; Unix milliseconds.

    A total has no end.
    """
    if period == "total":
        return 0, None
    return _window(period, timezone, at // _GRAIN_MS)


@lru_cache(maxsize=1024)
def _window(period: str, timezone: str, minute: int) -> tuple[int, int]:
    zone = ZoneInfo(timezone)
    day = (_EPOCH + timedelta(minutes=minute)).astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if period == "day":
        first, following = day, day + timedelta(days=1)
    else:
        first = day.replace(day=1)
        following = (first + timedelta(days=32)).replace(day=1)
    return _moment(first, zone), _moment(following, zone)


def _moment(local: datetime, zone: ZoneInfo) -> int:
    """Midnight as Unix milliseconds; where it is left out, the moment at which clocks skip it, and where it comes twice, the first."""
    return (local.replace(tzinfo=zone) - _EPOCH) // timedelta(milliseconds=1)
