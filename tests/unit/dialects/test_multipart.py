"""A form is scanned where it lies, refused where two parsers could read it differently, and edited without touching its files."""

from __future__ import annotations

from collections.abc import Mapping

import openai
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.dialects import multipart
from gateway.dialects.multipart import Form, ReadAt
from gateway.errors import BadRequest
from tests.fakes.provider import Provider

BOUNDARY = "b0undary"
TYPE = "multipart/form-data; boundary=" + BOUNDARY


def reader(raw: bytes) -> ReadAt:
    def read_at(offset: int, size: int) -> bytes:
        assert offset >= 0
        assert size >= 0  # os.pread would raise
        return raw[offset : offset + size]

    return read_at


def read(raw: bytes, content_type: str = TYPE) -> Form:
    return multipart.read(reader(raw), len(raw), content_type)


def read_or_refusal(raw: bytes, content_type: str = TYPE) -> Form | BadRequest:
    try:
        return read(raw, content_type)
    except BadRequest as error:
        return error


def part(head: str, content: bytes = b"x", boundary: str = BOUNDARY) -> bytes:
    return f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + b"\r\n"


def field(name: str, value: bytes) -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"', value)


def file(content: bytes, name: str = "file", filename: str = "a.mp3") -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: audio/mpeg', content)


def form(*parts: bytes, end: bytes = b"--b0undary--\r\n") -> bytes:
    return b"".join(parts) + end


def edited(scanned: Form, members: Mapping[str, str]) -> bytes:
    opened, size = scanned.spliced(members)
    whole = b"".join(opened())
    assert len(whole) == size
    assert b"".join(opened()) == whole  # a retry reads it again
    return whole


def values(scanned: Form) -> dict[str, bytes]:
    return {name: scanned.read_at(span.start, span.end - span.start) for name, span in scanned.spans.items()}


def test_fields_are_found_and_files_are_not() -> None:
    scanned = read(form(file(b"\0" * 100), field("model", b"whisper-1"), field("stream", b"true"), field("prompt", "\u00e9".encode())))
    assert values(scanned) == {"model": b"whisper-1", "stream": b"true", "prompt": "\u00e9".encode()}
    assert (scanned.fields.model, scanned.fields.stream) == ("whisper-1", True)


def test_one_line_end_before_the_form_is_taken_and_survives_edits() -> None:
    scanned = read(b"\r\n" + form(field("model", b"dall-e-2"), file(b"png")))
    assert scanned.fields.model == "dall-e-2"
    again = read(edited(scanned, {"model": "other", "stream": "true"}))
    assert values(again) == {"model": b"other", "stream": b"true"}


WRITERS = {
    "curl": ("------------------------d74496d66958873e", 'Content-Disposition: form-data; name="model"'),
    "browser": ("----WebKitFormBoundary7MA4YWxkTrZu0gW", 'Content-Disposition: form-data; name="model"'),
    "requests": ("0c9a1b2c3d4e5f60718293a4b5c6d7e8", 'Content-Disposition: form-data; name="model"'),
    "undici": ("----formdata-undici-012345678901", 'Content-Disposition: form-data; name="model"'),
    "okhttp": ("7f3e-4a.b_c", 'Content-Disposition: form-data; name="model"\r\nContent-Length: 9'),
    "dotnet": ("b1946ac9-2e5c", "Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=model"),
    "apache": ("Zk_x'()+,./:=?", 'Content-Disposition: form-data; name="model"\r\nContent-Type: text/plain\r\nContent-Transfer-Encoding: 8bit'),
    "lower case": ("x", 'content-disposition:form-data;name="model"'),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("end", [b"--\r\n", b"--", b"--\r\n\r\n"])
def test_forms_of_common_clients_are_read_and_edited(writer: str, end: bytes) -> None:
    boundary, head = WRITERS[writer]
    first = part('Content-Disposition: form-data; name="file"; filename="a \\"b\\".mp3"\r\nContent-Type: audio/mpeg', b"\r\n--\r\n", boundary)
    model = part(head, b"whisper-1", boundary)
    scanned = read(first + model + b"--" + boundary.encode() + end, f'multipart/form-data; boundary="{boundary}"')
    assert scanned.fields.model == "whisper-1"
    assert edited(scanned, {"model": "large-v3"}) == first + model.replace(b"whisper-1", b"large-v3") + b"--" + boundary.encode() + end


def test_form_of_the_official_sdk_is_read_and_edited() -> None:
    with Provider() as provider:
        client = openai.OpenAI(base_url=provider.url, api_key="sk-test", max_retries=0)
        client.audio.transcriptions.create(model="whisper-1", file=("na\u00efve.mp3", b"\r\n--\0\xff" * 99), extra_body={"temperature": 0.5}, language="de")
        received = provider.requests[-1]
        client.close()
    scanned = read(received.body, received.headers["content-type"])
    assert values(scanned) == {"model": b"whisper-1", "language": b"de", "temperature": b"0.5"}
    assert edited(scanned, {"model": "m"}) == received.body.replace(b"whisper-1", b"m")


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=b0undary",
        'Multipart/Form-Data;boundary="b0undary"',
        "multipart/form-data; charset=utf-8; boundary=b0undary",
        "multipart/form-data; boundary=b0undary; charset=utf-8",
        "multipart/form-data; boundary=b0undary;",
    ],
)
def test_boundary_is_found_in_the_content_type(content_type: str) -> None:
    assert read(form(field("model", b"m")), content_type).fields.model == "m"


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "b" * 71,
        "multipart/form-data; boundary=b&c",
        "multipart/form-data; boundary=b0undary; boundary=other",
        "multipart/form-data; boundary=b0undary; Boundary=other",
        "multipart/form-data; boundary*=utf-8''b0undary",
        "multipart/form-data; x=boundary=other; boundary=b0undary",
        "multipart/form-data; xboundary=other; boundary=b0undary",
        'multipart/form-data; boundary="b0undary',
        "multipart/form-data boundary=b0undary",
        'multipart/form-data; boundary="b0undary "',
        "multipart/mixed; boundary=b0undary",
        "",
    ],
)
def test_content_type_that_two_parsers_could_read_differently_is_refused(content_type: str) -> None:
    with pytest.raises(BadRequest, match=r"boundary|cannot be read"):
        read(form(field("model", b"m")), content_type)


