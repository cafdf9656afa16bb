from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from backends.http import Transport
from backends.sign_in_visit import Visit
from gateway.backend import Deadlines, Secret, Target
from gateway.errors import Cancelled, UpstreamProtocolError
from tests.factories import call
from tests.fakes.answers import Answer, Json, Redirect
from tests.fakes.provider import Provider


@dataclass
class Stage:
    provider: Provider
    other: Provider
    transport: Transport

    def visit(self, *, given_up: bool = False, ends_at: str = "") -> Visit:
        made = call()
        if given_up:
            made.cancel.fire("client_gone")
        target = Target(self.provider.root, "", Secret(""), Deadlines())
        return Visit(self.transport, made, target, (self.provider.root,), ends_at)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Provider() as provider, Provider() as other:
        transport = Transport()
        yield Stage(provider, other, transport)
        transport.close()


def test_cookies_last_for_one_visit(stage: Stage) -> None:
    stage.provider.always("/set", Answer(200, (("set-cookie", "a=1; Path=/"), ("set-cookie", "b=2; Path=/elsewhere"))))
    stage.provider.always("/get", Json({}))
    visit = stage.visit()
    visit.get(f"{stage.provider.root}/set")
    visit.get(f"{stage.provider.root}/get")
    stage.visit().get(f"{stage.provider.root}/get")
    assert [received.headers.get("cookie") for received in stage.provider.requests] == [None, "a=1", None]


def test_cookie_is_known_by_its_name(stage: Stage) -> None:
    stage.provider.always("/set", Answer(200, (("set-cookie", "_puid=user-1:x-%2B; Path=/; HttpOnly"), ("set-cookie", "empty; Path=/"))))
    visit = stage.visit()
    assert visit.cookie("_puid") == ""
    visit.get(f"{stage.provider.root}/set")
    assert (visit.cookie("_puid"), visit.cookie("empty"), visit.cookie("other")) == ("user-1:x-%2B", "", "")


def test_redirect_is_followed_with_get_and_without_the_form(stage: Stage) -> None:
    stage.provider.always("/a", Redirect("/b?x=1#part"))
    stage.provider.always("/b", Json({"there": 1}))
    page = stage.visit().post_form(f"{stage.provider.root}/a", {"secret": "s"})
    assert (page.url, page.document) == (f"{stage.provider.root}/b?x=1", {"there": 1})
    assert [(received.method, received.body) for received in stage.provider.requests] == [("POST", b"secret=s"), ("GET", b"")]


def test_redirect_may_be_looked_at_and_not_followed(stage: Stage) -> None:
    stage.provider.always("/a", Redirect("b"))
    page = stage.visit().get(f"{stage.provider.root}/a", follows=False)
    assert (page.status, page.location) == (302, f"{stage.provider.root}/b")


def test_visit_ends_where_it_is_told_to(stage: Stage) -> None:
    stage.provider.always("/a", Redirect("https://end.example/callback?code=c"))
    page = stage.visit(ends_at="https://end.example/callback").get(f"{stage.provider.root}/a")
    assert page.location == "https://end.example/callback?code=c"


def test_no_other_host_is_asked(stage: Stage) -> None:
    stage.provider.always("/a", Redirect(f"{stage.other.root}/b"))
    for url in (f"{stage.provider.root}/a", f"{stage.other.root}/b", stage.provider.root.replace("http", "https", 1), "file:///etc/passwd"):
        with pytest.raises(UpstreamProtocolError, match="none of its services"):
            stage.visit().get(url)
    assert stage.other.requests == []


def test_visit_that_was_given_up_asks_nothing(stage: Stage) -> None:
    with pytest.raises(Cancelled):
        stage.visit(given_up=True).get(f"{stage.provider.root}/a")
    assert stage.provider.requests == []


def test_nothing_of_ours_pretends_to_be_a_browser(stage: Stage) -> None:
    stage.visit().get(f"{stage.provider.root}/v1/models")
    assert {name for name, _ in stage.provider.requests[0].fields} <= {"host", "user-agent", "accept", "accept-encoding", "content-length"}
    assert stage.provider.requests[0].headers["user-agent"] == "chat-gateway"
