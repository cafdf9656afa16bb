"""What passes through the gateway arrives as it was sent: bodies to the provider, answers to the client, byte for byte."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fakes.answers import Answer, Json, RawEvents
from tests.fakes.gateway import RunningGateway
from tests.fakes.openai_answers import default_answer
from tests.fakes.provider import Provider
from tests.fakes.received import Received

CHAT = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
INSERTED_OPTIONS = b'"stream_options":{"include_usage":true},'
PLAIN, ALIAS, COUNTED = "plain", "public-name", "counted"
UPSTREAM_NAME = "the/upstream's “own” name"

thorough = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@dataclass(frozen=True)
class Path:
    """The way through the gateway: what is asked of it, and what the provider got."""

    gateway: RunningGateway
    provider: Provider

    def sent(self, body: bytes, path: str = CHAT, content_type: str = "application/json") -> Received:
        """What the provider received for this body."""
        self.provider.requests.clear()
        with self.gateway.client() as client:
            client.ask(path, body, headers={"content-type": content_type})
            answer = client.answer()
        assert answer.status == 200, answer.body
        (received,) = self.provider.requests
        return received

    def answered(self, answer: Answer, path: str = CHAT, model: str = PLAIN, stream: bool = True) -> bytes:
        """The body that the client gets where the provider gives this answer."""
        self.provider.script(path, answer)
        with self.gateway.client() as client:
            client.ask(path, {"model": model, "stream": stream, "input": "x"})
            return client.answer().body


@pytest.fixture(scope="module")
def path(gateway: RunningGateway, provider: Provider) -> Path:
    """`plain` adds nothing to a body; `counted` asks streams for their usage; `public-name` has another name upstream."""
    gateway.deploy(PLAIN, provider.url, include_usage=False)
    gateway.deploy(ALIAS, provider.url, include_usage=False, upstream_model=UPSTREAM_NAME)
    gateway.deploy(COUNTED, provider.url)
    gateway.wait_catalog()
    provider.always(CHAT, Json({"choices": []}))
    provider.always("/v1/responses", Json({"output": []}))
    provider.always("/v1/audio/transcriptions", Json({"text": ""}))
    return Path(gateway, provider)


# bodies as clients write them: any space, any notation of a number or a character, any order

space = st.text(" \t\r\n", max_size=3)
digits = st.text(string.digits, min_size=1, max_size=25)
numbers = st.builds(
    lambda sign, whole, fraction, exponent: sign + (whole.lstrip("0") or "0") + fraction + exponent,
    st.sampled_from(["", "-"]),
    digits,
    st.one_of(st.just(""), digits.map(lambda text: "." + text)),
    st.one_of(st.just(""), st.builds(str.__add__, st.sampled_from(["e", "E", "e+", "E-", "e-0"]), st.text(string.digits, min_size=1, max_size=3))),
)
characters = st.one_of(
    st.characters(min_codepoint=0x20, exclude_characters='"\\', exclude_categories=["Cs"]),
    st.sampled_from(['\\"', "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t", "\\u0000", "\\u00e9", "\\uD83D\\uDE00", "\\ud800", "\u2028", "\ufeff", "𝄞"]),
)
texts = st.lists(characters, max_size=12).map(lambda parts: '"' + "".join(parts) + '"')


def _joined(parts: Sequence[str], begin: str, end: str, gaps: Sequence[str]) -> str:
    return begin + gaps[0] + ("," + gaps[1]).join(part + gaps[2] for part in parts) + end


def _containers(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    gaps = st.tuples(space, space, space)
    members = st.builds(lambda name, before, after, value: name + before + ":" + after + value, texts, space, space, values)
    return st.one_of(
        st.builds(lambda parts, gap: _joined(parts, "[", "]", gap), st.lists(values, max_size=4), gaps),
        st.builds(lambda parts, gap: _joined(parts, "{", "}", gap), st.lists(members, max_size=4), gaps),
    )


values = st.recursive(st.one_of(numbers, texts, st.sampled_from(["true", "false", "null"])), _containers, max_leaves=12)
OURS = {"model", "stream", "n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens", "stream_options", "store", "background"}
OURS |= {"conversation", "previous_response_id", "prompt"}
names = texts.filter(lambda name: json.loads(name) not in OURS)


@st.composite
def bodies(draw: st.DrawFn, model: str, *own: str) -> bytes:
    """A JSON object with this model, these members of ours, and any others, in any order."""
    members = draw(st.lists(st.tuples(names, values), max_size=5))
    written = [f"{name}{draw(space)}:{draw(space)}{value}" for name, value in members]
    written += [f'"model"{draw(space)}:{draw(space)}{json.dumps(model)}', *own]
    body = _joined(draw(st.permutations(written)), "{", "}", draw(st.tuples(space, space, space)))
    return (draw(space) + body + draw(space)).encode()


@thorough
@given(body=bodies(PLAIN))
def test_a_whole_calls_body_arrives_byte_for_byte(path: Path, body: bytes) -> None:
    received = path.sent(body)
    assert received.body == body
    assert received.headers["content-type"] == "application/json"


@thorough
@given(body=bodies(PLAIN, '"stream" : true'))
def test_a_streams_body_arrives_byte_for_byte_where_no_usage_is_asked_for(path: Path, body: bytes) -> None:
    assert path.sent(body).body == body


@thorough
@given(body=bodies(COUNTED, '"stream":\ttrue'))
def test_asking_for_usage_inserts_one_member_and_changes_nothing_else(path: Path, body: bytes) -> None:
    received = path.sent(body).body
    at = received.index(INSERTED_OPTIONS)
    assert received[:at].strip() == b"{"
    assert received[:at] + received[at + len(INSERTED_OPTIONS) :] == body


@thorough
@given(body=bodies(COUNTED, '"stream": true', '"stream_options" : {"x": 1.50, "include_usage" : false , "\\u0079": [ ]}'))
def test_a_clients_stream_options_are_kept_but_for_the_one_that_we_need(path: Path, body: bytes) -> None:
    received = path.sent(body).body
    assert received == body.replace(b'"include_usage" : false', b'"include_usage" : true')


@pytest.mark.parametrize("options", ["null", "{}", ' { "x" : 1e2 } ', '{"include_usage": true}', '{"include_usage":null}'])
def test_usage_is_asked_for_whatever_the_clients_options(path: Path, options: str) -> None:
    received = path.sent(f'{{"model": "{COUNTED}", "stream_options": {options}, "stream": true, "z": 0.10}}'.encode())
    asked = json.loads(options) or {}
    assert received.json()["stream_options"] == {**asked, "include_usage": True}
    assert received.body.endswith(b', "stream": true, "z": 0.10}')


@thorough
@given(body=bodies(ALIAS))
def test_an_alias_changes_the_models_name_and_nothing_else(path: Path, body: bytes) -> None:
    received = path.sent(body)
    assert received.body == body.replace(json.dumps(ALIAS).encode(), json.dumps(UPSTREAM_NAME).encode())


def test_an_alias_is_replaced_as_the_value_of_the_member_alone(path: Path) -> None:
    around = '{{"public-name": {{"model": "public-name"}}, "model": {}, "x": "public-name", "y": ["model", "public-name"]}}'
    received = path.sent(around.format('"public-name"').encode())
    assert received.body == around.format(json.dumps(UPSTREAM_NAME)).encode()


@thorough
@given(body=bodies(PLAIN))
def test_a_response_is_told_not_to_be_stored_and_keeps_the_rest(path: Path, body: bytes) -> None:
    received = path.sent(body, "/v1/responses").body
    assert received == body.replace(b"{", b'{"store":false,', 1)


@thorough
@given(body=bodies(PLAIN, '"store" : false'))
def test_a_response_that_is_not_to_be_stored_keeps_every_byte(path: Path, body: bytes) -> None:
    assert path.sent(body, "/v1/responses").body == body


# streams

line_ends = st.sampled_from(["\n", "\r\n", "\r"])
line_text = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
lines = st.one_of(
    line_text.map(lambda text: ":" + text),
    line_text.map(lambda text: "data:" + text),
    line_text.map(lambda text: "data: " + text),
    st.sampled_from(["data", "event: delta", "id: 7", "id", "retry: 10", "data: [DONE]x", 'data: "[DONE]"', 'data: {"finish_reason": "stop"}', "other: x"]),
    values.map(lambda value: "data: " + " ".join(value.split("\r")).replace("\n", " ")),
)


@st.composite
def events(draw: st.DrawFn) -> bytes:
    end = draw(line_ends)
    return "".join(line + end for line in [*draw(st.lists(lines, min_size=1, max_size=3)), ""]).encode()


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A stream of an upstream in its odd moods, which ends as it should; the first event has content and is no error."""
    first = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}' + draw(st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]))
    return first + b"".join(draw(st.lists(events(), max_size=8))) + DONE + draw(st.sampled_from([b"", b"\n", b": bye\n\n"]))


