"""What a database server says of itself: for the doctor. To be called inside a work of `Database`."""

from __future__ import annotations

from dataclasses import dataclass

import peewee

from gateway.store.models import database
from gateway.store.models_money import EntryRow


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """`version` as PostgreSQL numbers it (150004), `at` its time in Unix milliseconds, `connections_left` for users who are no superusers."""

    version: int
    at: int
    connections_left: int
    durable: bool
    may_write: bool
    may_migrate: bool


def facts() -> ServerFacts | None:
    """None where the database is a file."""
    if not isinstance(database.obj, peewee.PostgresqlDatabase):
        return None
    table = EntryRow._meta.table_name
    row = database.execute_sql(
        "SELECT current_setting('server_version_num')::int, (extract(epoch FROM clock_timestamp()) * 1000)::bigint,"
        " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        " - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int,"
        " current_setting('synchronous_commit') <> 'off' AND current_setting('fsync') = 'on',"
        " has_table_privilege(%s, 'INSERT') AND NOT pg_is_in_recovery(),"
        " has_schema_privilege(current_schema(), 'CREATE')",
        (table,),
    ).fetchone()
    return ServerFacts(*row)
