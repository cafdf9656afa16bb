"""The extension in real browsers, between a fake gateway and a fake site: a person saves the options, opens the page, and its session answers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import chromium, firefox
from tests.fakes.agent_gateway import PROTOCOL, AgentGateway, Attached
from tests.fakes.answers import Answer, Json, StallAt
from tests.fakes.chatgpt_web import TEXT, Conversation, Expired
from tests.fakes.chromium import Chromium
from tests.fakes.firefox import Firefox
from tests.fakes.provider import Provider
from tests.fakes.received import Received

pytestmark = pytest.mark.timeout(120)
EXTENSION = Path(__file__).parents[2] / "agents" / "webextension"
TOKEN = "gwa_token-of-the-browser"
PAGE = Answer(200, (("content-type", "text/html"), ("set-cookie", "session=of-the-person; HttpOnly; SameSite=Lax")), (b"<!doctype html><title>A chat</title>",))
ASKED = "/backend-api/conversation"
FILL = "Object.entries(%s).forEach(([name, value]) => document.forms[0].elements[name].value = value)"


@dataclass
class Browser:
    program: Chromium | Firefox
    gateway: AgentGateway
    site: Provider
    options: str
    """The options page, which stays open."""

    def status(self) -> dict[str, str]:
        script = "Object.fromEntries(['state', 'error', 'served'].map((id) => [id, document.getElementById(id).textContent]))"
        status: dict[str, str] = self.program.evaluate(self.options, script)
        return status

    def wait(self, met: Callable[[dict[str, str]], bool], timeout_s: float = 15.0) -> dict[str, str]:
        until = time.monotonic() + timeout_s
        while not met(status := self.status()):
            assert time.monotonic() < until, status
            time.sleep(0.05)
        return status

    def save(self, **changed: str) -> None:
        given = {"gateway": self.gateway.url, "token": TOKEN, "site": self.site.root, "kind": "chatgpt_web", "models": "gpt-4, other", **changed}
        self.program.evaluate(self.options, FILL % json.dumps(given))
        self.program.click(self.options, "button")

    def open(self) -> tuple[str, Attached]:
        """The site's page, and what the gateway sees of it."""
        page = self.program.open(self.site.root + "/")
        return page, self.gateway.accept(20)

    def asked(self, path: str) -> list[Received]:
        return [received for received in self.site.requests if received.path == path]


def made(name: str, directory: Path) -> Chromium | Firefox:
    """In Chromium, the permission that a person would grant in a dialogue is in the manifest from the beginning: without a head no dialogue can be clicked."""
    kind = {"chromium": chromium, "firefox": firefox}[name]
    if shutil.which(kind.PROGRAM) is None:
        pytest.skip(f"{kind.PROGRAM} is missing: apt-get install {kind.PROGRAM}")
    if name == "firefox":
        return Firefox(directory, EXTENSION)
    shutil.copytree(EXTENSION, directory / "extension")
    manifest = json.loads((EXTENSION / "manifest.json").read_text())
    (directory / "extension" / "manifest.json").write_text(json.dumps(manifest | {"host_permissions": ["http://127.0.0.1/*"]}))
    return Chromium(directory, directory / "extension")


