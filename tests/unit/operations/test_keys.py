from __future__ import annotations

import pytest

from gateway.errors import BadRequest, NotFound
from gateway.operations import keys, users
from gateway.operations.keys import MintedKey, key_state
from gateway.secrets import Secrets, looks_like_key
from gateway.store import accounts
from gateway.store.database import Database
from tests.unit.operations.times import AT

DAY_MS = 86_400_000


@pytest.fixture
def ann(database: Database) -> str:
    return users.create_user(database, "ann", AT).name


def minted(database: Database, secrets: Secrets, label: str = "laptop", **fields: object) -> MintedKey:
    return keys.create_key(database, secrets.hasher, "ann", AT, label=label, **fields)  # type: ignore[arg-type]


def test_a_key_is_found_by_the_hash_of_the_secret_that_was_shown(database: Database, secrets: Secrets, ann: str) -> None:
    made = minted(database, secrets, models=("a", "gpt-*"), expires_at=AT + DAY_MS)
    secret = made.secret.reveal()
    assert looks_like_key(secret)
    assert database.read(lambda: accounts.find_key(secrets.hasher.hash(secret))) == made.key
    assert (made.key.models, made.key.expires_at, made.key.label) == (("a", "gpt-*"), AT + DAY_MS, "laptop")
    assert secret not in repr(made)


def test_a_key_needs_a_user_a_future_and_models_that_can_be_names(database: Database, secrets: Secrets, ann: str) -> None:
    with pytest.raises(NotFound, match="'bob'"):
        keys.create_key(database, secrets.hasher, "bob", AT)
    with pytest.raises(BadRequest, match="past"):
        minted(database, secrets, expires_at=AT)
    with pytest.raises(BadRequest, match="model"):
        minted(database, secrets, models=("a b",))


RESTRICTED: dict[str, tuple[str, ...]] = {"models": ("a",), "denied_models": ("a-*",), "scopes": ("inference",), "networks": ("10.0.0.0/8", "::1/128")}


def test_a_key_s_restrictions_are_set_and_lifted_one_by_one(database: Database, secrets: Secrets, ann: str) -> None:
    key = minted(database, secrets, **{**RESTRICTED, "networks": ("10.0.0.0/8", "::1", "::1/128")}).key
    assert {name: getattr(key, name) for name in RESTRICTED} == RESTRICTED
    changed = keys.set_key(database, "laptop", AT, networks=("192.0.2.7",), scopes=())
    assert (changed.networks, changed.scopes, changed.models, changed.denied_models) == (("192.0.2.7/32",), None, ("a",), ("a-*",))
    assert keys.set_key(database, "laptop", AT, networks=(), denied_models=()).networks == ()


def test_a_rotation_keeps_every_restriction(database: Database, secrets: Secrets, ann: str) -> None:
    minted(database, secrets, batch="workshop", **RESTRICTED)
    new = keys.rotate_key(database, secrets.hasher, "laptop", AT, overlap_ms=DAY_MS).new.key
    assert {name: getattr(new, name) for name in RESTRICTED} == RESTRICTED
    assert new.batch == "workshop"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"networks": ("10.0.0.1/8",)}, "'10.0.0.1/8' is no network"),
        ({"networks": ("office",)}, "'office' is no network"),
        ({"networks": ("10.0.0.0/33",)}, "no network"),
        ({"networks": tuple(f"10.0.0.{number}" for number in range(101))}, "at most 100"),
        ({"scopes": ("inferense",)}, "did you mean inference"),
        ({"scopes": ("xyz",)}, "known: inference, usage:read"),
        ({"denied_models": ("a b",)}, "model's name"),
    ],
)
def test_what_is_no_restriction_is_told_in_a_line_and_changes_nothing(
    database: Database, secrets: Secrets, ann: str, fields: dict[str, tuple[str, ...]], told: str
) -> None:
    key = minted(database, secrets).key
    for change in (lambda: minted(database, secrets, **fields), lambda: keys.set_key(database, str(key.id), AT, **fields)):  # type: ignore[arg-type]
        with pytest.raises(BadRequest, match=told) as error:
            change()
        assert "\n" not in str(error.value)
    assert keys.list_keys(database) == [key]


