from __future__ import annotations

from gateway.cli.printing import moment, table


def test_columns_are_aligned_and_numbers_to_the_right() -> None:
    assert table(("NAME", "COUNT"), [("a", 5), ("long name", 12345)], right=("COUNT",)) == ["NAME       COUNT", "a              5", "long name  12345"]


def test_a_table_without_rows_is_its_headings() -> None:
    assert table(("A", "B"), []) == ["A  B"]


def test_what_would_move_the_cursor_is_not_printed() -> None:
    assert table(("A",), [("\x1b[2J\x9b1m\nx",)])[1] == "?[2J?1m?x"


def test_moments_are_utc() -> None:
    assert moment(1_800_000_000_999) == "2027-01-15 08:00 UTC"
    assert moment(None, "never") == "never"
