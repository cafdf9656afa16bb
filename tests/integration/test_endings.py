"""The table of who pays for which ending (docs/operator.md): every ending, streamed and not, in three dialects, cancelled and drained.

Each call has a model of its own, whose name says which script the provider plays, so that all of them run at once.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.store.ledger import Entry
from tests.fakes.answers import Action, Answer, Default, Delay, End, ErrorEvent, Json, Silent, Status, Step, answer_of, script_of
from tests.fakes.gateway import Broken, RunningGateway
from tests.fakes.openai_answers import error_object
from tests.fakes.provider import Provider
from tests.fakes.received import Received

TOKENS = 21
"""What the fake says it used; at 1000 pico-dollars a token also the nano-dollars."""
DEADLINE_S = 2.0
DIALECTS = {
    "chat": ("/chat/completions", {"messages": [{"role": "user", "content": "Hello there"}]}),
    "completions": ("/completions", {"prompt": "Hello there"}),
    "responses": ("/responses", {"input": "Hello there"}),
}


@dataclass(frozen=True)
class Part:
    """The first blocks of a streamed answer, or half of a whole one, and then something else."""

    blocks: int
    then: tuple[Action, ...]

    def __call__(self, received: Received) -> Iterator[Action]:
        head, *blocks = script_of(Default(), received)
        yield head
        if json.loads(received.body).get("stream"):
            yield from blocks[: self.blocks]
        else:
            assert isinstance(blocks[0], bytes)
            yield blocks[0][: len(blocks[0]) // 2]
        yield from self.then


@dataclass(frozen=True)
class Paused:
    """A silence after the first blocks, or before the head of a whole answer."""

    blocks: int
    seconds: float

    def __call__(self, received: Received) -> Iterator[Action]:
        for position, action in enumerate(script_of(Default(), received)):
            if position == (self.blocks + 1 if json.loads(received.body).get("stream") else 0):
                yield self.seconds
            yield action


@dataclass(frozen=True)
class Edited:
    """Every usage of the answer changed."""

    edit: Callable[[dict[str, Any]], dict[str, Any] | None]

    def __call__(self, received: Received) -> Answer:
        answer = answer_of(Default(), received)
        return dataclasses.replace(answer, blocks=tuple(map(self._edited, answer.blocks)))

    def _edited(self, block: bytes) -> bytes:
        start, end = block.find(b"{"), block.rfind(b"}") + 1
        if start < 0:
            return block
        document = json.loads(block[start:end])
        for holder in (document, document.get("response")):
            if isinstance(holder, dict) and holder.get("usage"):
                holder["usage"] = self.edit(holder["usage"])
        return block[:start] + json.dumps(document).encode() + block[end:]


def zeros(usage: dict[str, Any]) -> dict[str, Any]:
    return {name: zeros(value) if isinstance(value, dict) else 0 for name, value in usage.items()}


@dataclass(frozen=True)
class Expected:
    """`amount` None: by estimate, of so many delivered `events`."""

    ending: str
    source: str
    amount: int | None = 0
    events: int = 0


@dataclass(frozen=True)
class Case:
    """`leaves`: the client goes away in the middle. `chunk` is an error that comes as a chunk of a stream."""

    step: Step
    streamed: Expected
    whole: Expected
    leaves: bool = False
    policy: str = "cancel"


FAILED = Expected("upstream_error", "none")
PAID = Expected("complete", "provider", TOKENS)
ERROR = b"data: " + json.dumps(error_object("The server had an error", kind="server_error")).encode() + b"\n\n"
CASES = {
    "complete": Case(Default(), PAID, PAID),
    "no-usage": Case(Edited(lambda usage: None), Expected("complete", "estimated", None, -1), Expected("complete", "estimated", None)),
    "zero-usage": Case(Edited(zeros), Expected("complete", "provider"), Expected("complete", "provider")),
    "clients-mistake": Case(Status(400), FAILED, FAILED),
    "server-error": Case(Status(500), FAILED, FAILED),
    "error-in-place-of-content": Case(
        lambda received: ErrorEvent() if json.loads(received.body).get("stream") else Json(error_object("no", kind="server_error")), FAILED, FAILED
    ),
    "cut": Case(Part(4, (End.RESET,)), Expected("upstream_truncated", "estimated", None, 4), FAILED),
    "error-after-content": Case(
        lambda received: Part(4, (b"%x\r\n%b\r\n0\r\n\r\n" % (len(ERROR), ERROR),))(received) if json.loads(received.body).get("stream") else Status(503),
        Expected("upstream_truncated", "estimated", None, 5),
        FAILED,
    ),
    "silent": Case(Silent(), Expected("timeout", "none"), Expected("timeout", "none")),
    "stalled": Case(Part(4, (End.HOLD,)), Expected("timeout", "estimated", None, 4), Expected("timeout", "none")),
    "left": Case(Paused(4, 1.0), Expected("client_gone", "estimated", None, 4), Expected("client_gone", "none"), leaves=True),
    "left-and-drained": Case(
        Paused(4, 1.0), Expected("client_gone", "provider", TOKENS), Expected("client_gone", "provider", TOKENS), leaves=True, policy="drain"
    ),
    "left-silent-and-drained": Case(
        Delay(0.5), Expected("client_gone", "provider", TOKENS), Expected("client_gone", "provider", TOKENS), leaves=True, policy="drain"
    ),
}


class Invoice:
    """Plays the script that a model's name tells, and adds up what the provider counts: every answer that it could send to its end."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, received: Received) -> Iterator[Action]:
        model = json.loads(received.body)["model"]
        yield from script_of(CASES[model.split(".")[1]].step, received)
        with self._lock:
            self.tokens[model] = TOKENS


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningGateway, Invoice]]:
    invoice = Invoice()
    with Provider() as provider, RunningGateway(tmp_path_factory.mktemp("gateway")) as gateway:
        for path, _ in DIALECTS.values():
            provider.always(f"/v1{path}", invoice)
        for policy in ("cancel", "drain"):
            gateway.deploy(f"{policy}.*", provider.url, first_byte_s=DEADLINE_S, idle_s=DEADLINE_S)
            gateway.limit_model(f"{policy}.*", on_client_gone=policy)
        gateway.wait_catalog()
        yield gateway, invoice


