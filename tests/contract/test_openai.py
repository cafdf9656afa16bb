"""The OpenAI backend keeps the contract against a provider on a real socket, and tells the upstream's mistakes from its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import pytest

from backends.openai import OpenAI
from gateway.backend import Backend, Deadlines, Secret, Services, Target
from gateway.errors import Blame, UpstreamError, UpstreamProtocolError, UpstreamRefused
from gateway.testing import SHORT_S, UpstreamContract, drain, read
from tests.fakes.answers import Answer, CloseAt, Default, Json, RateLimited, Redirect, Silent, StallAt, Status, Step
from tests.fakes.openai_answers import error_object
from tests.fakes.provider import Provider
from tests.fakes.received import Received

ENDPOINTS = ("/chat/completions", "/completions", "/embeddings")


def answered(received: Received) -> Answer:
    """The provider's sane answer, at whatever place it is asked."""
    path = "/v1/" + received.path.split("/", 2)[2]
    return Default()(Received(received.method, path, received.query, received.fields, received.body, received.at, received.connection))


class TestOpenAI(UpstreamContract):
    backend_class = OpenAI
    provider: Provider

    @pytest.fixture(autouse=True)
    def upstream(self) -> Iterator[None]:
        with Provider() as provider:
            self.provider = provider
            yield

    def at(self, place: str, step: Step) -> Target:
        """A target of the provider's where every call gets this answer."""
        for endpoint in ENDPOINTS:
            self.provider.always(f"/{place}{endpoint}", step)
        return dataclasses.replace(self.target(), base_url=f"{self.provider.root}/{place}")

    def target(self) -> Target:
        return Target(self.provider.url, "gpt-4o", Secret("sk-secret-of-the-contract"), Deadlines())

    def refusing(self) -> Target:
        return self.at("refusing", Status(503, error_object("overloaded")))

    def silent(self) -> Target:
        return self.at("silent", Silent())

    def stalled(self) -> Target:
        return self.at("stalled", StallAt(250, answered))

    def broken(self) -> Target:
        return self.at("broken", CloseAt(250, answered))

    # what is OpenAI's own

    def test_call_goes_out_with_the_secret_and_its_bytes_unchanged(self, running: Backend) -> None:
        target = self.target()
        call = self.call("openai_chat", False, target)
        drain(running, call, target)
        (received,) = self.provider.requests
        assert (received.method, received.path, received.query) == ("POST", "/v1/chat/completions", "")
        assert received.headers["authorization"] == "Bearer sk-secret-of-the-contract"
        assert received.headers["content-type"] == "application/json"
        assert "openai-organization" not in received.headers
        assert received.body == b"".join(call.body.open())

    def test_query_is_passed_on(self, running: Backend) -> None:
        target = self.target()
        drain(running, dataclasses.replace(self.call("openai_rest", False, target), query="a=1&b=%20"), target)
        assert self.provider.requests[0].query == "a=1&b=%20"

    def test_organization_and_project_are_sent_where_they_are_set(self) -> None:
        backend, target = OpenAI(OpenAI.Options(organization="org-1", project="proj-1"), Services()), self.target()
        drain(backend, self.call("openai_chat", False, target), target)
        backend.close()
        headers = self.provider.requests[0].headers
        assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "proj-1")

    def test_closed_answer_closes_the_connection_of_an_upstream_that_still_talks(self, running: Backend) -> None:
        target = self.stalled()
        running.send(self.call("openai_chat", True, target), target).close()
        self.provider.wait_closed()
        self.provider.wait_open(0)

    def test_failed_calls_leave_no_connection_open(self, running: Backend) -> None:
        for target in (self.silent(), self.stalled(), self.broken()):
            for dialect, stream in self.streams():
                with pytest.raises(UpstreamError):
                    drain(running, self.call(dialect, stream, target, total_s=SHORT_S), target)
        self.provider.wait_open(0)

    @pytest.mark.parametrize(
        ("step", "status", "code", "blame"),
        [
            (Status(400, error_object("no", code="context_length_exceeded")), 400, "context_length_exceeded", Blame.CLIENT),
            (Status(401, error_object("no", code="invalid_api_key")), 401, "invalid_api_key", Blame.CREDENTIAL_INVALID),
            (Status(401, b"no"), 401, None, Blame.NOBODY),
            (Status(403, error_object("no")), 403, "invalid_request_error", Blame.CREDENTIAL_MODEL),
            (Status(429, error_object("no", code="insufficient_quota")), 429, "insufficient_quota", Blame.CREDENTIAL_SPENT),
            (RateLimited(7), 429, "rate_limit_exceeded", Blame.CREDENTIAL_MODEL),
            (Status(404, b""), 404, None, Blame.CLIENT),
            (Status(500, b"<html>" * 100_000), 500, None, Blame.DEPLOYMENT),
            (Status(500, b"[" * 100_000), 500, None, Blame.DEPLOYMENT),
            (Status(500, {"error": "text"}), 500, None, Blame.DEPLOYMENT),
            (Status(500, {"error": {"code": 42, "type": "x"}}), 500, None, Blame.DEPLOYMENT),
            (Status(500, ["error"]), 500, None, Blame.DEPLOYMENT),
        ],
    )
    def test_refusal_is_read_and_blamed(self, running: Backend, step: Step, status: int, code: str | None, blame: Blame) -> None:
        target = self.at("refused", step)
        with pytest.raises(UpstreamRefused) as raised:
            running.send(self.call("openai_chat", True, target), target)
        error = raised.value
        assert (error.upstream_status, error.upstream_code, error.blame) == (status, code, blame)
        assert error.reset_s == (7.0 if code == "rate_limit_exceeded" else None)

    def test_refusal_whose_body_breaks_off_still_tells_its_status(self, running: Backend) -> None:
        target = self.at("refused", CloseAt(120, Status(503, b"x" * 10_000)))
        with pytest.raises(UpstreamRefused) as raised:
            running.send(self.call("openai_chat", False, target), target)
        assert (raised.value.upstream_status, raised.value.body) == (503, b"")

    def test_14_redirect_is_never_followed(self, running: Backend) -> None:
        target = self.at("moved", Redirect(self.provider.url + "/chat/completions", 307))
        with pytest.raises(UpstreamProtocolError, match="redirect"):
            running.send(self.call("openai_chat", False, target), target)
        assert [received.path for received in self.provider.requests] == ["/moved/chat/completions"]

    def test_models_are_listed(self, running: Any) -> None:
        assert "gpt-4o" in running.models(self.target(), time.monotonic() + 5)
        assert self.provider.requests[0].headers["authorization"].startswith("Bearer sk-")

    @pytest.mark.parametrize("answer", [Json([]), Json({}), Json({"data": {}}), Status(200, b"no"), Status(200, b"")])
    def test_list_of_models_that_is_none_is_an_error(self, running: Any, answer: Step) -> None:
        self.provider.always("/v1/models", answer)
        with pytest.raises(UpstreamProtocolError):
            running.models(self.target(), time.monotonic() + 5)

    def test_list_of_models_leaves_out_what_has_no_name(self, running: Any) -> None:
        self.provider.always("/v1/models", Json({"data": [{"id": "a"}, {"id": 7}, "b", {}, {"id": "c"}]}))
        assert running.models(self.target(), time.monotonic() + 5) == ["a", "c"]

    def test_list_of_models_keeps_its_deadline(self, running: Any) -> None:
        self.provider.always("/v1/models", Silent())
        with pytest.raises(UpstreamError):
            running.models(self.target(), time.monotonic() + SHORT_S)

    def test_refused_list_of_models_is_a_refusal(self, running: Any) -> None:
        self.provider.always("/v1/models", Status(401, error_object("no", code="invalid_api_key")))
        with pytest.raises(UpstreamRefused):
            running.models(self.target(), time.monotonic() + 5)

    def test_whole_answer_comes_with_its_bytes_and_headers(self, running: Backend) -> None:
        target = self.target()
        reply = running.send(self.call("openai_rest", False, target), target)
        assert dict(reply.headers)["x-request-id"] == "req_fake"
        assert b'"object": "list"' in read(reply)
        assert reply.usage() is None
        reply.close()
