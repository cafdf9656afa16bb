"""Row 26, streams: a server that is told to end accepts nobody, lets answers end or say that they are cut, books each, and is gone in time."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fakes.answers import Action, Answer, Default, End, Events, Silent, Slow, script_of
from tests.fakes.gateway import RawClient, RunningGateway
from tests.fakes.nginx import RunningNginx
from tests.fakes.provider import Provider
from tests.fakes.received import Received
from tests.faults.calls import CHAT, Outcome, outcome
from tests.faults.conftest import Measured

DRAIN_S = 3
STREAMS = 24
BLOCK = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"}}]}\n\n'


def stalled(received: Received) -> Iterator[Action]:
    """A good answer's head and first two blocks, and nothing more."""
    yield from itertools.islice(script_of(Default(), received), 3)
    yield End.HOLD


QUICK, SILENT = Slow(0.04), Silent()


def streams(connect: Callable[[], RawClient], provider: Provider, began: Callable[[], None]) -> list[Outcome]:
    """What so many streams see: a third ends in time, a third stalls, a third never begins. `began` is called while all are open."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}

    def one(number: int) -> Outcome:
        with connect() as client:
            return outcome(client, CHAT, body)

    provider.script("/v1/chat/completions", *[QUICK, stalled, SILENT] * (STREAMS // 3))
    with ThreadPoolExecutor(STREAMS) as pool:
        waiting = [pool.submit(one, number) for number in range(STREAMS)]
        provider.wait_requests(STREAMS)
        time.sleep(0.1)
        began()
        return [each.result() for each in waiting]


@pytest.mark.parametrize(("workers", "front"), [(1, "direct"), (2, "direct"), (2, "nginx")])
def test_every_stream_ends_whole_or_says_that_it_is_cut_and_is_booked(tmp_path: Path, measured: Measured, workers: int, front: str) -> None:
    settings = {"GATEWAY_DRAIN_S": str(DRAIN_S), "WEB_CONCURRENCY": str(workers)}
    with Provider() as provider, RunningGateway(tmp_path / "gateway", settings) as gateway, RunningNginx(tmp_path / "nginx", gateway.port) as nginx:
        gateway.deploy("m", provider.url)
        time.sleep(0.7)  # each worker follows the catalog by itself
        told: list[float] = []

        def tell() -> None:
            assert gateway.process is not None
            told.append(time.monotonic())
            gateway.process.send_signal(signal.SIGTERM)

        got = streams(gateway.client if front == "direct" else lambda: nginx.client(gateway.key), provider, tell)
        assert gateway.process is not None
        status = gateway.process.wait(10 * DRAIN_S)
        seconds = time.monotonic() - told[0]
        booked = gateway.wait_endings("m", STREAMS)
    silent = sum(each.truncated_silently() for each in got)
    whole = sum(each.done for each in got)
    measured(
        26, f"{workers} workers, {front}: {silent} silent truncations of {STREAMS}, {whole} whole; all gone {seconds:.2f} s after SIGTERM, {DRAIN_S} s given"
    )
    assert status == 0
    assert silent == 0
    assert sorted(each.status for each in got) == [200] * (STREAMS - STREAMS // 3) + [503] * (STREAMS // 3)
    assert all("shutting down" in str(each.error()) for each in got if not each.done)
    assert booked == dict.fromkeys(("complete", "upstream_truncated", "upstream_error"), STREAMS // 3)
    assert seconds < DRAIN_S + 2


def test_new_connections_are_refused_at_once_and_open_ones_are_served_once_more(tmp_path: Path) -> None:
    with Provider() as provider, RunningGateway(tmp_path, {"GATEWAY_DRAIN_S": str(DRAIN_S)}) as gateway:
        gateway.deploy("m", provider.url)
        gateway.wait_catalog()
        provider.script("/v1/chat/completions", Slow(0.05))
        ask = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
        with gateway.client() as streaming, gateway.client() as kept:
            streaming.ask(CHAT, ask | {"model": "m", "stream": True})
            streaming.head()
            kept.ask(CHAT, ask)
            assert kept.answer().headers["connection"] == "keep-alive"
            assert gateway.process is not None
            gateway.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            kept.ask(CHAT, ask)
            last = kept.answer()
            assert (last.status, last.headers["connection"]) == (200, "close")
            assert kept.ended(1)
            with pytest.raises(ConnectionRefusedError):
                gateway.client()
            assert b"[DONE]" in streaming.rest()
        assert gateway.process.wait(DRAIN_S) == 0


def test_idle_connection_holds_nobody_up(tmp_path: Path, measured: Measured) -> None:
    with RunningGateway(tmp_path, {"GATEWAY_DRAIN_S": "20"}) as gateway, gateway.client() as idle:
        idle.ask(CHAT, {"model": "echo", "messages": [{"role": "user", "content": "x"}]})
        assert idle.answer().status == 200
        assert gateway.process is not None
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(20) == 0
        seconds = time.monotonic() - began
    measured(26, f"with an idle connection gone after {seconds:.2f} s, 20 s given")
    assert seconds < 10


def test_reader_who_takes_nothing_is_cut_in_time_and_its_call_booked(tmp_path: Path) -> None:
    with Provider() as provider, RunningGateway(tmp_path, {"GATEWAY_DRAIN_S": str(DRAIN_S)}) as gateway:
        gateway.deploy("m", provider.url)
        gateway.wait_catalog()
        provider.always("/v1/chat/completions", Answer(200, (("content-type", "text/event-stream"),), (BLOCK,) * 500, "chunked"))
        with gateway.client() as client:
            client.ask(CHAT, {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True})
            client.head()
            time.sleep(0.3)
            assert gateway.process is not None
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(DRAIN_S + 2) == 0
        (entry,) = gateway.wait_entries(1)
        assert entry.ending != "complete"


def _streaming(gateway: RunningGateway, provider: Provider) -> RawClient:
    """A client in the middle of a stream of 40 s."""
    gateway.deploy("m", provider.url)
    gateway.wait_catalog()
    provider.always("/v1/chat/completions", Events(*[{"choices": [{"index": 0, "delta": {"content": "x"}}]}] * 200, pause_s=0.2))
    client = gateway.client()
    client.ask(CHAT, {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]})
    client.head()
    client.block()
    return client


def test_death_of_the_first_process_ends_streams_with_a_word_and_books_them(tmp_path: Path) -> None:
    with Provider() as provider, RunningGateway(tmp_path, {"GATEWAY_DRAIN_S": str(DRAIN_S)}) as gateway, _streaming(gateway, provider) as client:
        assert gateway.process is not None
        gateway.process.kill()
        assert b"shutting down" in client.rest()
        assert gateway.wait_endings("m", 1) == {"upstream_truncated": 1}


def test_second_ctrl_c_cuts_streams_and_books_them(tmp_path: Path) -> None:
    with Provider() as provider, RunningGateway(tmp_path, {"GATEWAY_DRAIN_S": "20"}) as gateway, _streaming(gateway, provider):
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        gateway.process.send_signal(signal.SIGINT)
        gateway.process.wait(5)
        assert gateway.wait_endings("m", 1) == {"client_gone": 1}
