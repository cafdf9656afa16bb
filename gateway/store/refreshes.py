"""Refreshes under way: at most one for each credential, over all workers and hosts, written before the issuer is asked.

To be called inside a work of `Database`. What an issuer gave comes and goes sealed. A refresh's row is locked before its credential's, so that
no two transactions wait for each other; times are the database's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.store import pools
from gateway.store.holds import now_sql
from gateway.store.models import database
from gateway.store.models_pools import ASKED, FAILED, GOT, REFUSED
from gateway.store.pools import Credential

_MINE = f"credential = ? AND version = ? AND owner = ? AND state = '{ASKED}'"


@dataclass(frozen=True, slots=True)
class Refresh:
    """A row as it was read. `late`: past its deadline; `age_ms`: since it was first asked for."""

    credential: int
    owner: str
    version: int
    state: str
    deadline: int
    late: bool
    age_ms: int


@dataclass(frozen=True, slots=True)
class Replacement:
    """What a credential becomes. `sealed` is the secret, at the credential's own place; `extras` all of them, sealed."""

    sealed: bytes = field(repr=False)
    hint: str
    fingerprint: str = field(repr=False)
    extras: bytes | None = field(repr=False)
    expires_at: int | None
    at: int


def refresh_place(credential_id: int) -> str:
    """The place that what an issuer gave is bound to until it is in force."""
    return f"refresh:{credential_id}:sealed"


def under_way() -> list[Refresh]:
    """All that are not in force yet."""
    columns = f"credential, owner, version, state, deadline, deadline < {now_sql()}, {now_sql()} - at"
    rows = database.execute_sql(f"SELECT {columns} FROM refresh ORDER BY credential").fetchall()  # noqa: S608
    return [Refresh(credential, owner, version, state, end, bool(late), age) for credential, owner, version, state, end, late, age in rows]


def begin(credential_id: int, version: int, owner: str, lease_ms: int, seen: Refresh | None) -> Credential | None:
    """Write that the owner is about to ask for another secret in place of this version: the credential as it is then.

    `seen`: the row that it takes over, None where there was none. None: another was first, or the secret is another one already.
    """
    begun = _inserted(credential_id, version, owner, lease_ms) if seen is None else _taken(seen, version, owner, lease_ms)
    if not begun:
        return None
    credential = pools.locked_credential(credential_id)  # who replaced it before has deleted the row, and is seen here
    if credential is None or credential.version != version:
        _execute(f"DELETE FROM refresh WHERE {_MINE}", credential_id, version, owner)  # noqa: S608
        return None
    return credential


def got(credential_id: int, version: int, owner: str, sealed: bytes) -> bool:
    """Keep what the issuer gave. Whoever has got something takes the row from those that still ask, or asked in vain.

    False: something is kept already, or is in force.
    """
    sql = f"UPDATE refresh SET state = '{GOT}', owner = ?, sealed = ? WHERE credential = ? AND version = ? AND state <> '{GOT}'"  # noqa: S608
    return _execute(sql, owner, sealed, credential_id, version) > 0


def done(credential_id: int, replacement: Callable[[Credential, bytes], Replacement]) -> Credential | None:
    """Put in force what was got, whoever got it, and delete the row; None where nothing is kept.

    `replacement` is told the credential as it is, and what is kept. A secret that an operator replaced meanwhile stays; of the extras
    `replacement` decides.
    """
    lock = "" if database.param == "?" else " FOR UPDATE"
    sql = f"SELECT version, sealed FROM refresh WHERE credential = ? AND state = '{GOT}'{lock}"  # noqa: S608
    row = database.execute_sql(sql.replace("?", database.param), (credential_id,)).fetchone()
    credential = pools.locked_credential(credential_id) if row is not None else None
    if credential is None:
        return None
    new = replacement(credential, bytes(row[1]))
    if credential.version == row[0]:
        credential = pools.replace_secret(
            credential_id,
            new.hint,
            lambda _: new.sealed,
            row[0],
            extras=new.extras,
            expires_at=new.expires_at,
            replaced_at=new.at,
            fingerprint=new.fingerprint,
        )
    elif credential.extras != new.extras:
        credential = pools.set_credential(credential_id, extras=new.extras)
    _execute("DELETE FROM refresh WHERE credential = ?", credential_id)
    return credential


def failed(credential_id: int, version: int, owner: str, wait_ms: int) -> bool:
    """The issuer gave nothing; anybody may ask again after `wait_ms`. False: the owner has lost the row."""
    sql = f"UPDATE refresh SET state = '{FAILED}', deadline = {now_sql()} + ? WHERE {_MINE}"  # noqa: S608
    return _execute(sql, wait_ms, credential_id, version, owner) > 0


def refused(credential_id: int, version: int, owner: str) -> bool:
    """The issuer will not take what the credential has. False: the owner has lost the row."""
    return _execute(f"UPDATE refresh SET state = '{REFUSED}' WHERE {_MINE}", credential_id, version, owner) > 0  # noqa: S608


def _inserted(credential_id: int, version: int, owner: str, lease_ms: int) -> bool:
    columns = "credential, owner, version, state, deadline, at"
    values = f"?, ?, ?, '{ASKED}', {now_sql()} + ?, {now_sql()}"
    sql = f"INSERT INTO refresh ({columns}) VALUES ({values}) ON CONFLICT (credential) DO NOTHING"  # noqa: S608
    return _execute(sql, credential_id, owner, version, lease_ms) > 0


def _taken(seen: Refresh, version: int, owner: str, lease_ms: int) -> bool:
    """The guard: of all that saw this row, the first gets it. Of a new version it is the first time."""
    at = f"CASE WHEN version = ? THEN at ELSE {now_sql()} END"
    sql = (
        f"UPDATE refresh SET at = {at}, version = ?, owner = ?, state = '{ASKED}', deadline = {now_sql()} + ?"  # noqa: S608
        " WHERE credential = ? AND owner = ? AND version = ? AND state = ? AND deadline = ?"
    )
    guard = (seen.credential, seen.owner, seen.version, seen.state, seen.deadline)
    return _execute(sql, version, version, owner, lease_ms, *guard) > 0


def _execute(sql: str, *values: Any) -> int:
    """How many rows it changed."""
    return int(database.execute_sql(sql.replace("?", database.param), values).rowcount)
