"""Accounts that sign in at a service on a real socket: who, when, what becomes of the tokens, and what is done when something breaks."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from gateway.backend import Deadlines, Secret, Services
from gateway.backend import Proxy as GivenProxy
from gateway.core.caller import CallersUpstream
from gateway.core.catalog import Backends
from gateway.operations import catalog, chatgpt_to_api, credentials, signing_in, token_files
from gateway.operations.account_tokens import APART_MS, WEEK_MS
from gateway.operations.accounts_file import ACCOUNTS, AUTHENTICATED, REMEMBERED
from gateway.operations.chatgpt_to_api import POOL, members
from gateway.operations.credentials import CredentialWishes
from gateway.operations.signing_in import LOOK_EVERY_S, WAIT_MS, SigningIn
from gateway.operations.token_files import PROXIES, TOKENS
from gateway.secrets import Secrets, Vault
from gateway.settings import Settings
from gateway.store.database import Database
from gateway.store.pools import Credential, credential_place, extras_place
from tests.conformance.families import jwt
from tests.factories import Clock
from tests.fakes.answers import Json, ResetAt, Status
from tests.fakes.provider import Provider
from tests.fakes.proxy import Proxy
from tests.fakes.sign_in import PASSWORD, USERNAME, Page, SignInServices

NOW = 1_800_000_000_000
DAY_MS = 86_400_000
ANN, BOB = (USERNAME, PASSWORD), ("bob@example.com", "a:colon&b+c")


class Service(SignInServices):
    """Gives tokens that say whose they are, and the how-manyth: a fake with a memory."""

    def __init__(self, web: Provider, auth0: Provider) -> None:
        super().__init__(web, auth0, web, accounts=dict([ANN, BOB]), session=self.given)
        self.claims: dict[str, Any] = {}
        self.install()

    def given(self, name: str) -> dict[str, Any]:
        return {"accessToken": self.token(name, self.signed_in.count(name))}

    def token(self, name: str, number: int) -> str:
        return jwt({"email": name, "number": number} | self.claims)


class Stage:
    """A worker that signs in. The wall clock is the test's."""

    def __init__(self, settings: Settings, database: Database, secrets: Secrets, service: Service) -> None:
        self.settings = replace(settings, chatgpt_base_url=service.web.root, auth0_base_url=service.auth0.root, sign_in_pause_s=0.01)
        self.database, self.secrets, self.service, self.now = database, secrets, service, NOW
        self.directory = settings.data_dir
        self.backends = Backends(Services())
        self.learned: set[str] = set()
        self.worker = self.another()

    def another(self, proxy: Any = None, clock: Callable[[], float] = time.monotonic, **settings: Any) -> SigningIn:
        backend = self.backends.get("backends.sign_in:SignIn", {"auth0_url": self.service.auth0.root, "puid": True})
        upstream = CallersUpstream("sign-in", "x", backend, self.service.web.root, Deadlines(), proxy)
        given = replace(self.settings, **settings)
        return SigningIn(given, self.database, self.secrets, upstream, lambda *found: self.learned.update(found), clock, lambda: self.now)

    def write(self, name: str, *accounts: tuple[str, str]) -> None:
        (self.directory / name).write_text("".join(f"{email}:{password}\n" for email, password in accounts))

    def read(self, name: str) -> list[str]:
        return (self.directory / name).read_text().splitlines()

    def run(self, worker: SigningIn | None = None) -> list[str]:
        """All that is due now; the names of those who signed in. access_tokens.json is as old as the test's clock says."""
        before = len(self.service.signed_in)
        while (worker or self.worker).step():
            self.age(self.now)
        return self.service.signed_in[before:]

    def age(self, written_ms: int) -> None:
        if (self.directory / TOKENS).is_file():
            os.utime(self.directory / TOKENS, ns=(written_ms * 1_000_000, written_ms * 1_000_000))

    def members(self) -> list[Credential]:
        return members(self.database)

    def secret(self, item: Credential) -> str:
        return self.secrets.vault.open(item.sealed, credential_place(item.id))

    def puid(self, item: Credential) -> str | None:
        extras = {} if item.extras is None else json.loads(self.secrets.vault.open(item.extras, extras_place(item.id)))
        found: str | None = extras.get("puid")
        return found

    def document(self) -> Any:
        return json.loads((self.directory / TOKENS).read_text())


