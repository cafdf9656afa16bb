from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import BadRequest, NotFound
from gateway.operations import limits, users
from gateway.operations.budgets import Subject
from gateway.state.base import Limit
from gateway.state.sqlite import SqliteLimits
from tests.factories import migrated

ANN = Subject("user", "ann")


def test_a_change_leaves_alone_what_is_not_named(tmp_path: Path) -> None:
    with migrated(tmp_path) as database:
        users.create_user(database, "ann", 1)
        limits.set_limits(database, ANN, 1, rpm=5, tpm=6)
        assert limits.set_limits(database, ANN, 1, rpm=None, concurrency=7).limit == Limit("user:1", None, 6, 7)
        for nonsense in ({}, {"rpm": 0}, {"tpm": -1}):
            with pytest.raises(BadRequest):
                limits.set_limits(database, ANN, 1, **nonsense)
        limits.clear_limits(database, ANN, 1)
        with pytest.raises(NotFound):
            limits.clear_limits(database, ANN, 1)


def test_the_list_says_what_is_left_of_each(tmp_path: Path) -> None:
    state = SqliteLimits(tmp_path / "run", "me", lambda owner: True)
    with migrated(tmp_path) as database:
        users.create_user(database, "ann", 1)
        limits.set_limits(database, ANN, 1, rpm=5)
        limits.set_limits(database, Subject("global"), 1, concurrency=9)
        state.take("call", [Limit("user:1", 5), Limit("global:0", concurrency=9)], 0)
        found = limits.list_limits(database, state.standings)
    assert [(each.whose, each.standings[0].remaining) for each in found] == [("ann", 4), ("everybody", 8)]
