"""One record is one line of JSON, whatever is in it, and secrets are not."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.logs import LOGGER, REDACTED, JsonFormatter, Redactor, set_up

EVIL = "a\r\nb\x1b[31mc\u2028d\u2029e\x85f\x0bg\x0ch\x00i\x7fj\x9bk\ud800"


def formatted(message: object, *args: object, redactor: Redactor | None = None, exc_info: Any = None, name: str = "gateway.x", **extra: Any) -> str:
    record = logging.LogRecord(name, logging.WARNING, __file__, 1, message, args, exc_info)
    for key, value in extra.items():
        setattr(record, key, value)
    return JsonFormatter(redactor or Redactor()).format(record)


def test_line_has_its_parts() -> None:
    line = json.loads(formatted("took %s", "long", exchange="ex_1", fields={"status": 200, "model": "m"}))
    assert line.pop("at").endswith("+00:00")
    assert line == {"level": "warning", "logger": "gateway.x", "message": "took long", "exchange": "ex_1", "status": 200, "model": "m"}


def test_58_one_record_is_one_line_whatever_stands_in_it() -> None:
    try:
        raise ValueError(EVIL)
    except ValueError:
        line = formatted(EVIL, name=EVIL, exchange=EVIL, exc_info=sys.exc_info(), fields={EVIL: EVIL, "list": [EVIL], "odd": ValueError(EVIL), "number": 1.5})
    assert line.isascii()
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    read = json.loads(line)
    assert read["message"] == read["exchange"] == read[EVIL] == EVIL
    assert "Traceback" in read["traceback"]


@given(st.text(), st.text())
def test_58_any_text_is_one_line(message: str, value: str) -> None:
    line = formatted("%s", message, fields={"value": value})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == message


KEY = "gw_user_" + "Ab3" * 13
CANARIES = {
    "our key": KEY,
    "OpenAI's key": "sk-proj-abc_DEF-123456",
    "a token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "an authorization": "Bearer abc.def-123~x/y+z==",
    "a basic authorization": "basic dXNlcjpwYXNzd29yZA==",
}


@pytest.mark.parametrize("kind", CANARIES)
@pytest.mark.parametrize("around", ["%s", "x %s y", '"%s"', "'%s'", "(%s)", "key=%s", "line\n%s\nline", "\t%s", "\r\n%s", "{%s}", "\u2028%s", "\x00%s"])
def test_56_secret_of_a_known_form_is_taken_out_wherever_it_stands(kind: str, around: str) -> None:
    secret = CANARIES[kind]
    line = formatted(around % secret, fields={"deep": {"er": [around % secret]}})
    assert secret.split()[-1] not in line
    assert REDACTED in line
    json.loads(line)


@pytest.mark.parametrize(
    "url", ["postgresql://user:hunter22@host/db", "https://:hunter22@h", "https://hunter22@h/x", "redis://u:p@hunter22@h", "see http://u:hunter22@h: no"]
)
def test_56_password_in_a_url_is_taken_out(url: str) -> None:
    assert "hunter22" not in formatted(url)


def test_56_secret_in_a_traceback_is_taken_out() -> None:
    try:
        raise ValueError(f"first line\n{KEY}")
    except ValueError:
        line = formatted("failed", exc_info=sys.exc_info())
    assert KEY not in line
    assert "first line" in line


@pytest.mark.parametrize("secret", ["plain-password", 'quo"ted-pass', "back\\slash-pass", "\u00fcml\u00e4ut-pass", "tab\tpass-word", "two\nlines-of-it"])
def test_56_known_value_is_taken_out_also_where_json_writes_it_differently(secret: str) -> None:
    redactor = Redactor()
    redactor.learn(secret)
    line = formatted(f"a {secret} b", redactor=redactor)
    assert json.loads(line)["message"] == f"a {REDACTED} b"
    assert redactor(f"a {secret} b") == f"a {REDACTED} b"


def test_56_longer_secret_leaves_no_rest_where_a_shorter_one_is_part_of_it() -> None:
    for number in range(20):
        redactor = Redactor()
        redactor.learn(*(["secret-a", f"secret-a-and-more-{number}"] if number % 2 else [f"secret-a-and-more-{number}", "secret-a"]))
        assert redactor(f"x secret-a-and-more-{number} y") == f"x {REDACTED} y"


def test_short_values_are_passed_over() -> None:
    redactor = Redactor()
    redactor.learn("", "a", "1234567")
    assert redactor("a 1234567") == "a 1234567"


@pytest.mark.parametrize(
    "text", ["task-completed-by-now", "risk-assessment", "the bearer of news", "basic needs", "https://api.openai.com/v1", "sk-short", "a@b.c", "gw_user"]
)
def test_plain_words_stay(text: str) -> None:
    assert Redactor()(text) == text


def test_secrets_may_be_learned_while_others_log() -> None:
    redactor, failures, stop = Redactor(), list[BaseException](), threading.Event()

    def log() -> None:
        while not stop.is_set():
            try:
                redactor("text " * 20)
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=log) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(500):
        redactor.learn(f"secret-number-{number}")
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert redactor("secret-number-0 secret-number-499") == f"{REDACTED} {REDACTED}"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_set_up_sends_every_log_of_the_process_to_one_stream(root: logging.Logger) -> None:
    stream = io.StringIO()
    logger = set_up("info", Redactor(), stream)
    logger.info("ours %s", KEY)
    logger.debug("too low")
    logging.getLogger("some.library").warning("theirs")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [(LOGGER, f"ours {REDACTED}"), ("some.library", "theirs")]
    assert len(root.handlers) == 1


def test_set_up_twice_writes_once(root: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    set_up("debug", Redactor(), first)
    set_up("debug", Redactor(), second).debug("once")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1
