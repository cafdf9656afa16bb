"""Users: who holds keys and to whom usage is booked."""

from __future__ import annotations

from gateway.errors import NotFound
from gateway.operations.names import check_name
from gateway.store import accounts
from gateway.store.accounts import User
from gateway.store.database import Conflict, Database


def create_user(database: Database, name: str, at: int) -> User:
    """Raises BadRequest for a name that cannot be one, Conflict for one that is taken."""
    check_name("user", name)

    def create() -> User:
        if accounts.find_user(name) is not None:
            raise Conflict(f"there is a user {name} already")
        return accounts.create_user(name, at)

    return database.write(create)


def list_users(database: Database) -> list[User]:
    return database.read(accounts.list_users)


def disable_user(database: Database, name: str, at: int) -> User:
    """From now on every key of this user is refused. Raises NotFound."""
    return database.write(lambda: accounts.set_user_disabled(required_user(name).id, at))


def enable_user(database: Database, name: str) -> User:
    """Raises NotFound."""
    return database.write(lambda: accounts.set_user_disabled(required_user(name).id, None))


def required_user(name: str) -> User:
    """For use inside a database work. Raises NotFound."""
    user = accounts.find_user(name)
    if user is None:
        raise NotFound(f"there is no user {name!r}; `gateway user list` shows them")
    return user
