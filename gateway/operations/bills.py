"""Providers' bills, as they export them: what a day's calls of a model used and cost, by the provider. Pure: bytes in, values out.

bills_openai.py and bills_anthropic.py know the shapes. Money is read from text into Decimals: no float comes near it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from gateway.errors import BadRequest

DAY_S = 86_400
MAX_BYTES = 200_000_000
LARGEST_DIGITS, FINEST_DIGITS = 9, 60
"""An amount of a billion USD, or one with more places than this, is no amount."""
MAX_TOKENS = 10**15
ROUNDED_AT_MOST = Decimal("0.005")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN_COLUMNS = 12

Buckets = Mapping[str, tuple[str, ...]]
"""The provider's counters by name, each with those of our buckets that it is the sum of."""


@dataclass(frozen=True, slots=True)
class BillLine:
    """Of one day (days since 1970, UTC) and model; `model` "": of all, or the bill does not say.

    `tokens` by the bill's counters, None where the file counts none; `calls`, where it counts them. `cost`: USD, None where the file has
    none; it may be rounded by `step` USD.
    """

    day: int
    model: str
    tokens: Mapping[str, int] | None = None
    calls: int | None = None
    cost: Decimal | None = None
    step: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Bill:
    """One file. `days`: those that it covers, also where nothing was used. `counters` is empty for a file of costs. `remarks` are for the operator."""

    shape: str
    days: frozenset[int]
    lines: tuple[BillLine, ...]
    counters: Buckets = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """How one export looks. `columns`: a CSV has at least these; `members`: so does a result of JSON's buckets. `read` makes the bill of its rows."""

    name: str
    columns: frozenset[str]
    members: frozenset[str]
    read: Callable[[str, Iterable[Row]], Bill]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of CSV, or a result of JSON with the beginning of its bucket. `values` None: a bucket without results. `where` is for errors."""

    where: str
    day: int | None
    values: Mapping[str, Any] | None


def fits(shapes: Sequence[Shape], raw: bytes) -> bool:
    """Whether a file's heading, or the members of its first result, are those of one of these. For the error that says whose it is."""
    if raw.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] in (b"{", b"["):
        return False
    heading = raw.partition(b"\n")[0].decode("utf-8", "replace").lstrip("\ufeff").strip()
    return any(shape.columns <= set(heading.split(",")) for shape in shapes)


def read(provider: str, shapes: Sequence[Shape], name: str, raw: bytes) -> Bill:
    """Raises BadRequest in one line for what has none of these shapes."""
    if len(raw) > MAX_BYTES:
        raise BadRequest(f"{name} has more than {MAX_BYTES // 1_000_000} MB: export a month at a time")
    taken = f"taken are: {'; '.join(shape.name for shape in shapes)}"
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRequest(f"{name} is no export of {provider}: it is not text in UTF-8; {taken}") from None
    if text.lstrip()[:1] in ("{", "["):
        return _read_json(provider, shapes, name, text, taken)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        shape = next((shape for shape in shapes if shape.columns <= set(columns)), None)
        if shape is None:
            raise BadRequest(f"{name} is no export of {provider}; {taken}; found: {_found(columns)}")
        reader.fieldnames = columns
        return shape.read(f"{shape.name.split(':')[0]}, CSV", (_csv_row(f"{name}, line {reader.line_num}", row) for row in reader))
    except csv.Error as error:
        raise BadRequest(f"{name}, line {reader.line_num}: {error}") from None


def _csv_row(where: str, row: Mapping[Any, Any]) -> Row:
    """A file that was cut off must not pass for a smaller bill."""
    if None in row or None in row.values():
        raise BadRequest(f"{where} has {'more' if None in row else 'fewer'} fields than the heading: is the file whole?")
    return Row(where, None, row)


def _found(columns: Sequence[str]) -> str:
    if not columns:
        return "an empty file"
    shown = ", ".join(columns[:_SHOWN_COLUMNS]) + (" ..." if len(columns) > _SHOWN_COLUMNS else "")
    return f"CSV with the columns {shown[:400]}"


