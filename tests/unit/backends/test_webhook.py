from __future__ import annotations

import pytest

from backends.webhook import Webhook
from gateway.backend import Services
from gateway.errors import UpstreamUnreachable
from tests.fakes.answers import Status
from tests.fakes.provider import Provider


def test_a_message_is_posted_and_answered_by_a_status() -> None:
    sender = Webhook(Services())
    with Provider() as receiver:
        receiver.script("/a", Status(202, b"x" * 100_000))
        assert sender.post(receiver.root + "/a", (("content-type", "application/json"),), b"{}") == 202
        (received,) = receiver.requests
    assert (received.method, received.body, received.headers["content-type"]) == ("POST", b"{}", "application/json")
    sender.close()


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "http://0.0.0.0:9/"])
def test_an_address_that_no_upstream_may_have_is_not_written_to(url: str) -> None:
    with pytest.raises(UpstreamUnreachable):
        Webhook(Services()).post(url, (), b"{}")
