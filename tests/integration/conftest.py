"""One gateway for the tests that need nothing special of it, and a provider that is each test file's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.gateway import RunningGateway
from tests.fakes.provider import Provider


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway
