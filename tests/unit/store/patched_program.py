"""Runs the store as a server does, its threads patched into greenlets; prints what happened as JSON. Started by test_patched.py."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402

import gevent  # noqa: E402

from gateway.errors import StoreUnavailable  # noqa: E402
from gateway.store import accounts  # noqa: E402
from gateway.store.database import Batched, Conflict, Database  # noqa: E402


class Ticker:
    """The longest time that the hub did not come round."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        self._greenlet = gevent.spawn(self._tick)

    def _tick(self) -> None:
        last = time.monotonic()
        while True:
            gevent.sleep(0.005)
            now = time.monotonic()
            self.worst_s, last = max(self.worst_s, now - last), now

    def stop(self) -> float:
        self._greenlet.kill()
        return self.worst_s


def main(url: str) -> None:
    database = Database(url)
    database.bind()
    applied = database.migrate()
    runs: list[int] = []

    def add_all(names: Sequence[str]) -> Sequence[accounts.User]:
        runs.append(len(names))
        return [accounts.create_user(name, 1) for name in names]

    def add_one(name: str) -> None:
        database.write(Batched(add_all, name) if name[-1] in "13579" else lambda: accounts.create_user(name, 1))
        assert database.read(lambda: accounts.find_user(name)) is not None

    def client(number: int) -> None:
        for turn in range(10):
            add_one(f"{number}-{turn}")

    ticker = Ticker()
    clients = [gevent.spawn(client, number) for number in range(40)]
    gevent.joinall(clients, raise_error=True)
    calm_s = ticker.stop()

    def refusal() -> str:
        try:
            database.write(lambda: accounts.create_user("0-0", 1))
        except Conflict as error:
            return str(error)
        return "none"

    print("lock", flush=True)
    sys.stdin.readline()  # the test holds the lock now, for a second
    ticker = Ticker()
    waiting = gevent.spawn(database.write, lambda: accounts.create_user("patient", 1))
    reader = gevent.spawn(database.read, lambda: len(accounts.list_users()))
    seen_meanwhile = reader.get(timeout=3)
    waiting.get(timeout=8)
    locked_s = ticker.stop()

    impatient = Database(url, timeout_s=0.2)
    try:
        impatient.read(lambda: time.sleep(1.0))
        late = "answered"
    except StoreUnavailable:
        late = "unavailable"

    total = database.read(lambda: len(accounts.list_users()))
    conflict = refusal()
    database.close()
    report = {"applied": applied, "total": total, "seen_meanwhile": seen_meanwhile, "runs": len(runs), "ran": sum(runs)}
    print(json.dumps({**report, "calm_s": calm_s, "locked_s": locked_s, "late": late, "conflict": conflict}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
