"""chatgpt-to-api's accounts over real sockets: a gateway that signs in from accounts.txt, and answers with the tokens that it was given."""

from __future__ import annotations

import contextlib
import json
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from gateway.store.pools import extras_place
from tests.conformance.families import jwt
from tests.conformance.test_chatgpt_to_api import CONVERSATION, FILE_KEY, PASSWORD, Family, again, text
from tests.fakes.chatgpt_web import Said
from tests.fakes.gateway import RunningGateway, free_port
from tests.fakes.provider import Provider
from tests.fakes.sign_in import SignInServices

ANN, BOB, CARL = ("ann+one@example.com", "p&a+s%s=w;rd ü"), ("bob@example.com", "a:colon:and&more"), ("carl@example.com", "a-third-secret-word")
WRONG = "a-wrong-secret-word"
CLAIMS = {"exp": int(time.time()) + 14 * 86_400}


def token(name: str) -> str:
    return jwt({"email": name} | CLAIMS)


class Services(SignInServices):
    """The web interface that chats, and the service that signs in three accounts."""

    def __init__(self, web: Provider, auth0: Provider) -> None:
        super().__init__(web, auth0, web, accounts=dict([ANN, BOB, CARL]), session=lambda name: {"accessToken": token(name)})
        self.install()
        web.always(CONVERSATION, Said("Hi"))

    @property
    def environment(self) -> dict[str, str]:
        urls = {"CHATGPT_BASE_URL": self.web.root, "AUTH0_BASE_URL": self.auth0.root, "PLATFORM_BASE_URL": self.web.root}
        return urls | {"GATEWAY_SIGN_IN_PAUSE_S": "0.05", "ADMIN_PASSWORD": PASSWORD}


@pytest.fixture
def services() -> Iterator[Services]:
    with Provider() as web, Provider() as auth0:
        yield Services(web, auth0)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "api_keys.txt").write_text(f"{FILE_KEY}\n")
    return tmp_path / "data"


def put(path: Path, *accounts: tuple[str, str]) -> None:
    path.write_text("".join(f"{email}:{password}\n" for email, password in accounts))


@contextlib.contextmanager
def serving(volume: Path, services: Services, **settings: str) -> Iterator[Family]:
    with RunningGateway(volume.parent, services.environment | settings) as running:
        yield Family(running, services.web)


def wait(met: Callable[[], Any], timeout_s: float = 15.0) -> None:
    until = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < until
        time.sleep(0.02)


def puids(family: Family) -> list[str | None]:
    vault = family.running.secrets.vault
    return [None if item.extras is None else json.loads(vault.open(item.extras, extras_place(item.id))).get("puid") for item in family.members()]


def authorizations(services: Services) -> set[str]:
    return {received.headers["authorization"] for received in services.web.requests if received.path == CONVERSATION}


def test_gateway_signs_in_and_answers_with_the_tokens_it_was_given(volume: Path, services: Services) -> None:
    put(volume / "accounts.txt", ANN, BOB)
    put(volume / "authenticated_accounts.txt")
    services.puids = {ANN[0]: "user-ann"}
    with serving(volume, services, WEB_CONCURRENCY="3") as family:
        wait(lambda: (volume / "accounts.txt").read_text() == "")
        wait(lambda: all(family.ask().status == 200 for _ in range(12)) and len(authorizations(services)) == 2)
        assert authorizations(services) == {f"Bearer {token(name)}" for name, _ in (ANN, BOB)}
        cookies = {received.headers["authorization"]: received.headers.get("cookie") for received in services.web.requests if received.path == CONVERSATION}
        assert cookies == {f"Bearer {token(ANN[0])}": "_puid=user-ann", f"Bearer {token(BOB[0])}": None}
        assert services.signed_in == [ANN[0], BOB[0]]  # three workers, and each of them once
        assert (volume / "authenticated_accounts.txt").read_text() == "".join(f"{email}:{password}\n" for email, password in (ANN, BOB))
        assert json.loads((volume / "access_tokens.json").read_text()) == [{"token": token(ANN[0]), "puid": "user-ann"}, {"token": token(BOB[0]), "puid": ""}]
        assert {stat.S_IMODE((volume / name).stat().st_mode) for name in ("accounts.txt", "authenticated_accounts.txt", "access_tokens.json")} == {0o600}
        family.running.stop()
        (volume / "accounts.txt").write_text(f"{CARL[0]}:{CARL[1]}\n")
        family.running.start()
        wait(lambda: len(family.members()) == 3)
        wait(lambda: (volume / "accounts.txt").read_text() == "")
        assert services.signed_in == [ANN[0], BOB[0], CARL[0]]  # nobody again


