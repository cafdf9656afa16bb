"""What is exact with one worker is exact with several, on both databases: bookings, counters, revocations, changes of the catalog."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator

import pytest

from gateway.store import accounts, catalog
from tests.fakes.answers import Slow
from tests.fakes.gateway import RawClient, RunningGateway, now
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, crowd

CALLS, CLIENTS = 300, 24
SOON_S = 10.0
"""Ten times the second within which every worker follows."""


@pytest.fixture(scope="module", params=["sqlite-2", "postgres-3"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningGateway, int]]:
    """A gateway and the number of its workers."""
    engine, _, workers = request.param.partition("-")
    directory = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as stack:
        url = request.getfixturevalue("postgres").emptied("workers") if engine == "postgres" else None
        gateway = stack.enter_context(RunningGateway(directory / "gateway", {"WEB_CONCURRENCY": workers}, url))
        yield gateway, int(workers)


def body(model: str, stream: bool = False) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream}


def everywhere(gateway: RunningGateway, met: Callable[[RawClient], bool], row: int = 20) -> None:
    """Returns when `met` holds on so many new connections in a row, and so in every worker. Raises AssertionError after SOON_S."""
    began, found = time.monotonic(), 0
    while found < row:
        with gateway.client() as client:
            found = found + 1 if met(client) else 0
        assert time.monotonic() - began < SOON_S


def status(client: RawClient, model: str, key: str | None = None) -> int:
    client.ask(CHAT, body(model), headers={"authorization": f"Bearer {key}"} if key else None)
    return client.answer().status


def counted(gateway: RunningGateway, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels, over all workers."""
    text = gateway.get("/metrics", key=None).body.decode()
    samples = [re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line) for line in text.splitlines()]
    return sum(float(sample[2]) for sample in samples if sample and all(f'{label}="{value}"' in sample[1] for label, value in labels.items()))


def test_every_call_is_booked_exactly_once_and_counted_once(served: tuple[RunningGateway, int]) -> None:
    gateway, workers = served
    with Provider() as provider:
        provider.always("/v1/chat/completions", Slow(0.005))
        gateway.deploy("m", provider.url)
        everywhere(gateway, lambda client: status(client, "m") == 200)
        before = len(gateway.entries())
        ids: list[str] = []

        def call(client: RawClient, number: int) -> bytes:
            client.ask(CHAT, body("m", stream=number % 2 == 0))
            head = client.head()
            ids.append(head.headers["x-request-id"])
            return client.rest()

        answers = crowd(gateway, CALLS, call, CLIENTS)
        entries = {entry.exchange: entry for entry in gateway.wait_entries(before + CALLS)}
    assert all(answers)
    assert len(set(ids)) == CALLS
    assert len(entries) == before + CALLS
    booked = [entries[each] for each in ids]
    assert {entry.ending for entry in booked} == {"complete"}
    assert all(entry.amount > 0 for entry in booked)
    assert len({gateway.exchange(each).owner for each in ids}) == workers  # type: ignore[union-attr]
    everywhere(gateway, lambda client: counted(gateway, "gateway_exchanges_total", ending="complete") == before + CALLS, row=1)


def test_a_revoked_key_is_refused_by_all_workers_within_a_second(served: tuple[RunningGateway, int]) -> None:
    gateway, _ = served
    key = gateway.new_key(gateway.new_user("leaver"))
    everywhere(gateway, lambda client: status(client, "echo", key) == 200)
    known = next(each for each in gateway.read(accounts.list_keys) if key.startswith(each.prefix) and key.endswith(each.suffix))
    gateway.write(lambda: accounts.revoke_key(known.id, now()))
    everywhere(gateway, lambda client: status(client, "echo", key) == 401)


def test_a_change_of_the_catalog_is_seen_by_all_workers_within_a_second(served: tuple[RunningGateway, int]) -> None:
    gateway, _ = served
    gateway.write(lambda: catalog.create_deployment("second", catalog.create_model("second", now()).id, "echo", now()))
    everywhere(gateway, lambda client: status(client, "second") == 200)
    row = next(each for each in gateway.read(catalog.list_deployments) if each.name == "second")
    gateway.write(lambda: catalog.set_deployment(row.id, enabled=False))
    everywhere(gateway, lambda client: status(client, "second") != 200)
