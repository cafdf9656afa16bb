from __future__ import annotations

from pathlib import Path

import pytest

from gateway.backend import Secret
from gateway.errors import BadRequest
from gateway.operations import credentials
from gateway.operations.account_tokens import APART_MS, WEEK_MS, Session, again_at, keep_token, next_proxy, own_credential, owners
from gateway.operations.accounts_file import Account
from gateway.operations.chatgpt_to_api import POOL
from gateway.operations.credentials import CredentialWishes
from gateway.secrets import KeyHasher, Secrets, Vault
from gateway.store import pools
from gateway.store.database import Database
from gateway.store.pools import Credential
from tests.conformance.families import jwt
from tests.unit.operations.times import AT

ANN = Account("Ann@b.c", Secret("x"))


def create(database: Database, secrets: Secrets, label: str, token: str, pool: str = POOL) -> Credential:
    return credentials.create_credential(database, secrets, label, Secret(token), AT, CredentialWishes(pool=pool))


def own(database: Database, secrets: Secrets, place: str = "", *others: str) -> str | None:
    stored = database.read(pools.list_credentials)
    owned = {each: whose for each, whose in owners(secrets.vault, stored).items() if each not in others}
    found = own_credential(ANN, place, stored, owned)
    return None if found is None else found.label


def test_credential_that_is_remembered_comes_first_wherever_it_stands(database: Database, secrets: Secrets) -> None:
    create(database, secrets, "said", jwt({"email": "ann@b.c"}))
    moved = create(database, secrets, "moved", jwt({"n": 1}), "elsewhere")
    assert (own(database, secrets, moved.place), own(database, secrets, "credential:9-9")) == ("moved", "said")


def test_token_that_says_whose_it_is_comes_before_a_label(database: Database, secrets: Secrets) -> None:
    named = create(database, secrets, "Ann-b.c", jwt({"n": 1}))
    assert own(database, secrets) == "Ann-b.c"
    assert own(database, secrets, "", named.place) is None
    create(database, secrets, "said", jwt({"email": "ANN@b.c"}))
    assert own(database, secrets) == "said"


def test_label_of_somebody_elses_token_or_of_another_pool_says_nothing(database: Database, secrets: Secrets) -> None:
    create(database, secrets, "Ann-b.c", jwt({"email": "bob@b.c"}))
    assert own(database, secrets) is None
    credentials.set_credential(database, secrets.vault, "Ann-b.c", CredentialWishes(pool="elsewhere"))
    assert own(database, secrets) is None


def test_token_that_does_not_open_says_nothing(database: Database, secrets: Secrets) -> None:
    create(database, secrets, "a", jwt({"email": "ann@b.c"}))
    other = Secrets(KeyHasher(b"p" * 32), Vault({1: b"x" * 32}, 1), ())
    assert own(database, other) is None


def test_free_labels_are_numbered(database: Database, secrets: Secrets) -> None:
    create(database, secrets, "Ann-b.c", "sk-1", "other")
    long, strange = Account("a" * 80, Secret("x")), Account("ä", Secret("x"))
    made = [keep_token(database, secrets, one, None, Session(Secret(jwt({"n": n}))), None, AT) for n, one in enumerate((ANN, long, long, strange, strange))]
    assert [item.label for item in made] == ["Ann-b.c-2", "a" * 64, "a" * 57 + "-2", "access-tokens", "access-tokens-2"]
    assert {item.pool_name for item in made} == {POOL}


def test_same_token_again_makes_no_other_version(database: Database, secrets: Secrets) -> None:
    session = Session(Secret(jwt({"n": 1})), Secret("user-1"))
    made = keep_token(database, secrets, ANN, None, session, None, AT)
    assert keep_token(database, secrets, ANN, made, session, None, AT).version == 1
    assert keep_token(database, secrets, ANN, made, Session(Secret(jwt({"n": 2}))), None, AT).version == 2


@pytest.mark.parametrize("token", ["", "two words", jwt({"exp": AT // 1000})])
def test_token_that_cannot_be_one_is_not_kept(database: Database, secrets: Secrets, token: str) -> None:
    with pytest.raises(BadRequest):
        keep_token(database, secrets, ANN, None, Session(Secret(token)), None, AT)
    assert database.read(pools.list_credentials) == []


@pytest.mark.parametrize(
    ("claims", "after"),
    [
        ({}, WEEK_MS),
        ({"exp": AT // 1000 + 10_000_000}, WEEK_MS),
        ({"exp": AT // 1000 + 100_000}, 80_000_000),
        ({"iat": AT // 1000 - 100_000, "exp": AT // 1000 + 100_000}, 60_000_000),
        ({"iat": AT // 1000 + 10**8, "exp": AT // 1000 + 100_000}, 100_000_000),
        ({"exp": AT // 1000 + 10}, APART_MS),
    ],
)
def test_next_sign_in_is_in_a_week_or_before_the_token_ends(claims: dict[str, int], after: int) -> None:
    assert again_at(jwt(claims), AT) == AT + after


def test_proxies_take_turns_and_a_file_that_is_wrong_names_none(tmp_path: Path) -> None:
    assert next_proxy(tmp_path, 0) is None
    (tmp_path / "proxies.txt").write_text("http://a:1\nhttp://b:2\n")
    assert [str(next_proxy(tmp_path, number)) for number in range(3)] == ["http://a:1", "http://b:2", "http://a:1"]
    (tmp_path / "proxies.txt").write_text("gopher://a:1\n")
    assert next_proxy(tmp_path, 0) is None