def _read_json(provider: str, shapes: Sequence[Shape], name: str, text: str, taken: str) -> Bill:
    try:
        document = json.loads(text, parse_float=Decimal, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{name} is no export of {provider}: it begins like JSON, and is none ({error}); {taken}") from None
    pages = document if isinstance(document, list) else [document]
    if not pages or not all(isinstance(page, dict) and isinstance(page.get("data"), list) for page in pages):
        members = sorted(document) if isinstance(document, dict) else []
        found = f"an object with the members {', '.join(members[:_SHOWN_COLUMNS])}"[:400] if members else "JSON of another kind"
        raise BadRequest(f"{name} is no export of {provider}; {taken}; found: {found}")
    rows = [row for page in pages for row in _bucket_rows(name, page["data"])]
    first = next((row.values for row in rows if row.values is not None), None)
    shape = next((shape for shape in shapes if first is not None and shape.members <= first.keys()), None)
    if shape is None:
        found = "no results in any bucket" if first is None else f"results with the members {', '.join(sorted(first)[:_SHOWN_COLUMNS])}"
        raise BadRequest(f"{name} is no export of {provider}; {taken}; found: {found[:400]}")
    bill = shape.read(f"{shape.name.split(':')[0]}, JSON", rows)
    if pages[-1].get("has_more") is True:
        more = f"{name} says that there are further pages: what is on those is missing here; name all files, or fetch with a larger limit"
        return Bill(bill.shape, bill.days, bill.lines, bill.counters, (*bill.remarks, more))
    return bill


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _bucket_rows(name: str, data: Sequence[Any]) -> Iterable[Row]:
    for number, bucket in enumerate(data, 1):
        where = f"{name}, bucket {number}"
        results = bucket.get("results", bucket.get("result")) if isinstance(bucket, dict) else None
        if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
            raise BadRequest(f"{where} has no list of results")
        day = _bucket_day(where, bucket)
        yield from (Row(where, day, result) for result in results)
        if not results:
            yield Row(where, day, None)


def _bucket_day(where: str, bucket: Mapping[str, Any]) -> int:
    """OpenAI's buckets begin at Unix seconds, Anthropic's at a time of RFC 3339. One longer than a day could not be told apart."""
    names = ("start_time", "end_time") if "start_time" in bucket else ("starting_at", "ending_at")
    begin, end = (seconds_of(bucket.get(name), where) for name in names)
    if end - begin > DAY_S or begin // DAY_S != (end - 1) // DAY_S:
        raise BadRequest(f"{where} is not within one day (UTC): fetch with a bucket width of 1d")
    return begin // DAY_S


def seconds_of(value: Any, where: str) -> int:
    """Unix seconds, as such or in RFC 3339 (UTC where no zone is named)."""
    text = str(value).strip()
    try:
        if text.isascii() and text.isdecimal() and len(text) <= 11:
            return int(text)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"{where}: {text[:40]!r} is no time") from None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(seconds=1)


def word_of(value: Any) -> str:
    """A name; "" for what is none."""
    return value.strip() if isinstance(value, str) else ""


def tokens_of(values: Mapping[str, Any], name: str, where: str) -> int:
    """A count; a member that is absent, null or empty counts none."""
    value = values.get(name)
    if value is None or value == "":
        return 0
    number = _number(value)
    if number is None or number != number.to_integral_value() or not 0 <= number < MAX_TOKENS:
        raise BadRequest(f"{where}: {name} is {str(value)[:40]!r}, and no count of tokens")
    return int(number)


def usd_of(value: Any, where: str, cents: bool = False) -> tuple[Decimal, Decimal]:
    """An amount, exactly, and by how much it may be rounded: half of its last digit's place, half a cent at most."""
    number = _number(value)
    if number is None:
        raise BadRequest(f"{where}: {str(value)[:40]!r} is no amount")
    amount = number.scaleb(-2) if cents else number
    exponent = amount.as_tuple().exponent
    return amount, min(Decimal(5).scaleb(int(exponent) - 1), ROUNDED_AT_MOST)


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        return None
    try:
        number = Decimal(value.strip()) if isinstance(value, str) else Decimal(value)
    except InvalidOperation:
        return None
    if not number.is_finite() or number.adjusted() > max(LARGEST_DIGITS, len(str(MAX_TOKENS))) or int(number.as_tuple().exponent) < -FINEST_DIGITS:
        return None
    return number
