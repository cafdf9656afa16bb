"""Holds: what calls under way may still spend of budgets' windows. Made here; settled by ledger.record, in the entry's own transaction.

Every function is to be called inside a work of `Database.write`. Rows are locked in the order of their ids, holds before windows, so that no two
transactions wait for each other; what is decided is decided in Python, on locked rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gateway.store.models import database, storable
from gateway.store.models_money import HoldRow
from gateway.store.statements import executemany, insert_rows, locked, pipelined

HELD, SETTLED, RELEASED, EXPIRED = "held", "settled", "released", "expired"
_HOLD = MappingProxyType(
    {
        "id": "text",
        "state": "text",
        "owner": "text",
        "deadline": "bigint",
        "api_key": "bigint",
        "user": "bigint",
        "team": "bigint",
        "model": "text",
        "at": "bigint",
    }
)
_LINE = MappingProxyType({"hold_id": "text", "window_id": "bigint", "amount": "bigint"})
_NOW_MS = MappingProxyType(
    {
        "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
        "postgres": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
    }
)


def now_sql() -> str:
    """The database's own time in milliseconds, as an expression."""
    return _NOW_MS["sqlite" if database.param == "?" else "postgres"]


@dataclass(frozen=True, slots=True)
class Period:
    """The window of a budget that a call falls into: it is made where it is not there yet. `soft`: refuses nothing."""

    budget_id: int
    starts_at: int
    ends_at: int | None
    soft: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A hold of `amount` nano-USD in each of `periods`, for at most `lease_s` seconds. `id` is the exchange's."""

    id: str
    owner: str
    lease_s: int
    api_key: int
    user: int
    team: int | None
    model: str
    at: int
    amount: int
    periods: tuple[Period, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The first window that has no room. Amounts are nano-USD."""

    budget_id: int
    limit_nano: int
    spent: int
    held: int
    ends_at: int | None


@dataclass(slots=True)
class _Window:
    id: int
    limit_nano: int
    spent: int
    held: int


@dataclass(frozen=True, slots=True)
class OpenHold:
    """A hold that was never closed."""

    id: str
    owner: str
    api_key: int
    user: int
    team: int | None
    model: str
    at: int


def reserve(items: Sequence[Wanted]) -> list[Refused | None]:
    """Hold for each in turn what still has room; None where it is held. Made for `Batched`. Raises IntegrityError for an id that is known."""
    windows = _windows({(period.budget_id, period.starts_at): period for item in items for period in item.periods})
    outcomes = [_decided(item, windows) for item in items]
    granted = [item for item, refused in zip(items, outcomes, strict=True) if refused is None]
    lines = [(item.id, windows[period.budget_id, period.starts_at].id, item.amount) for item in granted for period in item.periods]
    with pipelined(database):
        _insert(granted)
        insert_rows(database, "hold_line", _LINE, lines)
        executemany(database, "UPDATE budget_window SET held = ? WHERE id = ?", [(window.held, window.id) for window in windows.values()])
    return outcomes


def _decided(item: Wanted, windows: Mapping[tuple[int, int], _Window]) -> Refused | None:
    places = [(period, windows[period.budget_id, period.starts_at]) for period in item.periods]
    for period, window in places:
        if not period.soft and window.spent + window.held + item.amount > window.limit_nano:
            return Refused(period.budget_id, window.limit_nano, window.spent, window.held, period.ends_at)
    for _, window in places:
        window.held += item.amount
    return None


def _insert(items: Sequence[Wanted], state: str = HELD, suffix: str = "") -> None:
    rows = [storable((item.id, state, item.owner, item.lease_s * 1000, item.api_key, item.user, item.team, item.model, item.at)) for item in items]
    insert_rows(database, "hold", _HOLD, rows, suffix, deadline=f"{now_sql()} + {{}}")


def bury(item: Wanted) -> None:
    """See to it that this hold, whose making may have been committed or not, is never made after this."""
    _insert([item], RELEASED, " ON CONFLICT (id) DO NOTHING")


def _windows(periods: Mapping[tuple[int, int], Period]) -> dict[tuple[int, int], _Window]:
    """The windows of these periods by budget and start, locked."""
    found = _locked_windows(periods)
    if missing := periods.keys() - found.keys():
        open_windows([periods[key] for key in missing])
        found = _locked_windows(periods)
    return found


def open_windows(periods: Sequence[Period]) -> None:
    """Make those that are not there yet. In a transaction of its own: two that make windows, and have locked others, could wait for each other."""
    share = " FOR SHARE" if database.param != "?" else ""  # of a budget that is being changed the new limit
    columns = "budget_id, starts_at, ends_at, limit_nano, spent, held"
    select = f"SELECT id, ?, ?, limit_nano, 0, 0 FROM budget WHERE id = ?{share}"  # noqa: S608
    sql = f"INSERT INTO budget_window ({columns}) {select} ON CONFLICT (budget_id, starts_at) DO NOTHING"
    rows = [(period.starts_at, period.ends_at, period.budget_id) for period in sorted(periods, key=lambda each: (each.budget_id, each.starts_at))]
    executemany(database, sql, rows)


def total_windows(budget_ids: Sequence[int]) -> tuple[int, ...]:
    """The windows of budgets of the period "total", made where they are not there yet."""
    found = _windows({(id, 0): Period(id, 0, None) for id in budget_ids})
    return tuple(sorted(window.id for window in found.values()))


def _locked_windows(periods: Mapping[tuple[int, int], Period]) -> dict[tuple[int, int], _Window]:
    if not periods:
        return {}
    budgets, starts = sorted({key[0] for key in periods}), sorted({key[1] for key in periods})
    sql = (
        f"SELECT id, budget_id, starts_at, limit_nano, spent, held FROM budget_window WHERE budget_id IN ({marks(budgets)}) AND starts_at IN ({marks(starts)})"  # noqa: S608
    )
    rows = locked(database, sql, [*budgets, *starts])
    return {(row[1], row[2]): _Window(row[0], *row[3:]) for row in rows if (row[1], row[2]) in periods}


def marks(values: Sequence[Any]) -> str:
    """Parameters for an IN."""
    return ", ".join("?" * len(values))


@dataclass(frozen=True, slots=True)
class Closing:
    """How a hold ends: `amount` nano-USD are spent of its windows; `state` is settled, released or expired."""

    id: str
    amount: int
    state: str


@dataclass(frozen=True, slots=True)
class Closed:
    """`windows`: those that the hold was taken from; `before`: the state in which it was found, held or expired."""

    windows: tuple[int, ...]
    before: str


def close(closings: Sequence[Closing]) -> dict[str, Closed]:
    """End these holds and move the money. What is missing from the answer was closed already: nothing moved for it.

    A hold that expired is settled once more, for a call whose end was slower than the reaper. The caller books the entries in the same transaction.
    """
    ids = sorted({closing.id for closing in closings})
    if not ids:
        return {}
    states, lines = _locked_holds(ids)
    spent, held, closed = dict[int, int](), dict[int, int](), dict[str, Closed]()
    for closing in closings:
        before = states.get(closing.id)
        if not _may_close(before) or (before == EXPIRED and closing.state == EXPIRED):
            continue
        taken = lines.get(closing.id, ())
        for window, amount in taken:
            spent[window] = spent.get(window, 0) + closing.amount
            held[window] = held.get(window, 0) + (amount if before == HELD else 0)
        states[closing.id] = closing.state
        closed[closing.id] = Closed(tuple(window for window, _ in taken), str(before))
    for state in (SETTLED, RELEASED, EXPIRED):
        if changed := [id for id in closed if states[id] == state]:
            sql = f"UPDATE hold SET state = ? WHERE id IN ({marks(changed)})"  # noqa: S608
            database.execute_sql(sql.replace("?", database.param), [state, *changed])
    move({window: (spent[window], -held[window]) for window in spent})
    return closed


def _may_close(state: str | None) -> bool:
    """The guard of everything: a hold moves money once."""
    return state in (HELD, EXPIRED)


def _locked_holds(ids: Sequence[str]) -> tuple[dict[str, str], dict[str, list[tuple[int, int]]]]:
    """The states of these holds, locked in the order of their ids, and what each took from which window."""
    columns = "hold.id, hold.state, hold_line.window_id, hold_line.amount"
    lock = " FOR UPDATE OF hold" if database.param != "?" else ""
    sql = (
        f"SELECT {columns} FROM hold LEFT JOIN hold_line ON hold_line.hold_id = hold.id"  # noqa: S608
        f" WHERE hold.id IN ({marks(ids)}) ORDER BY hold.id, hold_line.window_id{lock}"
    )
    states: dict[str, str] = {}
    lines: dict[str, list[tuple[int, int]]] = {}
    for id, state, window, amount in database.execute_sql(sql.replace("?", database.param), list(ids)).fetchall():
        states[id] = state
        if window is not None:
            lines.setdefault(id, []).append((window, amount))
    return states, lines


def move(changes: Mapping[int, tuple[int, int]]) -> None:
    """Add (spent, held) to windows, by their ids."""
    ids = sorted(window for window, change in changes.items() if change != (0, 0))
    if not ids:
        return
    if database.param != "?":  # in the order of their ids, which locks them; one way less than to look first
        executemany(database, "UPDATE budget_window SET spent = spent + ?, held = held + ? WHERE id = ?", [(*changes[id], id) for id in ids])
        return
    rows = locked(database, f"SELECT id, spent, held FROM budget_window WHERE id IN ({marks(ids)})", ids)  # noqa: S608
    values = [(spent + changes[id][0], held + changes[id][1], id) for id, spent, held in rows]
    executemany(database, "UPDATE budget_window SET spent = ?, held = ? WHERE id = ?", values)


def owners() -> set[str]:
    """Of the holds that are held."""
    return {row.owner for row in HoldRow.select(HoldRow.owner).where(HoldRow.state == HELD).distinct()}


def open_holds(owner: str, limit: int) -> list[OpenHold]:
    """The oldest that this owner holds."""
    rows = HoldRow.select().where((HoldRow.state == HELD) & (HoldRow.owner == owner)).order_by(HoldRow.at).limit(limit)
    return [OpenHold(row.id, row.owner, row.api_key, row.user, row.team, row.model, row.at) for row in rows]


def overdue(ids: Iterable[str]) -> set[str]:
    """Which of these are past their deadline, in the database's own time."""
    wanted = list(ids)
    if not wanted:
        return set()
    sql = f"SELECT id FROM hold WHERE state = 'held' AND deadline < {now_sql()} AND id IN ({marks(wanted)})"  # noqa: S608
    return {row[0] for row in database.execute_sql(sql.replace("?", database.param), wanted).fetchall()}


def forget(before: int, limit: int) -> int:
    """Delete closed holds of calls that began before then, with their lines; how many. Their entries name the windows."""
    old = HoldRow.select(HoldRow.id).where((HoldRow.state != HELD) & (HoldRow.at < before)).limit(limit)
    ids = [row.id for row in old]
    for table, column in (("hold_line", "hold_id"), ("hold", "id")):
        if ids:
            database.execute_sql(f"DELETE FROM {table} WHERE {column} IN ({marks(ids)})".replace("?", database.param), ids)  # noqa: S608
    return len(ids)
