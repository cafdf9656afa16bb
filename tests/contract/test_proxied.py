"""The OpenAI backend keeps the contract also through a proxy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from gateway.backend import Proxy, Target
from gateway.testing import check_discreet
from tests.contract import test_openai as direct
from tests.fakes.proxy import Proxy as FakeProxy


class TestOpenAIThroughSocks(direct.TestOpenAI):
    @pytest.fixture(autouse=True)
    def between(self) -> Iterator[None]:
        with FakeProxy(identity=("user", "password-of-the-proxy")) as proxy:
            self.proxy = proxy
            yield
            assert all(asked.way == "socks" for asked in proxy.asked)

    def target(self) -> Target:
        return dataclasses.replace(super().target(), proxy=Proxy.parse(self.proxy.url("socks5h", "user:password-of-the-proxy")))

    def test_proxys_password_is_in_no_error(self) -> None:
        backend = self.backend()
        target = dataclasses.replace(self.target(), proxy=Proxy.parse(self.proxy.url("socks5h", "user:another-password")))
        for error in self.fails(backend, target, Exception):
            check_discreet(error, target)
            assert str(error) == "The proxy refused its user name and password."
        assert "another-password" not in repr(target)
        backend.close()
