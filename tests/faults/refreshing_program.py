"""A worker that refreshes, its threads patched into greenlets; prints what happened as JSON. Started by test_38_refresh.py.

`python refreshing_program.py URL DIRECTORY CRASH`: CRASH is "asked", and it kills itself when the issuer has answered, or "got", when that is kept.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Mapping  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

from gateway.backend import Deadlines, Services  # noqa: E402
from gateway.core.catalog import Backends, Catalog  # noqa: E402
from gateway.core.refreshing import Due, Refresher  # noqa: E402
from gateway.presence import Presence  # noqa: E402
from gateway.secrets import KeyHasher, Secrets, Vault  # noqa: E402
from gateway.store import refreshes  # noqa: E402
from gateway.store.database import Database  # noqa: E402
from gateway.store.pools import Credential  # noqa: E402

GREENLETS = 50
SECRETS = Secrets(KeyHasher(b"p" * 32), Vault({1: b"m" * 32}, 1), ())


class Dying(Database):
    """Kills its process before the issuer's answer is committed, or after it."""

    crash = ""

    def write(self, work: Any) -> Any:
        keeps = getattr(work, "func", None) is refreshes.got
        if keeps and self.crash == "asked":
            os.kill(os.getpid(), signal.SIGKILL)
        result = super().write(work)
        if keeps and self.crash == "got":
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def main(url: str, directory: str, crash: str = "") -> None:
    database = Dying(url, timeout_s=20.0)
    database.crash = crash
    database.bind()
    presence = Presence(Path(directory) / "run")
    presence.start()
    catalog = Catalog(database, SECRETS.vault, Backends(Services()), Deadlines(), None, lambda *secrets: None)
    catalog.refresh()
    quarantined: list[str] = []

    def quarantine(credential: Credential, reason: str, evidence: Mapping[str, Any]) -> None:
        quarantined.append(evidence["message"])

    refresher = Refresher(database, catalog, SECRETS, presence, quarantine)
    wanted = [refresher.due() for _ in range(GREENLETS)]
    print("ready", flush=True)
    sys.stdin.readline()

    def refresh(found: list[Due]) -> int:
        return sum(refresher.refresh(due) for due in found)

    greenlets = [gevent.spawn(refresh, found) for found in wanted]
    gevent.joinall(greenlets, raise_error=True)
    print(json.dumps({"wanted": sum(map(len, wanted)), "refreshed": sum(each.value for each in greenlets), "quarantined": quarantined}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
