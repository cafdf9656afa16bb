"""Users: who holds keys and to whom usage is booked."""

from __future__ import annotations

from gateway.errors import NotFound
from gateway.operations.names import check_name
from gateway.operations.teams import required_team
from gateway.store import accounts
from gateway.store.accounts import User
from gateway.store.database import Conflict, Database


def create_user(database: Database, name: str, at: int, *, team: str = "") -> User:
    """In this team, or in none (""). Raises BadRequest for a name that cannot be one, Conflict for one that is taken, NotFound for the team."""
    check_name("user", name)

    def create() -> User:
        if accounts.find_user(name) is not None:
            raise Conflict(f"there is a user {name} already")
        member_of = required_team(team).id if team else None
        created = accounts.create_user(name, at)
        return created if member_of is None else accounts.set_user_team(created.id, member_of)

    return database.write(create)


def list_users(database: Database) -> list[User]:
    return database.read(accounts.list_users)


def set_user_team(database: Database, name: str, team: str) -> User:
    """From now on the user's calls are held against this team's budgets, with its markup; "" for no team. Raises NotFound."""
    return database.write(lambda: accounts.set_user_team(required_user(name).id, required_team(team).id if team else None))


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
