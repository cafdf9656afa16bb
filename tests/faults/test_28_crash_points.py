"""Row 28, point by point: a worker dies by kill -9 at each step of a call at which the money could go astray, and bookings arrive twice. What the
kill test meets by chance is here in turn; and with a promise broken on purpose, in three ways, its checks find that.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.store import holds
from gateway.store.models import database
from tests.fakes.answers import Delay
from tests.faults.conftest import Measured
from tests.faults.crashes import SOON_S, Crashing, Findings, crashing, settled

CLEAN = Findings([], [], ())
CHAT_UPSTREAM = "/v1/chat/completions"
POINTS = {
    # point: does the client see the end of a stream, of a whole answer; how the call is booked; is the upstream asked
    "after_reserve": (False, False, "worker_lost", False),
    "after_upstream": (False, False, "worker_lost", True),
    "before_commit": (False, False, "worker_lost", True),
    "after_commit": (False, False, "complete", True),
    "after_journal": (False, False, "complete", True),
    "before_last_byte": (True, False, "complete", True),
}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashing]:
    with crashing(tmp_path_factory.mktemp(request.param), request.param) as server:
        yield server


def crashed(server: Crashing, point: str, *, stream: bool) -> None:
    """A call whose worker dies at this point."""
    saw_done, saw_all, _, is_asked = POINTS[point]
    before = len(server.provider.requests)
    if point == "after_journal":
        server.arm("reply_lost")
    server.arm(point)
    seen = server.ask(f"{point}-{stream}", stream=stream)
    assert server.reached(point)
    assert point != "after_journal" or server.reached("reply_lost")
    assert (seen.ended, seen.clean) == (saw_done if stream else saw_all, False)
    assert len(server.provider.requests) - before == is_asked


def test_a_worker_that_dies_at_any_point_leaves_one_entry(server: Crashing, request: pytest.FixtureRequest, measured: Measured) -> None:
    with server.watching() as open_s:
        for point in POINTS:
            for stream in (True, False):
                crashed(server, point, stream=stream)
        settled(server.gateway)
    seconds = max(open_s.values())
    booked, findings = server.entries(), server.findings()
    measured(28, f"{request.node.callspec.id}: {2 * len(POINTS)} crashes, point by point: every hold ended within {seconds:.1f} s (10); {findings}")
    for point, (_, _, ending, _) in POINTS.items():
        for stream in (True, False):
            entries = [(entry.ending, entry.amount) for entry in booked[f"{point}-{stream}"]]
            assert entries == [(ending, server.cost if ending == "complete" else 0)], f"{point}, stream: {stream}"
    assert findings == CLEAN
    assert seconds <= SOON_S


# bookings that arrive twice


def replayed(server: Crashing, model: str, key: str = "") -> None:
    """The reply of the settle's COMMIT gets lost: the booking goes to the journal too, and from there into the books again."""
    server.arm("reply_lost")
    assert server.ask(model, stream=True, key=key).clean
    assert server.reached("reply_lost")


def expired(server: Crashing, model: str, reapers: int = 1, *, replay: bool = False) -> None:
    """So many reapers take a call for dead that is still under way, and then ends well."""
    server.provider.script(CHAT_UPSTREAM, Delay(0.5))
    if replay:
        server.arm("reply_lost")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.ask, model, stream=True)
        deadline = time.monotonic() + 5
        while not server.gateway.read(holds.owners):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert server.expire(times=reapers) == 1
        assert call.result().clean
    assert not replay or server.reached("reply_lost")


TWICE: dict[str, Callable[[Crashing, str], None]] = {
    "replayed": replayed,
    "replayed-without-budget": lambda server, model: replayed(server, model, server.free_key),
    "expired": expired,
    "expired-twice": lambda server, model: expired(server, model, 2),
    "expired-and-replayed": lambda server, model: expired(server, model, replay=True),
}


def test_a_booking_that_arrives_twice_counts_once(server: Crashing) -> None:
    for model, scenario in TWICE.items():
        scenario(server, model)
    settled(server.gateway)
    booked = {model: [(entry.kind, entry.ending, entry.amount) for entry in entries] for model, entries in server.entries().items() if model in TWICE}
    once = [("usage", "complete", server.cost)]
    late = [("usage", "worker_lost", 0), ("adjust", "complete", server.cost)]
    assert booked == {model: late if model.startswith("expired") else once for model in TWICE}
    assert server.findings() == CLEAN


# mutants


def test_the_checks_find_each_broken_promise(server: Crashing, request: pytest.FixtureRequest, measured: Measured) -> None:
    """The last one here: the books are not what they were."""
    server.seen.clear()
    with mutant(server, "settle_after_answer"):
        server.arm("before_commit")
        assert server.ask("late", stream=True).ended
    late = server.findings()
    server.seen.clear()
    with mutant(server, "no_guard"):
        replayed(server, "unguarded")
    unguarded = server.findings()
    server.gateway.write(lambda: database.execute_sql("DROP INDEX entry_original"))
    with mutant(server, "no_unique_constraint"):
        replayed(server, "doubled", server.free_key)
    doubled = server.findings()
    told = f"settled after the answer: {late.lost} lost; no guard: {len(unguarded.differences)} differences; no unique constraint: {doubled.doubled} doubled"
    measured(28, f"{request.node.callspec.id}, broken on purpose: {told}")
    assert late == Findings(["late"], [], ())
    assert (unguarded.lost, unguarded.doubled) == ([], [])
    assert len(unguarded.differences) == 2
    assert doubled.doubled == ["doubled"]


@contextlib.contextmanager
def mutant(server: Crashing, name: str) -> Iterator[None]:
    """Until what was begun has come to rest."""
    server.arm(name)
    yield
    settled(server.gateway)
    server.disarm(name)
