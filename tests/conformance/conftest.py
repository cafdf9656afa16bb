"""One gateway and one fake provider for each module of tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.models import SERVED, deploy_all
from tests.fakes.gateway import RunningGateway
from tests.fakes.provider import Provider

BODY_LIMIT = 2_000_000
"""Of a JSON body, in bytes; forms may be larger."""


@pytest.fixture(scope="module")
def serving() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def gateway(serving: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    running = RunningGateway(tmp_path_factory.mktemp("gateway"), {"GATEWAY_JSON_LIMIT": str(BODY_LIMIT)})
    running.prepare()
    deploy_all(running, serving)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        running.database.close()


@pytest.fixture(scope="module")
def restricted_key(gateway: RunningGateway) -> str:
    """A key that may use one of the models only."""
    return gateway.new_key(gateway.new_user("restricted"), models=(SERVED[0],))


@pytest.fixture
def provider(serving: Provider) -> Provider:
    """The provider, with no memory of what earlier tests did."""
    serving.requests.clear()
    serving.closed.clear()
    return serving


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    """A file that is larger than what the gateway keeps in memory, with a name that a form must escape."""
    path = tmp_path / 'My "best" Grüße.mp3'
    path.write_bytes(bytes(range(256)) * 6000)
    return path
