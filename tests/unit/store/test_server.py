from __future__ import annotations

from pathlib import Path

from gateway.store import server
from gateway.store.database import Database
from tests.factories import now_ms


def test_server_tells_its_version_time_and_what_this_user_may(postgres_database: Database) -> None:
    before = now_ms()
    facts = postgres_database.read(server.facts)
    assert facts is not None
    assert facts.version >= 120_000
    assert before - 1000 <= facts.at <= now_ms() + 1000
    assert facts.connections_left > 10
    assert (facts.durable, facts.may_write, facts.may_migrate) in ((True, True, True), (False, True, True))


def test_file_has_nothing_to_tell(sqlite_database: Database, tmp_path: Path) -> None:
    assert sqlite_database.read(server.facts) is None


def test_commits_are_told_with_their_size_and_time(postgres_url: str, sqlite_url: str) -> None:
    for url in (postgres_url, sqlite_url):
        told: list[tuple[int, float]] = []
        database = Database(url, committed=lambda works, seconds, told=told: told.append((works, seconds)))  # type: ignore[misc]
        database.bind()
        database.migrate()
        database.write(lambda: None)
        database.close()
        assert [(works, 0 < seconds < 5) for works, seconds in told] == [(1, True)]
        assert database.waiting == 0
