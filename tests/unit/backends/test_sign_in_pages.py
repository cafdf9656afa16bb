from __future__ import annotations

import pytest

from backends.sign_in_pages import hidden_field, text_of_class, text_of_id


@pytest.mark.parametrize(
    ("page", "value"),
    [
        ('<input name="state" value="a&amp;b">', "a&b"),
        ("<input type=hidden value='x' name='state' />", "x"),
        ('<form><input name="other" value="1"><br><INPUT NAME="state" VALUE="2"></form>', "2"),
        ('<input name="state" value="1"><input name="state" value="2">', "1"),
        ('<input name="state">', ""),
        ('<!-- <input name="state" value="1"> -->', ""),
        ('<script>"<input name=state value=1>"</script>', ""),
        ('{"state": "json"}', ""),
        ("", ""),
        ('<input name="state" value="cut', ""),
    ],
)
def test_hidden_field_is_found_where_a_browser_would(page: str, value: str) -> None:
    assert hidden_field(page, "state") == value


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ('<div class="message">Sorry</div>', "Sorry"),
        ('<p class="big message red">So <b>very</b>\n  sorry<br>now</p> more', "So very sorrynow"),
        ('<div class="message"><div>in</div>out</div>behind', "inout"),
        ('<div class="messages">no</div><div class="message">yes</div><div class="message">no</div>', "yes"),
        ('<div class="message"><p>never closed', "never closed"),
        ('<div class="message">a &lt;b&gt;</div>', "a <b>"),
        ("<div>nothing</div>", ""),
    ],
)
def test_text_of_a_class_is_the_first_ones(page: str, text: str) -> None:
    assert text_of_class(page, "message") == text


def test_text_is_bounded() -> None:
    assert len(text_of_id(f"<p id=prompt-alert>{'x' * 10_000}", "prompt-alert")) == 500