MODEL = field("model", b"cheap")
TWISTED = {
    "text before the form": b"preamble\r\n" + form(MODEL),
    "two line ends before the form": b"\r\n\r\n" + form(MODEL),
    "another form behind the end": form(MODEL) + form(field("model", b"dear")),
    "text behind the end": form(MODEL, end=b"--b0undary--x"),
    "no end": b"".join([MODEL]),
    "an end that is cut": form(MODEL, end=b"--b0undary-"),
    "a boundary that goes on": form(MODEL, end=b"--b0undaryX\r\n") + form(),
    "a boundary with white space": b"--b0undary \r\n" + form(MODEL)[12:],
    "bare line feeds": form(MODEL).replace(b"\r\n", b"\n"),
    "a folded header": form(part('Content-Disposition: form-data;\r\n name="model"')),
    "a bare line feed in a header": form(part('X: y\nContent-Disposition: form-data; name="model"')),
    "a vertical tab in a header": form(part('X: y\x0bContent-Disposition: form-data; name="model"\r\nContent-Disposition: form-data; name="a"')),
    "a line separator in a header": form(part('Content-Disposition: form-data; name="a"\r\nX: \u2028Content-Disposition: form-data; name="model"')),
    "two dispositions": form(part('Content-Disposition: form-data; name="a"\r\nContent-Disposition: form-data; name="model"')),
    "a space before the colon": form(part('Content-Disposition : form-data; name="model"')),
    "no disposition": form(part("Content-Type: text/plain")),
    "no headers": b"--b0undary\r\n\r\nx\r\n" + form(),
    "a part without a body": b'--b0undary\r\nContent-Disposition: form-data; name="model"\r\n\r\n--b0undary--\r\n',
    "no name": form(part("Content-Disposition: form-data")),
    "an empty name": form(part('Content-Disposition: form-data; name=""')),
    "two names": form(part('Content-Disposition: form-data; name="a"; name="model"')),
    "an encoded name": form(part("Content-Disposition: form-data; name*=utf-8''model")),
    "a name beside an encoded one": form(part("Content-Disposition: form-data; name=\"a\"; name*=utf-8''model")),
    "a name with a backslash": form(part('Content-Disposition: form-data; name="mod\\el"')),
    "a name within another parameter": form(part('Content-Disposition: form-data; x="; name=model')),
    "an attachment": form(part('Content-Disposition: attachment; name="model"')),
    "a transfer encoding": form(part('Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: base64', b"Y2hlYXA=")),
    "a model that is a file": form(file(b"cheap", "model")),
    "a model that is a nameless file": form(file(b"cheap", "model", "")),
    "two models": form(MODEL, field("model", b"dear")),
    "two streams": form(field("stream", b"true"), field("stream", b"false")),
    "a model that is too long": form(field("model", b"m" * 1025)),
    "a model with a line break": form(field("model", b"a\r\nb")),
    "a model in another encoding": form(field("model", b"\xff")),
    "an empty model": form(field("model", b"")),
    "a stream that is no truth": form(field("stream", b"yes")),
    "an endless header": form(part("X: " + "y" * 9000 + '\r\nContent-Disposition: form-data; name="model"')),
    "nothing": b"",
}


@pytest.mark.parametrize("twist", TWISTED)
def test_form_that_could_be_read_as_another_is_refused(twist: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        read(TWISTED[twist])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ['x="; name=model"; name="other"', 'filename="; name=model"; name="other"', 'name="other"; x="; filename=y"'])
def test_quoted_parameters_are_not_mistaken_for_others(name: str) -> None:
    scanned = read(form(part("Content-Disposition: form-data; " + name)))
    assert scanned.fields.model is None
    assert set(scanned.spans) <= {"other"}


