from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from gateway.core.identity import API_SERVER, CACHE_KEYS, CACHE_S, CALLER, REFUSAL, Identity, Presented, Principal
from gateway.errors import PermissionDenied, StoreUnavailable, Unauthenticated
from gateway.secrets import KeyHasher, key_prefix, key_suffix, mint_key
from gateway.store import accounts, budgets, family_keys
from gateway.store.accounts import ApiKey
from gateway.store.budgets import AccountPath
from gateway.store.database import Conflict, Database
from tests.factories import Clock, migrated, now_ms

HASHER = KeyHasher(b"p" * 32)


class Counted:
    """A database that counts how often it is read."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.reads = 0
        self.away = False

    def read(self, work: Callable[[], Any]) -> Any:
        self.reads += 1
        if self.away:
            raise StoreUnavailable("away")
        return self.database.read(work)


class Away:
    def read(self, work: Callable[[], Any]) -> Any:
        raise StoreUnavailable("The database did not answer in time.")


class Everybody:
    """Knows every key."""

    def read(self, work: Callable[[], Any]) -> tuple[ApiKey, AccountPath]:
        return ApiKey(1, 1, "ann", False, "", "", "", (), 0, None, None, None), AccountPath()


class Stage:
    def __init__(self, database: Database) -> None:
        self.database, self.counted, self.clock, self.generation = database, Counted(database), Clock(), 1
        self.identity = Identity(self.counted, HASHER, lambda: self.generation, self.clock)  # type: ignore[arg-type]
        self.user = database.write(lambda: accounts.create_user("ann", 0))

    def key(self, **fields: Any) -> tuple[str, ApiKey]:
        key = mint_key()
        shown: dict[str, Any] = {"prefix": key_prefix(key), "suffix": key_suffix(key)}
        return key, self.database.write(lambda: accounts.create_key(self.user.id, HASHER.hash(key), 0, **shown, **fields))

    def ask(self, value: str, scheme: str = "bearer") -> Principal:
        return self.identity.authenticate(Presented("openai", scheme, value))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with migrated(tmp_path) as database:
        yield Stage(database)


def test_key_is_its_users(stage: Stage) -> None:
    key, row = stage.key(label="laptop", models=("gpt-*", "m"))
    assert stage.ask(key) == Principal(row.id, "laptop", stage.user.id, ("gpt-*", "m"))


def test_restrictions_are_the_key_s(stage: Stage) -> None:
    key, _ = stage.key(scopes=("inference",), networks=("10.0.0.0/8",))
    asked = stage.ask(key)
    assert (asked.scopes, asked.networks) == (("inference",), (IPv4Network("10.0.0.0/8"),))
    assert [asked.may_come_from(address) for address in (IPv4Address("10.0.0.1"), IPv4Address("11.0.0.1"), IPv6Address("::1"), None)] == [True, *[False] * 3]
    assert stage.ask(stage.key()[0]).may_come_from(None)


def test_every_reason_is_told_in_the_same_words(stage: Stage) -> None:
    revoked, expired, orphaned = stage.key(), stage.key(expires_at=now_ms() - 1), stage.key()
    other = stage.database.write(lambda: accounts.create_user("bob", 0))
    key = mint_key()
    stage.database.write(lambda: accounts.create_key(other.id, HASHER.hash(key), 0, prefix="", suffix=""))
    stage.database.write(lambda: accounts.set_user_disabled(other.id, 1))
    stage.database.write(lambda: accounts.revoke_key(revoked[1].id, 1))
    told = set()
    for value, scheme in [
        (revoked[0], "bearer"),
        (expired[0], "bearer"),
        (key, "bearer"),
        (mint_key(), "bearer"),
        (orphaned[0], "basic"),
        (orphaned[0] + " ", "bearer"),
        ("", "bearer"),
        ("", ""),
        ("sk-proj-something", "bearer"),
        ("gw_user_\N{SNOWMAN}", "bearer"),
    ]:
        with pytest.raises(Unauthenticated) as caught:
            stage.ask(value, scheme)
        told.add((str(caught.value), caught.value.status, caught.value.code, caught.value.param, caught.value.retry_after_s))
    assert len(told) == 1


def test_a_rotated_key_has_the_budgets_of_the_first(stage: Stage) -> None:
    _, first = stage.key()
    key, second = stage.key()
    stage.database.write(lambda: accounts.expire_key(first.id, 1, successor_id=second.id))
    budget = stage.database.write(lambda: budgets.set_budget("key", first.id, "day", "UTC", 5, 0))
    principal = stage.ask(key)
    assert (principal.key_id, principal.budgets) == (second.id, (budget,))


def test_a_known_key_outlasts_the_database_only_where_the_operator_says_so(stage: Stage) -> None:
    key, _ = stage.key()
    stays = Identity(stage.counted, HASHER, lambda: 1, stage.clock, outlasts_database=True)  # type: ignore[arg-type]
    presented = Presented("openai", "bearer", key)
    known = (stays.authenticate(presented), stage.ask(key))
    stage.counted.away = True
    stage.clock.now += CACHE_S + 1
    assert stays.authenticate(presented) == known[0]
    with pytest.raises(StoreUnavailable):
        stage.ask(key)


def test_what_is_no_key_costs_no_read(stage: Stage) -> None:
    key = mint_key()
    for value in ("", "sk-proj-something", key[:-1], key[:-1] + ("a" if key[-1] != "a" else "b"), key + "x"):
        with pytest.raises(Unauthenticated):
            stage.ask(value)
    assert stage.counted.reads == 0


def test_known_key_is_remembered_for_a_few_seconds_only(stage: Stage) -> None:
    key, row = stage.key()
    stage.ask(key)
    stage.database.write(lambda: accounts.revoke_key(row.id, 1))
    stage.clock.now += CACHE_S - 0.01
    stage.ask(key)
    assert stage.counted.reads == 1
    stage.clock.now += 0.02
    with pytest.raises(Unauthenticated):
        stage.ask(key)


def test_new_generation_ends_the_memory_at_once(stage: Stage) -> None:
    key, row = stage.key()
    stage.ask(key)
    stage.database.write(lambda: accounts.revoke_key(row.id, 1))
    stage.generation += 1
    with pytest.raises(Unauthenticated):
        stage.ask(key)


def test_key_that_was_unknown_works_as_soon_as_it_exists(stage: Stage) -> None:
    key = mint_key()
    with pytest.raises(Unauthenticated):
        stage.ask(key)
    stage.database.write(lambda: accounts.create_key(stage.user.id, HASHER.hash(key), 0, prefix="", suffix=""))
    assert stage.ask(key).user_id == stage.user.id


def test_remembered_key_expires_to_the_moment(stage: Stage) -> None:
    key, _ = stage.key(expires_at=now_ms() + 300)
    stage.ask(key)
    time.sleep(0.35)
    with pytest.raises(Unauthenticated):
        stage.ask(key)


def test_database_that_is_away_is_no_refusal_of_the_key() -> None:
    identity = Identity(Away(), HASHER, lambda: 1)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable):
        identity.authenticate(Presented("openai", "bearer", mint_key()))


def test_remembered_key_works_while_the_database_is_away(stage: Stage) -> None:
    key, _ = stage.key()
    stage.ask(key)
    stage.database.close()
    assert stage.ask(key).user_id == stage.user.id


def test_memory_of_keys_is_bounded() -> None:
    identity = Identity(Everybody(), HASHER, lambda: 1)  # type: ignore[arg-type]
    for _ in range(CACHE_KEYS + 10):
        identity.authenticate(Presented("openai", "bearer", mint_key()))
    assert len(identity) <= CACHE_KEYS


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        ((), "anything", True),
        (("m",), "m", True),
        (("m",), "mm", False),
        (("gpt-*",), "gpt-4o", True),
        (("gpt-*",), "GPT-4o", False),
        (("gpt-*",), "x-gpt-4o", False),
        (("a", "*-mini"), "gpt-mini", True),
        (("claude[1m]",), "claude[1m]", True),
        (("claude[1m]",), "claude2", False),
        (("*",), "vendor/model:tag", True),
    ],
)
def test_key_may_use_what_its_names_and_globs_cover(models: tuple[str, ...], model: str, allowed: bool) -> None:
    assert Principal(1, "", 1, models).may_use(model) is allowed


def test_nothing_that_is_shown_holds_the_key(stage: Stage) -> None:
    key, _ = stage.key()
    assert key not in repr(stage.ask(key))
    assert key not in repr(Presented("openai", "bearer", key))
    with pytest.raises(Unauthenticated) as caught:
        stage.ask(mint_key())
    assert "gw_" not in str(caught.value)


# callers with an upstream token of their own


def test_callers_are_one_account_that_is_made_once(stage: Stage) -> None:
    stage.identity = Identity(stage.database, HASHER, lambda: stage.generation, stage.clock)
    first = stage.identity.caller()
    other = Identity(stage.database, HASHER, lambda: stage.generation, stage.clock).caller()
    assert first == other == stage.identity.caller()
    assert first.key_label == CALLER
    (user,) = [user for user in stage.database.read(accounts.list_users) if user.name == CALLER]
    (key,) = stage.database.read(lambda: accounts.list_keys(user.id))
    assert (key.label, key.id, user.id) == (CALLER, first.key_id, first.user_id)


def test_account_of_callers_is_made_once_however_many_begin_together(stage: Stage) -> None:
    identities = [Identity(stage.database, HASHER, lambda: 1) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda identity: identity.caller().key_id, identities))
    assert len(found) == 1


def test_account_of_callers_made_by_another_worker_in_the_same_moment_is_taken(stage: Stage) -> None:
    class Second:
        """Another worker's commit stands between this one's look and its write."""

        def __init__(self, database: Database) -> None:
            self.database = database

        def read(self, work: Callable[[], Any]) -> Any:
            return self.database.read(work)

        def write(self, work: Callable[[], Any]) -> Any:
            self.database.write(work)
            raise Conflict("the row exists")

    assert Identity(Second(stage.database), HASHER, lambda: 1).caller().key_label == CALLER  # type: ignore[arg-type]


def test_key_of_the_callers_account_cannot_be_presented(stage: Stage) -> None:
    stage.identity = Identity(stage.database, HASHER, lambda: stage.generation, stage.clock)
    stage.identity.caller()
    for value in (CALLER, "", "gw_user_" + "0" * 38):
        with pytest.raises(Unauthenticated):
            stage.ask(value)


@pytest.mark.parametrize("word", ["disabled", "revoked", "expired"])
def test_account_of_callers_can_be_closed(stage: Stage, word: str) -> None:
    stage.identity = Identity(stage.database, HASHER, lambda: stage.generation, stage.clock)
    found = stage.identity.caller()
    closing = {
        "disabled": lambda: accounts.set_user_disabled(found.user_id, 1),
        "revoked": lambda: accounts.revoke_key(found.key_id, 1),
        "expired": lambda: accounts.expire_key(found.key_id, 1),
    }
    stage.database.write(closing[word])
    stage.generation += 1
    with pytest.raises(PermissionDenied, match=f"'caller-token' is {word}"):
        stage.identity.caller()


def test_account_of_callers_is_looked_up_no_more_often_than_a_key(stage: Stage) -> None:
    Identity(stage.database, HASHER, lambda: 1).caller()
    for _ in range(3):
        stage.identity.caller()
    assert stage.counted.reads == 1


def test_database_that_is_away_is_no_refusal_of_callers() -> None:
    with pytest.raises(StoreUnavailable):
        Identity(Away(), HASHER, lambda: 1).caller()  # type: ignore[arg-type]


def family_token(stage: Stage, token: str = "0a1b2c3d-0000-4000-8000-000000000000") -> tuple[str, ApiKey]:
    def create() -> ApiKey:
        return family_keys.create_family_key("api-server-x", API_SERVER, HASHER.hash(token), 0, ("0a1b", "0000"), lambda number: b"sealed")

    return token, stage.database.write(create)


def test_a_family_s_token_opens_that_family(stage: Stage) -> None:
    token, row = family_token(stage)
    principal = stage.identity.authenticate(Presented(API_SERVER, "raw", token))
    assert (principal.key_id, principal.user_id) == (row.id, row.user_id)


def test_a_key_of_one_family_opens_nothing_in_another(stage: Stage) -> None:
    token, key = family_token(stage)[0], stage.key()[0]
    family_token_in_our_form = mint_key()
    shape = ("gw_u", "abcd")
    hash = HASHER.hash(family_token_in_our_form)
    stage.database.write(lambda: family_keys.create_family_key("api-server-y", API_SERVER, hash, 0, shape, lambda number: b""))
    stage.ask(key)
    for presented in (
        Presented("openai", "bearer", token),
        Presented("openai", "raw", token),
        Presented("openai", "bearer", family_token_in_our_form),
        Presented("chatgpt-to-api", "bearer", family_token_in_our_form),
        Presented(API_SERVER, "raw", key),
        Presented(API_SERVER, "bearer", token),
        Presented(API_SERVER, "raw", CALLER),
        Presented(API_SERVER, "raw", ""),
        Presented(API_SERVER, "raw", "x" * 129),
        Presented(API_SERVER, "raw", "\ud800"),
    ):
        with pytest.raises(Unauthenticated) as caught:
            stage.identity.authenticate(presented)
        assert str(caught.value) == REFUSAL
    assert stage.identity.authenticate(Presented(API_SERVER, "raw", family_token_in_our_form)).key_label == API_SERVER


def test_a_family_s_token_stops_at_the_moment_that_it_is_revoked(stage: Stage) -> None:
    token, row = family_token(stage)
    presented = Presented(API_SERVER, "raw", token)
    stage.identity.authenticate(presented)
    stage.database.write(lambda: accounts.revoke_key(row.id, 1))
    with pytest.raises(Unauthenticated):
        stage.identity.authenticate(presented)
