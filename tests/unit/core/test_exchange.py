from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from gateway.core.exchange import Attempt, Ending, OpenExchanges, ending_of, new_id
from gateway.errors import Cancelled, NoDeploymentAvailable, UpstreamInterrupted, UpstreamTimeout
from tests.factories import Clock, StillClient, call, exchange, principal


class CountingLease:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class UnwatchableClient(StillClient):
    def on_leave(self, callback: Callable[[], None]) -> None:
        raise OSError("its socket is closed")


def test_ids_sort_by_time_and_never_repeat() -> None:
    ids = [new_id(at) for at in (1, 1, 2, 1 << 40, (1 << 48) - 1)]
    assert [len(each) for each in ids] == [26] * 5
    assert len(set(ids)) == 5
    assert sorted(ids)[2:] == ids[2:]
    assert not set("".join(ids)) & set("ILOUabcdefghijklmnopqrstuvwxyz")


def test_open_exchange_is_counted_until_it_is_released() -> None:
    exchanges = OpenExchanges("owner")
    first = exchanges.begin(call(), principal(), StillClient(), "/chat/completions", "m")
    exchanges.begin(call(), principal(), StillClient(), "/chat/completions", "m")
    assert len(exchanges) == 2
    first.release()
    first.release()
    assert len(exchanges) == 1


def test_client_that_leaves_gives_the_call_up() -> None:
    client = StillClient()
    begun = exchange(client=client)
    assert not begun.left
    client.leave()
    assert begun.left
    assert begun.call.cancel.reason == "client_gone"


def test_client_that_cannot_be_watched_leaves_nothing_open() -> None:
    exchanges = OpenExchanges("owner")
    with pytest.raises(OSError, match="closed"):
        exchanges.begin(call(), principal(), UnwatchableClient(), "/chat/completions", "m")
    assert len(exchanges) == 0


def test_release_ends_the_watch_and_gives_the_lease_back() -> None:
    client, lease = StillClient(), CountingLease()
    begun = exchange(client=client)
    begun.lease = lease
    begun.release()
    assert client.disarmed == 1
    assert lease.closed == 1


def test_giving_up_cancels_every_call_and_calls_no_client_gone() -> None:
    exchanges = OpenExchanges("owner")
    begun = [exchanges.begin(call(), principal(), StillClient(), "/chat/completions", "m") for _ in range(3)]
    exchanges.give_up("draining")
    assert [each.call.cancel.reason for each in begun] == ["draining"] * 3
    assert not any(each.left for each in begun)


def test_receipt_tells_what_happened_in_milliseconds() -> None:
    clock = Clock()
    begun = exchange(clock=clock)
    begun.candidates, begun.excluded = ["a", "b", "c"], {"c": "unusable"}
    begun.attempts = [
        Attempt("a", "a-key", "up", clock.now + 0.010, "upstream_timeout", None, clock.now + 0.110),
        Attempt("b", "b-key", "up", clock.now + 0.110, "answered", 200, clock.now + 0.150),
    ]
    begun.first_byte, begun.status, begun.ending = clock.now + 0.150, 200, Ending.COMPLETE
    clock.now += 0.2
    receipt = json.loads(json.dumps(begun.receipt()))
    assert receipt["candidates"] == ["a", "b", "c"]
    assert receipt["excluded"] == [{"deployment": "c", "reason": "unusable"}]
    assert [(each["deployment"], each["outcome"], each["status"], each["ms"]) for each in receipt["attempts"]] == [
        ("a", "upstream_timeout", None, 100),
        ("b", "answered", 200, 40),
    ]
    assert (receipt["first_byte_ms"], receipt["total_ms"], receipt["status"], receipt["ending"]) == (150, 200, 200, "complete")


def test_receipt_names_fifty_of_those_that_were_passed_over_and_counts_the_rest() -> None:
    ex = exchange()
    ex.excluded = {f"d/{number}": "rate_limited" for number in range(1000)}
    receipt = ex.receipt()
    assert (len(receipt["excluded"]), receipt["excluded_more"]) == (50, 950)


def test_receipt_holds_no_content() -> None:
    begun = exchange(call(b'{"model":"m","messages":[{"role":"user","content":"my secret words"}]}'))
    assert "secret" not in json.dumps(begun.receipt())


def test_attempt_under_way_has_no_duration() -> None:
    begun = exchange()
    begun.attempts = [Attempt("a", None, "m", begun.started)]
    (attempt,) = begun.receipt()["attempts"]
    assert (attempt["outcome"], attempt["ms"]) == ("pending", None)


@pytest.mark.parametrize(
    ("error", "attempts", "left", "ending"),
    [
        (NoDeploymentAvailable("none"), 0, False, Ending.REFUSED),
        (NoDeploymentAvailable("none"), 1, False, Ending.UPSTREAM_ERROR),
        (UpstreamTimeout("late", phase="total"), 1, False, Ending.TIMEOUT),
        (UpstreamInterrupted("cut"), 2, False, Ending.UPSTREAM_ERROR),
        (Cancelled("client_gone"), 1, True, Ending.CLIENT_GONE),
        (UpstreamTimeout("late", phase="total"), 1, True, Ending.CLIENT_GONE),
        (Cancelled("draining"), 1, False, Ending.UPSTREAM_ERROR),
        (KeyError("bug"), 1, False, Ending.UPSTREAM_ERROR),
    ],
)
def test_ending_of_a_call_that_failed_before_its_answer(error: Exception, attempts: int, left: bool, ending: Ending) -> None:
    begun = exchange()
    begun.attempts = [Attempt("a", None, "m", 0.0)] * attempts
    begun.left = left
    assert ending_of(error, begun) is ending
