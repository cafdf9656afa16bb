"""Statements for many rows at once, for both databases: `?` stands for a parameter. `database` is the bound one, within a work.

Names of tables and columns come from our code, never from a request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def insert_sql(table: str, columns: Sequence[str], on_conflict: str) -> str:
    """An INSERT for `executemany`."""
    names = ", ".join(f'"{name}"' for name in columns)
    return f'INSERT INTO "{table}" ({names}) VALUES ({", ".join("?" * len(columns))}) ON CONFLICT {on_conflict}'  # noqa: S608


def executemany(database: Any, sql: str, rows: Sequence[Sequence[Any]]) -> None:
    """Run one statement for many rows."""
    if rows:
        database.connection().cursor().executemany(sql.replace("?", database.param), rows)


def locked(database: Any, select: str, parameters: Sequence[Any]) -> list[Any]:
    """The rows of a SELECT, locked in the order of their ids until the transaction ends. A write transaction of SQLite has locked everything."""
    lock = "" if database.param == "?" else " FOR UPDATE"
    rows: list[Any] = database.execute_sql(f"{select} ORDER BY id{lock}".replace("?", database.param), parameters).fetchall()
    return rows


_ROWS = (64, 16, 4, 1)
"""How many rows share a statement of SQLite's: a handful of shapes, which the driver keeps prepared."""


def insert_rows(database: Any, table: str, columns: Mapping[str, str], rows: Sequence[Sequence[Any]], after: str = "", **expressions: str) -> None:
    """INSERT many rows at once. `columns`: each one's type; an expression, named as its column, has `{}` where its value belongs; `after`: what follows."""
    names = ", ".join(f'"{name}"' for name in columns)
    shape = [expressions.get(name, "{}") for name in columns]
    if database.param != "?":
        if rows:
            values = ", ".join(expression.format(f'"{name}"') for name, expression in zip(columns, shape, strict=True))
            arrays = ", ".join(f"%s::{kind}[]" for kind in columns.values())
            sql = f'INSERT INTO "{table}" ({names}) SELECT {values} FROM unnest({arrays}) AS given ({names}){after}'  # noqa: S608
            database.connection().cursor().execute(sql, [list(column) for column in zip(*rows, strict=True)])
        return
    row, done = ", ".join(expression.format("?") for expression in shape), 0
    while done < len(rows):
        size = next(size for size in _ROWS if size <= len(rows) - done)
        sql = f'INSERT INTO "{table}" ({names}) VALUES {", ".join([f"({row})"] * size)}{after}'  # noqa: S608
        database.connection().cursor().execute(sql, [value for each in rows[done : done + size] for value in each])
        done += size


@contextlib.contextmanager
def pipelined(database: Any) -> Iterator[None]:
    """What is executed inside is sent without waiting for each answer, where the driver can. An error may come at the end only."""
    if database.param == "?":
        yield
    else:
        with database.connection().pipeline():
            yield
