"""One record is one line of JSON, whatever is in it, and secrets are not."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.logs import LOGGER, REDACTED, JsonFormatter, Redactor, set_up

ROOT = str(Path(__file__).parents[2])
EVIL = "a\r\nb\x1b[31mc\u2028d\u2029e\x85f\x0bg\x0ch\x00i\x7fj\x9bk\u202el\u2066m\ufeffn\ud800"


def formatted(message: object, *args: object, redactor: Redactor | None = None, exc_info: Any = None, name: str = "gateway.x", **extra: Any) -> str:
    record = logging.LogRecord(name, logging.WARNING, __file__, 1, message, args, exc_info)
    for key, value in extra.items():
        setattr(record, key, value)
    return JsonFormatter(redactor or Redactor()).format(record)


def test_line_has_its_parts() -> None:
    line = json.loads(formatted("took %s", "long", exchange="ex_1", fields={"status": 200, "model": "m"}))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert line == {"level": "warning", "logger": "gateway.x", "msg": "took long", "exchange": "ex_1", "status": 200, "model": "m"}


def test_58_one_record_is_one_line_whatever_stands_in_it() -> None:
    try:
        raise ValueError(EVIL)
    except ValueError:
        line = formatted(EVIL, name=EVIL, exchange=EVIL, exc_info=sys.exc_info(), fields={EVIL: EVIL, "list": [EVIL], "odd": ValueError(EVIL), "number": 1.5})
    assert line.isascii()
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    read = json.loads(line)
    assert read["msg"] == read["exchange"] == read[EVIL] == EVIL
    assert "Traceback" in read["traceback"]


@given(st.text(), st.text())
def test_58_any_text_is_one_line(message: str, value: str) -> None:
    line = formatted("%s", message, fields={"value": value})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["msg"] == message


@pytest.mark.parametrize(
    "character", [chr(code) for code in (*range(0x20), 0x7F, *range(0x80, 0xA0), 0x200E, 0x2028, 0x2029, 0x202E, 0x2066, 0xFEFF, 0xD800, 0xDFFF)]
)
def test_58_no_control_character_comes_through(character: str) -> None:
    line = formatted(f"a{character}b", fields={"value": [character], "key": {character: character}})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["msg"] == f"a{character}b"


class Unwritable:
    def __str__(self) -> str:
        raise ValueError("no\nwords")


CYCLE: dict[str, Any] = {}
CYCLE["again"] = CYCLE


@pytest.mark.parametrize("value", [Unwritable(), math.nan, math.inf, -math.inf, 10**400, b"\xff\n", {1: 2, None: 3, (4,): 5}, {"a"}, CYCLE, object()], ids=type)
@pytest.mark.parametrize("beside", ["plain", EVIL])
def test_58_whatever_a_field_holds_there_is_a_line(value: object, beside: str) -> None:
    line = formatted("x", fields={"value": value, "deep": [{"er": value}], "beside": beside})
    read = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (line.isascii(), line.isprintable(), read["msg"], read["beside"]) == (True, True, "x", beside)


@pytest.mark.parametrize(("message", "arguments"), [("%d", ("x",)), ("%s", ()), ("%s", (1, 2)), ("%s", (Unwritable(),)), (Unwritable(), ())])
def test_record_that_cannot_be_put_together_is_a_line_all_the_same(message: object, arguments: tuple[object, ...]) -> None:
    assert json.loads(formatted(message, *arguments))["msg"]


def test_stack_of_a_record_is_part_of_its_line() -> None:
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "m", (), None, sinfo=f"Stack:\n  {EVIL}")
    assert json.loads(JsonFormatter(Redactor()).format(record))["stack"] == f"Stack:\n  {EVIL}"


KEY = "gw_user_" + "Ab3" * 13
CANARIES = {
    "our key": KEY,
    "OpenAI's key": "sk-proj-abc_DEF-123456",
    "half a token": "eyJhbGciOiJIUzI1NiJ9",
    "a token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "an authorization": "Bearer abc.def-123~x/y+z==",
    "a basic authorization": "basic dXNlcjpwYXNzd29yZA==",
}


@pytest.mark.parametrize("kind", CANARIES)
@pytest.mark.parametrize(
    "around", ["%s", "x %s y", '"%s"', "'%s'", "(%s)", "key=%s", "line\n%s\nline", "\t%s", "\r\n%s", "{%s}", "\u2028%s", "\x00%s", "\x1b[31m%s"]
)
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
    assert json.loads(line)["msg"] == f"a {REDACTED} b"
    assert redactor(f"a {secret} b") == f"a {REDACTED} b"


def test_56_longer_secret_leaves_no_rest_where_a_shorter_one_is_part_of_it() -> None:
    for number in range(20):
        redactor = Redactor()
        redactor.learn(*(["secret-a", f"secret-a-and-more-{number}"] if number % 2 else [f"secret-a-and-more-{number}", "secret-a"]))
        assert redactor(f"x secret-a-and-more-{number} y") == f"x {REDACTED} y"


@pytest.mark.parametrize("written", [repr, lambda secret: quote(secret, safe=""), quote, lambda secret: json.dumps({"k": secret})])
@pytest.mark.parametrize("secret", ["quo'te\"s-and\\slash", "space and/slash+plus", "\u00fcml\u00e4ut-pass"])
def test_56_known_value_is_taken_out_also_as_python_a_url_or_json_writes_it(written: Callable[[str], str], secret: str) -> None:
    redactor = Redactor()
    redactor.learn(secret)
    line = json.loads(formatted(f"a {written(secret)} b", redactor=redactor))["msg"]
    assert REDACTED in line
    assert written(secret).strip("\"'") not in line


def test_56_hundreds_of_known_values_are_all_taken_out() -> None:
    known = [f"{start}-{number:04d}-secret" for start in ("sess", "sk", "AIza", "x") for number in range(200)]
    redactor = Redactor()
    redactor.learn(*known)
    assert redactor(" ".join(known)) == " ".join([REDACTED] * len(known))


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
    assert [(line["logger"], line["msg"]) for line in lines] == [(LOGGER, f"ours {REDACTED}"), ("some.library", "theirs")]
    assert len(root.handlers) == 1


def test_set_up_twice_writes_once(root: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    set_up("debug", Redactor(), first)
    set_up("debug", Redactor(), second).debug("once")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


class Broken(io.StringIO):
    """A stream that fails once, as a full disk does."""

    failures = 1

    def write(self, text: str) -> int:
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_record_that_could_not_be_written_is_told_as_one_line(root: logging.Logger) -> None:
    stream = Broken()
    logger = set_up("info", Redactor(), stream)
    logger.info("lost")
    logger.info("next")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["msg"] for line in lines] == ["a record could not be written", "next"]
    assert lines[0]["error"] == "OSError"


STRAY = r"""
import sys, threading, warnings
from gateway import logs
logs.set_up("info", logs.Redactor())
logs.take_stderr()
warnings.warn("old\x1b[31m" + sys.argv[1], UserWarning)
print("printed\u2028", sys.argv[1], file=sys.stderr)
sys.stderr.write("two\nlines\n")
thread = threading.Thread(target=lambda: 1 / 0, name="a thread")
thread.start()
thread.join()
raise ValueError("the end\n" + sys.argv[1])
"""


def test_58_warnings_prints_and_uncaught_errors_are_lines_too() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", STRAY, KEY], capture_output=True, text=True, timeout=30, env=os.environ | {"PYTHONPATH": ROOT}
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert KEY not in done.stderr
    assert [line["logger"] for line in lines] == ["py.warnings", "stderr", "stderr", "stderr", "gateway.logs", "gateway.logs"]
    assert [line["msg"] for line in lines[1:4]] == [f"printed\u2028 {REDACTED}", "two", "lines"]
    assert "ZeroDivisionError" in lines[4]["traceback"]
    assert f"the end\n{REDACTED}" in lines[5]["traceback"]


WRITERS = r"""
import sys, threading
from gateway import logs
log = logs.set_up("info", logs.Redactor())
def write(number):
    for _ in range(200):
        log.info("%s", str(number) * 6000)
threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_58_lines_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        subprocess.run([sys.executable, "-c", WRITERS], stderr=log, check=True, timeout=30, env=os.environ | {"PYTHONPATH": ROOT})
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted({line["msg"] for line in lines}) == [str(number) * 6000 for number in range(4)]
    assert len(lines) == 800
