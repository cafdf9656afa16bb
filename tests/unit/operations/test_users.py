from __future__ import annotations

import pytest

from gateway.errors import BadRequest, NotFound
from gateway.operations import users
from gateway.store.database import Conflict, Database
from tests.unit.operations.times import AT


def test_a_user_is_created_listed_disabled_and_enabled(database: Database) -> None:
    created = users.create_user(database, "ann", AT)
    assert (created.name, created.created_at, created.disabled_at) == ("ann", AT, None)
    assert users.disable_user(database, "ann", AT + 1).disabled_at == AT + 1
    assert users.enable_user(database, "ann") == created
    assert users.list_users(database) == [created]


def test_a_name_is_given_once(database: Database) -> None:
    users.create_user(database, "ann", AT)
    with pytest.raises(Conflict, match="there is a user ann already"):
        users.create_user(database, "ann", AT)


def test_a_name_that_cannot_be_one_is_refused(database: Database) -> None:
    with pytest.raises(BadRequest):
        users.create_user(database, "ann smith", AT)


def test_who_does_not_exist_cannot_be_disabled(database: Database) -> None:
    with pytest.raises(NotFound, match="'bob'"):
        users.disable_user(database, "bob", AT)
