"""Credentials: sealed for their own row, and nowhere in the open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.errors import NotFound
from gateway.secrets import KeyHasher, SecretsError, Vault, key_prefix, key_suffix, mint_key
from gateway.store import accounts, catalog, conversations, pools
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


def test_credentials_of_one_pool_stand_together_and_an_empty_pool_goes(database: Database) -> None:
    first = database.write(lambda: pools.create_credential("a", "", 1, sealing("a"), "shared", rpm=5, tags=["eu"]))
    second = database.write(lambda: pools.create_credential("b", "", 1, sealing("b"), "shared"))
    assert (first.pool_id, first.pool_name, first.rpm, first.tags, first.weight) == (second.pool_id, "shared", 5, ("eu",), 1)
    moved = database.write(lambda: pools.move_credential(second.id, "other"))
    assert moved.pool_name == "other"
    database.write(lambda: pools.delete_credential(first.id))
    assert [pool.name for pool in database.read(pools.list_pools)] == ["other"]


def test_a_pool_that_a_deployment_names_outlives_its_credentials(database: Database) -> None:
    made = database.write(lambda: pools.create_credential("a", "", 1, sealing("a"), "kept"))
    model = database.write(lambda: catalog.create_model("m", 1))
    database.write(lambda: catalog.create_deployment("d", model.id, "echo", 1, pool_id=made.pool_id))
    database.write(lambda: pools.delete_credential(made.id))
    assert database.read(lambda: pools.find_pool("kept")) is not None
    with pytest.raises(Conflict):
        database.write(lambda: pools.delete_pool(made.pool_id))


def test_a_credential_inherits_nothing_of_a_deleted_one_whose_id_it_has(database: Database) -> None:
    before = create(database, "main")
    database.write(lambda: conversations.bind("k", before.pool_id, before.id, 1))
    database.write(lambda: pools.delete_credential(before.id))
    after = database.write(lambda: pools.create_credential("main", "", 2000, sealing(SECRET)))
    assert {before.place, before.subject}.isdisjoint({after.place, after.subject})
    assert database.read(lambda: conversations.bound("k")) is None


def test_every_field_of_a_credential_can_be_set_and_taken_back(database: Database) -> None:
    made = create(database, "main")
    fields: pools.CredentialFields = {
        "weight": 3,
        "rpm": 1,
        "tpm": 2,
        "concurrency": 3,
        "per_day": 4,
        "proxy": "http://p:1",
        "proxy_sealed": b"sealed",
        "extras": b"more",
        "expires_at": 5,
        "replaced_at": 5,
        "draining_at": 6,
        "tags": ["eu"],
        "notes": "of ann",
        "fingerprint": "f",
    }
    assert set(fields) == set(pools.CredentialFields.__annotations__)
    changed = database.write(lambda: pools.set_credential(made.id, **fields))
    assert {name: getattr(changed, name) for name in fields} == {**fields, "tags": ("eu",)}
    assert database.write(lambda: pools.set_credential(made.id, **dict.fromkeys(fields))) == made  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="label"):
        database.write(lambda: pools.set_credential(made.id, label="x"))  # type: ignore[call-arg]


def test_a_secret_is_replaced_only_where_its_version_is_still_the_one_that_was_read(database: Database) -> None:
    made = create(database, "main")
    database.write(lambda: pools.replace_secret(made.id, "", sealing("second"), 1))
    with pytest.raises(NotFound):
        database.write(lambda: pools.replace_secret(made.id, "", sealing("third"), 1))
    kept = database.read(lambda: pools.find_credential("main"))
    assert kept is not None
    assert VAULT.open(kept.sealed, credential_place(made.id)) == "second"


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
