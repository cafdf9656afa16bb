"""The rows of the table of failures, each against a gateway that really runs, and what was measured beside the row's figure.

Row 50, no plain comparison of secrets, is a scan of the code: tests/test_architecture.py.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.gateway import RunningGateway
from tests.fakes.provider import Provider
from tests.faults.calls import Calls
from tests.faults.front import Front, running_front

SPARES = 24
MEASURED = "measured"
Measured = Callable[[int, str], None]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """`measured(row, text)`: the text is printed under the row's number when all tests have run."""
    return lambda row, text: request.node.user_properties.append((MEASURED, (row, text)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = itertools.chain.from_iterable(terminalreporter.stats.values())
    found = {tuple(value) for report in reports for name, value in getattr(report, "user_properties", ()) if name == MEASURED}
    if found:
        terminalreporter.section("measured, by row of the table of failures")
    for row, text in sorted(found):
        terminalreporter.line(f"{row:>3}  {text}")


@pytest.fixture(scope="session")
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One for all rows: what a row leaves behind in it harms the next, as it would in life. FAULTS_PLACE: sqlite-1, or such as postgres-3."""
    engine, _, workers = os.environ.get("FAULTS_PLACE", "sqlite-1").partition("-")
    url = request.getfixturevalue("postgres").emptied("faults") if engine == "postgres" else None
    with RunningGateway(tmp_path_factory.mktemp("gateway"), {"WEB_CONCURRENCY": workers}, url) as gateway:
        yield gateway
        deadline = time.monotonic() + 3  # the gauge is set once a second
        while open_exchanges(gateway):
            assert time.monotonic() < deadline, "calls are still open after the last test"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Three workers, whose agents and clients are the rows' own; some rows kill workers, which come again."""
    with RunningGateway(tmp_path_factory.mktemp("hosts"), {"WEB_CONCURRENCY": "3", "GATEWAY_LOG_LEVEL": "info"}) as gateway:
        yield gateway


def open_exchanges(gateway: RunningGateway) -> float:
    text = gateway.get("/metrics", key=None).body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("gateway_open_exchanges"))


class Spares:
    """Providers and models made by the dozen: a gateway follows its catalog only twice a second."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._gateway, self._numbers = gateway, itertools.count(1)
        self._ready: list[Calls] = []

    def take(self) -> Calls:
        if not self._ready:
            self._ready = [self._made() for _ in range(SPARES)]
            self._gateway.wait_catalog()
            if self._gateway.environment["WEB_CONCURRENCY"] != "1":
                time.sleep(1.2)  # the other workers follow within a second
        return self._ready.pop()

    def _made(self) -> Calls:
        calls = Calls(self._gateway, Provider(), f"model-{next(self._numbers)}")
        calls.provider.__enter__()
        self._gateway.deploy(calls.model, calls.provider.url)
        return calls

    def close(self) -> None:
        for calls in self._ready:
            calls.provider.__exit__()


@pytest.fixture(scope="session")
def spares(gateway: RunningGateway) -> Iterator[Spares]:
    with contextlib.closing(Spares(gateway)) as spares:
        yield spares


@pytest.fixture
def calls(spares: Spares) -> Iterator[Calls]:
    """A model of this test's own, and the provider that answers it."""
    calls = spares.take()
    yield calls
    calls.provider.__exit__()


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with running_front(tmp_path_factory.mktemp("front")) as front:
        yield front
