"""The entry is committed before the end of an answer leaves: what a client sees byte by byte, while a rival holds the database's lock.

Of a stream everything but the terminal event leaves at once; of a long answer everything but the block that completes it, or
the final chunk; of a whole answer nothing. Where the commit fails, the end never leaves, and the entry is in the log.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fakes.answers import Answer, Events
from tests.fakes.gateway import Broken, RawClient, RunningGateway
from tests.fakes.openai_answers import AUDIO
from tests.fakes.provider import Provider

CHAT = "/v1/chat/completions"
SPEECH = "/v1/audio/speech"
MODEL = "m"
SIZE = 5_000_000
LONG = Answer(200, (("content-type", "audio/mpeg"),), (b"a" * 1_000_000,) * (SIZE // 1_000_000))
TERMINAL = b"data: [DONE]\n\n"
HELD_S = 0.7
"""How long a rival holds the lock where the commit is to succeed after all: well below the 5 s after which it fails."""


class Rival(ABC):
    """Another user of the same database."""

    @abstractmethod
    def locked(self) -> contextlib.AbstractContextManager[None]:
        """While it is open no entry can be committed."""

    @abstractmethod
    def booked(self, exchange: str) -> int:
        """How many entries this exchange has, by a connection of the rival's own."""


@dataclass
class SqliteRival(Rival):
    path: Path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    def booked(self, exchange: str) -> int:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return int(connection.execute("SELECT count(*) FROM entry WHERE exchange = ?", (exchange,)).fetchone()[0])


@dataclass
class PostgresRival(Rival):
    url: str

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with psycopg.connect(self.url) as connection:
            connection.execute("LOCK TABLE entry IN ACCESS EXCLUSIVE MODE")
            yield
            connection.rollback()

    def booked(self, exchange: str) -> int:
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute("SELECT count(*) FROM entry WHERE exchange = %s", (exchange,)).fetchone()
            return int(row[0]) if row else 0


@dataclass
class Stage:
    gateway: RunningGateway
    provider: Provider
    rival: Rival


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as stack:
        url = request.getfixturevalue("postgres").emptied("ends") if request.param == "postgresql" else None
        gateway = stack.enter_context(RunningGateway(directory / "gateway", database_url=url))
        provider = stack.enter_context(Provider())
        gateway.deploy(MODEL, provider.url)
        gateway.wait_catalog()
        yield Stage(gateway, provider, PostgresRival(url) if url else SqliteRival(directory / "gateway" / "data" / "gateway.db"))


@contextlib.contextmanager
def asking(stage: Stage, path: str, **members: Any) -> Iterator[tuple[RawClient, str]]:
    """A client that has read the head of an answer, and the exchange's id."""
    with stage.gateway.client() as client:
        client.ask(path, {"model": MODEL, "messages": [], "input": "x", "voice": "v", **members})
        yield client, client.head().headers["x-request-id"]


@pytest.fixture
def release(stage: Stage) -> Iterator[Callable[[], None]]:
    """The rival holds the lock from the test's beginning until this is called."""
    with contextlib.ExitStack() as lock:
        lock.enter_context(stage.rival.locked())
        yield lock.close


@pytest.mark.parametrize("stream", [True, False])
def test_the_entry_is_there_when_the_end_arrives(stage: Stage, stream: bool) -> None:
    for _ in range(20):
        with stage.gateway.client() as client:
            client.read_bytes = 1
            client.ask(CHAT, {"model": MODEL, "messages": [], "stream": stream})
            exchange = client.head().headers["x-request-id"]
            client.until(b"[DONE]" if stream else b"{")
            assert stage.rival.booked(exchange) == 1


def test_a_chunked_answer_is_booked_when_its_final_chunk_arrives(stage: Stage) -> None:
    for _ in range(5):
        with asking(stage, SPEECH) as (client, exchange):
            assert client.rest() == AUDIO
            assert stage.rival.booked(exchange) == 1


def test_a_long_answer_is_booked_when_its_last_byte_arrives(stage: Stage) -> None:
    stage.provider.script(SPEECH, *[LONG] * 3)
    for _ in range(3):
        with asking(stage, SPEECH) as (client, exchange):
            assert len(client.rest()) == SIZE
            assert stage.rival.booked(exchange) == 1


def test_the_terminal_event_waits_for_the_commit(stage: Stage, release: Callable[[], None]) -> None:
    with asking(stage, CHAT, stream=True) as (client, exchange):
        body = client.until(b'"finish_reason": "stop"}]}\n\n')
        assert client.silent(HELD_S)
        assert b"[DONE]" not in body
        release()
        assert client.rest() == TERMINAL
        assert stage.rival.booked(exchange) == 1


def test_of_a_stream_in_one_block_only_the_end_waits(stage: Stage, release: Callable[[], None]) -> None:
    """The upstream sends all at once, and goes on behind the terminal event."""
    content = b'data: {"choices":[{"index":0,"delta":{"content":"all"},"finish_reason":"stop"}]}\n\n'
    stage.provider.script(CHAT, Events(content + TERMINAL + b": bye\n\n", done=False))
    with asking(stage, CHAT, stream=True) as (client, exchange):
        assert client.until(content) == content
        assert client.silent(HELD_S)
        release()
        assert client.rest() == TERMINAL + b": bye\n\n"
        assert stage.rival.booked(exchange) == 1


def test_the_end_of_a_stream_without_done_waits_for_the_commit(stage: Stage, release: Callable[[], None]) -> None:
    content = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    stage.provider.script(CHAT, Events(content, done=False))
    with asking(stage, CHAT, stream=True) as (client, exchange):
        assert client.until(content) == content
        assert client.silent(HELD_S)
        release()
        assert client.rest() == b""
        assert stage.rival.booked(exchange) == 1


def test_the_completing_block_waits_for_the_commit(stage: Stage, release: Callable[[], None]) -> None:
    stage.provider.script(SPEECH, LONG)
    with asking(stage, SPEECH) as (client, exchange):
        came = _all_that_comes(client)
        assert SIZE // 2 < came < SIZE
        release()
        assert came + len(client.rest()) == SIZE
        assert stage.rival.booked(exchange) == 1


def test_the_final_chunk_waits_for_the_commit(stage: Stage, release: Callable[[], None]) -> None:
    with asking(stage, SPEECH) as (client, exchange):
        assert _all_that_comes(client) == len(AUDIO)
        release()
        assert client.rest() == b""
        assert stage.rival.booked(exchange) == 1


def test_of_a_whole_answer_nothing_leaves_before_the_commit(stage: Stage, release: Callable[[], None]) -> None:
    with stage.gateway.client() as client:
        client.ask(CHAT, {"model": MODEL, "messages": []})
        assert client.silent(HELD_S)
        release()
        answer = client.answer()
        assert answer.status == 200
        assert stage.rival.booked(answer.headers["x-request-id"]) == 1


def _all_that_comes(client: RawClient) -> int:
    """How many bytes of the body come before nothing more does."""
    came = 0
    while not client.silent(HELD_S):
        came += len(client.block())
    return came


@contextlib.contextmanager
def no_journal(gateway: RunningGateway) -> Iterator[None]:
    """Nothing can be written where the journal should be."""
    place = gateway.directory / "data" / "journal"
    place.touch()
    try:
        yield
    finally:
        place.unlink()


def test_an_end_that_neither_the_database_nor_the_journal_books_is_withheld(stage: Stage) -> None:
    """All four ways to end at once, as the time for which the database is waited for passes only once."""
    before = len(stage.gateway.entries())
    stage.provider.script("/v1/audio/transcriptions", LONG)
    with no_journal(stage.gateway), stage.rival.locked(), ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(end, stage) for end in (_stream_without_end, _long_answer_without_end, _chunked_answer_without_end, _no_whole_answer)]
        exchanges = [end.result() for end in ends]
    logged = {line["exchange"]: line for line in stage.gateway.log_lines() if line["msg"].startswith("entry not committed")}
    for exchange, used in exchanges:  # a token costs 1 nano-dollar here
        entry = logged[exchange]["entry"]
        assert (entry["exchange"], entry["ending"], entry["model_asked"], entry["deployment"]) == (exchange, "complete", MODEL, MODEL)
        assert entry["usage"]["output_text"] == used
        assert entry["amount"] == sum(entry["usage"][bucket] for bucket in ("input_uncached", "cache_read", "output_text"))
    _recovers(stage, before)


def _stream_without_end(stage: Stage) -> tuple[str, int]:
    with asking(stage, CHAT, stream=True) as (client, exchange):
        client.until(b'"finish_reason": "stop"')
        events = client.rest().rstrip(b"\n").split(b"\n\n")
    told = json.loads(events[-1].removeprefix(b"data: "))["error"]
    assert told["code"] == "settle_failed"
    assert told["exchange"] == exchange
    assert all(b"[DONE]" not in event for event in events)
    return exchange, 12


def _long_answer_without_end(stage: Stage) -> tuple[str, int]:
    with stage.gateway.client() as client:
        form = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n'
        client.ask("/v1/audio/transcriptions", form, headers={"content-type": "multipart/form-data; boundary=x"})
        exchange = client.head().headers["x-request-id"]
        with pytest.raises(Broken) as broken:
            client.rest()
        assert SIZE // 2 < len(broken.value.body) < SIZE
    return exchange, 0


def _chunked_answer_without_end(stage: Stage) -> tuple[str, int]:
    with asking(stage, SPEECH) as (client, exchange), pytest.raises(Broken) as broken:
        client.rest()
    assert broken.value.body == AUDIO
    return exchange, 0


def _no_whole_answer(stage: Stage) -> tuple[str, int]:
    with stage.gateway.client() as client:
        client.ask(CHAT, {"model": MODEL, "messages": []})
        answer = client.answer()
    assert answer.status == 500
    assert answer.json()["error"]["code"] == "settle_failed"
    assert answer.headers["x-should-retry"] == "false"
    return answer.headers["x-request-id"], 12


def _recovers(stage: Stage, before: int) -> None:
    deadline = time.monotonic() + 3
    while stage.gateway.post(CHAT, {"model": MODEL, "messages": []}).status != 200:
        assert time.monotonic() < deadline, "the gateway does not recover from a lock that is gone"
        time.sleep(0.1)
    assert len(stage.gateway.entries()) > before


def test_many_streams_share_a_commit_and_each_waits_for_it(stage: Stage, release: Callable[[], None]) -> None:
    count = 30
    reached, ended = threading.Semaphore(0), threading.Semaphore(0)

    def one(_: int) -> int:
        with asking(stage, CHAT, stream=True) as (client, exchange):
            client.until(b'"finish_reason": "stop"')
            reached.release()
            assert client.rest().endswith(TERMINAL)
            ended.release()
            return stage.rival.booked(exchange)

    with ThreadPoolExecutor(count) as pool:
        booked = pool.map(one, range(count))
        for _ in range(count):
            assert reached.acquire(timeout=5)
        assert not ended.acquire(timeout=HELD_S)
        release()
        assert list(booked) == [1] * count