def test_a_list_is_of_everybody_or_of_one_user(database: Database, secrets: Secrets, ann: str) -> None:
    users.create_user(database, "bob", AT)
    first = minted(database, secrets).key
    second = keys.create_key(database, secrets.hasher, "bob", AT).key
    assert keys.list_keys(database) == [first, second]
    assert keys.list_keys(database, "bob") == [second]
    with pytest.raises(NotFound):
        keys.list_keys(database, "eve")


def test_a_rotated_key_has_a_successor_like_it_and_ends_after_the_overlap(database: Database, secrets: Secrets, ann: str) -> None:
    old = minted(database, secrets, models=("a",)).key
    rotated = keys.rotate_key(database, secrets.hasher, "laptop", AT + 5, overlap_ms=DAY_MS)
    assert rotated.old.id == old.id
    assert (rotated.old.expires_at, rotated.old.successor_id) == (AT + 5 + DAY_MS, rotated.new.key.id)
    assert (rotated.new.key.user_id, rotated.new.key.label, rotated.new.key.models, rotated.new.key.expires_at) == (old.user_id, "laptop", ("a",), None)


def test_a_rotation_never_lengthens_the_old_key_and_keeps_its_end_for_the_new(database: Database, secrets: Secrets, ann: str) -> None:
    minted(database, secrets, expires_at=AT + 100)
    rotated = keys.rotate_key(database, secrets.hasher, "laptop", AT + 5, overlap_ms=DAY_MS)
    assert rotated.old.expires_at == rotated.new.key.expires_at == AT + 100


def test_after_a_rotation_the_label_means_the_new_key(database: Database, secrets: Secrets, ann: str) -> None:
    minted(database, secrets)
    new = keys.rotate_key(database, secrets.hasher, "laptop", AT, overlap_ms=DAY_MS).new.key
    assert keys.find_key(database, "laptop", AT) == new


def test_a_key_is_rotated_once_and_only_while_it_works(database: Database, secrets: Secrets, ann: str) -> None:
    old = minted(database, secrets).key
    keys.rotate_key(database, secrets.hasher, str(old.id), AT, overlap_ms=DAY_MS)
    with pytest.raises(BadRequest, match="was rotated before"):
        keys.rotate_key(database, secrets.hasher, str(old.id), AT, overlap_ms=DAY_MS)
    keys.revoke_key(database, str(old.id), AT)
    with pytest.raises(BadRequest, match="revoked"):
        keys.rotate_key(database, secrets.hasher, str(old.id), AT, overlap_ms=DAY_MS)


def test_a_revocation_by_label_does_not_overlook_a_rotated_key_that_still_works(database: Database, secrets: Secrets, ann: str) -> None:
    old = minted(database, secrets).key
    new = keys.rotate_key(database, secrets.hasher, "laptop", AT, overlap_ms=DAY_MS).new.key
    with pytest.raises(BadRequest, match=f"{old.id}, {new.id}"):
        keys.revoke_key(database, "laptop", AT + 1)
    assert keys.revoke_key(database, "laptop", AT + DAY_MS).id == new.id


def test_a_key_is_known_by_its_id_its_label_or_its_last_characters(database: Database, secrets: Secrets, ann: str) -> None:
    other = minted(database, secrets, "phone").key
    key = minted(database, secrets, str(other.id)).key
    for reference in (str(key.id), key.suffix, f"{key.prefix}…{key.suffix}"):
        assert keys.find_key(database, reference, AT) == key
    assert keys.find_key(database, str(other.id), AT) == other, "an id goes before a label"
    with pytest.raises(NotFound, match="'tablet'"):
        keys.find_key(database, "tablet", AT)


def test_two_keys_of_one_label_must_be_told_apart(database: Database, secrets: Secrets, ann: str) -> None:
    first, second = minted(database, secrets).key, minted(database, secrets).key
    with pytest.raises(BadRequest, match=f"{first.id}, {second.id}"):
        keys.revoke_key(database, "laptop", AT)


def test_the_state_of_a_key_says_why_it_is_refused(database: Database, secrets: Secrets, ann: str) -> None:
    key = minted(database, secrets, expires_at=AT + 10).key
    assert key_state(key, AT) == "active"
    assert key_state(key, AT + 10) == "expired"
    users.disable_user(database, "ann", AT)
    assert key_state(keys.find_key(database, str(key.id), AT), AT) == "user disabled"
    assert key_state(keys.revoke_key(database, str(key.id), AT), AT) == "revoked"
