"""Idempotency-Keys that clients sent: whose call answers a key, and what was answered.

To be called inside a work of `Database`. A key's row is locked before holds and windows are, and rows in the order of their keys, so that
no two transactions wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.store import holds
from gateway.store.accounts import first_key_id
from gateway.store.holds import Refused, Wanted, marks, now_sql
from gateway.store.models import database
from gateway.store.statements import executemany

RUNNING, DONE, FREE = "running", "done", "free"
KEEP_MS = 86_400_000
Place = tuple[int, str]
"""Where a key stands: the first API key of the rotations, and the client's own word."""
_MINE = 'api_key = ? AND "key" = ? AND exchange = ?'


@dataclass(frozen=True, slots=True)
class Claim:
    """The exchange that wants to answer a key. `replaces`: the exchange of an owner that is gone, whose place it takes.

    After `lease_s` seconds, hosts that cannot see its owner take it for gone.
    """

    place: Place
    fingerprint: str
    exchange: str
    owner: str
    lease_s: int
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """A call that begins: its claim, and what is to be held for it where there are budgets."""

    claim: Claim
    wanted: Wanted | None


@dataclass(frozen=True, slots=True)
class Taken:
    """Another call has the key."""


@dataclass(frozen=True, slots=True)
class Known:
    """A key's row. `late`: it is running, and past its lease in the database's time. `headers` is JSON text, `body` sealed; None: not kept."""

    exchange: str
    owner: str
    fingerprint: str
    state: str
    late: bool
    status: int | None
    headers: str | None
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Completion:
    """How a claim ends: DONE, and the key stays taken for a day, or FREE, and another call may have it. `body` is sealed.

    `overran`: its call went on after its claim's lease, as one whose client reads very slowly; its worker was wrongly believed gone.
    """

    place: Place
    exchange: str
    state: str
    status: int | None = None
    headers: str | None = None
    body: bytes | None = None
    overran: bool = False


def find(key_id: int, key: str) -> tuple[Place, Known | None]:
    """Where a word of this API key stands, and what is known of it."""
    place = (first_key_id(key_id), key)
    columns = f"exchange, owner, fingerprint, state, state = '{RUNNING}' AND at < {now_sql()}, status, headers, body"
    sql = f'SELECT {columns} FROM idempotency WHERE api_key = ? AND "key" = ?'  # noqa: S608
    row = database.execute_sql(sql.replace("?", database.param), place).fetchone()
    if row is None:
        return place, None
    exchange, owner, fingerprint, state, late, status, headers, body = row
    return place, Known(exchange, owner, fingerprint, state, bool(late), status, headers, None if body is None else bytes(body))


def begin(items: Sequence[Opening]) -> list[Refused | Taken | None]:
    """Claim the keys, and hold for each call what still has room: both or neither; None where both are done. Made for `Batched`, to run first."""
    claims = sorted([item.claim for item in items], key=lambda claim: claim.place)
    _take_over([claim for claim in claims if claim.replaces is not None])
    _insert([(*claim.place, claim.fingerprint, claim.exchange, claim.owner, RUNNING, claim.lease_s * 1000) for claim in claims])
    holders = _holders([claim.place for claim in claims])
    mine = [item for item in items if holders.get(item.claim.place) == item.claim.exchange]
    outcomes: dict[str, Refused | Taken | None] = {item.claim.exchange: None for item in mine}
    wanted = [item.wanted for item in mine if item.wanted is not None]
    outcomes.update(zip([each.id for each in wanted], holds.reserve(wanted), strict=True))
    _delete([item.claim for item in mine if outcomes[item.claim.exchange] is not None])
    return [outcomes.get(item.claim.exchange, Taken()) for item in items]


def complete(items: Sequence[Completion]) -> set[str]:
    """End these claims. The exchanges that are returned have lost their key to another meanwhile, which is the one to be charged.

    Who lost it by going on too long has given an answer nevertheless, and is not among them: a client could else get it for nothing.
    """
    ordered = sorted(items, key=lambda item: item.place)
    update = f"UPDATE idempotency SET state = '{DONE}', status = ?, headers = ?, body = ?, at = {now_sql()} WHERE {_MINE} AND state = '{RUNNING}'"  # noqa: S608
    executemany(database, update, [(item.status, item.headers, item.body, *item.place, item.exchange) for item in ordered if item.state == DONE])
    freed = [item for item in ordered if item.state == FREE]
    # A claim that may or may not have been committed: from here on it is there, or never will be.
    _insert([(*item.place, "", item.exchange, "", RUNNING, 0) for item in freed])
    _delete(freed)
    holders = _holders([item.place for item in ordered])
    return {item.exchange for item in items if not item.overran and holders.get(item.place, item.exchange) != item.exchange}


def forget(limit: int) -> int:
    """Delete what is older than a day; how many."""
    old = f"SELECT id FROM idempotency WHERE at < {now_sql()} - {KEEP_MS} ORDER BY at LIMIT {limit:d}"  # noqa: S608
    return int(database.execute_sql(f"DELETE FROM idempotency WHERE id IN ({old})").rowcount)  # noqa: S608


def _take_over(claims: Sequence[Claim]) -> None:
    """The guard: of all that want the place of one exchange, the first gets it, and none once that exchange has ended."""
    sql = f"UPDATE idempotency SET exchange = ?, owner = ?, at = {now_sql()} + ? WHERE {_MINE} AND state = '{RUNNING}'"  # noqa: S608
    executemany(database, sql, [(claim.exchange, claim.owner, claim.lease_s * 1000, *claim.place, claim.replaces) for claim in claims])


def _insert(rows: Sequence[tuple[int, str, str, str, str, str, int]]) -> None:
    """The last of a row: how many milliseconds from now its lease ends."""
    columns = 'api_key, "key", fingerprint, exchange, owner, state, at'
    sql = f'INSERT INTO idempotency ({columns}) VALUES (?, ?, ?, ?, ?, ?, {now_sql()} + ?) ON CONFLICT (api_key, "key") DO NOTHING'  # noqa: S608
    executemany(database, sql, rows)


def _delete(ended: Iterable[Claim | Completion]) -> None:
    executemany(database, f"DELETE FROM idempotency WHERE {_MINE}", [(*each.place, each.exchange) for each in ended])  # noqa: S608


def _holders(places: Sequence[Place]) -> dict[Place, str]:
    """Whose each key is."""
    if not places:
        return {}
    keys, words = sorted({place[0] for place in places}), sorted({place[1] for place in places})
    sql = f'SELECT api_key, "key", exchange FROM idempotency WHERE api_key IN ({marks(keys)}) AND "key" IN ({marks(words)})'  # noqa: S608
    rows = database.execute_sql(sql.replace("?", database.param), [*keys, *words]).fetchall()
    return {(api_key, word): exchange for api_key, word, exchange in rows}
