"""Crashes, a lost reply and mutants for a server under test, brought in from outside: the program has no hook for them.

This directory on PYTHONPATH makes Python import this file at its start; INJECTED names a directory. A file there arms what it is named after:
a point ends the worker that passes it first by kill -9 (the file is then called `<point>.reached`), a mutant holds as long as its file is there.
Points concern calls that end well; what the housekeeping books does not pass them. The number in `clock` is by how many seconds the wall clock is off.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

PLACE = Path(os.environ.get("INJECTED", os.devnull))
ANSWER_TO_SETTLE_S = 0.3
"""How late the mutant settles that does so after the answer."""
settling: set[str] = set()
"""Exchanges of calls that ended well which the transaction under way books: there is one writer in a worker."""
unlucky: set[str] = set()
"""Those of them whose reply got lost. Works that shared the lost COMMIT are done again one by one: then it gets lost again."""
again: set[str] = set()
"""Exchanges that the housekeeping books: replays, and what others left."""


def taken(name: str) -> bool:
    """Whether it was armed; it is not any more. True for one worker only."""
    try:
        (PLACE / name).rename(PLACE / f"{name}.reached")
    except OSError:
        return False
    return True


def point(name: str) -> None:
    if taken(name):
        os.kill(os.getpid(), signal.SIGKILL)


def holds_for(mutant: str) -> bool:
    return (PLACE / mutant).exists()


def core_holds(module: ModuleType) -> None:
    reserve = module.Holds.reserve

    def reserved(*arguments: Any) -> Any:
        held = reserve(*arguments)
        if held:
            point("after_reserve")
        return held

    module.Holds.reserve = reserved


def core_ledger(module: ModuleType) -> None:
    settle, book = module.Ledger.settle, module.Ledger.book

    def booked(self: Any, bookings: Any) -> None:
        again.update(booking.entry.exchange for booking in bookings if booking.entry is not None)
        book(self, bookings)

    def settled(self: Any, exchange: Any, ending: Any, metered: Any) -> None:
        if exchange.ending is None and str(ending) == "complete":
            point("after_upstream")
            if holds_for("settle_after_answer"):
                exchange.ending = ending
                sys.modules["gateway.concurrency"].after(ANSWER_TO_SETTLE_S, lambda: late(self, exchange, ending, metered))
                return
        settle(self, exchange, ending, metered)

    def late(self: Any, exchange: Any, ending: Any, metered: Any) -> None:
        exchange.ending = None
        settle(self, exchange, ending, metered)

    module.Ledger.settle, module.Ledger.book = settled, booked


def store_ledger(module: ModuleType) -> None:
    record, executemany = module.record, module.executemany

    def recorded(items: Any, seal: Any) -> Any:
        global settling
        results = record(items, seal)
        settling = {item.entry.exchange for item in items if item.entry is not None and item.entry.ending == "complete"} - again
        return results

    def execute(database: Any, sql: str, rows: Any) -> None:
        executemany(database, sql.partition(" ON CONFLICT")[0] if holds_for("no_unique_constraint") else sql, rows)

    module.record, module.executemany = recorded, execute


def store_holds(module: ModuleType) -> None:
    may_close = module._may_close
    module._may_close = lambda state: holds_for("no_guard") or may_close(state)


def store_engine(module: ModuleType) -> None:
    commit = module.Engine.commit

    def committed(self: Any) -> None:
        global settling
        settles, settling = settling, set[str]()
        if settles:
            point("before_commit")
        commit(self)
        if settles:
            point("after_commit")
            if taken("reply_lost") or settles & unlucky:
                unlucky.update(settles)
                if self.shared:
                    self.peewee.connection().close()
                raise module.peewee.OperationalError("the reply of this COMMIT got lost")

    module.Engine.commit = committed


def store_journal(module: ModuleType) -> None:
    append = module.Journal.append

    def appended(self: Any, booking: Any) -> None:
        append(self, booking)
        point("after_journal")

    module.Journal.append = appended


def server(module: ModuleType) -> None:
    send = module.Response._send

    def sent(self: Any, data: bytes) -> None:
        is_last = data == b"0\r\n\r\n" or (not self._chunked and self._left == 0)
        if self._method == "POST" and is_last and taken("before_last_byte"):
            self._sock.sendall(data[:-1])
            os.kill(os.getpid(), signal.SIGKILL)
        send(self, data)

    module.Response._send = sent


CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "gateway.core.holds": core_holds,
    "gateway.core.ledger": core_ledger,
    "gateway.store.ledger": store_ledger,
    "gateway.store.holds": store_holds,
    "gateway.store.engine": store_engine,
    "gateway.store.journal": store_journal,
    "gateway.server": server,
}


class Finder:
    """Changes each of these modules as soon as it is loaded, before others take names from it."""

    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> Any:
        change = CHANGES.get(name)
        spec = PathFinder.find_spec(name, path) if change is not None else None
        if spec is None or spec.loader is None or change is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def off_s() -> int:
    try:
        return int((PLACE / "clock").read_text())
    except (OSError, ValueError):
        return 0


if PLACE.is_dir():
    wall, wall_ns = time.time, time.time_ns
    time.time, time.time_ns = lambda: wall() + off_s(), lambda: wall_ns() + off_s() * 10**9
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
