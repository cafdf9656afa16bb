"""What keeps credentials and deployments from being called, and every change of it with its evidence. To be called inside a work of `Database`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peewee import fn

from gateway.store.models_pools import ConditionRow, TransitionRow
from gateway.store.pools import Credential

ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class StoredCondition:
    """As the row's docstring says; times are Unix milliseconds."""

    subject: str
    state: str
    until_at: int | None
    reason: str
    rest_s: float
    named: bool
    at: int


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of a subject's condition: from `before` to `after` ("active" has no row), until `until_at` (None: no end).

    `evidence`: what caused it, as far as there is something: "status", "header", "excerpt", "error". `exchange`: the call that found it.
    `host`: the owner id of the worker that made it, or "operator". `id`: 0 until it is stored.
    """

    at: int
    subject: str
    credential: str | None
    deployment: str | None
    model: str | None
    before: str
    after: str
    until_at: int | None
    reason: str
    host: str
    rest_s: float = 0.0
    named: bool = False
    evidence: Mapping[str, Any] = field(default_factory=dict)
    exchange: str | None = None
    id: int = 0


def record(transitions: Sequence[Transition]) -> None:
    """Keep each, and what is in force after it. What is older than what a subject has is history only."""
    for each in transitions:
        TransitionRow.create(**{name: getattr(each, name) for name in _COLUMNS})
        kept = ConditionRow.get_or_none(ConditionRow.subject == each.subject)
        if kept is not None and kept.at > each.at:
            continue
        ConditionRow.delete().where(ConditionRow.subject == each.subject).execute()
        if each.after != ACTIVE:
            ConditionRow.create(
                subject=each.subject,
                state=each.after,
                until_at=each.until_at,
                reason=each.reason,
                rest_s=each.rest_s,
                named=each.named,
                at=each.at,
            )


def conditions(subjects: Collection[str] | None = None) -> list[StoredCondition]:
    """Of these subjects, or of all."""
    query = ConditionRow.select().order_by(ConditionRow.subject)
    rows = query if subjects is None else query.where(ConditionRow.subject.in_(list(subjects)))
    return [StoredCondition(row.subject, row.state, row.until_at, row.reason, row.rest_s, row.named, row.at) for row in rows]


def conditions_of(credential: Credential) -> list[StoredCondition]:
    """Of every version of its secret, and every model."""
    return [row for row in conditions() if row.subject.startswith(f"{credential.place}.")]


def last_transition(before: int) -> int:
    """The newest id from before that moment; 0 where there is none."""
    return int(TransitionRow.select(fn.MAX(TransitionRow.id)).where(TransitionRow.at < before).scalar() or 0)


def transitions_after(last: int, limit: int = 1000) -> list[Transition]:
    """In the order in which they were stored."""
    return [_transition(row) for row in TransitionRow.select().where(TransitionRow.id > last).order_by(TransitionRow.id).limit(limit)]


def transitions_of(credential: str | None, deployments: Collection[str], limit: int) -> list[Transition]:
    """The newest of a credential, or of these deployments, newest first."""
    where = TransitionRow.credential == credential if credential is not None else TransitionRow.deployment.in_(list(deployments))
    return [_transition(row) for row in TransitionRow.select().where(where).order_by(TransitionRow.id.desc()).limit(limit)]


def forget_transitions(before: int, limit: int) -> int:
    """Of those that are older, at most so many; how many. What is in force is kept."""
    old = TransitionRow.select(TransitionRow.id).where(TransitionRow.at < before).limit(limit)
    return int(TransitionRow.delete().where(TransitionRow.id.in_([row.id for row in old])).execute())


_COLUMNS = ("at", "subject", "credential", "deployment", "model", "before", "after", "until_at", "reason", "evidence", "exchange", "host")


def _transition(row: TransitionRow) -> Transition:
    return Transition(**{name: getattr(row, name) for name in _COLUMNS}, id=row.id)
