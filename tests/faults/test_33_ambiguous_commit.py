"""Row 33: PostgreSQL commits, but its reply never arrives. Who held or booked something cannot know; afterwards no hold is left over, and nothing
is booked twice or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.store import holds
from tests.fakes.gateway import Broken, RawClient, RunningGateway
from tests.fakes.lost_replies import LostReplies
from tests.fakes.postgres import Postgres
from tests.fakes.processes import children
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, DONE, crowd
from tests.faults.conftest import Measured
from tests.faults.crashes import SOON_S, audited, settled

CALLS, CLIENTS = 120, 12


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LostReplies]:
    with Postgres(tmp_path_factory.mktemp("postgres")) as server, LostReplies(server.emptied("gateway")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def gateway(postgres: LostReplies, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), {"WEB_CONCURRENCY": "3"}, postgres.url) as gateway:
        gateway.deploy("*", provider.url, upstream_model="m", price=None)
        gateway.deploy("m", provider.url)
        gateway.budget(10**12)
        time.sleep(1.2)  # every worker follows within a second
        assert gateway.post(CHAT, body("first")).status == 200
        yield gateway


def body(model: str, *, stream: bool = False) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "stream": stream}


def booked(gateway: RunningGateway, model: str) -> list[tuple[str, str, bool]]:
    """What is in the ledger of it: kind, ending, whether it cost something."""
    return [(entry.kind, entry.ending, entry.amount > 0) for entry in gateway.entries() if entry.model_asked == model]


def test_a_hold_of_which_nobody_knows_whether_it_was_made_ends(gateway: RunningGateway, postgres: LostReplies, provider: Provider, measured: Measured) -> None:
    asked, lost = len(provider.requests), postgres.lost
    postgres.lose("doubtful")
    answer = gateway.post(CHAT, body("doubtful"))
    began = time.monotonic()
    assert (answer.status, answer.json()["error"]["code"], postgres.lost - lost) == (503, "store_unavailable", 1)
    assert len(gateway.read(holds.owners)) == 1, "the hold was not made: the reply was not lost after a commit"
    settled(gateway)
    seconds = time.monotonic() - began
    audit = audited(gateway)
    measured(33, f"a hold's COMMIT without a reply: it ended after {seconds:.1f} s (10); {len(audit.differences)} differences")
    assert booked(gateway, "doubtful") == [("usage", "refused", False)]
    assert (len(provider.requests), audit.differences) == (asked, ())
    assert seconds < 10 * SOON_S


def test_a_settlement_without_a_reply_is_booked_once(gateway: RunningGateway, postgres: LostReplies) -> None:
    lost = postgres.lost
    postgres.lose("unsure", after=1)
    with gateway.client() as client:
        client.ask(CHAT, body("unsure", stream=True))
        assert client.head().status == 200
        assert client.rest().endswith(DONE)
    assert postgres.lost - lost == 1
    settled(gateway)
    assert booked(gateway, "unsure") == [("usage", "complete", True)]
    assert audited(gateway).differences == ()


def test_its_worker_may_die_before_it_ends_the_doubtful_hold(gateway: RunningGateway, postgres: LostReplies) -> None:
    assert gateway.process is not None
    postgres.lose("orphan")
    assert gateway.post(CHAT, body("orphan")).status == 503
    for worker in children(gateway.process.pid):
        os.kill(worker, signal.SIGKILL)
    settled(gateway)
    assert booked(gateway, "orphan") in ([("usage", "worker_lost", False)], [("usage", "refused", False)])
    assert audited(gateway).differences == ()


def test_replies_that_get_lost_among_many_calls_lose_and_double_nothing(gateway: RunningGateway, postgres: LostReplies, measured: Measured) -> None:
    ended, lost, over = list[str](), postgres.lost, threading.Event()

    def lose_again_and_again() -> None:
        while not over.wait(0.05):
            postgres.lose("crowd")

    def call(client: RawClient, _: int) -> None:
        client.ask(CHAT, body("crowd", stream=True))
        head = client.head()
        with contextlib.suppress(Broken):
            if client.rest().endswith(DONE):
                ended.append(head.headers["x-request-id"])

    thread = threading.Thread(target=lose_again_and_again)
    thread.start()
    crowd(gateway, CALLS, call, CLIENTS)
    over.set()
    thread.join()
    postgres.lose("")
    seconds = settled(gateway)
    charged = [entry.exchange for entry in gateway.entries() if entry.model_asked == "crowd" and entry.amount > 0]
    missing, doubled = set(ended) - set(charged), len(charged) - len(set(charged))
    audit = audited(gateway)
    told = f"{len(missing)} of {len(ended)} ended calls lost, {doubled} doubled, {audit.holds} holds left {seconds:.1f} s later (0 after 10)"
    measured(33, f"{postgres.lost - lost} lost replies among {CALLS} calls: {told}")
    assert (missing, doubled, audit.differences, audit.holds) == (set(), 0, (), 0)
    assert postgres.lost - lost > 3
    assert ended
