"""A fresh database for each test, once on SQLite and once on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.store.database import Database
from tests.factories import put_database
from tests.fakes.postgres import Postgres


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/data/gateway.db"


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    return postgres.emptied("store")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    return str(request.getfixturevalue(f"{request.param}_url"))


Opener = Callable[..., Database]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """`opened(url, **options)`: a Database, bound and migrated, that is closed after the test."""
    databases: list[Database] = []

    def open_database(url: str, *, migrate: bool = True, **options: float) -> Database:
        path = Path(url.removeprefix("sqlite://"))
        if migrate and url.startswith("sqlite://") and not path.exists():
            put_database(path)
        database = Database(url, **options)  # type: ignore[arg-type]
        databases.append(database)
        database.bind()
        if migrate:
            database.migrate()
        return database

    yield open_database
    for database in databases:
        database.close()


@pytest.fixture
def database(url: str, opened: Opener) -> Database:
    return opened(url)


@pytest.fixture
def sqlite_database(sqlite_url: str, opened: Opener) -> Database:
    return opened(sqlite_url)


@pytest.fixture
def postgres_database(postgres_url: str, opened: Opener) -> Database:
    return opened(postgres_url)
