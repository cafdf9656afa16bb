from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.backend import Services
from gateway.core.admission import Admission
from gateway.core.catalog import Backends, Catalog
from gateway.errors import Draining, StoreUnavailable
from gateway.secrets import Vault
from gateway.settings import Settings
from tests.factories import Books, call_limits, candidate, exchange, migrated, price

Admissions = Callable[[bool], Admission]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[tuple[Catalog, Admissions]]:
    """A catalog, and admissions over it, told whether they serve while the database is away."""
    with migrated(tmp_path) as database:
        catalog = Catalog(database, Vault({1: b"m" * 32}, 1), Backends(Services()), Settings().deadlines, None, lambda *secrets: None)
        yield catalog, lambda serves: Admission(call_limits(catalog, tmp_path), Books(database, tmp_path).holds, catalog, serves)


@pytest.fixture
def admission(made: tuple[Catalog, Admissions]) -> Admission:
    return made[1](False)


def test_prices_are_agreed_when_the_call_begins(admission: Admission) -> None:
    dear, free = price(rate=7), None
    reservation = admission.admit(exchange(), [candidate("a", price=dear), candidate("b", price=free)])
    assert (reservation.prices, reservation.held) == ({"a": dear, "b": None}, False)


def test_draining_worker_says_so_and_still_admits(admission: Admission) -> None:
    admission.drain()
    assert admission.draining
    admission.admit(exchange(), [candidate()])


def test_stopped_worker_admits_nobody_and_says_when_to_come_back(admission: Admission) -> None:
    admission.stop()
    with pytest.raises(Draining) as caught:
        admission.admit(exchange(), [candidate()])
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)


def test_without_a_database_calls_are_served_only_where_the_operator_says_so(made: tuple[Catalog, Admissions]) -> None:
    catalog, admissions = made
    catalog.reachable = False
    with pytest.raises(StoreUnavailable):
        admissions(False).admit(exchange(), [candidate()])
    assert not admissions(True).admit(exchange(), [candidate()]).held


def test_where_nothing_can_be_booked_nobody_is_admitted_and_no_upstream_is_paid(made: tuple[Catalog, Admissions], tmp_path: Path) -> None:
    catalog, stuck = made[0], [True]
    admission = Admission(call_limits(catalog, tmp_path), Books(None, tmp_path).holds, catalog, True, lambda: stuck[0])
    with pytest.raises(StoreUnavailable) as caught:
        admission.admit(exchange(), [candidate()])
    assert caught.value.retry_after_s == 2.0
    stuck[0] = False
    assert not admission.admit(exchange(), [candidate()]).held
