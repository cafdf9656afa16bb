from __future__ import annotations

from gateway.store import conversations, pools
from gateway.store.database import Database


def test_a_conversation_is_bound_once(database: Database) -> None:
    pool = database.write(lambda: pools.create_pool("p"))
    assert database.read(lambda: conversations.bound("k")) is None
    assert database.write(lambda: conversations.bind("k", pool.id, 3, 100)) == 3
    assert database.write(lambda: conversations.bind("k", pool.id, 4, 200)) == 3
    assert database.read(lambda: conversations.bound("k")) == 3


def test_old_bindings_are_forgotten(database: Database) -> None:
    pool = database.write(lambda: pools.create_pool("p"))
    for number in range(3):
        database.write(lambda number=number: conversations.bind(f"k{number}", pool.id, 1, 100 * number))  # type: ignore[misc]
    assert database.write(lambda: conversations.forget_conversations(200, 10)) == 2
    assert database.read(lambda: conversations.bound("k2")) == 1


def test_a_conversation_that_goes_on_elsewhere_is_bound_anew(database: Database) -> None:
    pool = database.write(lambda: pools.create_pool("rebound"))
    for number in (3, 4):
        database.write(lambda number=number: conversations.rebind("again", pool.id, number, 100 * number))  # type: ignore[misc]
    assert database.read(lambda: conversations.bound("again")) == 4
    assert database.write(lambda: conversations.forget_conversations(350, 10)) == 0