def test_field_with_a_filename_in_quotes_is_still_a_field() -> None:
    scanned = read(form(part('Content-Disposition: form-data; x="; filename=y"; name="model"', b"m")))
    assert scanned.fields.model == "m"


def test_boundary_like_bytes_within_a_file_are_content() -> None:
    content = b"-b0undary--\n--b0undary\r\r\n\r\n-b0undary--\r\n--b0undar\r\n--B0undary--\n--b0undary--\n\r--b0undary\r\r\n--"
    scanned = read(form(file(content), field("model", b"m")))
    assert values(scanned) == {"model": b"m"}
    assert edited(scanned, {"model": "other"}) == form(file(content), field("model", b"other"))


@pytest.mark.parametrize("shift", range(-3, 14))
def test_boundary_across_two_windows_is_found(shift: int) -> None:
    head = len(file(b"")) - 2
    scanned = read(form(file(b"z" * (multipart.WINDOW - head - 10 + shift)), field("model", b"m")))
    assert scanned.fields.model == "m"


def test_fields_are_added_in_front_and_changed_in_place() -> None:
    whole = form(field("a", b"1"), file(b"\0\xff"), field("a", b"2"), field("model", b"m"))
    scanned = read(whole)
    assert values(scanned)["a"] == b"2"
    changed = edited(scanned, {"model": "longer-name", "a": "", "stream": "true", "user": "\u00e9"})
    assert changed == form(
        field("stream", b"true"), field("user", "\u00e9".encode()), field("a", b"1"), file(b"\0\xff"), field("a", b""), field("model", b"longer-name")
    )
    assert read(changed).fields.stream is True


def test_empty_form_takes_fields() -> None:
    assert edited(read(form()), {"model": "m"}) == form(field("model", b"m"))


def test_empty_edit_changes_nothing() -> None:
    whole = form(file(b"x" * 600_000), field("model", b"m"))
    assert edited(read(whole), {}) == whole


def test_number_of_parts_is_bounded() -> None:
    fields = [field(f"f{number}", b"") for number in range(multipart.MAX_PARTS)]
    assert len(read(form(*fields)).spans) == multipart.MAX_PARTS
    with pytest.raises(BadRequest, match="more than 200 parts"):
        read(form(*fields, field("one", b"more")))


@pytest.mark.parametrize(("value", "stream"), [(b"true", True), (b"True", True), (b"false", False)])
def test_stream_is_read_from_its_text(value: bytes, stream: bool) -> None:
    assert read(form(field("stream", value))).fields.stream is stream


NAMES = st.text("abcmodelstream[]_ \u00e9", min_size=1, max_size=8).filter(lambda name: name not in ("model", "stream"))
CONTENTS = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"\r\n--", b"--b0undary", b"\r\n--b0undar", b"\r\n\r\n"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(NAMES, CONTENTS, st.booleans()), max_size=5), st.sampled_from(["", "m", "longer"]))
def test_any_well_formed_form_reads_back_and_edits_in_place(parts: list[tuple[str, bytes, bool]], model: str) -> None:
    made = [file(content, name) if is_file else field(name, content) for name, content, is_file in parts]
    assume(not any(b"\r\n--b0undary" in b"\r\n" + content for _, content, _ in parts))  # no writer chooses a boundary that occurs
    scanned = read(form(*made))
    assert values(scanned) == {name: content for name, content, is_file in parts if not is_file}
    assert edited(scanned, {"model": model}) == form(field("model", model.encode()), *made)


@settings(max_examples=800, deadline=None)
@given(
    st.binary(max_size=200)
    | st.lists(
        st.sampled_from(
            [b"--b0undary", b"--", b"\r\n", b"\r", b"\n", b"Content-Disposition: form-data", b'; name="model"', b"; filename=", b":", b'"', b"x", b"\0"]
        ),
        max_size=20,
    ).map(b"".join)
)
def test_22_any_bytes_are_read_or_refused(raw: bytes) -> None:
    outcome = read_or_refusal(raw)
    assert outcome.status == 400 if isinstance(outcome, BadRequest) else edited(outcome, {}) == raw


@settings(max_examples=800, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3) | st.sampled_from([b"\r\n", b"--", b"--b0undary"])), min_size=1, max_size=3
    )
)
def test_22_damaged_forms_are_read_or_refused(edits: list[tuple[int, int, bytes]]) -> None:
    damaged = bytearray(form(field("model", b"m"), file(b"\0\xff\r\n"), field("stream", b"true")))
    for at, removed, inserted in edits:
        at %= len(damaged) + 1
        damaged[at : at + removed] = inserted
    outcome = read_or_refusal(bytes(damaged))
    if isinstance(outcome, Form):
        assert edited(outcome, {}) == bytes(damaged)
        assert all(span.start <= span.end for span in outcome.spans.values())


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("multipart/form-data; boundary=\"'", max_size=60))
def test_any_content_type_is_read_or_refused(content_type: str) -> None:
    outcome = read_or_refusal(form(), content_type)
    assert isinstance(outcome, Form) or outcome.status == 400
