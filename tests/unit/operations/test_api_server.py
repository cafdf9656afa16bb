from __future__ import annotations

import dataclasses
import sqlite3
import uuid
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from gateway.backend import Secret
from gateway.core.identity import API_SERVER, Identity, Presented
from gateway.errors import BadRequest, Unauthenticated
from gateway.operations import api_server, keys, users
from gateway.operations.api_server import ListedUser, NamedToken
from gateway.secrets import Secrets, Vault
from gateway.settings import Settings
from gateway.store.database import Database
from tests.unit.operations.times import AT


def opens(database: Database, secrets: Secrets, token: str) -> bool:
    identity = Identity(database, secrets.hasher, lambda: 1)
    try:
        identity.authenticate(Presented(API_SERVER, "raw", token))
    except Unauthenticated:
        return False
    return True


def listed(database: Database, secrets: Secrets, settings: Settings) -> list[ListedUser]:
    return api_server.list_users(database, secrets.vault, settings)


def whole(*made: NamedToken) -> list[ListedUser]:
    return [ListedUser(each.user_id, each.token.reveal()) for each in made]


def test_a_user_has_a_token_that_opens_the_family_and_is_listed(database: Database, secrets: Secrets, settings: Settings) -> None:
    first, second = (api_server.add_user(database, secrets, AT) for _ in range(2))
    assert uuid.UUID(first.user_id).version == uuid.UUID(first.token.reveal()).version == 4
    assert first.token.reveal() not in repr(first)
    assert opens(database, secrets, first.token.reveal())
    assert listed(database, secrets, settings) == whole(first, second)
    assert [user.name for user in users.list_users(database)] == [f"api-server-{first.user_id}", f"api-server-{second.user_id}"]


def test_tokens_are_masked_where_the_operator_says_so(database: Database, secrets: Secrets, settings: Settings) -> None:
    token = api_server.add_user(database, secrets, AT).token.reveal()
    (user,) = listed(database, secrets, dataclasses.replace(settings, agent_list_tokens=False))
    assert user.token == f"{token[:4]}...{token[-4:]}"


def test_with_another_master_key_tokens_are_masked_and_open_still(database: Database, secrets: Secrets, settings: Settings) -> None:
    token = api_server.add_user(database, secrets, AT).token.reveal()
    other = dataclasses.replace(secrets, vault=Vault({1: b"n" * 32}, 1))
    (user,) = listed(database, other, settings)
    assert user.token == f"{token[:4]}...{token[-4:]}"
    assert opens(database, other, token)


def test_a_deleted_user_s_token_opens_nothing_and_the_others_stay(database: Database, secrets: Secrets, settings: Settings) -> None:
    gone, kept = (api_server.add_user(database, secrets, AT) for _ in range(2))
    for user_id in (gone.user_id, gone.user_id, str(uuid.uuid4()), "", "\ud800", "x" * 1000):
        api_server.delete_user(database, user_id, AT)
    assert (opens(database, secrets, gone.token.reveal()), opens(database, secrets, kept.token.reveal())) == (False, True)
    assert listed(database, secrets, settings) == whole(kept)


def test_deleting_users_reaches_no_key_of_the_gateway_s_own(database: Database, secrets: Secrets) -> None:
    own = keys.create_key(database, secrets.hasher, users.create_user(database, "api-server-ann", AT).name, AT)
    api_server.delete_user(database, "ann", AT)
    assert keys.key_state(keys.find_key(database, str(own.key.id), AT), AT) == "active"


def test_a_family_s_token_is_not_rotated_into_a_key_of_the_gateway_s_own(database: Database, secrets: Secrets) -> None:
    api_server.add_user(database, secrets, AT)
    with pytest.raises(BadRequest, match="opens the api-server family only"):
        keys.rotate_key(database, secrets.hasher, "1", AT, overlap_ms=0)


@pytest.mark.parametrize(
    ("setting", "shown", "found"),
    [
        (None, "", False),
        (None, "None", False),
        ("the-key", "the-key", True),
        ("the-key", "the-ke", False),
        ("the-key", "", False),
        ("the-key", "\ud800\xe9", False),
    ],
)
def test_the_admin_key_is_the_setting_s(settings: Settings, setting: str | None, shown: str, found: bool) -> None:
    settings = dataclasses.replace(settings, admin_key=None if setting is None else Secret(setting))
    assert api_server.is_admin_key(settings, shown) is found


def old_database(settings: Settings, rows: Iterable[tuple[object, object]]) -> Path:
    path = settings.data_dir / "Data" / "auth.db"
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE IF NOT EXISTS tokens (user_id TEXT PRIMARY KEY, token TEXT UNIQUE)")
        made.executemany("INSERT INTO tokens VALUES (?, ?)", rows)
        made.commit()
    return path


def test_the_old_program_s_users_keep_their_tokens(database: Database, secrets: Secrets, settings: Settings) -> None:
    old = [(str(uuid.uuid4()), str(uuid.uuid4())) for _ in range(450)]
    path = old_database(settings, old)
    path.chmod(0o400)
    path.parent.chmod(0o500)
    notes = api_server.take_over(settings, database, secrets, AT)
    path.parent.chmod(0o700)
    assert notes == ("Data/auth.db: 450 users let in with the tokens that they have",)
    assert listed(database, secrets, settings) == [ListedUser(*each) for each in old]
    assert opens(database, secrets, old[0][1])


def test_taking_over_again_brings_nothing_back_and_takes_what_is_new(database: Database, secrets: Secrets, settings: Settings) -> None:
    old_database(settings, [("ann", "token-of-ann"), ("bob", "token-of-bob")])
    api_server.take_over(settings, database, secrets, AT)
    api_server.delete_user(database, "ann", AT)
    assert api_server.take_over(settings, database, secrets, AT) == ()
    assert not opens(database, secrets, "token-of-ann")
    old_database(settings, [("eve", "token-of-eve")])
    assert api_server.take_over(settings, database, secrets, AT) == ("Data/auth.db: 1 users let in with the tokens that they have",)
    assert [user.user_id for user in listed(database, secrets, settings)] == ["bob", "eve"]


def test_what_is_no_user_is_passed_over(database: Database, secrets: Secrets, settings: Settings) -> None:
    old_database(
        settings,
        [("a/b", "token-of-ab"), ("short", "abc"), ("blob", b"\xff" * 9), (None, "token-of-none"), ("spaced", "a token of it"), ("fine", "token-of-it")],
    )
    assert api_server.take_over(settings, database, secrets, AT) == ("Data/auth.db: 1 users let in with the tokens that they have",)
    assert listed(database, secrets, settings) == [ListedUser("fine", "token-of-it")]


@pytest.mark.parametrize("content", [b"", b"no database, but long enough to be taken for one" * 9])
def test_a_file_that_is_no_such_database_is_told_in_one_line(database: Database, secrets: Secrets, settings: Settings, content: bytes) -> None:
    path = old_database(settings, [])
    path.write_bytes(content)
    (note,) = api_server.take_over(settings, database, secrets, AT)
    assert note.startswith("Data/auth.db cannot be read (")
    assert "\n" not in note


def test_without_the_old_file_there_is_nothing_to_tell(database: Database, secrets: Secrets, settings: Settings) -> None:
    assert api_server.take_over(settings, database, secrets, AT) == ()
