from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.openai_chat import dumps
from gateway.frames import decoded

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(), max_size=5), JSON, max_size=5))
def test_what_was_written_is_read_also_with_half_of_a_surrogate_pair(frame: dict[str, Any]) -> None:
    raw = dumps(frame)
    assert decoded(raw) == frame
    assert decoded(raw.decode()) == frame


@given(st.binary(max_size=50))
def test_whatever_the_bytes_are_it_does_not_fail(raw: bytes) -> None:
    assert decoded(raw) is None or isinstance(decoded(raw), dict)


@given(st.text(st.characters(), max_size=50))
def test_whatever_the_text_is_it_does_not_fail(raw: str) -> None:
    assert decoded(raw) is None or isinstance(decoded(raw), dict)


@pytest.mark.parametrize("raw", ["", "[]", "null", '"x"', "1", "{", "[" * 100_000, '{"a":' * 100_000, '{"a":' + "1" * 5000 + "x}", b"\xff", b'{"\xff":1}'])
def test_what_is_no_object_is_no_frame(raw: str | bytes) -> None:
    assert decoded(raw) is None


def test_the_quick_decoder_alone_would_not_take_half_of_a_pair() -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(b'{"text":"\\ud83d"}')
    assert decoded(b'{"text":"\\ud83d"}') == {"text": "\ud83d"}
