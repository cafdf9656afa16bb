from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.backend import Target
from gateway.core.catalog import Deployment, Snapshot, is_glob
from gateway.core.listing import DEADLINE_S, KEEP_FAILURE_S, KEEP_S, Listing
from gateway.errors import StoreUnavailable, UpstreamUnreachable
from gateway.store.catalog import Price
from tests.factories import Clock, Scripted, deployment, price, principal


class Lister(Scripted):
    """Lists what it is told to; an exception is raised."""

    def __init__(self, *names: str, error: Exception | None = None, asking: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.names, self.error, self.asking = list(names), error, asking
        self.asked: list[tuple[Target, float]] = []

    def models(self, target: Target, deadline: float) -> list[str]:
        self.asked.append((target, deadline))
        self.asking()
        if self.error is not None:
            raise self.error
        return self.names


class Stage:
    def __init__(
        self, deployments: dict[str, list[Deployment]], prices: dict[str, list[Price]] | None = None, unpriced: str = "free", generation: int = 1
    ) -> None:
        self.clock = Clock()
        globs = sorted(filter(is_glob, deployments), key=len, reverse=True)
        catalog: Any = SimpleNamespace(snapshot=Snapshot(generation, deployments, globs, prices or {}))
        self.listing = Listing(catalog, unpriced, self.clock)

    def names(self, *models: str) -> list[str]:
        return self.listing.names(principal(models=models))


def behind(backend: Scripted, name: str = "any", **fields: Any) -> list[Deployment]:
    return [deployment(name, backend=backend, **fields)]


def test_names_of_the_catalog_are_listed_in_order() -> None:
    stage = Stage({"b": behind(Scripted(), "1"), "a": behind(Scripted(), "2")})
    assert stage.names() == ["a", "b"]


def test_before_the_first_catalog_nobody_is_told_that_there_is_nothing() -> None:
    with pytest.raises(StoreUnavailable) as caught:
        Stage({}, generation=-1).names()
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)


def test_only_what_the_key_may_use_is_listed() -> None:
    stage = Stage({"gpt-4o": behind(Scripted(), "1"), "m": behind(Scripted(), "2"), "*": behind(Lister("gpt-x", "claude"))})
    assert stage.names("gpt-*") == ["gpt-4o", "gpt-x"]
    assert stage.names("nothing") == []


def test_model_without_a_usable_deployment_is_not_listed() -> None:
    broken = deployment("broken", problem="why")
    assert Stage({"a": [broken], "b": [broken, *behind(Scripted())], "c": []}).names() == ["b"]


def test_names_behind_a_glob_are_those_that_its_upstream_lists_and_it_covers() -> None:
    assert Stage({"gpt-*": behind(Lister("gpt-4o", "whisper-1", "gpt-5"))}).names() == ["gpt-4o", "gpt-5"]


def test_upstream_does_not_speak_for_what_another_glob_covers() -> None:
    deployments = {"gpt-*": behind(Lister("gpt-4o", "claude-3"), "a"), "claude-*": behind(Lister("claude-4"), "b")}
    assert Stage(deployments).names() == ["claude-4", "gpt-4o"]


def test_glob_itself_is_not_listed() -> None:
    assert Stage({"*": behind(Lister())}).names() == []


def test_glob_that_leads_to_one_model_lists_none() -> None:
    assert Stage({"gpt-*": behind(Lister("gpt-4o"), upstream_model="gpt-4o")}).names() == []


def test_name_that_a_broken_model_stands_before_is_not_listed() -> None:
    deployments = {"gpt-4": [deployment("broken", problem="why")], "gpt-5*": [], "*": behind(Lister("gpt-4", "gpt-5", "gpt-6"))}
    assert Stage(deployments).names() == ["gpt-6"]


def test_what_has_no_price_is_not_listed_where_it_is_refused() -> None:
    deployments = {"priced": behind(Scripted(), "1"), "free": behind(Scripted(), "2"), "alias": behind(Scripted(), "3", upstream_model="priced")}
    prices = {"priced": [price("priced", rate=0)]}
    assert Stage(deployments, prices, "refuse").names() == ["alias", "priced"]
    assert Stage(deployments, prices, "free").names() == ["alias", "free", "priced"]


def test_backend_that_lists_nothing_is_passed_over() -> None:
    assert Stage({"*": behind(Scripted()), "m": behind(Scripted(), "m")}).names() == ["m"]


def test_list_is_kept_for_five_minutes() -> None:
    lister = Lister("a")
    stage = Stage({"*": behind(lister)})
    assert stage.names() == ["a"]
    lister.names = ["b"]
    stage.clock.now += KEEP_S - 1
    assert stage.names() == ["a"]
    stage.clock.now += 2
    assert stage.names() == ["b"]
    assert len(lister.asked) == 2


def test_upstream_is_asked_with_its_own_secret_and_a_deadline() -> None:
    lister = Lister()
    stage = Stage({"*": behind(lister, base_url="http://u/v1")})
    stage.names()
    ((target, deadline),) = lister.asked
    assert (target.base_url, target.secret.reveal(), deadline) == ("http://u/v1", "sk-secret", stage.clock.now + DEADLINE_S)


@pytest.mark.parametrize("error", [UpstreamUnreachable("no"), KeyError("a stranger's mistake")])
def test_list_that_cannot_be_had_is_left_out_and_asked_for_again_later(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    lister = Lister("a", error=error)
    stage = Stage({"*": behind(lister), "m": behind(Scripted(), "m")})
    with caplog.at_level(logging.WARNING):
        assert stage.names() == ["m"]
    assert "could not be listed" in caplog.text
    lister.error = None
    assert stage.names() == ["m"]
    stage.clock.now += KEEP_FAILURE_S + 1
    assert stage.names() == ["a", "m"]


def test_many_clients_at_once_ask_an_upstream_once() -> None:
    answering = threading.Event()
    lister = Lister("a", asking=lambda: answering.wait(5))
    stage = Stage({"*": behind(lister)})
    found: list[list[str]] = []
    clients = [threading.Thread(target=lambda: found.append(stage.names())) for _ in range(5)]
    for client in clients:
        client.start()
    answering.set()
    for client in clients:
        client.join()
    assert found == [["a"]] * 5
    assert len(lister.asked) == 1


def test_upstream_that_hangs_is_left_out_after_its_deadline_and_not_waited_for_again() -> None:
    release = threading.Event()
    lister = Lister("a", asking=lambda: release.wait(30))
    stage = Stage({"*": behind(lister), "m": behind(Scripted(), "m")})
    assert stage.names() == ["m"]
    asked_again = time.monotonic()
    assert stage.names() == ["m"]
    assert time.monotonic() - asked_again < DEADLINE_S
    assert len(lister.asked) == 1
    release.set()
