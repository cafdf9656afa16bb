"""Row 14: an upstream redirects. It is never followed: 502. Figure: 0 requests to the target."""

from __future__ import annotations

from tests.fakes.answers import Redirect
from tests.fakes.provider import Provider
from tests.faults.calls import Calls
from tests.faults.conftest import Measured


def test_14_redirect_is_not_followed(calls: Calls, measured: Measured) -> None:
    with Provider() as target:
        for status in (301, 302, 303, 307, 308):
            calls.provider.always("/v1/chat/completions", Redirect(target.url + "/chat/completions", status))
            for stream in (False, True):
                answer = calls.ask(stream=stream)
                assert answer.status == 502
                assert answer.json()["error"]["code"] == "upstream_protocol_error"
                assert "location" not in answer.headers
                assert target.root not in answer.body.decode()
        measured(14, f"{len(target.requests)} requests to the target of {len(calls.provider.requests)} redirects (0)")
        assert not target.connections_seen


def test_14_redirect_to_itself_or_nowhere(calls: Calls) -> None:
    for to in ("/v1/chat/completions", "", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "//localhost"):
        calls.provider.script("/v1/chat/completions", Redirect(to))
        assert calls.ask().status == 502
    assert len(calls.provider.requests) == 5
