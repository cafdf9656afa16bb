from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.operations.import_formats import ACCESS_TOKENS, MAX_BYTES, MAX_ENTRIES, Found, read

CANARY = "sk-canary-0123456789"


def part(document: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


def jwt(number: int = 1, **claims: Any) -> str:
    return f"{part({'alg': 'RS256'})}.{part({'sub': number, **claims})}.{'s' * 342}"


def secrets(text: str | bytes, form: str = "auto") -> list[str]:
    return [one.secret.reveal() for one in read(text if isinstance(text, bytes) else text.encode(), form).found]


def only(text: str) -> Found:
    (found,) = read(text.encode()).found
    return found


def refused(text: str | bytes, form: str = "auto") -> str:
    with pytest.raises(BadRequest) as error:
        read(text if isinstance(text, bytes) else text.encode(), form)
    told = str(error.value)
    assert "\n" not in told
    assert "canary" not in told
    return told


def test_pasted_lines_are_secrets_and_blank_ones_and_remarks_are_not() -> None:
    assert secrets("# mine\n\nsk-a\r\n  sk-b  \n#sk-c\n") == ["sk-a", "sk-b"]


def test_csv_with_every_column_is_read() -> None:
    heading = "label,Secret,pool,weight,rpm,tpm,concurrency,per_day,proxy,expires,tags,notes,puid\n"
    found = only(heading + 'a,sk-a,p,2,3,4,5,6,socks5://u:pw@h:1080,2027-01-02,"eu, fast","one, two",user-1\n')
    wishes = found.wishes
    assert (found.where, found.label, found.secret.reveal(), wishes.pool) == ("line 2", "a", "sk-a", "p")
    assert (wishes.weight, wishes.rpm, wishes.tpm, wishes.concurrency, wishes.per_day) == (2, 3, 4, 5, 6)
    assert (wishes.tags, wishes.notes, wishes.expires_at) == (("eu", "fast"), "one, two", 1_798_848_000_000)
    assert wishes.proxy is not None
    assert wishes.proxy.reveal() == "socks5://u:pw@h:1080"
    assert wishes.extras is not None
    assert wishes.extras["puid"].reveal() == "user-1"


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_csv_is_told_by_its_heading_whatever_separates(sign: str) -> None:
    assert secrets(f"# from the table\nname{sign}api key\nx{sign}sk-a\n") == ["sk-a"]


def test_csv_in_utf_8_with_a_mark_is_read() -> None:
    assert secrets(b"\xef\xbb\xbftoken,label\nsk-a,x\n") == ["sk-a"]


@pytest.mark.parametrize("document", [["sk-a", "sk-b"], {"tokens": ["sk-a", "sk-b"]}, [{"token": "sk-a"}, {"secret": "sk-b"}], ["sk-a", {"key": "sk-b"}]])
def test_json_is_a_list_of_secrets_or_of_objects(document: Any) -> None:
    assert secrets(json.dumps(document)) == ["sk-a", "sk-b"]


@pytest.mark.parametrize("document", [[{"token": "t1", "puid": "p1"}, {"token": "t2", "puid": ""}], ["t1", "t2"]])
def test_both_forms_of_access_tokens_are_read(document: Any) -> None:
    assert secrets(json.dumps(document), ACCESS_TOKENS) == ["t1", "t2"]


def test_puid_stands_beside_its_token() -> None:
    extras = only('[{"token":"t1","puid":"p1"}]').wishes.extras
    assert extras is not None
    assert extras["puid"].reveal() == "p1"


def test_what_a_web_session_says_is_a_token_without_the_sessions_end() -> None:
    found = only(json.dumps({"user": {"email": "a@b.c"}, "expires": "2023-01-01T00:00:00Z", "accessToken": "t", "authProvider": "auth0"}))
    assert (found.secret.reveal(), found.wishes.expires_at) == ("t", None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2027-01-02", 1_798_848_000_000),
        ("2027-01-02T00:00:00Z", 1_798_848_000_000),
        ("2027-01-02T01:00+01:00", 1_798_848_000_000),
        (1798848000, 1_798_848_000_000),
    ],
)
def test_expiry_is_a_date_a_time_or_unix_seconds(value: Any, expected: int) -> None:
    assert only(json.dumps([{"token": "t", "expires": value}])).wishes.expires_at == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no credential"),
        ("# nothing\n", "holds no credential"),
        ("[]", "holds no credential"),
        (f"sk-a\n{CANARY} {CANARY}\n", "line 2: there must be one secret on a line"),
        (f"label,token\nx,{CANARY}\ny\n", "line 3: 1 columns, where the heading has 2"),
        (f"label,token\nx,{CANARY},z\n", "line 2: 3 columns"),
        ("label,token,wieght\n", "line 1: the column wieght is unknown; did you mean weight?"),
        ("label,token,token\n", "line 1: a column is named twice"),
        (f"token,rpm\n{CANARY},many\n", "line 2: its rpm must be a whole number"),
        (f"token,expires\n{CANARY},soon\n", "line 2: its expiry must be a date"),
        (f'token,notes\n{CANARY},"open\n', "line 2: unexpected end of data"),
        ("token,label\n,x\n", "line 2: it holds no secret"),
        (f'["{CANARY}"', "line 1: the JSON is malformed, or was cut off, at column"),
        (f'{{"{CANARY}":"x"}}', "entry 1: a member is unknown"),
        (f'["{CANARY}", 7]', "entry 2: it must be a secret, or an object"),
        (f'["{CANARY}", ""]', "entry 2: its secret is empty"),
        ('[{"label":"x"}]', "entry 1: it holds no secret"),
        (f'[{{"token":"{CANARY}","key":"{CANARY}"}}]', "entry 1: it holds more than one secret"),
        (f'[{{"token":"{CANARY}","tags":[1]}}]', "entry 1: its tag must be a text"),
        (f'[{{"token":["{CANARY}"]}}]', "entry 1: its token must be a text"),
        (f'[{{"token":"{CANARY}","rpm":true}}]', "entry 1: its rpm must be a whole number"),
        ("[" * 100_000, "the JSON is malformed"),
        ("[1" + "1" * 5000 + "]", "the JSON is malformed"),
        (b"sk-a\n\xff\xfe\n", "its byte 6 is not UTF-8"),
        (b"\xff\xfes\0k\0", "UTF-16"),
        (b"sk-a\nsk\0b\n", "line 2 holds a zero byte"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_its_place_and_without_a_secret(text: str | bytes, told: str) -> None:
    assert told in refused(text)


def test_access_tokens_are_a_list() -> None:
    assert "must be a list" in refused('{"tokens":["t"]}', ACCESS_TOKENS)


def test_files_that_are_too_large_are_refused() -> None:
    assert "more than 5 MB" in refused(b"a" * (MAX_BYTES + 1))
    assert f"more than {MAX_ENTRIES} credentials" in refused("sk-a\n" * (MAX_ENTRIES + 1))
    assert len(secrets("sk-a\n" * MAX_ENTRIES)) == MAX_ENTRIES


def test_missing_last_line_break_is_remarked_on() -> None:
    assert read(b"sk-a\nsk-b").remarks
    assert not read(b"sk-a\nsk-b\n").remarks


TOKENS = [jwt(number) for number in range(3)]
WHOLE_JSON = [json.dumps(TOKENS), json.dumps({"tokens": TOKENS}), json.dumps([{"token": token, "puid": "p"} for token in TOKENS], indent=1)]


@given(st.sampled_from(WHOLE_JSON), st.floats(0, 1, exclude_max=True))
def test_no_prefix_of_a_json_file_is_a_file(whole: str, share: float) -> None:
    refused(whole[: int(len(whole) * share)])


@given(st.sampled_from(["\n".join(TOKENS) + "\n", "token,label\n" + "".join(f"{token},l{number}\n" for number, token in enumerate(TOKENS))]), st.floats(0, 1))
def test_prefix_of_a_file_of_lines_holds_whole_tokens_or_is_refused(whole: str, share: float) -> None:
    cut = whole[: int(len(whole) * share)]
    try:
        found = secrets(cut)
    except BadRequest:
        return
    assert found == TOKENS[: len(found)] or len(found) == 1  # the first token alone has nothing to be compared with


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(raw: bytes) -> None:
    told = ""
    try:
        read(raw)
    except BadRequest as error:
        told = str(error)
    assert "\n" not in told
