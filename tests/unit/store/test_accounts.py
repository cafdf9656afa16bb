"""Users and keys, as the CLI and identity ask for them."""

from __future__ import annotations

import pytest

from gateway.errors import NotFound
from gateway.store import accounts
from gateway.store.database import Conflict, Database


def user(database: Database, name: str = "ann") -> accounts.User:
    return database.write(lambda: accounts.create_user(name, 1000))


def key(database: Database, user_id: int, hash: str = "hash", label: str = "laptop") -> accounts.ApiKey:
    return database.write(lambda: accounts.create_key(user_id, hash, 2000, label=label, prefix="gw_user_", suffix="wxyz", models=["gpt-*", "echo"]))


def test_a_user_is_found_by_name_and_disabled_and_enabled(database: Database) -> None:
    ann = user(database)
    assert ann == accounts.User(ann.id, "ann", 1000, None)
    assert database.read(lambda: accounts.find_user("ann")) == ann
    assert database.read(lambda: accounts.find_user("nobody")) is None

    assert database.write(lambda: accounts.set_user_disabled(ann.id, 5000)).disabled_at == 5000
    assert database.write(lambda: accounts.set_user_disabled(ann.id, None)) == ann
    assert database.read(accounts.list_users) == [ann]


def test_a_key_is_found_by_its_hash_in_any_state(database: Database) -> None:
    ann = user(database)
    made = key(database, ann.id)
    assert made.models == ("gpt-*", "echo")
    assert (made.user_name, made.user_disabled, made.expires_at, made.revoked_at, made.successor_id) == ("ann", False, None, None, None)
    assert database.read(lambda: accounts.find_key("hash")) == made
    assert database.read(lambda: accounts.find_key("other")) is None

    database.write(lambda: accounts.revoke_key(made.id, 3000))
    database.write(lambda: accounts.set_user_disabled(ann.id, 4000))
    found = database.read(lambda: accounts.find_key("hash"))
    assert found is not None
    assert (found.revoked_at, found.user_disabled) == (3000, True)


def test_a_revocation_keeps_its_first_time(database: Database) -> None:
    made = key(database, user(database).id)
    database.write(lambda: accounts.revoke_key(made.id, 3000))
    assert database.write(lambda: accounts.revoke_key(made.id, 9000)).revoked_at == 3000


def test_a_rotation_names_the_successor(database: Database) -> None:
    ann = user(database)
    old, new = key(database, ann.id, "old"), key(database, ann.id, "new")
    expired = database.write(lambda: accounts.expire_key(old.id, 7000, successor_id=new.id))
    assert (expired.expires_at, expired.successor_id) == (7000, new.id)


def test_keys_are_searched_by_id_label_and_prefix(database: Database) -> None:
    ann, bob = user(database), user(database, "bob")
    first, second = key(database, ann.id, "h1", "laptop"), key(database, bob.id, "h2", "server")

    assert database.read(lambda: accounts.search_keys(str(second.id))) == [second]
    assert database.read(lambda: accounts.search_keys("laptop")) == [first]
    assert database.read(lambda: accounts.search_keys("gw_user_")) == [first, second]
    assert database.read(lambda: accounts.search_keys("9" * 30)) == []
    assert database.read(lambda: accounts.list_keys(bob.id)) == [second]
    assert database.read(accounts.list_keys) == [first, second]
    assert database.read(lambda: accounts.find_key_by_id(second.id)) == second


def test_what_is_not_there_is_not_found(database: Database) -> None:
    for change in (
        lambda: accounts.set_user_disabled(99, 1),
        lambda: accounts.revoke_key(99, 1),
        lambda: accounts.expire_key(99, 1),
    ):
        with pytest.raises(NotFound):
            database.write(change)


def test_a_hash_is_taken_once_and_a_key_needs_its_user(database: Database) -> None:
    ann = user(database)
    key(database, ann.id)
    with pytest.raises(Conflict, match=r"api_key\.hash"):
        key(database, ann.id)
    with pytest.raises(Conflict, match="does not exist"):
        key(database, 99, "other")


def test_no_value_shows_a_hash(database: Database) -> None:
    assert "hash" not in repr(key(database, user(database).id))


def test_a_batch_is_made_found_and_revoked_together(database: Database) -> None:
    ann, bob = user(database), user(database, "bob")
    single = key(database, ann.id)
    new = [accounts.NewKey(f"h{number}", "gw_user_", f"{number:04}", f"w-{number}") for number in range(accounts.CHUNK + 50)]
    made = database.write(lambda: accounts.create_batch(bob.id, new, "w", 2000, expires_at=9000, models=["a"], networks=["10.0.0.0/8"]))
    assert [item.label for item in made] == [one.label for one in new]
    assert {(item.user_id, item.batch, item.expires_at, item.models, item.networks, item.scopes) for item in made} == {
        (bob.id, "w", 9000, ("a",), ("10.0.0.0/8",), None)
    }
    assert database.read(lambda: accounts.find_key("h7")) == made[7]
    assert database.read(lambda: accounts.list_keys(ann.id, "w")) == []
    assert database.read(lambda: accounts.list_keys(bob.id, "w")) == made

    database.write(lambda: accounts.revoke_key(made[0].id, 3000))
    assert database.write(lambda: accounts.revoke_batch("w", 4000)) == len(made) - 1
    assert [item.revoked_at for item in database.read(lambda: accounts.list_keys(batch="w"))] == [3000, *[4000] * (len(made) - 1)]
    assert database.read(lambda: accounts.find_key_by_id(single.id)) == single


def test_an_account_is_called_as_people_call_it(database: Database) -> None:
    def make() -> None:
        accounts.create_team("ops", 0)
        user = accounts.create_user("ann", 0)
        accounts.create_key(user.id, "h1", 0, prefix="gw_user_abcd", suffix="wxyz", label="laptop")

    database.write(make)
    names = database.read(lambda: [accounts.account_name(kind, 1) for kind in ("user", "team", "key", "global")])
    assert names == ["ann", "ops", "laptop (#1)", "everybody"]
    assert database.read(lambda: [accounts.account_name(kind, 7) for kind in ("user", "team", "key")]) == ["#7"] * 3
    known = database.read(accounts.account_names)
    assert known == {("user", 1): "ann", ("team", 1): "ops", ("key", 1): "laptop (#1)", ("global", 0): "everybody"}
