"""A migrated database of its own for each test, and the secrets that go with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.secrets import KeyHasher, Secrets, Vault
from gateway.settings import Settings
from gateway.store.database import Database
from tests.factories import put_database


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    put_database(settings.data_dir / "gateway.db")
    database = Database(settings.database)
    database.bind()
    yield database
    database.close()


@pytest.fixture
def secrets() -> Secrets:
    return Secrets(KeyHasher(b"p" * 32), Vault({1: b"m" * 32}, 1), ())


@pytest.fixture
def refusing(settings: Settings) -> Settings:
    """The settings of a gateway that does not serve models without a price."""
    return dataclasses.replace(settings, unpriced="refuse")
