"""The real server, of two workers, tells a webhook of a budget once; and stays alive to its clients while the webhook hangs."""

from __future__ import annotations

import time
from pathlib import Path

from gateway.operations.alerts import set_webhook
from gateway.store import alerts, holds
from tests.fakes.answers import Silent, Status
from tests.fakes.gateway import RunningGateway, now
from tests.fakes.provider import Provider


def test_a_budget_that_is_nearly_spent_is_told_once_while_another_webhook_hangs(tmp_path: Path) -> None:
    gateway = RunningGateway(tmp_path, {"WEB_CONCURRENCY": "2"})
    gateway.prepare()
    with Provider() as receiver:
        receiver.always("/hook", Status(204, b""))
        receiver.always("/hangs", Silent())
        for name in ("hangs", "hook"):
            set_webhook(gateway.database, gateway.secrets.vault, name, now(), url=f"{receiver.root}/{name}", thresholds=(80,))
        budget = gateway.budget(1_000)
        (window,) = gateway.write(lambda: holds.total_windows([budget]))
        gateway.write(lambda: holds.move({window: (850, 0)}))
        gateway.start()
        try:
            receiver.wait_requests(2)
            assert gateway.get("/readyz", key=None).status == 200
            until = time.monotonic() + 2
            while (log := gateway.read(lambda: alerts.delivery_log(9))) and log[0].state == "waiting" and time.monotonic() < until:
                time.sleep(0.02)
        finally:
            gateway.stop()
            gateway.database.close()
    assert sorted((each.webhook, each.state, each.attempts) for each in log) == [("hangs", "waiting", 1), ("hook", "delivered", 1)]
    (received,) = [each for each in receiver.requests if each.path == "/hook"]
    assert received.json()["data"]["budget"]["name"] == "tester"
    assert not [line for line in gateway.log_lines() if line["level"] in ("error", "critical")]