@thorough
@given(raw=streams(), data=st.data())
@example(raw=b"data: a\r\n\r\n" + DONE, data=None)
def test_a_stream_comes_back_byte_for_byte(path: Path, raw: bytes, data: Any) -> None:
    offsets = st.lists(st.integers(1, len(raw) - 1), max_size=6, unique=True)
    cuts = sorted(data.draw(offsets)) if data is not None else range(1, len(raw))
    for model in (PLAIN, COUNTED):
        assert path.answered(RawEvents(raw, cuts), model=model) == raw


def test_a_recorded_stream_cut_at_every_byte_comes_back(path: Path) -> None:
    asked = Received("POST", CHAT, "", (), json.dumps({"stream": True, "model": PLAIN}).encode(), 0.0, 0)
    blocks = default_answer(asked)[2]
    recorded = b"".join(blocks[:2] + blocks[5:6] + blocks[-2:]).replace(b"\n\n", b"\r\n\r\n", 2)
    with path.gateway.client() as client:
        for offset in range(1, len(recorded)):
            path.provider.script(CHAT, RawEvents(recorded, (offset,), pause_s=0.001))
            client.ask(CHAT, {"model": PLAIN, "stream": True})
            assert client.answer().body == recorded, offset


def test_a_stream_in_single_bytes_comes_back(path: Path) -> None:
    raw = 'data: {"choices":[{"delta":{"content":"ü€𝄞"}}]}\r\n\r\n: ü\n\n'.encode() + DONE
    assert path.answered(RawEvents(raw, range(1, len(raw)), pause_s=0.001)) == raw


