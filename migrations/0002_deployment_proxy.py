"""A deployment's proxy: its URL as it is shown, and sealed with its password."""

from __future__ import annotations

from typing import Any

from peewee import BlobField, Database, TextField


def up(migrator: Any, db: Database) -> None:
    migrator.migrate(
        migrator.add_column("deployment", "proxy", TextField(null=True)),
        migrator.add_column("deployment", "proxy_sealed", BlobField(null=True)),
    )
