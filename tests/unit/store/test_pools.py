"""Credentials: sealed for their own row, and nowhere in the open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.secrets import KeyHasher, SecretsError, Vault, key_prefix, key_suffix, mint_key
from gateway.store import accounts, pools
from gateway.store.database import Conflict, Database
from gateway.store.models import CredentialRow
from gateway.store.pools import Credential, credential_place

SECRET = "sk-canary-Zx81Qw-the-upstream-s-own"
VAULT = Vault({1: b"m" * 32}, 1)


def sealing(secret: str) -> Callable[[int], bytes]:
    return lambda credential_id: VAULT.seal(secret, credential_place(credential_id))


def create(database: Database, label: str, secret: str = SECRET) -> Credential:
    return database.write(lambda: pools.create_credential(label, secret[-4:], 1000, sealing(secret)))


def test_a_credential_opens_with_its_id_and_stands_in_a_pool_of_its_name(database: Database) -> None:
    made = create(database, "main")
    assert VAULT.open(made.sealed, credential_place(made.id)) == SECRET
    assert (made.pool_name, made.label, made.hint, made.version, made.disabled_at) == ("main", "main", "-own"[-4:], 1, None)
    assert database.read(lambda: pools.find_credential("main")) == made
    assert database.read(lambda: pools.find_credential("other")) is None


def test_a_replaced_secret_raises_the_version(database: Database) -> None:
    made = create(database, "main")
    replaced = database.write(lambda: pools.replace_secret(made.id, "next", sealing("the next")))
    assert (replaced.version, replaced.hint) == (2, "next")
    assert VAULT.open(replaced.sealed, credential_place(made.id)) == "the next"


def test_a_credential_is_disabled_and_enabled(database: Database) -> None:
    made = create(database, "main")
    assert database.write(lambda: pools.set_credential_disabled(made.id, 7)).disabled_at == 7
    assert database.write(lambda: pools.set_credential_disabled(made.id, None)) == made


def test_a_label_is_taken_once_and_free_again_after_its_deletion(database: Database) -> None:
    made = create(database, "main")
    with pytest.raises(Conflict):
        create(database, "main")
    database.write(lambda: pools.delete_credential(made.id))
    assert create(database, "main").label == "main"


def test_a_secret_moved_to_another_row_does_not_open(database: Database) -> None:
    rich, poor = create(database, "rich"), create(database, "poor", "another")

    def swap() -> None:
        CredentialRow.update(sealed=rich.sealed).where(CredentialRow.id == poor.id).execute()

    database.write(swap)
    moved = database.read(lambda: pools.find_credential("poor"))
    assert moved is not None
    with pytest.raises(SecretsError) as caught:
        VAULT.open(moved.sealed, credential_place(moved.id))
    assert SECRET not in str(caught.value)


def test_a_credential_s_repr_shows_no_sealed_bytes(database: Database) -> None:
    made = create(database, "main")
    assert repr(made.sealed) not in repr(made)
    assert "sealed=" not in repr(made)


def test_57_no_secret_stands_in_the_database_s_files(sqlite_url: str, opened: Callable[..., Database]) -> None:
    database = opened(sqlite_url)
    key = mint_key()
    user = database.write(lambda: accounts.create_user("ann", 1))
    hashed = KeyHasher(b"p" * 32).hash(key)
    database.write(lambda: accounts.create_key(user.id, hashed, 1, prefix=key_prefix(key), suffix=key_suffix(key)))
    made = create(database, "main")
    database.write(lambda: pools.replace_secret(made.id, SECRET[-4:], sealing(SECRET + "-2")))

    files = [path for path in Path(sqlite_url.removeprefix("sqlite://")).parent.iterdir() if path.is_file()]
    stored = b"".join(path.read_bytes() for path in files)
    assert hashed.encode() in stored
    assert key_prefix(key).encode() in stored
    for hidden in (key, key[8:-4], SECRET, SECRET[:-4], "m" * 32, "p" * 32):
        assert hidden.encode() not in stored