def test_only_the_usage_that_we_asked_for_is_hidden(path: Path) -> None:
    content = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    others = b'data: {"choices":[],"usage":null}\n\ndata: {"choices":[],"x":1}\n\ndata: {"usage":{}}\n\n'
    raw = content + others + usage + DONE
    assert path.answered(RawEvents(raw), model=COUNTED) == content + others + DONE
    assert path.answered(RawEvents(raw), model=PLAIN) == raw


# forms and files


def _form(boundary: str, fields: Sequence[tuple[str, bytes]], file: bytes, model: str) -> bytes:
    mark = b"--" + boundary.encode()
    parts = [b'Content-Disposition: form-data; name="%b"\r\n\r\n%b' % (name.encode(), value) for name, value in fields]
    parts.append(b"content-disposition:form-data;name=model\r\nx-odd: 1\r\n\r\n%b" % model.encode())
    parts.append(b'Content-Disposition: form-data; name="file"; filename="\xc3\xbc.wav"\r\nContent-Type: audio/wav\r\n\r\n' + file)
    return b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n"


boundaries = st.text(string.ascii_letters + string.digits + "'()+_,-./:=?", min_size=8, max_size=60).map(lambda text: "b" + text)


@thorough
@given(
    boundary=boundaries,
    fields=st.lists(st.tuples(st.sampled_from(["language", "prompt", "temperature", "x[]"]), st.binary(max_size=40)), max_size=3),
    file=st.binary(max_size=400),
)
def test_an_upload_arrives_byte_for_byte(path: Path, boundary: str, fields: list[tuple[str, bytes]], file: bytes) -> None:
    body = _form(boundary, fields, file, PLAIN)
    received = path.sent(body, "/v1/audio/transcriptions", f'multipart/form-data; boundary="{boundary}"')
    assert received.body == body
    assert received.headers["content-type"] == f'multipart/form-data; boundary="{boundary}"'


def test_a_large_upload_arrives_byte_for_byte(path: Path) -> None:
    body = _form("boundary", [], bytes(range(256)) * 20_000, PLAIN)
    assert path.sent(body, "/v1/audio/transcriptions", "multipart/form-data; boundary=boundary").body == body


@pytest.mark.parametrize("size", [0, 5_000_000])
def test_an_aliased_upload_keeps_all_but_the_models_name(path: Path, size: int) -> None:
    file = b"model " + ALIAS.encode() + b"\x00" * size
    received = path.sent(_form("boundary", [("prompt", ALIAS.encode())], file, ALIAS), "/v1/audio/transcriptions", "multipart/form-data; boundary=boundary")
    assert received.body == _form("boundary", [("prompt", ALIAS.encode())], file, UPSTREAM_NAME)


@thorough
@given(content=st.binary(max_size=3000), blocks=st.integers(1, 5), framing=st.sampled_from(["length", "chunked", "close"]))
def test_a_binary_answer_comes_back_byte_for_byte(path: Path, content: bytes, blocks: int, framing: str) -> None:
    step = max(1, len(content) // blocks)
    pieces = tuple(content[at : at + step] for at in range(0, len(content), step))
    answer = Answer(200, (("content-type", "audio/mpeg"),), pieces, framing)
    assert path.answered(answer, "/v1/audio/speech", stream=False) == content


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("size", [4 << 20, (4 << 20) + 1, 20_000_000])
def test_a_large_answer_comes_back_byte_for_byte(path: Path, framing: str, size: int) -> None:
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    for kind in ("audio/mpeg", "application/json"):
        pieces = tuple(content[at : at + 500_000] for at in range(0, size, 500_000))
        answer = Answer(200, (("content-type", kind),), pieces, framing)
        assert path.answered(answer, "/v1/audio/speech", stream=False) == content


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "TEXT/plain", "image/png", "x/y;z=1", None])
def test_an_answers_type_comes_back_as_it_was_or_not_at_all(path: Path, kind: str | None) -> None:
    path.provider.script("/v1/audio/speech", Answer(200, (("content-type", kind),) if kind else (), (b"<script>",)))
    with path.gateway.client() as client:
        client.ask("/v1/audio/speech", {"model": PLAIN})
        assert client.answer().headers.get("content-type") == kind