def test_line_that_is_added_while_it_runs_is_served(volume: Path, services: Services) -> None:
    with serving(volume, services) as family:
        assert family.ask().status == 503
        put(volume / "accounts.txt", ANN)
        wait(lambda: family.ask().status == 200)
        assert (volume / "accounts.txt").read_text() == f"{ANN[0]}:{ANN[1]}\n"  # there is no file to move it to


def test_wrong_password_is_told_once_and_the_others_are_in_the_pool(volume: Path, services: Services) -> None:
    (volume / "accounts.txt").write_bytes(f"{ANN[0]}:{WRONG}\n\nno colon\n".encode() + b"\xff\xfe:x\n" + f"{BOB[0]}:{BOB[1]}\n{CARL[0]}:{CARL[1]}\n".encode())
    with serving(volume, services) as family:
        wait(lambda: len(family.members()) == 2)
        wait(lambda: "carl-example.com is signed in" in family.running.log_path.read_text())
        assert family.ask().status == 200
        lines = [line["msg"] for line in family.running.log_lines() if "accounts.txt" in line["msg"] and line["level"] == "warning"]
        assert lines == [
            "accounts.txt, line 3, 4: it must be email:password, in UTF-8; the other lines count",
            "accounts.txt: ann-one-example.com is not signed in, again in 5 min: Wrong email or password",
        ]
        assert again(family.running)[-1] == "accounts.txt: 1 accounts wait to be signed in; the last try of 1 accounts failed"


def test_passwords_are_in_no_log_no_database_and_no_other_file(volume: Path, services: Services) -> None:
    put(volume / "accounts.txt", ANN, BOB, (CARL[0], WRONG))
    with serving(volume, services, OPENAI_EMAIL=BOB[0], OPENAI_PASSWORD=BOB[1]) as family:
        wait(lambda: "again in 5 min" in family.running.log_path.read_text())
        family.patch("openai", {"openai_email": CARL[0], "openai_password": CARL[1]})
        wait(lambda: CARL[0] in services.signed_in)
        wait(lambda: "OPENAI_EMAIL" in family.running.log_path.read_text())
    files = [path for path in volume.parent.rglob("*") if path.is_file() and path.name != "accounts.txt"]
    assert len(files) > 3
    words = [form.encode() for word in (ANN[1], BOB[1], CARL[1], WRONG) for form in (word, quote(word), quote(word, safe=""))]
    assert not any(word in path.read_bytes() for path in files for word in words)
    logged = (volume.parent / "gateway.log").read_text()
    assert not any(name in logged for name, _ in (ANN, BOB, CARL))
    assert token(ANN[0]) not in logged


def test_fault_16_service_that_cannot_be_reached_stops_no_start(volume: Path, services: Services) -> None:
    put(volume / "accounts.txt", ANN)
    (volume / "access_tokens.json").write_text(json.dumps([token("other@example.com")]))
    with serving(volume, services, AUTH0_BASE_URL=f"http://127.0.0.1:{free_port()}") as family:
        assert family.ask().status == 200
        wait(lambda: "ann-one-example.com is not signed in, again in 5 min" in family.running.log_path.read_text())
        assert family.ask().status == 200


def test_given_account_renews_the_cookie_of_the_whole_pool_and_is_kept_nowhere(volume: Path, services: Services) -> None:
    (volume / "access_tokens.json").write_text(json.dumps([token("one@example.com"), token("two@example.com")]))
    services.puids = {BOB[0]: "user-bob"}
    with serving(volume, services, WEB_CONCURRENCY="2") as family:
        assert text(family.patch("openai", {"openai_email": BOB[0], "openai_password": BOB[1]})) == (200, "OpenAI credentials updated")
        wait(lambda: puids(family) == ["user-bob"] * 2)
        wait(lambda: "user-bob" in (volume / "access_tokens.json").read_text())
        assert services.signed_in == [BOB[0]]
        assert len(family.members()) == 2
        for body in ({"openai_email": BOB[0]}, {"openai_email": BOB[0], "openai_password": ""}, {"openai_email": 1, "openai_password": 2}):
            assert family.patch("openai", body).json() == {"error": "JSON invalid"}


def test_settings_account_renews_the_cookie_of_the_whole_pool(volume: Path, services: Services) -> None:
    (volume / "access_tokens.json").write_text(json.dumps([token("one@example.com")]))
    services.puids = {ANN[0]: "user-ann"}
    with serving(volume, services, OPENAI_EMAIL=ANN[0], OPENAI_PASSWORD=ANN[1]) as family:
        wait(lambda: puids(family) == ["user-ann"])
        wait(lambda: family.ask().status == 200 and services.web.requests[-1].headers.get("cookie") == "_puid=user-ann")
