"""The waiting room of a busy model, through real workers: fair between keys, bounded, and left by clients that go."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.fakes.answers import Slow
from tests.fakes.gateway import RawClient, RunningGateway
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, crowd

PATH = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
SLOT_S = 0.15


@pytest.mark.parametrize("workers", [1, 3])
def test_a_greedy_key_delays_another_by_no_more_than_a_place(tmp_path: Path, workers: int) -> None:
    with Provider() as provider, RunningGateway(tmp_path, {"WEB_CONCURRENCY": str(workers)}) as gateway:
        provider.always(PATH, Slow(SLOT_S / 2))
        gateway.deploy("m", provider.url)
        gateway.limit_model("m", concurrency=1, queue_size=100, queue_s=20.0)
        modest_key = gateway.new_key(gateway.new_user("modest"))
        time.sleep(1.2)
        statuses: list[int] = []
        ends: list[float] = []

        def call(client: RawClient, number: int) -> None:
            client.ask(CHAT, BODY)
            statuses.append(client.answer().status)
            ends.append(time.monotonic())

        greedy = threading.Thread(target=lambda: crowd(gateway, 20, call, 20))
        greedy.start()
        while len(ends) < 3:
            time.sleep(0.01)
        asked = time.monotonic()
        with gateway.client(modest_key) as client:
            client.ask(CHAT, BODY)
            answer = client.answer()
        answered = time.monotonic()
        greedy.join()
    overtaken = sum(asked < end < answered for end in ends)
    assert answer.status == 200
    assert statuses == [200] * 20
    assert overtaken <= 2  # the one under way, and one whose turn came in the moment of asking


def test_a_full_room_refuses_and_nothing_is_sent_while_waiting(tmp_path: Path) -> None:
    with Provider() as provider, RunningGateway(tmp_path) as gateway:
        provider.always(PATH, Slow(0.5))
        gateway.deploy("m", provider.url)
        gateway.limit_model("m", concurrency=1, queue_size=1, queue_s=10.0)
        gateway.wait_catalog()
        with gateway.client() as first, gateway.client() as waits, gateway.client() as leaves:
            first.ask(CHAT, BODY)
            while not provider.requests:
                time.sleep(0.01)
            leaves.ask(CHAT, BODY | {"stream": True})
            assert leaves.silent(0.2)
            leaves.sock.close()
            time.sleep(0.1)  # its place is free at once
            waits.ask(CHAT, BODY)
            assert waits.silent(0.1)
            refused = gateway.post(CHAT, BODY)
            assert (first.answer().status, waits.answer().status) == (200, 200)
        entries = gateway.entries()
    assert (refused.status, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(refused.headers["retry-after"]) >= 1
    assert (len(entries), len(provider.requests)) == (2, 2)
