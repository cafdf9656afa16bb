"""Files of credentials as operators have them: pasted lines, CSV, JSON, and the older projects' access_tokens.json. Pure: bytes in, values out.

No error repeats what stands in a file: it may be a secret.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from gateway.backend import Secret
from gateway.errors import BadRequest
from gateway.operations.credentials import CredentialWishes

MAX_BYTES, MAX_ENTRIES = 5_000_000, 10_000
AUTO, PASTE, CSV, JSON, ACCESS_TOKENS = "auto", "paste", "csv", "json", "access-tokens"
FORMATS = (AUTO, PASTE, CSV, JSON, ACCESS_TOKENS)
SECRETS = ("secret", "token", "key", "access_token", "accesstoken", "api_key")
"""How the secret may be called, in lower case: the last but one is what a web session's JSON says."""
NUMBERS = ("weight", "rpm", "tpm", "concurrency", "per_day")
EXTRAS = ("puid", "refresh_token")
NAMES = frozenset({*SECRETS, *NUMBERS, *EXTRAS, "label", "name", "email", "pool", "proxy", "expires", "expires_at", "tags", "notes"})
_PASSED_OVER = frozenset({"user", "authprovider", "sessiontoken", "expires"})
"""What a web session's JSON says beside its token; `expires` is the session's."""
_DELIMITERS = (",", ";", "\t")
_UNIX_S = re.compile(r"\d{9,11}", re.ASCII)
_WORD = re.compile(r"[a-z_]{1,20}")
_LABEL_SIGNS = re.compile(r"[^A-Za-z0-9._-]+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Found:
    """A secret of a file. `where` is "line 3" or "entry 3"; `label` is empty where the file names none; `wishes` are what else it says of it."""

    where: str
    secret: Secret
    label: str
    wishes: CredentialWishes


@dataclass(frozen=True, slots=True)
class ImportFile:
    """`remarks` are for the operator."""

    format: str
    found: tuple[Found, ...]
    remarks: tuple[str, ...] = ()


def read(raw: bytes, format: str = AUTO) -> ImportFile:
    """Raises BadRequest in one line that says what is wrong, and where, but not what stands there."""
    text = _text(raw)
    if format == AUTO:
        format = _detected(text)
    found = tuple(_bounded(_READERS[format](text)))
    if not found:
        raise BadRequest("the file holds no credential")
    if format in (PASTE, CSV):
        return ImportFile(format, found, _unfinished(text, found))
    return ImportFile(format, found)


def of_json(document: Any, only_tokens: bool = False) -> tuple[Found, ...]:
    """Of a JSON value: a list of secrets or objects, {"tokens": [...]}, or one object. `only_tokens`: a list, as access_tokens.json. Raises BadRequest."""
    if not only_tokens and isinstance(document, dict):
        document = document["tokens"] if set(document) == {"tokens"} else [document]
    if not isinstance(document, list):
        raise BadRequest('the JSON must be a list of secrets or of objects, or {"tokens": [...]}')
    return tuple(_bounded(_entry(f"entry {number}", item) for number, item in enumerate(document, 1)))


def as_label(text: str) -> str:
    """A text that people wrote, such as an address, as a label; empty where nothing of it can stand in one."""
    return _LABEL_SIGNS.sub("-", text)[:64].strip("-")


def _text(raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        raise BadRequest(f"the file has more than {MAX_BYTES // 1_000_000} MB")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadRequest("the file is UTF-16: save it as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the file is not text: its byte {error.start + 1} is not UTF-8") from None
    if "\0" in text:
        raise BadRequest(f"the file is not text: line {text[: text.index(chr(0))].count(chr(10)) + 1} holds a zero byte")
    return text


def _detected(text: str) -> str:
    if text.lstrip()[:1] in ("[", "{"):
        return JSON
    first = next((line for _, line in _lines(text)), "")
    return CSV if _delimiter(first) else PASTE


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Those that say something, each with its number."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _delimiter(heading: str) -> str | None:
    """What separates a heading's columns; None for what is no heading."""
    names = {sign: [_name(cell) for cell in heading.split(sign)] for sign in _DELIMITERS}
    return next((sign for sign, cells in names.items() if len(cells) > 1 and any(cell in SECRETS for cell in cells)), None)


def _name(cell: str) -> str:
    return cell.strip().strip('"').strip().lower().replace(" ", "_").replace("-", "_")


def _pasted(text: str) -> Iterator[Found]:
    for number, line in _lines(text):
        if len(line.split()) > 1 or "," in line:
            raise BadRequest(f"line {number}: there must be one secret on a line, and nothing else; a CSV needs a heading with a column 'secret'")
        yield Found(f"line {number}", Secret(line), "", CredentialWishes())


def _csv(text: str) -> Iterator[Found]:
    began = next((number for number, _ in _lines(text)), 1)
    lines = text.splitlines(keepends=True)[began - 1 :]
    delimiter = _delimiter(lines[0]) if lines else None
    if delimiter is None:
        raise BadRequest(f"line {began}: the heading must name at least two columns, and 'secret' among them")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names = [_name(cell) for cell in next(reader)]
    for name in names:
        _check_known(f"line {began}", "column", name)
    if len(set(names)) < len(names):
        raise BadRequest(f"line {began}: a column is named twice")
    try:
        for cells in reader:
            where = f"line {began + reader.line_num - 1}"
            if not any(cell.strip() for cell in cells) or cells[0].lstrip().startswith("#"):
                continue
            if len(cells) != len(names):
                raise BadRequest(f"{where}: {len(cells)} columns, where the heading has {len(names)}")
            yield _found(where, {name: cell.strip() for name, cell in zip(names, cells, strict=True) if cell.strip()})
    except csv.Error as error:
        raise BadRequest(f"line {began + reader.line_num - 1}: {error}") from None


def _json(text: str) -> Iterator[Found]:
    yield from of_json(_parsed(text))


def _access_tokens(text: str) -> Iterator[Found]:
    yield from of_json(_parsed(text), only_tokens=True)


_READERS: Mapping[str, Callable[[str], Iterator[Found]]] = MappingProxyType({PASTE: _pasted, CSV: _csv, JSON: _json, ACCESS_TOKENS: _access_tokens})


def parsed(raw: bytes) -> Any:
    """A file's JSON. Raises BadRequest, as `read` does."""
    return _parsed(_text(raw))


def _parsed(text: str) -> Any:
    try:
        return json.load(io.StringIO(text))
    except json.JSONDecodeError as error:
        raise BadRequest(f"line {error.lineno}: the JSON is malformed, or was cut off, at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise BadRequest("the JSON is malformed") from None


def _entry(where: str, item: Any) -> Found:
    if isinstance(item, str):
        return _found(where, {"secret": item})
    if not isinstance(item, dict):
        raise BadRequest(f"{where}: it must be a secret, or an object with 'secret' or 'token'")
    values = {_name(name): value for name, value in item.items() if value is not None}
    if "accesstoken" in values:
        values = {name: value for name, value in values.items() if name not in _PASSED_OVER}
    for name in values:
        _check_known(where, "member", name)
    return _found(where, values)


def _check_known(where: str, kind: str, name: str) -> None:
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, 1)
        told = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(NAMES))}"
        shown = f"the {kind} {name}" if _WORD.fullmatch(name) else f"a {kind}"
        raise BadRequest(f"{where}: {shown} is unknown; {told}")


