from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.core.catalog import Deployment, Snapshot
from gateway.core.exchange import Exchange
from gateway.core.routing import Router
from gateway.errors import BadRequest, GatewayError, ModelNotFound, NoDeploymentAvailable, PermissionDenied, StoreUnavailable
from gateway.store.catalog import Price
from tests.factories import Scripted, call, deployment, exchange, price, principal


class ChatOnly(Scripted):
    dialects = frozenset({"openai_chat"})


def router(deployments: dict[str, list[Deployment]], prices: dict[str, list[Price]] | None = None, unpriced: str = "free") -> Router:
    globs = [name for name in deployments if "*" in name]
    catalog: Any = SimpleNamespace(snapshot=Snapshot(1, deployments, globs, prices or {}, [name for name in prices or {} if "*" in name]))
    return Router(catalog, unpriced)


def asked(model: str = "m", *, models: tuple[str, ...] = (), dialect: str = "openai_chat", path: str = "/chat/completions") -> Exchange:
    made = exchange(call(dialect=dialect, path=path), model=model)
    made.principal = principal(models=models)
    return made


def ready(name: str, **fields: Any) -> Deployment:
    return deployment(name, **({"backend": Scripted()} | fields))


def test_candidates_come_by_priority() -> None:
    made = asked()
    found = router({"m": [ready("last", priority=9), ready("first", priority=0), ready("second", priority=1), ready("equal", priority=0)]}).candidates(made)
    assert [each.deployment.name for each in found] == ["first", "equal", "second", "last"]


def test_alias_is_priced_under_the_upstreams_name() -> None:
    real = price("real", rate=5)
    (found,) = router({"m": [ready("a", upstream_model="real")]}, {"real": [real], "m": [price("m", rate=1)]}).candidates(asked())
    assert (found.model, found.price) == ("real", real)


def test_name_behind_a_glob_is_passed_on() -> None:
    (found,) = router({"gpt-*": [ready("a")]}).candidates(asked("gpt-9"))
    assert found.model == "gpt-9"


def test_unknown_model_is_a_404_that_says_where_to_look() -> None:
    with pytest.raises(ModelNotFound, match="GET /v1/models") as caught:
        router({"m": [ready("a")]}).candidates(asked("other"))
    assert (caught.value.status, caught.value.param) == (404, "model")


def test_before_the_first_catalog_nothing_is_unknown_and_the_client_is_told_to_come_back() -> None:
    catalog: Any = SimpleNamespace(snapshot=Snapshot(-1, {}, (), {}))
    with pytest.raises(StoreUnavailable) as caught:
        Router(catalog, "free").candidates(asked())
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)


def test_model_without_deployments_is_not_there() -> None:
    with pytest.raises(ModelNotFound):
        router({"m": [], "*": [ready("a")]}).candidates(asked("m"))


def test_model_that_the_key_may_not_use_is_a_403() -> None:
    with pytest.raises(PermissionDenied) as caught:
        router({"m": [ready("a")]}).candidates(asked("m", models=("n", "o-*")))
    assert caught.value.code == "model_not_allowed"


def test_exclusions_are_noted_with_their_reasons() -> None:
    made = asked(dialect="openai_rest", path="/embeddings")
    deployments = [ready("ok"), ready("broken", problem="it needs a credential and has none"), ready("absent", backend=None), ready("chat", backend=ChatOnly())]
    found = router({"m": deployments}).candidates(made)
    assert [each.deployment.name for each in found] == ["ok"]
    assert made.candidates == ["ok", "broken", "absent", "chat"]
    assert made.excluded == {"broken": "unusable", "absent": "unusable", "chat": "endpoint_not_served"}


@pytest.mark.parametrize(
    ("deployments", "error", "code"),
    [
        ([("chat", {"backend": ChatOnly()})], BadRequest, "endpoint_not_served"),
        ([("broken", {"problem": "why"})], NoDeploymentAvailable, "no_deployment_available"),
        ([("broken", {"problem": "why"}), ("chat", {"backend": ChatOnly()})], NoDeploymentAvailable, "no_deployment_available"),
    ],
)
def test_where_nothing_is_usable_the_error_says_whose_matter_it_is(deployments: list[tuple[str, dict[str, Any]]], error: type[GatewayError], code: str) -> None:
    with pytest.raises(error) as caught:
        router({"m": [ready(name, **fields) for name, fields in deployments]}).candidates(asked(dialect="openai_rest", path="/embeddings"))
    assert caught.value.code == code
    assert "why" not in str(caught.value)


def test_unpriced_model_is_served_where_the_operator_lets_it() -> None:
    (found,) = router({"m": [ready("a")]}, unpriced="free").candidates(asked())
    assert found.price is None


def test_unpriced_model_is_refused_where_the_operator_says_so() -> None:
    made = asked()
    with pytest.raises(PermissionDenied) as caught:
        router({"m": [ready("a")]}, unpriced="refuse").candidates(made)
    assert caught.value.code == "model_not_priced"
    assert made.excluded == {"a": "no_price"}


def test_the_price_of_every_name_is_the_default_for_models_without_one_and_lets_them_be_served() -> None:
    own, default = price("known"), price("*", rate=5)
    made = router({"known": [ready("a")], "new": [ready("b")]}, {"known": [own], "*": [default]}, unpriced="refuse")
    assert [made.candidates(asked(model))[0].price for model in ("known", "new")] == [own, default]


def test_priced_deployment_serves_beside_an_unpriced_one() -> None:
    priced = price("real", rate=0)
    found = router({"m": [ready("a"), ready("b", upstream_model="real")]}, {"real": [priced]}, unpriced="refuse").candidates(asked())
    assert [each.deployment.name for each in found] == ["b"]


def test_price_that_is_not_in_force_yet_is_none() -> None:
    made = asked()
    later = price("m", valid_from=made.at + 1)
    (found,) = router({"m": [ready("a")]}, {"m": [later]}).candidates(made)
    assert found.price is None
    in_force = price("m", valid_from=made.at)
    (found,) = router({"m": [ready("a")]}, {"m": [later, in_force]}).candidates(made)
    assert found.price is in_force
