"""Conditions as `gateway credential list` and `gateway pool show` print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.cli.printing import moment
from gateway.operations.conditions import model_of
from gateway.store.conditions import StoredCondition


def state_words(rows: Sequence[StoredCondition], otherwise: str) -> str:
    """The conditions of a credential in few words."""
    words = [f"{row.state}{' for ' + model if (model := model_of(row)) else ''} ({row.reason}{_until_words(row)})" for row in rows]
    return "; ".join(words) or otherwise


def condition_document(row: StoredCondition) -> dict[str, Any]:
    return {"state": row.state, "model": model_of(row), "reason": row.reason, "since": row.at, "until": row.until_at, "named_by_upstream": row.named}


def _until_words(row: StoredCondition) -> str:
    return "" if row.until_at is None else f", until {moment(row.until_at)}"