@pytest.fixture
def service() -> Iterator[Service]:
    with Provider() as web, Provider() as auth0:
        yield Service(web, auth0)


@pytest.fixture
def stage(settings: Settings, database: Database, secrets: Secrets, service: Service) -> Iterator[Stage]:
    stage = Stage(settings, database, secrets, service)
    yield stage
    stage.backends.close()


def wait(met: Callable[[], bool], timeout_s: float = 5.0) -> None:
    until = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < until
        time.sleep(0.01)


# what becomes of a line


def test_account_becomes_a_token_of_the_pool_that_is_served(stage: Stage) -> None:
    stage.write(ACCOUNTS, ANN, BOB)
    assert stage.run() == [ANN[0], BOB[0]]
    assert [(item.label, stage.secret(item)) for item in stage.members()] == [
        ("ann-one-example.com", stage.service.token(ANN[0], 1)),
        ("bob-example.com", stage.service.token(BOB[0], 1)),
    ]
    assert [placed.pool for placed in catalog.list_deployments(stage.database)] == [POOL]
    assert stage.document() == [{"token": stage.service.token(name, 1), "puid": ""} for name, _ in (ANN, BOB)]
    assert stat.S_IMODE((stage.directory / TOKENS).stat().st_mode) == 0o600


def test_line_moves_only_where_there_is_a_file_for_it(stage: Stage) -> None:
    stage.write(ACCOUNTS, ANN)
    stage.run()
    assert stage.read(ACCOUNTS) == [f"{ANN[0]}:{ANN[1]}"]
    stage.write(AUTHENTICATED)
    stage.write(ACCOUNTS, ANN, BOB)
    assert stage.run() == [BOB[0]]
    assert (stage.read(ACCOUNTS), sorted(stage.read(AUTHENTICATED))) == ([], [f"{ANN[0]}:{ANN[1]}", f"{BOB[0]}:{BOB[1]}"])
    assert stat.S_IMODE((stage.directory / AUTHENTICATED).stat().st_mode) == 0o600


def test_account_that_is_done_is_remembered_over_a_restart_and_by_no_word_of_it(stage: Stage) -> None:
    stage.write(ACCOUNTS, ANN, BOB)
    stage.run()
    assert (stage.run(), stage.run(stage.another())) == ([], [])
    kept = [path.read_bytes() for path in stage.directory.rglob("*") if path.is_file() and path.name != ACCOUNTS]
    assert not any(word.encode() in content for content in kept for word in (ANN[1], BOB[1]))


def test_line_of_an_account_that_fails_stays(stage: Stage) -> None:
    stage.write(AUTHENTICATED)
    stage.write(ACCOUNTS, (ANN[0], "wrong"), BOB)
    assert stage.run() == [BOB[0]]
    assert (stage.read(ACCOUNTS), stage.read(AUTHENTICATED)) == ([f"{ANN[0]}:wrong"], [f"{BOB[0]}:{BOB[1]}"])


