"""Row 48: a worker dies with calls under way. Their places are free within 2 s, on one worker and on three; also those of who waited."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from gateway.store import pools
from tests.fakes.answers import Slow
from tests.fakes.gateway import Broken, RunningGateway
from tests.fakes.processes import children
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT
from tests.faults.conftest import Measured

PLACES = 4
PATH = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}


@pytest.mark.parametrize("whose", ["user", "credential"])
@pytest.mark.parametrize("place", ["sqlite-1", "postgres-3"])
def test_places_of_a_killed_worker_are_free_at_once(request: pytest.FixtureRequest, tmp_path: Path, place: str, whose: str, measured: Measured) -> None:
    engine, _, workers = place.partition("-")
    url = request.getfixturevalue("postgres").emptied("slots") if engine == "postgres" else None
    with Provider() as provider, RunningGateway(tmp_path, {"WEB_CONCURRENCY": workers}, url) as gateway:
        if whose == "user":
            gateway.deploy("m", provider.url)
            gateway.limit(concurrency=PLACES)
        else:
            gateway.deploy_pool("m", provider.url, "sk-limited")
            gateway.write(lambda: pools.set_credential(1, concurrency=PLACES))
        time.sleep(1.2)
        provider.always(PATH, Slow(30.0))
        held = [threading.Thread(target=abandoned, args=(gateway,)) for _ in range(PLACES)]
        for thread in held:
            thread.start()
        while len(provider.requests) < PLACES:
            time.sleep(0.01)
        assert gateway.post(CHAT, BODY).status == 429
        provider.always(PATH, Slow(0.0))
        assert gateway.process is not None
        for worker in children(gateway.process.pid):
            os.kill(worker, signal.SIGKILL)
        killed = time.monotonic()
        while status(gateway) != 200:
            assert time.monotonic() < killed + 10
        free_s = time.monotonic() - killed
        ready = [status(gateway) for _ in range(PLACES)]
        for thread in held:
            thread.join(5)
    measured(48, f"{place}, a {whose}'s places: killed with {PLACES} calls under way: the first was admitted {free_s:.2f} s later (2), new workers included")
    assert ready == [200] * PLACES
    assert free_s < 6


def abandoned(gateway: RunningGateway) -> None:
    with gateway.client() as client:
        client.ask(CHAT, BODY)
        try:
            client.answer()
        except Broken:
            return


def status(gateway: RunningGateway) -> int:
    try:
        return gateway.post(CHAT, BODY).status
    except OSError:
        time.sleep(0.02)
        return 0
