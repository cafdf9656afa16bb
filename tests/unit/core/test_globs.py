from __future__ import annotations

import pytest

from gateway.core.globs import is_glob, matches


@pytest.mark.parametrize(
    ("name", "glob", "fits"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "gpt-*", True),
        ("gpt-4o", "gpt-4?", True),
        ("gpt-4", "gpt-4?", False),
        ("GPT-4", "gpt-*", False),
        ("claude[1m]", "claude[1m]", True),
        ("claude1", "claude[1m]", False),
        ("claude[1m]", "claude[*", True),
        ("claude1", "claude[1]*", False),
        ("anything/at all", "*", True),
    ],
)
def test_stars_and_question_marks_match_and_brackets_are_themselves(name: str, glob: str, fits: bool) -> None:
    assert matches(name, glob) is fits


def test_brackets_make_no_glob() -> None:
    assert (is_glob("claude[1m]"), is_glob("gpt-*"), is_glob("gpt-4?")) == (False, True, True)
