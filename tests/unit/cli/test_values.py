from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.cli.values import parse_assignment, parse_beginning, parse_duration, parse_expiry, parse_moment, parse_month, parse_names

DAY_MS = 86_400_000


def ms(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * 1000  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(("text", "expected"), [("90s", 90_000), ("30m", 1_800_000), ("24h", DAY_MS), ("30d", 30 * DAY_MS), ("2w", 14 * DAY_MS), ("0h", 0)])
def test_durations_have_a_unit(text: str, expected: int) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5h", "1y", "1d2h", "9999999d"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="30d"):
        parse_duration(text)


def test_a_date_is_its_first_moment_in_utc() -> None:
    assert parse_moment("2026-12-31") == ms(2026, 12, 31)
    assert parse_moment("2026-12-31T18:30") == ms(2026, 12, 31, 18, 30)
    assert parse_moment("2026-12-31T18:30+02:00") == ms(2026, 12, 31, 16, 30)


@pytest.mark.parametrize("text", ["", "tomorrow", "2026-02-30", "31.12.2026"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="2026-12-31"):
        parse_moment(text)


def test_a_month_ends_where_the_next_begins() -> None:
    assert parse_month("2026-11") == (ms(2026, 11, 1), ms(2026, 12, 1))
    assert parse_month("2026-12") == (ms(2026, 12, 1), ms(2027, 1, 1))


@pytest.mark.parametrize("text", ["", "2026", "2026-13", "2026-00", "2026-1", "9999-12", "0000-01"])
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="2026-11"):
        parse_month(text)


def test_an_expiry_is_a_duration_from_now_or_a_date() -> None:
    assert parse_expiry("30d", 1000) == 1000 + 30 * DAY_MS
    assert parse_expiry("2026-12-31", 1000) == ms(2026, 12, 31)
    with pytest.raises(ValueError, match="30d"):
        parse_expiry("soon", 1000)


def test_names_are_separated_by_commas() -> None:
    assert parse_names(" a, gpt-*,,") == ("a", "gpt-*")
    assert parse_names("") == ()


def test_an_assignment_has_a_name_and_may_have_an_empty_value() -> None:
    assert parse_assignment("a=b=c") == ("a", "b=c")
    assert parse_assignment("a=") == ("a", "")
    for text in ("a", "=b"):
        with pytest.raises(ValueError, match="name=value"):
            parse_assignment(text)


def test_a_beginning_is_read_as_it_is_printed() -> None:
    assert parse_beginning("always") == 0
    assert parse_beginning("2026-12-31 18:00 UTC") == parse_beginning("2026-12-31T18:00") == ms(2026, 12, 31, 18)
