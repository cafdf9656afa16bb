from __future__ import annotations

import dataclasses

import pytest

from gateway.backend import Secret
from gateway.errors import NotFound
from gateway.operations import keys, prices, routes, users
from gateway.operations.catalog import Wishes, create_deployment
from gateway.operations.credentials import create_credential, disable_credential
from gateway.operations.routes import Explanation
from gateway.secrets import Secrets
from gateway.settings import Settings
from gateway.store.database import Database
from tests.unit.operations.times import AT


@pytest.fixture
def key(database: Database, secrets: Secrets) -> str:
    users.create_user(database, "ann", AT)
    return str(keys.create_key(database, secrets.hasher, "ann", AT, label="laptop", models=("m", "gpt-*")).key.id)


def explained(
    database: Database, secrets: Secrets, settings: Settings, model: str = "m", endpoint: str = "/chat/completions", key: str = "laptop"
) -> Explanation:
    dialect = "openai_chat" if endpoint == "/chat/completions" else "openai_rest"
    return routes.explain(database, secrets.vault, settings, key, model, endpoint, dialect, AT)


def test_candidates_come_by_priority_with_their_price(database: Database, secrets: Secrets, settings: Settings, key: str) -> None:
    create_deployment(database, "second", "m", "echo", AT, Wishes(priority=1, upstream_model="u"))
    create_deployment(database, "first", "m", "echo", AT, Wishes())
    price = prices.set_price(database, "u", {"input_uncached": 5}, AT)
    found = explained(database, secrets, settings)
    assert [(item.deployment.name, item.model, item.price) for item in found.candidates] == [("first", "m", None), ("second", "u", price)]
    assert (found.refusal, found.excluded) == ("", ())


def test_who_is_excluded_is_named_with_the_reason_and_the_detail(database: Database, secrets: Secrets, settings: Settings, key: str) -> None:
    create_credential(database, secrets, "main", Secret("sk-secret"), AT)
    create_deployment(database, "off", "m", "openai", AT, Wishes(credential="main"))
    create_deployment(database, "bare", "m", "openai", AT, Wishes())
    create_deployment(database, "fine", "m", "echo", AT, Wishes())
    disable_credential(database, "main", AT)
    found = explained(database, secrets, settings)
    assert [item.deployment.name for item in found.candidates] == ["fine"]
    assert {(item.deployment, item.reason, item.detail) for item in found.excluded} == {
        ("off", "unusable", "its credential is disabled"),
        ("bare", "unusable", "it needs a credential and has none"),
    }


def test_an_endpoint_that_the_backend_does_not_serve_is_the_clients_mistake(database: Database, secrets: Secrets, settings: Settings, key: str) -> None:
    create_deployment(database, "d", "m", "echo", AT, Wishes())
    found = explained(database, secrets, settings, endpoint="/embeddings")
    assert found.candidates == ()
    assert "does not serve /embeddings" in found.refusal
    assert [item.reason for item in found.excluded] == ["endpoint_not_served"]


def test_an_unknown_model_and_a_forbidden_one_are_told_apart(database: Database, secrets: Secrets, settings: Settings, key: str) -> None:
    create_deployment(database, "d", "other", "echo", AT, Wishes())
    unknown, forbidden = (explained(database, secrets, settings, model=model) for model in ("m", "other"))
    assert (unknown.found, forbidden.found) == (False, True)
    assert "does not exist" in unknown.refusal
    assert "may not use" in forbidden.refusal


def test_a_key_that_is_refused_is_said_to_be(database: Database, secrets: Secrets, settings: Settings, key: str) -> None:
    create_deployment(database, "d", "m", "echo", AT, Wishes())
    keys.revoke_key(database, key, AT)
    found = explained(database, secrets, settings)
    assert found.refusal == "The key is refused: revoked."
    assert len(found.candidates) == 1


def test_a_key_that_may_only_read_its_usage_is_said_to(database: Database, secrets: Secrets, settings: Settings, key: str) -> None:
    create_deployment(database, "d", "m", "echo", AT, Wishes())
    keys.set_key(database, key, AT, scopes=("usage:read",))
    assert "no scope 'inference'" in explained(database, secrets, settings).refusal


def test_a_model_without_a_price_is_refused_where_the_settings_say_so(database: Database, secrets: Secrets, refusing: Settings, key: str) -> None:
    create_deployment(database, "d", "m", "echo", AT, Wishes())
    found = explained(database, secrets, refusing)
    assert [item.reason for item in found.excluded] == ["no_price"]
    assert "has no price" in found.refusal


def test_the_deployment_of_the_environment_is_among_the_candidates(database: Database, secrets: Secrets, settings: Settings, key: str) -> None:
    found = explained(database, secrets, dataclasses.replace(settings, openai_api_key=Secret("sk-environment")), model="gpt-5")
    assert [item.deployment.name for item in found.candidates] == ["environment"]
    assert "sk-environment" not in repr(found)


def test_an_explanation_books_nothing_and_needs_a_key_that_exists(database: Database, secrets: Secrets, settings: Settings, key: str) -> None:
    with pytest.raises(NotFound, match="'tablet'"):
        explained(database, secrets, settings, key="tablet")
