"""Lines of holds without indexes that nothing asks: four lines a call are the most that is written, and the key leads from a hold to its lines."""

from __future__ import annotations

from typing import Any

from peewee import Database


def up(migrator: Any, db: Database) -> None:
    migrator.migrate(migrator.drop_index("hold_line", "hold_line_hold_id"), migrator.drop_index("hold_line", "hold_line_window_id"))