def _found(where: str, values: Mapping[str, Any]) -> Found:
    given = [name for name in SECRETS if name in values]
    if len(given) != 1:
        raise BadRequest(f"{where}: {'it holds no secret' if not given else 'it holds more than one secret'}")
    secret = _word(where, given[0], values[given[0]])
    if not secret:
        raise BadRequest(f"{where}: its secret is empty")
    label = _word(where, "label", values.get("label", values.get("name", ""))) or as_label(_word(where, "email", values.get("email", "")))
    extras = {name: Secret(text) for name in EXTRAS if (text := _word(where, name, values.get(name, "")))}
    proxy = _word(where, "proxy", values.get("proxy", ""))
    wishes = CredentialWishes(
        pool=_word(where, "pool", values.get("pool", "")) or None,
        **{name: _number(where, name, values.get(name)) for name in NUMBERS},
        proxy=Secret(proxy) if proxy else None,
        extras=extras or None,
        expires_at=_moment(where, values.get("expires", values.get("expires_at"))),
        tags=_tags(where, values.get("tags", "")) or None,
        notes=_word(where, "notes", values.get("notes", "")) or None,
    )
    return Found(where, Secret(secret), label, wishes)


def _word(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{where}: its {name} must be a text")
    return value.strip()


def _number(where: str, name: str, value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value.strip()):
        return int(value)
    raise BadRequest(f"{where}: its {name} must be a whole number")


def _moment(where: str, value: Any) -> int | None:
    """Unix milliseconds of a date, a time (in UTC, where it names no zone) or Unix seconds."""
    if value is None:
        return None
    text = str(value).strip()
    if _UNIX_S.fullmatch(text):
        return int(text) * 1000
    try:
        moment = datetime.fromisoformat(text)
        return int(((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds() * 1000)
    except (ValueError, OverflowError):
        raise BadRequest(f"{where}: its expiry must be a date such as 2026-12-31, a time such as 2026-12-31T18:00, or Unix seconds") from None


def _tags(where: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(_word(where, "tag", tag) for tag in value)
    return tuple(tag for tag in re.split(r"[,;\s]+", _word(where, "tags", value)) if tag)


def _bounded(found: Iterable[Found]) -> Iterator[Found]:
    for number, one in enumerate(found, 1):
        if number > MAX_ENTRIES:
            raise BadRequest(f"the file holds more than {MAX_ENTRIES} credentials")
        yield one


def _unfinished(text: str, found: Sequence[Found]) -> tuple[str, ...]:
    """A file of lines that was cut off looks like a whole one, but for its last line. Raises BadRequest where that line shows it.

    JWTs of one issuer's key have signatures of one length.
    """
    if text.endswith(("\n", "\r")):
        return ()
    last = found[-1].secret.reveal()
    head, _, signature = last.rpartition(".")
    kind = head.partition(".")[0]
    others = [one.secret.reveal() for one in found[:-1]]
    longest = max((len(other.rpartition(".")[2]) for other in others if head and other.partition(".")[0] == kind), default=0)
    if len(signature) < longest or (head.count(".") != 1 and others and all(other.count(".") == 2 for other in others)):
        raise BadRequest(f"{found[-1].where}: the file seems to be cut off within its last token")
    return ("the file's last line has no line break: was it cut off?",)