def names() -> list[tuple[str, str, bool]]:
    return [(dialect, name, streamed) for dialect in DIALECTS for name in CASES for streamed in (True, False)]


def model_of(dialect: str, name: str, streamed: bool) -> str:
    return f"{CASES[name].policy}.{name}.{dialect}.{'stream' if streamed else 'whole'}"


def body_of(dialect: str, name: str, streamed: bool) -> bytes:
    return json.dumps({"model": model_of(dialect, name, streamed), **DIALECTS[dialect][1], "stream": streamed}).encode()


def play(gateway: RunningGateway, dialect: str, name: str, streamed: bool) -> None:
    case = CASES[name]
    with gateway.client() as client:
        client.ask(f"/v1{DIALECTS[dialect][0]}", body_of(dialect, name, streamed))
        if not case.leaves:
            try:
                client.answer()
            except Broken:
                return
        elif streamed and isinstance(case.step, Paused):
            client.head()
            seen = 0
            while seen < case.step.blocks:
                seen += client.block().count(b"data: ")
        else:
            time.sleep(0.25)


@pytest.fixture(scope="module")
def entries(stage: tuple[RunningGateway, Invoice]) -> dict[str, list[Entry]]:
    """By the model that was asked for, once all calls have ended."""
    gateway, _ = stage
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda one: play(gateway, *one), names()))
    found: dict[str, list[Entry]] = {}
    for entry in gateway.wait_entries(len(names()), 15):
        found.setdefault(entry.model_asked, []).append(entry)
    return found


@pytest.mark.parametrize(("dialect", "name", "streamed"), names())
def test_every_ending_is_booked_once_as_the_table_says(entries: dict[str, list[Entry]], dialect: str, name: str, streamed: bool) -> None:
    expected = CASES[name].streamed if streamed else CASES[name].whole
    (entry,) = entries[model_of(dialect, name, streamed)]
    amount, source = expected.amount, expected.source
    if amount is None and dialect == "responses" and not streamed:  # not every answer of a REST endpoint is text: without a usage it costs nothing
        amount, source = 0, "none"
    assert (entry.ending, entry.usage_source) == (expected.ending, source)
    told = len(body_of(dialect, name, streamed)) // 4
    if amount is not None:
        assert entry.amount == amount
    elif expected.events > 0:
        assert entry.usage.buckets()["output_text"] == expected.events - 2
        assert told <= entry.amount - (expected.events - 2) <= told + 4  # the body as it is sent on, which may say "store"
    else:
        assert entry.amount > told
    assert entry.cost == entry.amount


def test_what_is_drained_adds_up_to_the_providers_own_invoice(stage: tuple[RunningGateway, Invoice], entries: dict[str, list[Entry]]) -> None:
    drained = {model: sum(entry.cost for entry in booked) for model, booked in entries.items() if model.startswith("drain.")}
    invoiced = {model: tokens for model, tokens in stage[1].tokens.items() if model.startswith("drain.")}
    assert len(drained) == 12
    assert drained == invoiced


def test_a_refused_call_has_no_entry(stage: tuple[RunningGateway, Invoice], entries: dict[str, list[Entry]]) -> None:
    gateway, _ = stage
    before = len(gateway.entries())
    assert gateway.post("/v1/chat/completions", {"model": "nothing", "messages": []}).status == 404
    assert len(gateway.entries()) == before == len(names())


def test_what_a_provider_bills_for_a_failed_attempt_is_on_the_operators_account(tmp_path: Path) -> None:
    failure = Json({**error_object("overloaded", kind="server_error"), "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}}, 500)
    with Provider() as first, Provider() as second, RunningGateway(tmp_path) as gateway:
        first.always("/v1/chat/completions", failure)
        gateway.deploy("m", first.url, name="first", priority=0)
        gateway.deploy("m", second.url, name="second", priority=1)
        gateway.wait_catalog()
        answer = gateway.post("/v1/chat/completions", {"model": "m", "messages": []})
        assert answer.status == 200
        booked = [(entry.kind, entry.deployment, entry.user, entry.amount, entry.cost) for entry in gateway.wait_entries(2)]
    assert booked == [("usage", "second", 1, TOKENS, TOKENS), ("attempt", "first", 0, 0, 11)]
