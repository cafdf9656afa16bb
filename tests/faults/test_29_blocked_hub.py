"""Row 29: what keeps every greenlet waiting is named in the log; where it does not end, the worker is ended and another serves."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.fakes.gateway import RawClient, RunningGateway
from tests.fakes.provider import Provider
from tests.faults.calls import CHAT, crowd
from tests.faults.conftest import Measured

CALLS = 2_000
TIMEOUT_S = 3
"""In the place of the 20 s that gunicorn.conf.py says, which tests/unit/test_gunicorn_conf.py reads."""
BLOCKING = "tests.faults.blocking_backend:Blocking"
STALL = "the hub stood still"


def ask(model: str, stream: bool = False) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream}


def stalls(gateway: RunningGateway) -> list[dict[str, object]]:
    return [line for line in gateway.log_lines() if str(line["msg"]).startswith(STALL)]


@pytest.mark.parametrize(("model", "place", "stack_of"), [("0.4", "blocking_backend.py", "the stall"), ("c-0.4", "blocking_backend.py", "the moment after")])
def test_a_stall_is_named_by_the_stack_of_what_blocks(tmp_path: Path, measured: Measured, model: str, place: str, stack_of: str) -> None:
    with RunningGateway(tmp_path) as gateway:
        gateway.deploy(model, "http://127.0.0.1:1", backend=BLOCKING)
        gateway.wait_catalog()
        assert gateway.post(CHAT, ask(model)).status == 200
        deadline = time.monotonic() + 2
        while not (lines := stalls(gateway)) and time.monotonic() < deadline:
            time.sleep(0.02)
        (line,) = lines
    stack = line["stack"]
    assert isinstance(stack, list)
    assert place in stack[0]
    assert str(line["stack_of"]).startswith(stack_of)
    seconds = float(str(line["seconds"]))
    assert seconds > 0.15
    measured(
        29,
        f"a stall ({model}) of {seconds * 1000:.0f} ms, {float(str(line['cpu_seconds'])) * 1000:.0f} ms of them computing: {stack[0].rpartition('/')[2]}",
    )


def test_a_worker_that_hangs_shows_where_and_another_takes_its_place(tmp_path: Path, measured: Measured) -> None:
    with RunningGateway(tmp_path, {"GUNICORN_CMD_ARGS": f"--timeout {TIMEOUT_S}"}) as gateway:
        gateway.deploy("600", "http://127.0.0.1:1", backend=BLOCKING)
        gateway.wait_catalog()
        with gateway.client() as client:
            began = time.monotonic()
            client.ask(CHAT, ask("600"))
            time.sleep(0.2)
            with gateway.client(key=None) as waiting:
                waiting.ask("/healthz", method="GET")
                assert waiting.silent(1)  # the only worker hears nobody
            assert client.ended(10 * TIMEOUT_S)
            ended = time.monotonic() - began
        assert gateway.get("/healthz", key=None).status == 200
        seconds = time.monotonic() - began
        log = gateway.log_path.read_text()
    measured(29, f"a worker that hung was ended after {ended:.1f} s, another answered after {seconds:.1f} s; {TIMEOUT_S} s were given")
    assert "Fatal Python error: Aborted" in log
    assert "blocking_backend.py" in log
    assert ended > TIMEOUT_S - 1.1
    assert seconds < 10 * (TIMEOUT_S + 1)


def test_ordinary_calls_let_no_other_wait(tmp_path: Path, measured: Measured) -> None:
    with Provider() as provider, RunningGateway(tmp_path, {"GATEWAY_LOG_LEVEL": "info"}) as gateway:
        gateway.deploy("m", provider.url)
        gateway.wait_catalog()
        late = Lateness(gateway)

        def call(client: RawClient, number: int) -> int:
            client.ask(CHAT, ask("m" if number % 2 else "echo", stream=number % 4 < 2))
            return client.answer().status

        with late:
            assert crowd(gateway, CALLS, call, clients=16) == [200] * CALLS
        lines = stalls(gateway)
    found = [f"{line['seconds']} s" for line in lines]
    measured(29, f"{CALLS} calls, streamed and not: {len(lines)} stalls above 100 ms {found}; /healthz meanwhile at most {max(late.seconds) * 1000:.0f} ms")
    assert all(float(str(line["seconds"])) < 1 for line in lines)
    assert max(late.seconds) < 1


class Lateness:
    """Asks /healthz again and again; `seconds` each answer took."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._gateway, self._stop = gateway, threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.seconds: list[float] = []

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _ask(self) -> None:
        with self._gateway.client(key=None) as client:
            while not self._stop.wait(0.01):
                began = time.monotonic()
                client.ask("/healthz", method="GET")
                client.answer()
                self.seconds.append(time.monotonic() - began)
