from __future__ import annotations

import pytest

from gateway.core.admission import Admission
from gateway.errors import Draining
from tests.factories import candidate, exchange, price


def test_prices_are_agreed_when_the_call_begins() -> None:
    dear, free = price(rate=7), None
    reservation = Admission().admit(exchange(), [candidate("a", price=dear), candidate("b", price=free)])
    assert reservation.prices == {"a": dear, "b": None}


def test_draining_worker_says_so_and_still_admits() -> None:
    admission = Admission()
    admission.drain()
    assert admission.draining
    admission.admit(exchange(), [candidate()])


def test_stopped_worker_admits_nobody_and_says_when_to_come_back() -> None:
    admission = Admission()
    admission.stop()
    with pytest.raises(Draining) as caught:
        admission.admit(exchange(), [candidate()])
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)
