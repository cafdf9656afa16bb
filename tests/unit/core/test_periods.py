from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.periods import known_zone, window

HOUR = 3_600_000


def ms(text: str, zone: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


@pytest.mark.parametrize(
    ("period", "zone", "at", "first", "following"),
    [
        ("day", "UTC", "2026-11-28T13:00", "2026-11-28", "2026-11-29"),
        ("day", "Asia/Kolkata", "2026-11-28T00:00", "2026-11-28", "2026-11-29"),
        ("month", "Europe/Berlin", "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        ("month", "America/New_York", "2028-02-29T12:00", "2028-02-01", "2028-03-01"),
    ],
)
def test_a_period_begins_at_midnight_of_its_time_zone(period: str, zone: str, at: str, first: str, following: str) -> None:
    assert window(period, zone, ms(at, zone)) == (ms(first, zone), ms(following, zone))


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)])
def test_a_day_is_as_long_as_its_clocks_say(day: str, hours: int) -> None:
    first, following = window("day", "Europe/Berlin", ms(f"{day}T12:00", "Europe/Berlin"))
    assert following is not None
    assert following - first == hours * HOUR


def test_a_day_whose_midnight_is_left_out_begins_with_its_first_moment() -> None:
    first, _ = window("day", "America/Sao_Paulo", ms("2018-11-04T12:00", "America/Sao_Paulo"))
    assert datetime.fromtimestamp(first / 1000, ZoneInfo("America/Sao_Paulo")).isoformat() == "2018-11-04T01:00:00-02:00"
    assert window("day", "America/Sao_Paulo", first - 1)[1] == first


def test_a_total_never_ends() -> None:
    assert window("total", "UTC", 5) == (0, None)


@given(
    st.sampled_from(["day", "month"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/Havana", "Asia/Kathmandu", "Australia/Lord_Howe"]),
    st.integers(0, 2**41),
)
def test_periods_follow_each_other_without_a_gap_or_an_overlap(period: str, zone: str, at: int) -> None:
    first, following = window(period, zone, at)
    assert following is not None
    assert first <= at < following
    assert window(period, zone, following)[0] == following
    assert window(period, zone, first) == (first, following)


def test_only_known_zones_are_known() -> None:
    assert known_zone("Europe/Berlin")
    assert not any(known_zone(name) for name in ("Mars/Olympus", "../../etc/passwd", "", "/etc/localtime", "a" * 500))