def test_token_that_does_not_open_hinders_the_mirror_alone(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    other = Secrets(stage.secrets.hasher, Vault({1: b"x" * 32}, 1), ())
    credentials.create_credential(stage.database, other, "lost", Secret(jwt({"number": 9})), NOW, CredentialWishes(pool=POOL))
    stage.write(AUTHENTICATED)
    stage.write(ACCOUNTS, ANN)
    assert stage.run() == [ANN[0]]
    assert (stage.read(ACCOUNTS), len(stage.members()), (stage.directory / TOKENS).exists()) == ([], 2, False)
    assert "access_tokens.json is not written: " in caplog.text


def test_line_that_cannot_move_stays_and_is_remembered(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.write(ACCOUNTS, ANN)
    (stage.directory / AUTHENTICATED).write_bytes(b"#" * (token_files.MAX_BYTES + 1))
    assert (stage.run(), stage.run()) == ([ANN[0]], [])
    assert "a line of accounts.txt cannot be moved to authenticated_accounts.txt (authenticated_accounts.txt has more than 5 MB)" in caplog.text
    assert stage.read(ACCOUNTS) == [f"{ANN[0]}:{ANN[1]}"]


def test_another_password_signs_in_again(stage: Stage) -> None:
    stage.write(ACCOUNTS, ANN)
    stage.run()
    stage.service.accounts[ANN[0]] = "another"
    stage.write(ACCOUNTS, (ANN[0], "another"))
    assert stage.run() == [ANN[0]]


def test_account_signed_in_again_keeps_its_credential_its_limits_and_its_cookie(stage: Stage) -> None:
    stage.write(ACCOUNTS, ANN)
    stage.service.puids = {ANN[0]: "user-ann"}
    stage.run()
    (before,) = stage.members()
    credentials.set_credential(stage.database, stage.secrets.vault, before.label, CredentialWishes(rpm=7, notes="mine"))
    stage.service.puids = {}
    stage.now += WEEK_MS
    assert stage.run() == [ANN[0]]
    (after,) = stage.members()
    assert (after.id, after.label, after.rpm, after.notes, after.version) == (before.id, before.label, 7, "mine", 2)
    assert (stage.secret(after), stage.puid(after)) == (stage.service.token(ANN[0], 2), "user-ann")
    assert stage.document() == [{"token": stage.service.token(ANN[0], 2), "puid": "user-ann"}]


def test_token_that_the_pool_has_of_the_account_is_replaced(stage: Stage) -> None:
    chatgpt_to_api.replace_tokens(stage.database, stage.secrets, stage.settings, [jwt({"number": 0}), jwt({"email": "Bob@Example.com"})], NOW)
    ids = [item.id for item in stage.members()]
    stage.write(ACCOUNTS, BOB)
    assert stage.run() == [BOB[0]]
    assert [(item.id, item.version) for item in stage.members()] == [(ids[0], 1), (ids[1], 2)]


def test_accounts_whose_labels_are_alike_keep_apart(stage: Stage) -> None:
    alike = ("ann-one@example.com", "x")
    stage.service.accounts |= dict([alike])
    stage.service.claims = {"email": None}
    stage.write(ACCOUNTS, ANN, alike)
    assert stage.run() == [ANN[0], alike[0]]
    assert [item.label for item in stage.members()] == ["ann-one-example.com", "ann-one-example.com-2"]
    stage.now += WEEK_MS
    stage.run()
    assert [item.version for item in stage.members()] == [2, 2]


def test_credential_that_an_operator_deleted_comes_back_with_the_next_sign_in_and_not_before(stage: Stage) -> None:
    stage.write(ACCOUNTS, ANN)
    stage.run()
    credentials.delete_credential(stage.database, "ann-one-example.com")
    assert (stage.run(), stage.members()) == ([], [])
    stage.now += WEEK_MS
    assert stage.run() == [ANN[0]]
    assert [item.label for item in stage.members()] == ["ann-one-example.com"]


def test_what_was_put_into_the_token_file_meanwhile_is_not_lost(stage: Stage) -> None:
    (stage.directory / TOKENS).write_text(json.dumps([jwt({"number": 7})]))
    stage.write(ACCOUNTS, ANN)
    stage.run()
    assert [each["token"] for each in stage.document()] == [stage.service.token(ANN[0], 1), jwt({"number": 7})]
    assert len(stage.members()) == 2


def test_half_a_token_file_is_left_as_it_is(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    (stage.directory / TOKENS).write_text('["half')
    stage.write(ACCOUNTS, ANN)
    assert stage.run() == [ANN[0]]
    assert (stage.directory / TOKENS).read_text() == '["half'
    assert len(stage.members()) == 1
    stage.age(NOW - 30 * DAY_MS)
    stage.now += DAY_MS  # nor does its age sign in again and again
    assert stage.run() == []
    assert "access_tokens.json: line 1" in caplog.text


# when


def test_all_accounts_sign_in_again_where_the_token_file_is_older_than_seven_days(stage: Stage) -> None:
    stage.write(AUTHENTICATED)
    stage.write(ACCOUNTS, ANN, BOB)
    stage.run()
    stage.now += APART_MS
    stage.age(stage.now - WEEK_MS + 60_000)
    assert stage.run() == []
    stage.age(stage.now - WEEK_MS)
    assert sorted(stage.run()) == sorted([ANN[0], BOB[0]])
    assert stage.run() == []


def test_accounts_of_an_older_programs_volume_wait_until_its_tokens_are_old(stage: Stage) -> None:
    chatgpt_to_api.replace_tokens(stage.database, stage.secrets, stage.settings, [jwt({"email": ANN[0]}), jwt({"number": 0})], NOW)
    stage.write(AUTHENTICATED, ANN, BOB)
    stage.age(NOW - 6 * DAY_MS)
    assert stage.run() == []
    stage.write(ACCOUNTS, ("carl@example.com", "x"))
    stage.service.accounts |= {"carl@example.com": "x"}
    assert stage.run() == ["carl@example.com"]  # which writes the file anew
    stage.now += DAY_MS
    assert sorted(stage.run()) == sorted([ANN[0], BOB[0]])
    assert len(stage.members()) == 4
    assert stage.members()[0].version == 2


def test_accounts_of_an_older_volume_without_tokens_sign_in_at_once(stage: Stage) -> None:
    stage.write(AUTHENTICATED, ANN)
    (stage.directory / TOKENS).write_text("[]")
    assert stage.run() == [ANN[0]]


def test_four_fifths_of_a_tokens_life_are_sooner_than_a_week(stage: Stage) -> None:
    stage.service.claims = {"iat": NOW // 1000, "exp": NOW // 1000 + 100_000}
    stage.write(ACCOUNTS, ANN)
    stage.run()
    stage.now = NOW + 79_000_000
    assert stage.run() == []
    stage.now = NOW + 80_000_000
    stage.service.claims = {"iat": stage.now // 1000, "exp": stage.now // 1000 + 10**9}
    assert stage.run() == [ANN[0]]
    stage.now += WEEK_MS - 1000
    assert stage.run() == []
    stage.now += 1000
    assert stage.run() == [ANN[0]]


def test_tokens_that_live_for_a_minute_do_not_hammer_the_service(stage: Stage) -> None:
    stage.service.claims = {"exp": NOW // 1000 + 60}
    stage.write(ACCOUNTS, ANN)
    stage.run()
    stage.now += 59_000
    assert stage.run() == []
    stage.now = NOW + APART_MS
    stage.service.claims = {"exp": stage.now // 1000 + 60}
    assert stage.run() == [ANN[0]]


def test_token_that_has_expired_is_a_failure(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.service.claims = {"exp": NOW // 1000 - 5}
    stage.write(ACCOUNTS, ANN)
    stage.run()
    assert stage.members() == []
    assert "the token that it was given has expired already" in caplog.text


# what goes wrong


def test_failing_account_is_told_in_one_line_and_the_others_go_on(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.write(ACCOUNTS, (ANN[0], "wrong-canary"), ("nobody@example.com", "x"), BOB)
    assert stage.run() == [BOB[0]]
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "accounts.txt: ann-one-example.com is not signed in, again in 5 min: Wrong email or password",
        "accounts.txt: nobody-example.com is not signed in, again in 5 min: Email is not valid.",
    ]
    assert not any(word in caplog.text for word in ("canary", ANN[0], BOB[0], BOB[1]))


def test_failing_account_is_tried_again_ever_later_and_at_last_every_six_hours(stage: Stage) -> None:
    stage.write(ACCOUNTS, (ANN[0], "wrong"))
    stage.run()
    for minutes in (5, 10, 20, 40, 80, 160, 320, 360, 360):
        asked = len(stage.service.web.requests)
        stage.now += minutes * 60_000 - 1
        stage.run()
        stage.run(stage.another())  # a restart does not forget
        assert len(stage.service.web.requests) == asked
        stage.now += 1
        stage.run()
        assert len(stage.service.web.requests) > asked
    stage.write(ACCOUNTS, ANN)
    assert stage.run() == [ANN[0]]


def test_service_that_has_had_enough_is_left_alone(stage: Stage) -> None:
    clock = Clock(time.monotonic())
    worker = stage.another(clock=clock)
    stage.service.web.always("/api/auth/session", Json({"detail": "Too many, wait."}, 429))
    stage.write(ACCOUNTS, ANN, BOB)
    worker.tick()
    wait(lambda: REMEMBERED in os.listdir(stage.directory))
    asked = len(stage.service.web.requests)
    stage.service.install()
    for _ in range(10):
        clock.now += 20
        worker.tick()
        time.sleep(0.01)
    assert (stage.service.signed_in, len(stage.service.web.requests)) == ([], asked)
    clock.now += 300
    wait(lambda: worker.tick() is None and stage.service.signed_in == [BOB[0]])


@pytest.mark.parametrize("broken", [ResetAt(0), Status(500), Json([1]), Json({"accessToken": 7}), Json({"accessToken": "two words"}), Page("<p>")])
def test_service_that_is_in_trouble_stops_nothing(stage: Stage, broken: Any, caplog: pytest.LogCaptureFixture) -> None:
    stage.service.web.always("/api/auth/session", broken)
    stage.write(ACCOUNTS, ANN)
    assert stage.run() == []
    assert stage.members() == []
    assert len([record for record in caplog.records if "is not signed in, again in 5 min" in record.message]) == 1
    stage.service.install()
    stage.now += WAIT_MS[0]
    assert stage.run() == [ANN[0]]


def test_service_that_repeats_what_it_was_sent_is_not_quoted(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    page = Page(f'<p id="prompt-alert">{BOB[1].replace("&", "&amp;")} is wrong</p>', 400)
    stage.service.auth0.always("/u/login/password", lambda received: page if received.method == "POST" else Page("<form></form>"))
    stage.write(ACCOUNTS, BOB)
    stage.run()
    assert BOB[1] not in caplog.text
    assert "The upstream answered with status 400." in caplog.text


def test_wrong_lines_are_told_once_while_they_stay(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    (stage.directory / ACCOUNTS).write_text(f"no colon\n{ANN[0]}:{ANN[1]}\n")
    stage.run()
    stage.run()
    assert [record.message for record in caplog.records if "line 1" in record.message] == [
        "accounts.txt, line 1: it must be email:password, in UTF-8; the other lines count"
    ]
    assert len(stage.members()) == 1


def test_memory_that_cannot_be_written_lasts_for_the_process(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    (stage.directory / REMEMBERED).mkdir()
    stage.write(ACCOUNTS, ANN)
    assert (stage.run(), stage.run()) == ([ANN[0]], [])
    assert "after a restart, accounts are signed in once more" in caplog.text


def test_nobody_is_asked_while_the_database_is_away(stage: Stage) -> None:
    stage.write(ACCOUNTS, ANN)
    stage.database.close()
    worker = stage.another()
    worker.tick()
    wait(lambda: not worker._busy)
    assert stage.service.web.requests == []


def test_passwords_and_tokens_are_never_to_be_shown(stage: Stage) -> None:
    stage.service.puids = {ANN[0]: "user-ann-cookie"}
    stage.write(ACCOUNTS, ANN)
    stage.run()
    assert stage.learned == {ANN[1], stage.service.token(ANN[0], 1), "user-ann-cookie"}


# the way out


def test_accounts_go_through_the_proxies_of_the_pool(stage: Stage) -> None:
    with Proxy() as second:
        with Proxy() as first:
            (stage.directory / PROXIES).write_text(f"{first.url('socks5')}\n{second.url('socks5')}\n")
            stage.write(ACCOUNTS, ANN, BOB)
            assert stage.run() == [ANN[0], BOB[0]]
            assert [item.proxy for item in stage.members()] == [first.url("socks5"), second.url("socks5")]
            assert min(len(first.asked), len(second.asked)) > 0
            (stage.directory / PROXIES).unlink()
        stage.now += WEEK_MS
        assert stage.run() == [BOB[0]]  # each by the way of its credential


def test_accounts_go_through_the_environments_proxy_where_the_file_names_none(stage: Stage) -> None:
    with Proxy() as proxy:
        stage.write(ACCOUNTS, ANN)
        assert stage.run(stage.another(GivenProxy.parse(proxy.url("socks5")))) == [ANN[0]]
        assert proxy.asked
    assert [item.proxy for item in stage.members()] == [None]  # its deployment has it


# once at a time


def test_tick_waits_for_no_service_and_does_nothing_twice(stage: Stage) -> None:
    clock = Clock(time.monotonic())
    workers = [stage.another(clock=clock) for _ in range(3)]
    stage.write(ACCOUNTS, ANN, BOB)
    began = time.monotonic()
    for worker in workers * 2:
        worker.tick()
    assert time.monotonic() - began < 0.25
    until = time.monotonic() + 10
    while len(stage.members()) < 2 and time.monotonic() < until:
        clock.now += LOOK_EVERY_S
        for worker in workers:
            worker.tick()
        time.sleep(0.02)
    wait(lambda: not any(worker._busy for worker in workers))
    assert stage.service.signed_in == [ANN[0], BOB[0]]


def test_nobody_signs_in_while_another_process_does(stage: Stage) -> None:
    clock = Clock(time.monotonic())
    worker = stage.another(clock=clock)
    stage.write(ACCOUNTS, ANN)
    path = stage.settings.run_path / "sign-in.lock"
    path.parent.mkdir(parents=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        worker.tick()
        wait(lambda: not worker._busy)
        assert stage.service.web.requests == []
    clock.now += LOOK_EVERY_S
    worker.tick()
    wait(lambda: len(stage.members()) == 1)


def test_files_that_did_not_change_are_not_read(stage: Stage) -> None:
    clock = Clock(time.monotonic())
    worker = stage.another(clock=clock)
    stage.write(ACCOUNTS, ANN)
    wait(lambda: worker.tick() is None and bool(stage.members()) and not worker._busy and clock() < worker._look_at)
    clock.now += LOOK_EVERY_S
    worker.tick()
    wait(lambda: not worker._busy)
    (stage.directory / ACCOUNTS).chmod(0o600)
    for _ in range(3):
        clock.now += LOOK_EVERY_S
        worker.tick()
        assert not worker._busy
    stage.write(ACCOUNTS, ANN, BOB)
    clock.now += LOOK_EVERY_S
    worker.tick()
    wait(lambda: len(stage.members()) == 2)


# the cookie of the whole pool


def test_settings_account_gives_the_pool_its_cookie_once_a_week(stage: Stage) -> None:
    worker = stage.another(openai_email=Secret(BOB[0]), openai_password=Secret(BOB[1]))
    stage.service.puids = {BOB[0]: "user-bob"}
    assert stage.run(worker) == []  # there is no token to give it to
    stage.write(ACCOUNTS, ANN)
    assert stage.run(worker) == [ANN[0], BOB[0]]
    assert [stage.puid(item) for item in stage.members()] == ["user-bob"]
    assert stage.document()[0]["puid"] == "user-bob"
    assert (stage.run(worker), stage.run(stage.another(openai_email=Secret(BOB[0]), openai_password=Secret(BOB[1])))) == ([], [])
    stage.service.puids = {BOB[0]: "user-bob-2"}
    stage.now += WEEK_MS
    assert stage.run(worker) == [ANN[0], BOB[0]]
    assert [stage.puid(item) for item in stage.members()] == ["user-bob-2"]


def test_new_token_gets_the_cookie_as_well(stage: Stage) -> None:
    worker = stage.another(openai_email=Secret(BOB[0]), openai_password=Secret(BOB[1]))
    stage.service.puids = {BOB[0]: "user-bob"}
    stage.service.accounts["carl@example.com"] = "x"
    stage.write(ACCOUNTS, ANN)
    stage.run(worker)
    stage.write(ACCOUNTS, ANN, ("carl@example.com", "x"))
    assert stage.run(worker) == ["carl@example.com", BOB[0]]
    assert [stage.puid(item) for item in stage.members()] == ["user-bob"] * 2


def test_settings_account_that_gets_no_cookie_is_told_and_asked_again_in_a_week(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    worker = stage.another(openai_email=Secret(BOB[0]), openai_password=Secret(BOB[1]))
    stage.write(ACCOUNTS, ANN)
    stage.run(worker)
    assert "OPENAI_EMAIL: the service sets no cookie _puid for it" in caplog.text
    assert stage.run(worker) == []


def test_settings_account_that_fails_is_tried_again(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    worker = stage.another(openai_email=Secret(BOB[0]), openai_password=Secret("wrong"))
    stage.write(ACCOUNTS, ANN)
    assert stage.run(worker) == [ANN[0]]
    assert "OPENAI_EMAIL: bob-example.com is not signed in, again in 5 min: Wrong email or password" in caplog.text


def test_cookie_that_is_none_is_passed_over(stage: Stage) -> None:
    stage.service.puids = {ANN[0]: '"two words"'}
    stage.write(ACCOUNTS, ANN)
    assert stage.run() == [ANN[0]]
    assert stage.puid(stage.members()[0]) is None


@pytest.mark.parametrize("broken", [ResetAt(0), Status(403), Page("<p>")])
def test_visit_that_gives_no_cookie_costs_no_token(stage: Stage, broken: Any) -> None:
    stage.service.web.always("/backend-api/models", broken)
    stage.write(ACCOUNTS, ANN)
    assert stage.run() == [ANN[0]]
    assert [stage.puid(item) for item in stage.members()] == [None]


def test_given_account_serves_once_in_the_background(stage: Stage) -> None:
    stage.write(ACCOUNTS, ANN)
    stage.run()
    stage.service.puids = {BOB[0]: "user-bob"}
    stage.worker.give(Secret(BOB[0]), Secret(BOB[1]))
    wait(lambda: stage.puid(stage.members()[0]) == "user-bob")
    assert stage.service.signed_in == [ANN[0], BOB[0]]
    assert len(stage.members()) == 1


def test_given_account_that_fails_is_told_and_forgotten(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.worker.give(Secret("nobody@example.com"), Secret("canary-word"))
    wait(lambda: "is forgotten" in caplog.text)
    assert "PATCH /admin/openai: nobody-example.com is not signed in, and is forgotten: Email is not valid." in caplog.text
    assert "canary" not in caplog.text


def test_given_account_waits_for_its_turn_and_not_for_ever(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(time.monotonic())
    worker = stage.another(clock=clock)
    path = stage.settings.run_path / "sign-in.lock"
    path.parent.mkdir(parents=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        worker.give(Secret(BOB[0]), Secret(BOB[1]))
        clock.now += signing_in.GIVEN_WAITS_S
        wait(lambda: "give it again" in caplog.text)
    assert stage.service.web.requests == []
