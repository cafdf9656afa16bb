"""What keeps credentials from being called, and what operators do about it. Running workers follow within a second or two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gateway.errors import BadRequest
from gateway.operations.credentials import required_credential
from gateway.operations.imports import Probed, probe_credentials
from gateway.secrets import Vault
from gateway.settings import Settings
from gateway.state.conditions import ACTIVE, COOLING, QUARANTINED
from gateway.store import conditions
from gateway.store.conditions import StoredCondition, Transition
from gateway.store.database import Database
from gateway.store.pools import Credential

OPERATOR = "operator"
REASON_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Tested:
    """What an upstream said to a credential, and what was made of that: "cleared", "quarantined" or ""."""

    probed: Probed
    outcome: str = ""


def conditions_in_force(database: Database, at: int) -> Mapping[str, Sequence[StoredCondition]]:
    """By credential (its `place`) or deployment ("deployment:7"): what keeps it from being called at `at`."""
    found: dict[str, list[StoredCondition]] = {}
    for row in database.read(conditions.conditions):
        if row.state != COOLING or row.until_at is None or row.until_at > at:
            found.setdefault(row.subject.partition(".")[0], []).append(row)
    return found


def of_credential(in_force: Mapping[str, Sequence[StoredCondition]], item: Credential) -> list[StoredCondition]:
    """Those of the secret that it has now."""
    rows = in_force.get(item.place, ())
    return [row for row in rows if row.subject == item.subject or row.subject.startswith(f"{item.subject}:")]


def model_of(row: StoredCondition) -> str | None:
    """For which model alone it is; None: for every one."""
    parts = row.subject.split(":", 2)
    return parts[2] if len(parts) == 3 else None


def events(database: Database, label: str, limit: int) -> list[Transition]:
    """A credential's transitions, the newest first. Raises NotFound."""

    def read() -> list[Transition]:
        required_credential(label)
        return conditions.transitions_of(label, (), limit)

    return database.read(read)


def clear(database: Database, label: str, at: int) -> int:
    """End everything that keeps a credential from being called; how many conditions that were. Raises NotFound."""

    def work() -> int:
        item = required_credential(label)
        rows = conditions.conditions_of(item)
        # Also for what is in force nowhere but in the workers' memory: they take over that it is not.
        subjects = {item.subject: ACTIVE} | {row.subject: row.state for row in rows}
        conditions.record([_by_operator(item, subject, before, ACTIVE, "cleared", at) for subject, before in subjects.items()])
        return len(rows)

    return database.write(work)


def quarantine(database: Database, label: str, reason: str, at: int) -> Credential:
    """Take a credential out of use until it is cleared, or gets another secret. Raises BadRequest, NotFound."""
    if len(reason) > REASON_CHARACTERS or not reason.isprintable():
        raise BadRequest(f"the reason must be printable, and of at most {REASON_CHARACTERS} characters")

    def work() -> Credential:
        item = required_credential(label)
        before = next((row.state for row in conditions.conditions({item.subject})), ACTIVE)
        conditions.record([replace(_by_operator(item, item.subject, before, QUARANTINED, "by_operator", at), evidence={"note": reason} if reason else {})])
        return item

    return database.write(work)


def test(database: Database, vault: Vault, settings: Settings, label: str) -> Probed:
    """Show it to its upstream, at no cost. Changes nothing. Raises NotFound, StoreUnavailable."""
    database.read(lambda: required_credential(label))
    (probed,) = probe_credentials(database, vault, settings, [label])
    return probed


def probe(database: Database, vault: Vault, settings: Settings, label: str, at: int) -> Tested:
    """The same, and act on it: what the upstream takes is cleared, what it calls invalid is quarantined. Raises as `test`."""
    probed = test(database, vault, settings, label)
    if not probed.problem:
        clear(database, label, at)
        return Tested(probed, "cleared")
    if probed.invalid:
        quarantine(database, label, probed.problem, at)
        return Tested(probed, "quarantined")
    return Tested(probed)


def _by_operator(item: Credential, subject: str, before: str, after: str, reason: str, at: int) -> Transition:
    parts = subject.split(":", 2)
    return Transition(at, subject, item.label, None, parts[2] if len(parts) == 3 else None, before, after, None, reason, OPERATOR)
