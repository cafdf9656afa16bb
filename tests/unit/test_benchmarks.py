"""The benchmark's own arithmetic, and that its load tool sees what is wrong with an answer."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.comparison import Progress
from benchmarks.figures import ROWS, WORKS, Goal, Samples, Scale
from benchmarks.load import Outcome, Place, Spread, Upstream, run_load
from benchmarks.processes import Cores, memory
from benchmarks.soak import Sample, slope, verdict
from benchmarks.table import number, ratio, remarks, table

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: apt-get install gcc libc6-dev")
CORES = Cores.of_this_machine()


def outcome(requests: int = 10, exact: int = 10, **rates: float) -> Outcome:
    spread = Spread(100, 200, 300, 400, requests)
    figures = {"requests_per_s": 5.0, "chunks_per_s": 0.0} | rates
    return Outcome(requests, exact, requests - exact, 0, 0, 20, 2.0, figures["requests_per_s"], figures["chunks_per_s"], spread, spread, "")


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0"), (0.00042, "0.0004"), (0.0301, "0.0301"), (12.345, "12.3"), (345.6, "346"), (123456.7, "123,457")]
)
def test_numbers_have_three_digits_that_matter(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_ratio_needs_both_sides_and_no_negative() -> None:
    assert ratio(3.0, 2.0) == "1.5"
    assert ratio(None, 2.0) == ratio(3.0, None) == ratio(3.0, 0.0) == ratio(-1.0, 2.0) == "-"


def test_a_goal_in_time_is_wider_where_nginx_is_slower() -> None:
    samples = Samples()
    samples.add("nginx", {"requests.requests_per_s": 46_000.0, "requests.cpu_us_request": 25.0})
    assert Goal(10, scale=Scale.TIME).reached(19.9, samples.slowness(Scale.TIME))
    assert not Goal(10, scale=Scale.TIME).reached(20.1, samples.slowness(Scale.TIME))
    assert Goal(100, least=True, scale=Scale.TIME).allowed(samples.slowness(Scale.TIME)) == 50
    assert Goal(60, scale=Scale.CPU).allowed(samples.slowness(Scale.CPU)) == 150
    assert Goal(60).allowed(samples.slowness(Scale.NONE)) == 60


def test_other_load_which_slows_nginx_but_costs_it_nothing_widens_no_goal() -> None:
    samples = Samples()
    samples.add("nginx", {"requests.requests_per_s": 9_200.0, "requests.cpu_us_request": 12.0})
    assert samples.slowness(Scale.TIME) == samples.slowness(Scale.CPU) == 1.2


def test_a_goal_is_never_narrower_than_it_is_set() -> None:
    samples = Samples()
    assert samples.slowness(Scale.TIME) == 1
    samples.add("nginx", {"requests.requests_per_s": 200_000.0, "requests.cpu_us_request": 4.0})
    assert samples.slowness(Scale.TIME) == samples.slowness(Scale.CPU) == 1


def test_added_latency_is_beyond_directs_median() -> None:
    row = next(row for row in ROWS if row.sample == "latency.p50_ms")
    samples = Samples()
    for direct, gateway in ((0.1, 1.0), (0.2, 1.1), (9.0, 1.2)):
        samples.add("direct", {"latency.p50_ms": direct})
        samples.add("gateway", {"latency.p50_ms": gateway})
    assert samples.value(row, "direct") == 0.2
    assert samples.value(row, "gateway") == pytest.approx(0.9)
    assert samples.value(row, "nginx") is None


def test_the_table_shows_what_was_measured_and_whether_the_goal_is_reached() -> None:
    samples = Samples()
    samples.add("nginx", {"requests.requests_per_s": 92_000.0})
    samples.add("gateway", {"requests.requests_per_s": 920.0, "start.start_s": 1.0})
    samples.count("gateway", outcome(10, 9))
    text = "\n".join(table(samples, ["nginx", "gateway"]))
    shown = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for line in text.splitlines() if (cells := line.split("|"))}
    assert shown["requests/s, 64 connections"] == ["92,000", "920", "0.01", "", ""]
    assert shown["... as a multiple of nginx's"] == ["-", "0.01", "-", ">= 0.03", "no"]
    assert shown["start to first answer, s"] == ["-", "1", "-", "<= 2", "yes"]
    assert shown["exact answers"] == ["-", "9 of 10", "-", "all", "no"]
    assert len(shown) == 6, "rows that nothing was measured for are left out"
    assert not any("slower" in line for line in remarks(samples))


def test_clients_that_left_on_purpose_are_no_mistakes() -> None:
    samples = Samples()
    samples.count("gateway", Outcome(10, 7, 0, 0, 3, 0, 1.0, 1.0, 0.0, Spread(1, 1, 1, 1, 1), Spread(1, 1, 1, 1, 1), ""))
    assert samples.exact["gateway"] == samples.answers["gateway"] == 7


def test_a_work_counts_cpu_per_request_and_per_chunk() -> None:
    found = WORKS[0].read(outcome(requests=10), cpu_s=0.001)
    assert found["requests.cpu_us_request"] == 100
    assert found["requests.cpu_us_chunk"] == 50
    assert found["requests.p50_ms"] == 0.1


def test_progress_counts_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(2).next("gateway: 1 connection")
    assert capsys.readouterr().err == "[1/2] gateway: 1 connection\n"


def test_a_growing_worker_is_told_from_a_flat_one() -> None:
    flat = [Sample(60 + 5 * at, 80.0, 50, 10, 10) for at in range(20)]
    growing = [Sample(60 + 5 * at, 80.0 + at, 50, 10, 10) for at in range(20)]
    assert (slope(flat), verdict(flat)) == (0, "flat")
    assert slope(growing) == pytest.approx(12)
    assert verdict(growing) == "growing"
    assert verdict(flat[:1]) == "flat"
    assert verdict([Sample(0, 80.0, 50, 10, 10)]) == "too short to tell"


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    running = Upstream(CORES, tmp_path)
    yield running
    running.started.stop()


@needs_compiler
@pytest.mark.parametrize("model", ["whole-600-0", "whole-300000-1", "stream-5-0", "stream-300-0-7", "stream-3-2"])
@pytest.mark.parametrize("words", [(), ("--content",), ("--usage",)])
def test_what_the_upstream_sends_is_what_the_load_tool_expects(upstream: Upstream, model: str, words: tuple[str, ...]) -> None:
    found = run_load(Place(upstream.port), ["--connections", "4", "--requests", "40", "--model", model, *words], CORES)
    assert (found.exact, found.wrong, found.failed, found.mistake) == (40, 0, 0, "")
    assert found.latency.p50 <= found.latency.p99
    assert upstream.stats()["answering"] == 0
    assert memory([upstream.started.process.pid]).rss > 0


@needs_compiler
def test_clients_that_leave_are_seen_by_the_upstream(upstream: Upstream) -> None:
    found = run_load(Place(upstream.port), ["--connections", "4", "--requests", "40", "--model", "stream-20-2", "--leave", "0.5"], CORES)
    assert found.left
    assert found.exact + found.left == 40
    assert upstream.stats()["connections"] == 0


def answer_of(body: str, model: str) -> bytes:
    """What the upstream would answer to `stream-2-0`, written down once more."""
    nonce = body.partition("nonce-")[2][:8]
    event = 'data: {"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk","created":1735689600,"model":"%s","choices":'
    event += '[{"index":0,"delta":{%s},"logprobs":null,"finish_reason":%s}]}\n\n'
    deltas = ('"role":"assistant","content":""', f'"content":" {nonce}.0"', f'"content":" {nonce}.1"')
    events = [event % (model, delta, "null") for delta in deltas] + [event % (model, "", '"stop"'), "data: [DONE]\n\n"]
    return "".join(events).encode()


WRONG, SHORT, UNSEEN = "wrong byte", "the answer ended after", ""


@needs_compiler
@pytest.mark.parametrize(
    ("change", "bytes_say", "content_says"),
    [
        pytest.param(lambda answer: answer, UNSEEN, UNSEEN, id="as it should be"),
        pytest.param(lambda answer: answer.replace(b"assistant", b"assistent"), WRONG, UNSEEN, id="a byte outside the content"),
        pytest.param(lambda answer: answer.replace(b".1", b".2"), WRONG, WRONG, id="a byte of the content"),
        pytest.param(lambda answer: answer.replace(b'"content":" 0', b'"content":" f'), WRONG, WRONG, id="the answer to another request"),
        pytest.param(lambda answer: answer.removesuffix(b"data: [DONE]\n\n"), SHORT, SHORT, id="no end"),
        pytest.param(lambda answer: answer + b"data: more\n\n", WRONG, UNSEEN, id="an event too many"),
        pytest.param(lambda answer: b"", SHORT, SHORT, id="nothing"),
    ],
)
@pytest.mark.parametrize("exact", [True, False], ids=["bytes", "content"])
def test_the_load_tool_sees_what_is_wrong(change: Callable[[bytes], bytes], bytes_say: str, content_says: str, exact: bool) -> None:
    class Answering(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            answer = change(answer_of(body, "stream-2-0"))
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        found = run_load(Place(server.server_port, exact=exact), ["--connections", "1", "--requests", "3", "--model", "stream-2-0"], CORES)
        server.shutdown()
    told = bytes_say if exact else content_says
    assert (found.exact, found.wrong) == ((0, 3) if told else (3, 0))
    assert found.mistake.startswith(told)
    assert bool(found.mistake) == bool(told)