@pytest.fixture(scope="module", params=["chromium", "firefox"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with AgentGateway() as gateway, Provider() as site, made(request.param, tmp_path_factory.mktemp(request.param)) as program:
        page = program.open(program.extension_url() + "/options.html")
        browser = Browser(program, gateway, site, page)
        browser.wait(lambda status: status["state"] == "off")
        browser.save()
        browser.wait(lambda status: "open a page" in status["error"])
        yield browser


@pytest.fixture
def browser(opened: Browser) -> Iterator[Browser]:
    opened.site.forget()
    opened.site.always("/", PAGE)
    opened.site.always("/api/auth/session", Json({"accessToken": "of-the-page"}))
    opened.site.always(ASKED, Conversation())
    yield opened
    for page in opened.program.pages(opened.site.root):
        opened.program.close(page)
    opened.wait(lambda status: status["state"] == "off" and "no page" in status["error"])


def ask(agent: Attached, identity: str, **members: Any) -> None:
    agent.ask(identity, body={"model": "gpt-4"}, **members)


def test_page_answers_in_its_own_session(browser: Browser) -> None:
    _, agent = browser.open()
    assert agent.request.subprotocols == [PROTOCOL]
    assert agent.headers["origin"].startswith(("chrome-extension://", "moz-extension://"))
    hello = agent.hello
    assert (hello["token"], hello["models"], hello["concurrency"], hello["resumes"]) == (TOKEN, ["gpt-4", "other"], 1, False)
    browser.wait(lambda status: status["state"] == "connected")
    ask(agent, "r1")
    *deltas, done = agent.answer()
    assert "".join(frame["text"] for frame in deltas) == TEXT
    assert len(deltas) > 3
    assert [frame["seq"] for frame in [*deltas, done]] == list(range(1, len(deltas) + 2))
    assert (done["reason"], done["conversation"]["id"]) == ("stop", "conversation-1")
    (session,), (conversation,) = browser.asked("/api/auth/session"), browser.asked(ASKED)
    assert session.headers["cookie"] == conversation.headers["cookie"] == "session=of-the-person"
    assert conversation.headers["authorization"] == "Bearer of-the-page"
    assert conversation.json()["messages"][0]["content"]["parts"] == ["hi"]
    assert TOKEN not in repr([(received.headers, received.body) for received in browser.site.requests])
    assert browser.wait(lambda status: status["served"] == "1")["error"] == ""


def test_refusal_of_the_page_is_an_error_with_its_cause(browser: Browser) -> None:
    _, agent = browser.open()
    browser.site.script(ASKED, Expired())
    ask(agent, "r1")
    assert agent.receive()["cause"] == "unauthorised"
    assert "sign in" in browser.wait(lambda status: status["error"] != "")["error"]


def test_cancel_ends_the_request_to_the_site(browser: Browser) -> None:
    _, agent = browser.open()
    browser.site.script(ASKED, StallAt(2000, Conversation()))
    ask(agent, "r1")
    assert agent.receive()["type"] == "delta"
    agent.send(type="cancel", id="r1")
    browser.site.wait_closed()
    ask(agent, "r2")
    while (frame := agent.receive())["type"] == "delta":
        pass
    assert (frame["type"], frame["id"]) == ("done", "r2")


def test_page_that_is_closed_is_told(browser: Browser) -> None:
    page, agent = browser.open()
    browser.site.script(ASKED, StallAt(2000, Conversation()))
    ask(agent, "r1")
    assert agent.receive()["type"] == "delta"
    browser.program.close(page)
    while (frame := agent.receive())["type"] == "delta":
        pass
    assert (frame["type"], frame["cause"]) == ("error", "upstream_failed")
    assert agent.wait_closed() == 1000


@pytest.mark.parametrize("opened", ["chromium"], indirect=True)
def test_worker_that_the_browser_ended_comes_back_with_its_page(browser: Browser) -> None:
    _, agent = browser.open()
    assert isinstance(browser.program, Chromium)
    browser.program.end_worker()
    assert agent.wait_closed(10) is not None
    again = browser.gateway.accept(20)
    ask(again, "r1")
    assert again.answer()[-1]["type"] == "done"


def test_lost_connection_is_made_again(browser: Browser) -> None:
    _, agent = browser.open()
    agent.drop()
    again = browser.gateway.accept(20)
    ask(again, "r1")
    assert again.answer()[-1]["type"] == "done"


def test_final_close_stops_it_until_the_options_are_saved(browser: Browser) -> None:
    _, agent = browser.open()
    agent.close(4401)
    assert "token" in browser.wait(lambda status: status["state"] == "stopped")["error"]
    browser.save(token=TOKEN + "-2")
    assert browser.gateway.accept(20).hello["token"] == TOKEN + "-2"
    browser.save()
    browser.gateway.accept(20)
