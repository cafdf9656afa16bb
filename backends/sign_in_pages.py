"""What a sign-in service's pages say: a hidden field, and the text of the element that tells what is wrong. No I/O. Used by backends/sign_in.py alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html.parser import HTMLParser

_VOID = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"})
_TEXT_CHARACTERS = 500
Attributes = Mapping[str, str]


def hidden_field(page: str, name: str) -> str:
    """The value of the first input of this name; empty where there is none."""
    return _read(page, lambda tag, found: tag == "input" and found.get("name") == name).value


def text_of_class(page: str, name: str) -> str:
    """The text of the first element of this class, in one line; empty where there is none."""
    return _read(page, lambda tag, found: name in found.get("class", "").split()).text


def text_of_id(page: str, name: str) -> str:
    return _read(page, lambda tag, found: found.get("id") == name).text


def _read(page: str, wanted: Callable[[str, Attributes], bool]) -> _Reader:
    reader = _Reader(wanted)
    reader.feed(page)
    reader.close()
    return reader


class _Reader(HTMLParser):
    """Reads the first element that is wanted. Elements that are never closed do not hide those behind them: only its own name counts."""

    def __init__(self, wanted: Callable[[str, Attributes], bool]) -> None:
        super().__init__()
        self._wanted = wanted
        self._tag, self._depth, self._pieces = "", 0, list[str]()
        self.value = ""

    @property
    def text(self) -> str:
        """At most 500 characters of it."""
        return " ".join("".join(self._pieces).split())[:_TEXT_CHARACTERS]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._tag:
            self._depth += self._depth > 0 and tag == self._tag
            return
        attributes = {name: value or "" for name, value in attrs}
        if self._wanted(tag, attributes):
            self._tag, self.value = tag, attributes.get("value", "")
            self._depth = 0 if tag in _VOID else 1

    def handle_endtag(self, tag: str) -> None:
        if self._depth and tag == self._tag:
            self._depth -= 1

    def handle_data(self, data: str) -> None:
        if self._depth:
            self._pieces.append(data)
